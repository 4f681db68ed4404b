"""Layers for sequences of different lengths: padding with a mask, and pooling that ignores padding.

XLA needs static shapes: do not use ragged tensors with it, or pad them in the input pipeline.
"""

import keras
import tensorflow as tf

from layers.base import to_narrow, to_wide

_MODES = ("mean", "max", "sum")


def _check_ragged(layer, inputs):
    if isinstance(inputs, tf.RaggedTensor) and inputs.ragged_rank == 1:
        return
    kind = f"ragged of rank {inputs.ragged_rank}" if isinstance(inputs, tf.RaggedTensor) else "dense"
    raise ValueError(
        f"`{layer}` needs a ragged tensor [B, (T), ...] whose only ragged axis is the second, got one that is {kind} "
        f"with the shape {inputs.shape}. Use keras.Input(..., ragged=True); for dense inputs with a mask use "
        "MaskedMean."
    )


@keras.saving.register_keras_serializable(package="gradloom")
class RaggedToDense(keras.layers.Layer):
    """Pads a ragged batch with zeros to its longest row, and passes on the mask of the real positions.

    Use it before Dense and LSTM, which refuse ragged tensors, and after an
    Embedding, which accepts ragged ids, but drops the mask of dense ones.

    Shapes: ragged [B, (T), ...] of any dtype -> dense [B, max T, ...]; the Keras mask is bool [B, max T].

    Raises:
        ValueError: for a dense tensor, or ragged axes other than the second.
    """

    def call(self, inputs: tf.RaggedTensor) -> tf.Tensor:
        _check_ragged("RaggedToDense", inputs)
        return inputs.to_tensor()

    def compute_mask(self, inputs, previous_mask=None):
        if not isinstance(inputs, tf.RaggedTensor):
            return None  # a symbolic input: the mask comes with the data
        return tf.sequence_mask(inputs.row_lengths(), inputs.bounding_shape(axis=1))

    def compute_output_spec(self, inputs):
        # Symbolic inputs are not checked for raggedness, which many layers do not declare. `call` checks the data.
        is_float = "float" in keras.backend.standardize_dtype(inputs.dtype)
        return keras.KerasTensor(inputs.shape, self.compute_dtype if is_float else inputs.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable(package="gradloom")
class RaggedPool(keras.layers.Layer):
    """The mean, the maximum or the sum of each row of a ragged batch; an empty row gives 0.

    Args:
        mode: "mean", "max" or "sum".

    Shapes: ragged float [B, (T), ...] -> [B, ...]. Computed in float32 at least.

    Raises:
        ValueError: for another `mode`, a dense tensor, or ragged axes other than the second.
    """

    def __init__(self, mode: str = "mean", **kwargs):
        super().__init__(**kwargs)
        if mode not in _MODES:
            raise ValueError(f"`mode` must be one of {', '.join(_MODES)}, got {mode!r}.")
        self.mode = mode

    def call(self, inputs: tf.RaggedTensor) -> tf.Tensor:
        _check_ragged("RaggedPool", inputs)
        values, rows = to_wide(inputs.flat_values), inputs.value_rowids()
        lengths = inputs.row_lengths()
        if self.mode == "max":
            pooled = tf.math.unsorted_segment_max(values, rows, inputs.nrows())
        else:
            pooled = tf.math.unsorted_segment_sum(values, rows, inputs.nrows())
        lengths = tf.reshape(lengths, tf.concat([[-1], tf.ones([tf.rank(pooled) - 1], tf.int32)], 0))
        if self.mode == "mean":
            pooled /= tf.cast(tf.maximum(lengths, 1), pooled.dtype)
        # The maximum of an empty row is the lowest number.
        return to_narrow(tf.where(lengths > 0, pooled, tf.zeros_like(pooled)), self.compute_dtype)

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(self.compute_output_shape(inputs.shape), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], *input_shape[2:])

    def get_config(self):
        return {**super().get_config(), "mode": self.mode}


@keras.saving.register_keras_serializable(package="gradloom")
class MaskedMean(keras.layers.Layer):
    """The mean over the unmasked positions of a sequence; 0 if all are masked.

    keras.layers.GlobalAveragePooling1D gives NaN there, and a NaN at a masked position reaches its mean.

    Shapes: float [B, T, ...], mask bool [B, T] or none -> [B, ...] without a mask. Computed in float32 at least.

    Raises:
        ValueError: for inputs without a second axis, or a mask of another shape.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, inputs: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
        if inputs.shape.rank < 2:
            raise ValueError(
                f"`MaskedMean` needs inputs [B, T, ...], got the shape {inputs.shape}. Add the axis of positions."
            )
        x = to_wide(inputs)
        if mask is None:
            mask = tf.ones(tf.shape(x)[:2], tf.bool)
        if not mask.shape.is_compatible_with(inputs.shape[:2]):
            raise ValueError(f"`mask` must be [B, T] = {inputs.shape[:2]}, got the shape {mask.shape}.")
        mask = tf.reshape(tf.cast(mask, tf.bool), tf.concat([tf.shape(x)[:2], tf.ones([tf.rank(x) - 2], tf.int32)], 0))
        total = tf.reduce_sum(tf.where(mask, x, tf.zeros_like(x)), 1)
        count = tf.reduce_sum(tf.cast(mask, x.dtype), 1)
        return to_narrow(total / tf.maximum(count, 1.0), inputs.dtype)

    def compute_mask(self, inputs, previous_mask=None):
        return None

    def compute_output_shape(self, input_shape):
        return (input_shape[0], *input_shape[2:])
