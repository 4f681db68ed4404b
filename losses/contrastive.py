"""Losses that compare the examples of a batch with each other, over the global batch.

Each replica returns the values of its own examples and compares them with the
examples of all replicas (`losses.global_batch`). A sample weight or mask scales an
example's own value only. Micro-batches are compared separately. All losses but
`n_pairs` and `contrastive_pairs` use cosines and normalize their inputs.
"""

import keras
import tensorflow as tf

from losses.base import BinaryLoss, FunctionLoss, check_positive, in_unit, to_float
from losses.global_batch import all_gather, first_row, several_replicas

NEVER = (
    -1e9
)  # the logit of an excluded entry: its exponential is 0, and unlike -inf it gives no NaN if all are excluded


def nt_xent(first: tf.Tensor, second: tf.Tensor, temperature: float | tf.Tensor = 0.5) -> tf.Tensor:
    """Returns the NT-Xent loss of two views of each example (SimCLR, Chen et al. 2020, 2002.05709, eq. 1).

    -log(e^(s_ij / t) / sum_{k != i} e^(s_ik / t)) with cosines s, for both
    views i of an example with j the other one, over all 2 B views; the mean of the two.

    Args:
        first, second: float [B, D], views of the same examples in the same order.
        temperature: number > 0, or a scalar tensor to train (keep it above .01); .5 in the paper's small runs.

    Returns:
        float [B]; 0 for a global batch of one example, which has no negatives.

    Example:
        >>> basis = tf.eye(4)  # orthonormal pairs: log(1 + 6 e^-2)
        >>> [round(float(value), 5) for value in nt_xent(basis, basis)]
        [0.59444, 0.59444, 0.59444, 0.59444]
    """
    first, second, everyone_first, everyone_second = _views(first, second, temperature)
    own = _own(first, everyone_first)
    positive = tf.reduce_sum(first * second, -1) / temperature
    everyone, other = tf.concat([everyone_first, everyone_second], 0), tf.zeros_like(own)  # [2 B, D]
    never, values = tf.constant(NEVER, first.dtype), []
    for view, itself in ((first, [own, other]), (second, [other, own])):
        logits = tf.where(tf.concat(itself, 1), never, _cosines(view, everyone, temperature))
        values.append(tf.reduce_logsumexp(logits, 1) - positive)
    return (values[0] + values[1]) / 2


def info_nce(
    queries: tf.Tensor, keys: tf.Tensor, temperature: float | tf.Tensor = 0.07, symmetric: bool = False
) -> tf.Tensor:
    """Returns the InfoNCE loss of matching each query with its key (van den Oord et al. 2018, 1807.03748, eq. 4).

    -log(e^(s_ii / t) / sum_k e^(s_ik / t)) with cosines s. `symmetric` averages it
    with the loss of matching keys to queries: CLIP (Radford et al. 2021, 2103.00020, figure 3).

    Args:
        queries, keys: float [B, D], pairs in the same order.
        temperature: number > 0, or a scalar tensor to train: CLIP starts at .07 and keeps it >= .01.
        symmetric: bool.

    Returns:
        float [B]; 0 for a global batch of one pair.
    """
    queries, keys, everyone_queries, everyone_keys = _views(queries, keys, temperature)
    positive = tf.reduce_sum(queries * keys, -1) / temperature
    values = tf.reduce_logsumexp(_cosines(queries, everyone_keys, temperature), 1)
    if symmetric:
        values = (values + tf.reduce_logsumexp(_cosines(keys, everyone_queries, temperature), 1)) / 2
    return values - positive


def _views(first, second, temperature):
    """Returns both views normalized, [b, D], and those of all replicas, [B, D]."""
    check_positive("temperature", temperature)
    first, second = (tf.math.l2_normalize(view, -1) for view in views(first, second))
    return first, second, *gather_both(first, second)


def views(first, second):
    """Returns two views as floats [B, D]; raises ValueError where their shapes differ."""
    first, second = vectors("first", first), vectors("second", second)
    if not first.shape.is_compatible_with(second.shape):
        raise ValueError(
            f"The two views must have one shape, got {first.shape} and {second.shape}. Their rows are pairs."
        )
    return first, second


def gather_both(first, second):
    """Returns the two views of all replicas, [B, D] each, from one collective."""
    if not several_replicas():
        return first, second
    return tf.split(all_gather(tf.concat([first, second], 1)), 2, 1)


