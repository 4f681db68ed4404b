"""Validates shapes, labels and logits for the default Trainer's losses."""

import contextlib
import weakref

import keras
import numpy as np
import tensorflow as tf

from trainer import console
from trainer.step.outputs import align, match

# Losses of Keras that compare targets and predictions of one shape, element by element or along the last axis.
_ELEMENTWISE = (
    "MeanSquaredError",
    "MeanAbsoluteError",
    "MeanAbsolutePercentageError",
    "MeanSquaredLogarithmicError",
    "LogCosh",
    "Huber",
    "Poisson",
    "KLDivergence",
    "CosineSimilarity",
    "Hinge",
    "SquaredHinge",
    "CategoricalHinge",
    "BinaryCrossentropy",
    "BinaryFocalCrossentropy",
    "CategoricalCrossentropy",
    "CategoricalFocalCrossentropy",
    "Dice",
    "Tversky",
)
_warned = weakref.WeakSet()  # losses for which a broadcast was warned of
_BINARY = (keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy)
_BINARY_FUNCTIONS = (keras.losses.binary_crossentropy, keras.losses.binary_focal_crossentropy)


def check_logits(output, loss, predictions):
    """Raises ValueError if a loss of logits would apply a second softmax or sigmoid; traced."""
    if tf.executing_eagerly() or not getattr(loss, "from_logits", False) or not isinstance(predictions, tf.Tensor):
        return
    op = predictions.op
    while op.type in ("Identity", "Cast", "Reshape"):
        op = op.inputs[0].op
    if op.type in ("Softmax", "Sigmoid"):
        raise ValueError(
            f"Output {output!r} ends in a {op.type.lower()}, but its loss {loss.name!r} takes logits and would apply "
            "a second one. Remove the activation of the last layer, or use a loss of probabilities (from_logits=False)."
        )


def check_shapes(output, loss, targets, predictions):
    """Raises ValueError if the targets of a loss on elements, or on class ids, have the wrong shape."""
    if not isinstance(targets, tf.Tensor) or not isinstance(predictions, tf.Tensor):
        return
    if targets.dtype == tf.string and (is_sparse(loss) or _is_elementwise(loss)):
        raise ValueError(
            f"Output {output!r}: the targets are strings, but its loss takes numbers. Convert labels to class ids in "
            "the input pipeline, e.g. with keras.layers.StringLookup(vocabulary=..., num_oov_indices=0)."
        )
    have, want = targets.shape, predictions.shape
    if have.rank is None or want.rank is None:
        return
    if is_sparse(loss):
        of_ids = want.as_list()
        classes = of_ids.pop()
        if not have.is_compatible_with(of_ids) and not have.is_compatible_with([*of_ids, 1]):
            raise ValueError(
                f"Output {output!r}: class ids of shape {have} do not fit predictions of shape {want}; "
                f"they need the shape {tf.TensorShape(of_ids)}, one id for each row of {classes} scores."
            )
        return
    if not _is_elementwise(loss) or have.is_compatible_with(want):
        return
    if have.concatenate(1).is_compatible_with(want) or want.concatenate(1).is_compatible_with(have):
        return  # Keras squeezes or adds the last axis itself.
    raise ValueError(
        f"Output {output!r}: targets of shape {have} would broadcast against predictions of shape {want}, or do not "
        "fit; the loss compares them element by element. Reshape one of them, e.g. targets[:, None], or change the "
        "last layer."
    )


def is_sparse(loss):
    """True if `loss` takes class ids for predictions with one score per class."""
    cls = keras.losses.SparseCategoricalCrossentropy
    return (
        isinstance(loss, cls) and type(loss).call is cls.call
    ) or loss is keras.losses.sparse_categorical_crossentropy


def compares_examples(loss, predictions):
    """True for losses of Keras whose value for a batch is not a mean over its examples."""
    if loss in (keras.losses.dice, keras.losses.tversky, keras.losses.circle) or isinstance(loss, keras.losses.Circle):
        return True
    if not isinstance(loss, (keras.losses.Dice, keras.losses.Tversky)):
        return False
    axes = np.ravel(loss.axis) if loss.axis is not None else [0]
    return 0 in [axis % predictions.shape.rank for axis in axes]


