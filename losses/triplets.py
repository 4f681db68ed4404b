"""Losses that make an anchor nearer to its class than to others by a margin, over the global batch."""

import keras
import tensorflow as tf

from losses.base import FunctionLoss, check_positive
from losses.contrastive import NEVER, safe_sqrt, same_class, vectors
from losses.global_batch import all_gather

MINING = ("all", "hard", "semi_hard")


def triplet(labels: tf.Tensor, embeddings: tf.Tensor, margin: float = 1.0, mining: str = "semi_hard") -> tf.Tensor:
    """Returns max(d_ap - d_an + margin, 0) over triplets (Schroff et al. 2015, 1503.03832, eq. 3).

    A triplet is an anchor a, a positive p and a negative n. Distances are Euclidean; normalize embeddings that should
    lie on a sphere. `mining` selects the triplets:

    - "all": every valid one (batch all of Hermans et al. 2017, 1703.07737, eq. 6);
    - "hard": for each anchor the farthest positive and the nearest negative (batch hard, eq. 5);
    - "semi_hard": for each pair the nearest negative beyond the positive, or the farthest negative if
      there is none (Schroff et al., section 3.2).

    Values are scaled such that their mean over the global batch is the mean
    over what counts: triplets, anchors that have both a positive and a negative, positive pairs that have a negative.

    Args:
        labels: class ids [B] or [B, 1]; the Keras class casts them to float32, exact below 2^24.
        embeddings: float [B, D].
        margin: number > 0.
        mining: one of the above. "all" and "semi_hard" hold B^3 numbers over the replicas together.

    Returns:
        float [B]; all 0 without valid triplets.
    """
    _check(margin, mining)
    rows = vectors("embeddings", embeddings)
    everyone = all_gather(rows)
    same, own = same_class(labels, rows, everyone)
    distances = _distances(rows, everyone)
    positive, negative = tf.logical_and(same, tf.logical_not(own)), tf.logical_not(same)
    return _mean_over_counted(rows, *_MINERS[mining](distances, positive, negative, margin))


def _mean_over_counted(rows, summed, counted):
    """Returns [b] whose mean over the global batch is sum(summed) / sum(counted) over all anchors; 0 without any."""
    counts = all_gather(counted)
    values = tf.math.divide_no_nan(summed * tf.cast(tf.size(counts), summed.dtype), tf.reduce_sum(counts))
    return values + 0 * tf.stop_gradient(tf.reduce_sum(rows, 1))  # comparisons and maxima lose NaN, so it is restored


def _distances(rows, everyone):
    """Returns Euclidean distances [b, B], with gradient 0 where two rows are equal."""
    squares = [tf.reduce_sum(tf.square(x), 1) for x in (rows, everyone)]
    products = tf.linalg.matmul(rows, everyone, transpose_b=True)
    return safe_sqrt(squares[0][:, tf.newaxis] - 2 * products + squares[1])


def _all(distances, positive, negative, margin):
    """(sum of the losses, number of triplets) of each anchor, [b]."""
    hinge = tf.maximum(
        distances[:, :, tf.newaxis] - distances[:, tf.newaxis, :] + margin, 0
    )  # [b, positives, negatives]
    valid = tf.logical_and(positive[:, :, tf.newaxis], negative[:, tf.newaxis, :])
    return tf.reduce_sum(tf.where(valid, hinge, 0), [1, 2]), tf.reduce_sum(tf.cast(valid, distances.dtype), [1, 2])


def _hard(distances, positive, negative, margin):
    """(loss of the hardest triplet, 1 if there is one) of each anchor, [b]."""
    far = tf.reduce_max(tf.where(positive, distances, 0), 1)
    near = tf.reduce_min(tf.where(negative, distances, distances.dtype.max), 1)
    valid = tf.logical_and(tf.reduce_any(positive, 1), tf.reduce_any(negative, 1))
    return tf.where(valid, tf.maximum(far - near + margin, 0), 0), tf.cast(valid, distances.dtype)