def _own(rows, everyone):
    """Returns bool [b, B]: whether a row of the global batch is this row."""
    places = first_row(rows) + tf.range(tf.shape(rows)[0])
    return tf.equal(places[:, tf.newaxis], tf.range(tf.shape(everyone)[0]))


def _cosines(rows, everyone, temperature):
    return tf.linalg.matmul(rows, everyone, transpose_b=True) / temperature


def vectors(name, x):
    """Returns `x` as floats [B, D]; raises ValueError for any other shape."""
    x = to_float(x)
    if x.shape.rank != 2:
        raise ValueError(
            f"`{name}` must be [B, D], one vector per example, got the shape {x.shape}. Flatten or pool it."
        )
    return x


def _pairs(predictions):
    """Splits [B, 2, D], as a Keras model returns two views, into two [B, D]."""
    predictions = tf.convert_to_tensor(predictions)
    if predictions.shape.rank != 3 or predictions.shape[1] != 2:
        raise ValueError(
            f"`predictions` must be [B, 2, D], two vectors per example, got the shape {predictions.shape}. "
            "Stack the two views: keras.ops.stack([first, second], axis=1)."
        )
    return tf.unstack(predictions, 2, 1)


@keras.saving.register_keras_serializable(package="gradloom")
class NTXent(FunctionLoss):
    """`nt_xent` as a Keras loss on predictions [B, 2, D]; targets are ignored."""

    needs_targets = False

    def __init__(self, temperature: float = 0.5, reduction="sum_over_batch_size", name="nt_xent", dtype=None):
        check_positive("temperature", temperature)
        super().__init__(of_pairs(nt_xent), {"temperature": temperature}, name, reduction, dtype)


@keras.saving.register_keras_serializable(package="gradloom")
class InfoNCE(FunctionLoss):
    """`info_nce` as a Keras loss on predictions [B, 2, D], queries and keys; targets are ignored."""

    needs_targets = False

    def __init__(
        self,
        temperature: float = 0.07,
        symmetric: bool = False,
        reduction="sum_over_batch_size",
        name="info_nce",
        dtype=None,
    ):
        check_positive("temperature", temperature)
        super().__init__(
            of_pairs(info_nce), {"temperature": temperature, "symmetric": symmetric}, name, reduction, dtype
        )


def of_pairs(function):
    """Returns the loss (targets, predictions [B, 2, D]) of a function of two views."""
    return lambda targets, predictions, **arguments: function(*_pairs(predictions), **arguments)


def n_pairs(labels: tf.Tensor, predictions: tf.Tensor) -> tf.Tensor:
    """Returns the multi-class N-pair loss of anchors and positives (Sohn 2016, NeurIPS 29, eq. 6).

    log(1 + sum_{j != i} e^(a_i p_j - a_i p_i)) with inner products of vectors that
    are not normalized (the paper adds a penalty on their squares). Pairs of equal
    label share the target among their positives, as in TensorFlow Addons.

    Args:
        labels: class ids [B] or [B, 1], one for each pair; the Keras class casts them to float32, exact below 2^24.
        predictions: float [B, 2, D], anchors and positives.

    Returns:
        float [B]; 0 for a global batch of one pair.

    Example:
        >>> pairs = tf.stack([tf.eye(4), tf.eye(4)], 1)  # orthonormal: log(1 + 3 e^-1)
        >>> [round(float(value), 5) for value in n_pairs([0, 1, 2, 3], pairs)]
        [0.74367, 0.74367, 0.74367, 0.74367]
    """
    anchors, positives = _pairs(to_float(predictions))
    everyone = all_gather(positives)
    same, _ = same_class(labels, anchors, everyone)
    logits = tf.linalg.matmul(anchors, everyone, transpose_b=True)
    return tf.reduce_logsumexp(logits, 1) - _mean_over(same, logits)


@keras.saving.register_keras_serializable(package="gradloom")
class NPairs(FunctionLoss):
    """`n_pairs` as a Keras loss."""

    def __init__(self, reduction="sum_over_batch_size", name="n_pairs", dtype=None):
        super().__init__(n_pairs, {}, name, reduction, dtype)