def _is_elementwise(loss):
    """True for losses of Keras that compare targets and predictions of equal shape."""
    if isinstance(loss, keras.losses.Loss):
        keras_call = type(loss).call is keras.losses.MeanSquaredError.call
        return keras_call and isinstance(loss, tuple(getattr(keras.losses, name) for name in _ELEMENTWISE))
    return loss in [getattr(keras.losses, name)().fn for name in _ELEMENTWISE]


@contextlib.contextmanager
def noticing_broadcast(output, loss, targets, predictions):
    """Warns once per loss if [B] and [B, 1] are broadcast to [B, B] inside a user's loss; traced."""
    shapes = [getattr(x, "shape", tf.TensorShape(None)) for x in (targets, predictions)]
    one, column = sorted(shapes, key=lambda shape: shape.rank or 0)
    b = one[0] if one.rank == 1 else None
    graph = (
        None
        if tf.executing_eagerly() or not b or b < 2 or column.as_list() != [b, 1]
        else tf.compat.v1.get_default_graph()
    )
    before = len(graph.get_operations()) if graph else 0
    yield
    made = [tensor.shape for op in graph.get_operations()[before:] for tensor in op.outputs] if graph else []
    if any(shape.rank and shape.rank > 1 and shape[:2].as_list() == [b, b] for shape in made) and loss not in _warned:
        _warned.add(loss)
        console.warning(
            f"Output {output!r}: the loss compares each of the targets, of shape {shapes[0]}, with each of the "
            f"predictions, of shape {shapes[1]}: together they broadcast to {[b, b]}. Reshape one of them, e.g. "
            "targets[:, None], unless this is intended."
        )


def check_targets(loss, targets, sample_weight, outputs, masks):
    """Raises ValueError if a batch's `targets` are not valid labels for the `outputs`; eager.

    Args:
        loss, targets, sample_weight: nests by output; the last may be None.
        outputs, masks: {output name: TensorSpec}, the mask or None.
    """
    targets = match("targets", targets, outputs)
    weights = match("sample_weight", sample_weight, outputs)
    for name, own in match("loss", loss, outputs).items():
        if not isinstance(targets.get(name), tf.Tensor):
            continue
        if is_sparse(own) or getattr(own, "takes_class_ids", False):  # our losses check their shapes themselves
            check_class_ids(name, own, targets[name].numpy(), outputs[name].shape[-1])
        else:
            weight = align(weights[name], targets[name]) if name in weights else None
            check_binary_labels(name, own, targets[name], weight, masked=masks[name] is not None)


def check_class_ids(output, loss, ids, classes):
    """Raises ValueError if `ids`, an integer array, has classes that the predictions do not have."""
    ids = ids[ids != getattr(loss, "ignore_class", None)] if getattr(loss, "ignore_class", None) is not None else ids
    bad = ids[(ids < 0) | (ids >= classes)]
    if bad.size:
        raise ValueError(
            f"Output {output!r} has {classes} scores, for the class ids 0 to {classes - 1}, but the targets hold "
            f"{bad.flat[0]:g}. On CPU this is an error during training, under XLA a NaN. Correct the targets, or the "
            "last layer's size. For an element to ignore, use a valid id and weight 0, or a loss with `ignore_class`."
        )


def check_binary_labels(output, loss, targets, weights=None, masked=False):
    """Raises ValueError if `loss` needs labels in [0, 1] and `targets` has others with non-zero weight; eager.

    Such a loss has no lower bound. Keras' losses are finite for any label, so that a weight of 0 (`weights`, with the
    axes of `targets`) or a mask removes it; our losses are NaN for any weight.
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
            "Map -1 and 1 by (labels + 1) / 2; divide a mask by 255; class ids need a loss over classes. "
            "For an element to ignore, use label 0 and weight 0."
        )
