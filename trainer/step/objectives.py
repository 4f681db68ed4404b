"""What the default Trainer makes of `loss` and `metrics`: Keras' names and objects, one output or a nest of them.

Everything here is traced, per replica. Losses come out as values per example
and are reduced in one place (tally.py); metrics are Keras metrics.
"""

import difflib
import functools
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from trainer.step.autograph import convert
from trainer.step.label_checks import check_binary_labels, check_logits
from trainer.step.variables import stable_names

SINGLE_OUTPUT = "main"


class Weighted(NamedTuple):
    """A metric that wants the batch's sample weights."""

    metric: Any


def weighted(metric):
    """Declares that `metric` (a Keras metric or its name) is to be given the sample weights of the batch."""
    return Weighted(metric)


class OutputMetric(NamedTuple):
    """A built metric, the output that it watches, and whether it takes sample weights."""

    metric: keras.metrics.Metric
    output: str
    weighted: bool


def by_output(predictions, names=None):
    """Returns {output name: tensor} of a nest of model outputs; a single output is called `main`.

    Args:
        predictions: a tensor, or a dict, list or tuple of tensors.
        names: the model's own names for a list or tuple of outputs, if it has any.
    """
    if isinstance(predictions, dict):
        flat = {}
        for key, value in predictions.items():
            for name, tensor in by_output(value).items():
                flat[key if name == SINGLE_OUTPUT else f"{key}/{name}"] = tensor
        return flat
    if isinstance(predictions, (list, tuple)):
        if names is None or len(names) != len(predictions):
            names = [f"output_{i}" for i in range(len(predictions))]
        twice = sorted({name for name in names if list(names).count(name) > 1})
        if twice:
            raise ValueError(
                f"The model has several outputs named {', '.join(twice)}; their losses and metrics could not be told "
                "apart. Give each output a name of its own, e.g. with keras.layers.Identity(name=...)."
            )
        return dict(zip(names, predictions))
    return {SINGLE_OUTPUT: predictions}


