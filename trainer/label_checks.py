"""What a loss means by targets and predictions, where that can be seen: labels from 0 to 1, logits before a softmax."""

import keras
import tensorflow as tf

_BINARY = (keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy)
_BINARY_FUNCTIONS = (keras.losses.binary_crossentropy, keras.losses.binary_focal_crossentropy)


def check_binary_labels(output, loss, targets):
    """Raises ValueError where `loss` wants labels from 0 to 1 and a batch's `targets` hold others; eager.

    Such a loss has no lower end: it would fall for ever.
    """
    binary = isinstance(loss, _BINARY) or loss in _BINARY_FUNCTIONS or getattr(loss, "binary_targets", False)
    if not binary or not isinstance(targets, tf.Tensor):
        return
    labels = targets.numpy()
    bad = labels[(labels < 0) | (labels > 1)]
    if bad.size:
        raise ValueError(
            f"Output {output!r} has a loss for labels of 0 and 1, but the targets hold {bad.flat[0]:g}. "
            "Of -1 and 1 make (labels + 1) / 2, divide a mask by 255; class ids need a loss over classes."
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
