"""Blocks of deep networks: residual, and self-normalizing."""

from collections.abc import Sequence

import keras

from layers.base import check_rate, check_whole


@keras.saving.register_keras_serializable(package="gradloom")
class ResidualBlock(keras.layers.Layer):
    """x + branch(x) (He et al. 2016, 1512.03385, eq. 1).

    Args:
        branch: a Keras layer, or a list of layers that are called one after
            the other. End it with DropPath for stochastic depth.

    Shapes: those of `branch`, which must keep them. The mask is passed on.

    Raises:
        ValueError: for a branch without layers, or one that changes the shape.

    Example:
        >>> ResidualBlock([keras.layers.Dense(8, "relu"), keras.layers.Dense(4)])(keras.ops.ones([2, 4])).shape
        TensorShape([2, 4])
    """

    def __init__(self, branch: keras.layers.Layer | Sequence[keras.layers.Layer], **kwargs):
        super().__init__(**kwargs)
        self.branch = list(branch) if isinstance(branch, (list, tuple)) else [branch]
        # A saved layer is loaded as its config.
        self.branch = [keras.layers.deserialize(b) if isinstance(b, dict) else b for b in self.branch]
        wrong = [b for b in self.branch if not isinstance(b, keras.layers.Layer)]
        if wrong or not self.branch:
            raise ValueError(
                f"`branch` must be a Keras layer or a list of them, got {branch!r:.80}. In gin, call them: @Dense()."
            )
        self.supports_masking = True

    def build(self, input_shape):
        shape = input_shape
        for layer in self.branch:
            if not layer.built:
                layer.build(shape)
            shape = layer.compute_output_shape(shape)
        if tuple(shape) != tuple(input_shape):
            raise ValueError(
                f"`branch` must keep the shape, got {tuple(shape)} from {tuple(input_shape)}. "
                "Give its last layer as many units as the input has features (and padding='same')."
            )

    def call(self, inputs, training=False):
        outputs = inputs
        for layer in self.branch:
            # Keras passes `training` to layers with that argument.
            outputs = layer(outputs)
        return inputs + outputs

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "branch": [keras.layers.serialize(layer) for layer in self.branch]}


@keras.saving.register_keras_serializable(package="gradloom")
class SelfNormalizingBlock(keras.layers.Layer):
    """Dense, selu, AlphaDropout (Klambauer et al. 2017, 1706.02515).

    Activations keep mean 0 and variance 1 through many such blocks.
    Weights are initialized LeCun normal (section 3, "Initialization"), biases to 0.
    The inputs of the first block must be standardized.

    Args:
        units: int >= 1.
        rate: float in [0, 1), of the alpha dropout; the paper tries .05 and .1.
        seed: int or None, of the alpha dropout.

    Shapes: float [B, ..., F] -> [B, ..., units]. The mask is passed on.

    Raises:
        ValueError: if `units` is not an int >= 1, or `rate` is outside [0, 1).
    """

    def __init__(self, units: int, rate: float = 0.0, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.units, self.rate, self.seed = check_whole("units", units), check_rate(rate), seed
        if self.rate == 1:
            raise ValueError(f"`rate` must be < 1, got {rate!r}: 1 drops all activations. .05 is usual.")
        policy = self.dtype_policy
        self.dense = keras.layers.Dense(
            self.units, "selu", kernel_initializer="lecun_normal", name="dense", dtype=policy
        )
        self.dropout = keras.layers.AlphaDropout(self.rate, seed=seed, name="dropout", dtype=policy)
        self.supports_masking = True

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, inputs, training=False):
        return self.dropout(self.dense(inputs), training=training)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        return {**super().get_config(), "units": self.units, "rate": self.rate, "seed": self.seed}
