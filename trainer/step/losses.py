"""Losses of the default Trainer: Keras' names and objects as values per example, and the checks of their labels.

Values are reduced in one place (reduction.py).
"""

import keras
import numpy as np
import tensorflow as tf

from trainer.step.autograph import convert
from trainer.step.outputs import keras_mask, match

_BINARY = (keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy)
_BINARY_FUNCTIONS = (keras.losses.binary_crossentropy, keras.losses.binary_focal_crossentropy)


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


def is_sparse(loss):
    """Whether `loss` takes class ids where the predictions have one number per class."""
    sparse = (keras.losses.SparseCategoricalCrossentropy, keras.losses.sparse_categorical_crossentropy)
    return isinstance(loss, sparse[0]) or loss is sparse[1]


def check_logits(output, loss, predictions):
    """Raises ValueError where a loss of logits would put a softmax or sigmoid on top of one; traced."""
    if tf.executing_eagerly() or not getattr(loss, "from_logits", False) or not isinstance(predictions, tf.Tensor):
        return
    op = predictions.op
    while op.type in ("Identity", "Cast", "Reshape"):
        op = op.inputs[0].op
    if op.type in ("Softmax", "Sigmoid"):
        raise ValueError(
            f"Output {output!r} ends in a {op.type.lower()}, but its loss {loss.name!r} takes logits and would apply "
            "one more. Drop the activation of the last layer, or take a loss of probabilities (from_logits=False)."
        )


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


def check_binary_labels(output, loss, targets, weights=None, masked=False):
    """Raises ValueError where `loss` wants labels from 0 to 1 and a batch's `targets` hold others that count; eager.

    Such a loss has no lower end: it would fall for ever. Keras' are finite for any label, so that a weight
    of 0 (`weights`, axis by axis as `targets`) or a mask of the model's takes it out; ours are NaN whatever the weight.
    """
    from_keras = isinstance(loss, _BINARY) or loss in _BINARY_FUNCTIONS
    binary = (from_keras and not masked) or getattr(loss, "binary_targets", False)
    if not binary or not isinstance(targets, tf.Tensor):
        return
    labels = targets.numpy()
    if from_keras and weights is not None:
        labels = labels[np.broadcast_to(weights.numpy() != 0, labels.shape)]
    bad = labels[(labels < 0) | (labels > 1)]
    if bad.size:
        raise ValueError(
            f"Output {output!r} has a loss for labels of 0 and 1, but the targets hold {bad.flat[0]:g}. "
            "Of -1 and 1 make (labels + 1) / 2, divide a mask by 255; class ids need a loss over classes. "
            "An element that does not count takes the label 0 and the weight 0."
        )