def match(argument, nest, outputs, names=None):
    """Returns {output name: part of `nest`} for those of `outputs` that `nest` says something about.

    A nest has the structure of the outputs; a single value serves all of them.
    """
    if isinstance(nest, dict):
        flat = by_output(nest)
        for name in flat:
            if name not in outputs:
                near = difflib.get_close_matches(name, outputs, 1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(
                    f"`{argument}` names the output {name!r}, but the model's outputs are {', '.join(outputs)}.{hint}"
                )
        return {name: value for name, value in flat.items() if value is not None}
    if isinstance(nest, (list, tuple)) and not isinstance(nest, Weighted):
        if len(nest) != len(outputs):
            raise ValueError(
                f"`{argument}` has {len(nest)} parts, but the model has {len(outputs)} outputs: {', '.join(outputs)}."
            )
        return {name: value for name, value in zip(outputs, nest) if value is not None}
    return dict.fromkeys(outputs, nest)


def check_loss(loss):
    """Raises for what cannot serve as `loss`; returns it with names replaced by Keras' functions."""
    if isinstance(loss, dict):
        return {key: check_loss(value) for key, value in loss.items()}
    if isinstance(loss, (list, tuple)):
        return [check_loss(value) for value in loss]
    if loss is None:
        return None
    if isinstance(loss, str):
        try:
            loss = keras.losses.get(loss)
        except ValueError:
            raise ValueError(f"`loss` must be a name that keras.losses.get knows, got {loss!r}.") from None
    if isinstance(loss, type):
        raise ValueError(f"`loss` must be a loss, got the class {loss.__name__}. In gin, call it: @{loss.__name__}().")
    if isinstance(loss, keras.losses.Loss) and loss.reduction in ("sum", "none", None):
        raise ValueError(
            f"`loss` {loss.name!r} has reduction={loss.reduction!r}; the trainer reduces values per example over the "
            "global batch itself. Leave `reduction` at its default."
        )
    if not callable(loss):
        raise ValueError(
            f"`loss` must be a function (targets, predictions) -> [B], a Keras Loss or a name, got {loss!r}."
        )
    return loss


def is_sparse(loss):
    """Whether `loss` takes class ids where the predictions have one number per class."""
    sparse = (keras.losses.SparseCategoricalCrossentropy, keras.losses.sparse_categorical_crossentropy)
    return isinstance(loss, sparse[0]) or loss is sparse[1]


def keras_mask(tensor):
    """Returns the mask that Keras attached to `tensor` (bool, [B, T]), or None. Private to Keras, hence only here."""
    return getattr(tensor, "_keras_mask", None)


def keras_masks(outputs):
    """Returns the masks of all leaves of `outputs`, which may be None: a list of tensors or None."""
    return [] if outputs is None else [keras_mask(leaf) for leaf in tf.nest.flatten(outputs)]


def set_keras_mask(tensor, mask):
    """Attaches `mask` to `tensor` as Keras does; the inverse of `keras_mask`."""
    if mask is not None:
        tensor._keras_mask = mask


def check_targets(loss, targets, sample_weight, outputs, masks):
    """Raises ValueError where a batch's `targets` hold numbers that say nothing about the `outputs`; eager.

    Args:
        loss, targets, sample_weight: nests by output; the last may be None.
        outputs, masks: {output name: TensorSpec}, the mask None where there is none.
    """
    targets = match("targets", targets, outputs)
    weights = match("sample_weight", sample_weight, outputs) if sample_weight is not None else {}
    for name, own in match("loss", loss, outputs).items():
        if is_sparse(own):
            check_class_ids(name, own, targets[name].numpy(), outputs[name].shape[-1])
        else:
            weight = _align(weights[name], targets[name]) if name in weights else None
            check_binary_labels(name, own, targets[name], weight, masked=masks[name] is not None)


def check_class_ids(output, loss, ids, classes):
    """Raises ValueError where `ids` (an integer array) name classes that the predictions do not have."""
    ids = ids[ids != getattr(loss, "ignore_class", None)] if getattr(loss, "ignore_class", None) is not None else ids
    bad = ids[(ids < 0) | (ids >= classes)]
    if bad.size:
        raise ValueError(
            f"Output {output!r} has {classes} scores, for the class ids 0 to {classes - 1}, but the targets hold {bad.flat[0]:g}. "
            "On CPU this is an error in the middle of training, under XLA a NaN. Mend the targets, or the last layer's size. "
            "An element that does not count takes an id that exists and the weight 0, or a loss with `ignore_class`."
        )


def loss_values(output, loss, targets, predictions, sample_weight=None):
    """Returns the loss per example, [B, ...] or a scalar, or (values, mask) where the predictions are masked.

    Sample weights multiply the values and do not change what the sum is
    divided by; masked elements count neither above nor below, as in Keras.

    Raises:
        ValueError: where targets would broadcast against predictions.
    """
    targets, predictions = _to_tensor(targets), _to_tensor(predictions)
    _check_shapes(output, loss, targets, predictions)
    check_logits(output, loss, predictions)
    mask = keras_mask(predictions)
    if isinstance(loss, keras.losses.Loss):
        predictions, targets = tf.cast(predictions, loss.dtype), _cast_targets(targets, loss.dtype)
        values = convert(loss.call)(targets, predictions)
    else:
        values = convert(loss)(targets, predictions)
    values = tf.convert_to_tensor(values)
    if mask is None:
        mask = keras_mask(values)
    elif keras_mask(values) is not None:
        mask = mask & keras_mask(values)
    weights = None
    if sample_weight is not None:
        weights = _align(tf.cast(sample_weight, values.dtype), values)
        values = values * weights
    if getattr(loss, "reduction", None) == "mean_with_sample_weight" and weights is not None:
        # values carry the weights already: dividing once more by them leaves sum(v * w) above and sum(w) below.
        weights = tf.broadcast_to(weights, tf.shape(values))
        if mask is not None:
            weights = tf.where(_align(mask, values), weights, 0)
        return tf.math.divide_no_nan(values, weights), weights
    if mask is None:
        return values
    mask = tf.broadcast_to(_align(tf.cast(mask, tf.bool), values), tf.shape(values))
    return tf.where(mask, values, 0), tf.cast(mask, values.dtype)


def make_metrics(metrics, targets, outputs):
    """Returns {name: OutputMetric} for `metrics`, a list (one output, or the same for each) or a dict by output."""
    found = {}
    for output, listed in _metric_lists(metrics, outputs).items():
        weighs = [isinstance(metric, Weighted) for metric in listed]
        made = [
            _make_metric(metric.metric if weigh else metric, targets.get(output), outputs[output])
            for metric, weigh in zip(listed, weighs)
        ]
        for metric, name, weigh in zip(made, stable_names(made), weighs):
            name = name if len(outputs) == 1 else f"{output}_{name}"
            if name in found:
                raise ValueError(f"`metrics` has two metrics named {name!r}; give each a name of its own.")
            found[name] = OutputMetric(metric, output, weigh)
    return found


def _metric_lists(metrics, outputs):
    if isinstance(metrics, dict):
        lists = match("metrics", {key: _Listed(value) for key, value in metrics.items()}, outputs)
        return {output: listed.metrics for output, listed in lists.items()}
    if not isinstance(metrics, (list, tuple)) or isinstance(metrics, Weighted):
        metrics = [metrics]
    if len(outputs) > 1 and any(
        isinstance(metric, (list, tuple)) and not isinstance(metric, Weighted) for metric in metrics
    ):
        lists = match("metrics", [_Listed(value) for value in metrics], outputs)
        return {output: listed.metrics for output, listed in lists.items()}
    if len(outputs) > 1 and any(isinstance(metric, keras.metrics.Metric) for metric in metrics):
        raise ValueError(
            f"`metrics` is one list for {len(outputs)} outputs; a metric object can watch only one of them. "
            f"Give a dict by output: {', '.join(outputs)}."
        )
    return {output: list(metrics) for output in outputs}


class _Listed:
    """A list of metrics that `match` takes as one value."""

    def __init__(self, metrics):
        self.metrics = metrics if isinstance(metrics, list) else [metrics]


def _make_metric(metric, targets, predictions):
    if isinstance(metric, keras.metrics.Metric):
        return metric
    if metric in ("accuracy", "acc"):
        return _accuracy(targets, predictions)
    if isinstance(metric, str):
        try:
            metric = keras.metrics.get(metric)
        except ValueError:
            raise ValueError(
                f"`metrics` must hold metrics or names that keras.metrics.get knows, got {metric!r}."
            ) from None
    if isinstance(metric, type):
        metric = metric()
    if isinstance(metric, keras.metrics.Metric):
        return metric
    if callable(metric):
        return keras.metrics.MeanMetricWrapper(_converted(metric), name=getattr(metric, "__name__", None))
    raise ValueError(f"`metrics` must hold Keras metrics, functions or names, got {metric!r}.")


def _converted(function):
    """`function`, converted by AutoGraph where it is called in a graph."""
    return functools.wraps(function)(lambda *args, **kwargs: convert(function)(*args, **kwargs))


def _accuracy(targets, predictions):
    """Returns the accuracy that fits the shapes, as Keras' `compile` chooses it."""
    if predictions.shape.rank is not None and (predictions.shape.rank < 2 or predictions.shape[-1] == 1):
        return keras.metrics.BinaryAccuracy(name="accuracy")
    if targets is None or targets.shape.rank < predictions.shape.rank or targets.shape[-1] == 1:
        return keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    return keras.metrics.CategoricalAccuracy(name="accuracy")


def _to_tensor(value):
    return (
        value
        if value is None or isinstance(value, tf.RaggedTensor)
        else tf.nest.map_structure(tf.convert_to_tensor, value)
    )


def _cast_targets(targets, dtype):
    return tf.nest.map_structure(lambda t: t if t is None or t.dtype == tf.string else tf.cast(t, dtype), targets)


def _align(weights, values):
    """Adds or drops trailing axes of 1 so that weights [B] multiply values [B, T] row by row."""
    if weights.shape.rank is None or values.shape.rank is None:
        return weights
    while weights.shape.rank < values.shape.rank:
        weights = weights[..., tf.newaxis]
    if weights.shape.rank == values.shape.rank + 1 and weights.shape[-1] == 1:
        weights = tf.squeeze(weights, -1)
    if weights.shape.rank > values.shape.rank:
        raise ValueError(
            f"`sample_weight` of shape {weights.shape} has more axes than the loss values, {values.shape}; "
            "give one weight per example, or per element of the loss."
        )
    return weights


def _check_shapes(output, loss, targets, predictions):
    """Raises where NumPy's broadcasting would make [B, B] or [B, C] of what should be [B]."""
    if (
        not isinstance(targets, tf.Tensor)
        or not isinstance(predictions, tf.Tensor)
        or getattr(loss, "checks_shapes", False)
    ):
        return
    have, want = targets.shape, predictions.shape
    if have.rank is None or want.rank is None or have.is_compatible_with(want):
        return
    from_keras = isinstance(loss, keras.losses.Loss) or getattr(loss, "__module__", "").startswith("keras.")
    ids = is_sparse(loss) or (not from_keras and targets.dtype.is_integer)
    if ids:
        if (
            not is_sparse(loss)
            or have.is_compatible_with(want[:-1])
            or have.is_compatible_with(want[:-1].concatenate(1))
        ):
            return
        raise ValueError(
            f"Output {output!r}: class ids of shape {have} do not fit predictions of shape {want}; "
            f"they need the shape {want[:-1]}, one id for each row of {want[-1]} scores."
        )
    if from_keras and (have.concatenate(1).is_compatible_with(want) or want.concatenate(1).is_compatible_with(have)):
        return  # Keras squeezes or adds the last axis itself.
    try:
        tf.broadcast_static_shape(have, want)
    except ValueError:
        if not from_keras:
            return  # A function of the user's own may pair any shapes that cannot broadcast.
    raise ValueError(
        f"Output {output!r}: targets of shape {have} would broadcast against predictions of shape {want}; "
        "a loss compares them element by element. Reshape one of them, e.g. targets[:, None], or change the last layer."
    )
