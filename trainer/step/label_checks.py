"""What a loss means by targets and predictions, where that can be seen: labels from 0 to 1, logits before a softmax."""

import keras
import numpy as np
import tensorflow as tf

_BINARY = (keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy)
_BINARY_FUNCTIONS = (keras.losses.binary_crossentropy, keras.losses.binary_focal_crossentropy)


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