def sup_con(labels: tf.Tensor, embeddings: tf.Tensor, temperature: float | tf.Tensor = 0.1) -> tf.Tensor:
    """Returns the supervised contrastive loss L_out (Khosla et al. 2020, 2004.11362, eq. 2).

    It is taken without the factor t / t_base. For an anchor i with positives P(i), the other examples of its class:
    the mean over p in P(i) of -log(e^(s_ip / t) / sum_{a != i} e^(s_ia / t)) with cosines s.
    For two views, concatenate them along the batch and repeat the labels.

    Args:
        labels: class ids [B] or [B, 1]; the Keras class casts them to float32, exact below 2^24.
        embeddings: float [B, D].
        temperature: number > 0, or a scalar tensor to train; .1 in the paper.

    Returns:
        float [B]; 0 for an anchor without positives, which counts in the mean as in the authors' code.
    """
    check_positive("temperature", temperature)
    rows = tf.math.l2_normalize(vectors("embeddings", embeddings), -1)
    everyone = all_gather(rows)
    same, own = same_class(labels, rows, everyone)
    logits = tf.where(own, tf.constant(NEVER, rows.dtype), _cosines(rows, everyone, temperature))
    log_p = logits - tf.reduce_logsumexp(logits, 1, keepdims=True)
    return -_mean_over(tf.logical_and(same, tf.logical_not(own)), log_p)


def _mean_over(chosen, values):
    """Returns the mean over the `chosen` entries of the last axis, 0 if there are none."""
    count = tf.reduce_sum(tf.cast(chosen, values.dtype), 1)
    return tf.math.divide_no_nan(tf.reduce_sum(tf.where(chosen, values, 0), 1), count)


def same_class(labels, rows, everyone):
    """Returns bool [b, B] twice: whether a row of the global batch has this row's label, and whether it is this row."""
    labels = _labels(labels, rows)
    return tf.equal(labels[:, tf.newaxis], all_gather(labels)), _own(rows, everyone)


def _labels(labels, rows):
    """Returns `labels` as [B], one for each of `rows`."""
    labels = tf.convert_to_tensor(labels)
    if labels.shape.rank == 2 and labels.shape[-1] == 1:
        labels = tf.squeeze(labels, -1)
    if labels.shape.rank != 1 or not labels.shape.is_compatible_with(rows.shape[:1]):
        raise ValueError(
            f"`labels` of shape {labels.shape} do not fit embeddings of shape {rows.shape}. Give one class id per "
            "example, [B]."
        )
    return labels


@keras.saving.register_keras_serializable(package="gradloom")
class SupCon(FunctionLoss):
    """`sup_con` as a Keras loss."""

    def __init__(self, temperature: float = 0.1, reduction="sum_over_batch_size", name="sup_con", dtype=None):
        check_positive("temperature", temperature)
        super().__init__(sup_con, {"temperature": temperature}, name, reduction, dtype)


def contrastive_pairs(labels: tf.Tensor, predictions: tf.Tensor, margin: float = 1.0) -> tf.Tensor:
    """Returns y d^2 + (1 - y) max(margin - d, 0)^2 (Hadsell et al. 2006, eq. 4, without its 1/2).

    d is the Euclidean distance of a pair.
    Args:
        labels: [B] or [B, 1], 1 for a positive pair, else 0.
        predictions: float [B, 2, D], pairs of vectors.
        margin: number > 0.

    Returns:
        float [B]. If the two vectors of a negative pair are equal, the gradient is 0.
    """
    check_positive("margin", margin)
    first, second = _pairs(to_float(predictions))
    fix = "1 says that the two belong together; class ids are for `sup_con` and `triplet`."
    labels = in_unit("labels", tf.cast(_labels(labels, first), first.dtype), fix)
    squared = tf.reduce_sum(tf.square(first - second), -1)
    apart = tf.square(tf.minimum(safe_sqrt(squared) - margin, 0))
    return labels * squared + (1 - labels) * apart


def safe_sqrt(x):
    """Square root with gradient 0 at 0, and at small negative numbers from rounding, where its value is 1e-18."""
    return tf.sqrt(tf.maximum(x, 1e-36))


@keras.saving.register_keras_serializable(package="gradloom")
class Contrastive(BinaryLoss):
    """`contrastive_pairs` as a Keras loss."""

    def __init__(self, margin: float = 1.0, reduction="sum_over_batch_size", name="contrastive", dtype=None):
        check_positive("margin", margin)
        super().__init__(contrastive_pairs, {"margin": margin}, name, reduction, dtype)
