"""Losses of the default Trainer: computes Keras losses as values per example.

reduction.py reduces the values.
"""

import keras
import tensorflow as tf

from losses.global_batch import all_gather, first_row, several_replicas
from optimizers.base import keras_object
from trainer.step.autograph import convert
from trainer.step.loss_checks import check_logits, check_shapes, compares_examples, noticing_broadcast
from trainer.step.outputs import align, by_output, keras_mask, match
from trainer.step.reports import kind


def check_loss(loss):
    """Returns `loss` with names replaced by Keras' functions; raises ValueError if it is not a loss."""
    if isinstance(loss, dict):
        return {key: check_loss(value) for key, value in loss.items()}
    if isinstance(loss, (list, tuple)):
        return [check_loss(value) for value in loss]
    if loss is None:
        return None
    if isinstance(loss, str):
        loss = keras_object("loss", "losses", loss)
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


def loss_kinds(loss, names):
    """Returns {loss name: text}: equal texts for equal losses, and one text for all outputs of a single loss."""
    if isinstance(loss, dict):
        by_name = by_output(loss)
        return {name: kind(by_name.get(name)) for name in names}
    return dict.fromkeys(names, ", ".join(kind(part) for part in tf.nest.flatten(loss)))


def losses_by_output(loss, outputs, targets, sample_weight):
    """Returns {output name: values, or (values, weights)} of the default Trainer; traced, per replica.

    Args:
        loss, targets, sample_weight: nests like the outputs; the last two may be None.
        outputs: {name: tensor}.
    """
    if loss is None:
        raise ValueError("`loss` must be given, got None. Bind Trainer.loss, or override `compute_losses`.")
    losses = match("loss", loss, outputs)
    targets = match("targets", targets, outputs)
    weights = match("sample_weight", sample_weight, outputs)
    missing = [
        name for name, own in losses.items() if targets.get(name) is None and getattr(own, "needs_targets", True)
    ]
    if missing:
        raise ValueError(
            f"The batch has no targets for {', '.join(missing)}; it must be (inputs, targets[, sample_weight])."
        )
    return {
        name: loss_values(name, own, targets.get(name), outputs[name], weights.get(name))
        for name, own in losses.items()
    }


def loss_values(output, loss, targets, predictions, sample_weight=None):
    """Returns the loss per example, [B, ...] or a scalar, or (values, mask) if the predictions are masked.

    Sample weights multiply the values and do not change the denominator;
    masked elements are in neither sum nor denominator, as in Keras.

    Raises:
        ValueError: if targets would broadcast against predictions.
    """
    targets, predictions = _to_tensor(targets), _to_tensor(predictions)
    check_shapes(output, loss, targets, predictions)
    check_logits(output, loss, predictions)
    mask = keras_mask(predictions)
    if isinstance(loss, keras.losses.Loss):
        predictions, targets = tf.cast(predictions, loss.dtype), _cast_targets(targets, loss.dtype)
    function = loss.call if isinstance(loss, keras.losses.Loss) else loss
    if compares_examples(loss, predictions):
        values = _of_global_batch(output, loss, function, targets, predictions)
    else:
        with noticing_broadcast(output, loss, targets, predictions):
            values = tf.convert_to_tensor(convert(function)(targets, predictions))
    if mask is None:
        mask = keras_mask(values)
    elif keras_mask(values) is not None:
        mask = mask & keras_mask(values)
    weights = None
    if sample_weight is not None:
        weights = align(tf.cast(sample_weight, values.dtype), values)
        values = values * weights
    if getattr(loss, "reduction", None) == "mean_with_sample_weight" and weights is not None:
        # values are multiplied by the weights already; divided by them, (values, weights) gives sum(v * w) / sum(w).
        weights = tf.broadcast_to(weights, tf.shape(values))
        if mask is not None:
            weights = tf.where(align(mask, values), weights, 0)
        return tf.math.divide_no_nan(values, weights), weights
    if mask is None:
        return values
    mask = tf.broadcast_to(align(tf.cast(mask, tf.bool), values), tf.shape(values))
    return tf.where(mask, values, 0), tf.cast(mask, values.dtype)


def _of_global_batch(output, loss, function, targets, predictions):
    """Returns a loss that is not a mean, computed on the examples of all replicas: a scalar, or this replica's rows."""
    try:
        values = tf.convert_to_tensor(function(*all_gather((targets, predictions))))
    except RuntimeError as error:
        name = getattr(loss, "name", None) or loss.__name__
        raise ValueError(f"Output {output!r}: the loss {name!r} is not a mean over examples. {error}") from error
    if values.shape.rank == 0 or not several_replicas():
        return values
    rows = first_row(predictions) + tf.range(tf.shape(predictions)[0])
    return tf.gather(values, tf.minimum(rows, tf.shape(values)[0] - 1))  # a replica without examples has a copied row


def _to_tensor(value):
    return (
        value
        if value is None or isinstance(value, tf.RaggedTensor)
        else tf.nest.map_structure(tf.convert_to_tensor, value)
    )


def _cast_targets(targets, dtype):
    return tf.nest.map_structure(lambda t: t if t is None or t.dtype == tf.string else tf.cast(t, dtype), targets)