def _semi_hard(distances, positive, negative, margin):
    """(sum of the losses, number of positive pairs) of each anchor that has a negative, [b]."""
    to_positive = distances[:, :, tf.newaxis]  # [b, positives, negatives]
    beyond = tf.logical_and(negative[:, tf.newaxis, :], distances[:, tf.newaxis, :] > to_positive)
    near = _nearest(distances[:, tf.newaxis, :], beyond)
    farthest = tf.reduce_max(tf.where(negative, distances, 0), 1)
    to_negative = tf.where(tf.reduce_any(beyond, 2), near, farthest[:, tf.newaxis])
    valid = tf.logical_and(positive, tf.reduce_any(negative, 1)[:, tf.newaxis])
    values = tf.where(valid, tf.maximum(distances - to_negative + margin, 0), 0)
    return tf.reduce_sum(values, 1), tf.reduce_sum(tf.cast(valid, distances.dtype), 1)


def _nearest(distances, among):
    """Returns the smallest distance over the last axis where `among` is true; 0 if it never is."""
    smallest = tf.reduce_min(tf.where(among, distances, distances.dtype.max), -1)
    return tf.where(tf.reduce_any(among, -1), smallest, 0)


_MINERS = {"all": _all, "hard": _hard, "semi_hard": _semi_hard}


def _check(margin, mining):
    check_positive("margin", margin)
    if mining not in MINING:
        raise ValueError(f"`mining` must be one of {', '.join(MINING)}, got {mining!r}.")


@keras.saving.register_keras_serializable(package="gradloom")
class Triplet(FunctionLoss):
    """`triplet` as a Keras loss."""

    def __init__(
        self,
        margin: float = 1.0,
        mining: str = "semi_hard",
        reduction="sum_over_batch_size",
        name="triplet",
        dtype=None,
    ):
        _check(margin, mining)
        super().__init__(triplet, {"margin": margin, "mining": mining}, name, reduction, dtype)


def lifted_structure(labels: tf.Tensor, embeddings: tf.Tensor, margin: float = 1.0) -> tf.Tensor:
    """Returns the lifted structured loss (Oh Song et al. 2016, 1511.06452, eq. 4).

    It compares each positive pair with all its negatives:
    max(0, log(sum_{k: y_k != y_i} e^(m - d_ik) + sum_{k: y_k != y_j} e^(m - d_jk)) + d_ij)^2 / 2 for a pair i, j of
    one class, with Euclidean distances d. Values are scaled such that their
    mean over the global batch is the mean over the positive pairs that have a negative.

    Args:
        labels: class ids [B] or [B, 1]; the Keras class casts them to float32, exact below 2^24.
        embeddings: float [B, D].
        margin: number > 0, m.

    Returns:
        float [B]; all 0 without valid triplets.
    """
    check_positive("margin", margin)
    rows = vectors("embeddings", embeddings)
    everyone = all_gather(rows)
    same, own = same_class(labels, rows, everyone)
    distances = _distances(rows, everyone)
    negative = tf.logical_not(same)
    pushed = tf.reduce_logsumexp(
        tf.where(negative, margin - distances, NEVER), 1
    )  # [b], the logarithm of an anchor's sum
    both = tf.reduce_logsumexp(tf.stack(tf.meshgrid(all_gather(pushed), pushed)), 0)  # [b, B]
    valid = tf.logical_and(tf.logical_and(same, tf.logical_not(own)), tf.reduce_any(negative, 1)[:, tf.newaxis])
    values = tf.where(valid, tf.square(tf.maximum(both + distances, 0)) / 2, 0)
    return _mean_over_counted(rows, tf.reduce_sum(values, 1), tf.reduce_sum(tf.cast(valid, values.dtype), 1))


@keras.saving.register_keras_serializable(package="gradloom")
class LiftedStructure(FunctionLoss):
    """`lifted_structure` as a Keras loss."""

    def __init__(self, margin: float = 1.0, reduction="sum_over_batch_size", name="lifted_structure", dtype=None):
        check_positive("margin", margin)
        super().__init__(lifted_structure, {"margin": margin}, name, reduction, dtype)
