"""Layers on the last axis: scaled, polynomial, cross, maxout and noisy dense layers."""

from collections.abc import Callable

import keras
import tensorflow as tf

from layers.base import check_number, check_whole, known_size, to_narrow, to_wide


@keras.saving.register_keras_serializable(package="gradloom")
class ScaledDense(keras.layers.Layer):
    """act(s (W x + b)) with a trained scalar s, initialized to 1.

    Its variables are `scale`, `dense/kernel` and `dense/bias`.

    Args:
        units: int >= 1.
        activation: a function, a Keras name, or None.

    Shapes: float [B, ..., F] -> [B, ..., units].

    Raises:
        ValueError: if `units` is not an int >= 1.
    """

    def __init__(self, units: int, activation: str | Callable | None = None, **kwargs):
        super().__init__(**kwargs)
        self.units = check_whole("units", units)
        self.activation = keras.activations.get(activation)
        # Created here, not in `build`, so that a saved file can be loaded.
        self.dense = keras.layers.Dense(self.units, name="dense", dtype=self.dtype_policy)
        self.supports_masking = True

    def build(self, input_shape):
        self.dense.build(input_shape)
        self.scale = self.add_weight(name="scale", shape=(), initializer="ones")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return self.activation(self.scale * self.dense(inputs))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        activation = keras.activations.serialize(self.activation)
        return {**super().get_config(), "units": self.units, "activation": activation}


def _identity_polynomial(shape, dtype=None):
    powers = tf.range(shape[0])[:, tf.newaxis]
    return tf.cast(tf.broadcast_to(powers == 1, shape), dtype)


@keras.saving.register_keras_serializable(package="gradloom")
class PolynomialTransform(keras.layers.Layer):
    """y = sum_{k=0}^{degree} a_k x^k with a trained polynomial per feature, by Horner's rule.

    It is initialized to the identity: a_1 = 1, the others 0 (for degree 0, to the
    constant 0). Powers grow: scale inputs to about [-1, 1]. They are computed in
    float32 or wider; values out of the range of half precision become its largest number.

    Args:
        degree: int >= 0.

    Shapes: float [B, ..., F] -> [B, ..., F]; `coefficients` is [degree + 1, F].

    Raises:
        ValueError: if `degree` is not an int >= 0, or F is unknown.
    """

    def __init__(self, degree: int = 3, **kwargs):
        super().__init__(**kwargs)
        self.degree = check_whole("degree", degree, least=0)
        self.supports_masking = True

    def build(self, input_shape):
        shape = (self.degree + 1, known_size(input_shape, "PolynomialTransform"))
        self.coefficients = self.add_weight(
            name="coefficients", shape=shape, initializer=_identity_polynomial, autocast=False
        )

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        x = to_wide(inputs)
        a = tf.unstack(tf.cast(self.coefficients, x.dtype))
        y = a[-1] if self.degree else tf.broadcast_to(a[-1], tf.shape(x))
        for a_k in reversed(a[:-1]):
            y = y * x + a_k
        return to_narrow(y, inputs.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "degree": self.degree}


@keras.saving.register_keras_serializable(package="gradloom")
class CrossLayer(keras.layers.Layer):
    """x0 * (W x + b) + x: one layer of a deep & cross network (DCN v2, Wang et al. 2021, 2008.13535, eq. 1 and 2).

    Layer l is called as `cross(x0, x_l)`, the first one as `cross(x0)`; each
    raises by one the degree of the feature products. The mask of x0 is passed on.

    Args:
        rank: None for a full matrix W [F, F]; or int >= 1 for W = V U, with
            `down` U [F, rank] and `kernel` V [rank, F].

    Shapes: float [B, ..., F] (and once more) -> [B, ..., F].

    Raises:
        ValueError: if `rank` is not an int >= 1, or the shapes differ.
    """

    def __init__(self, rank: int | None = None, **kwargs):
        super().__init__(**kwargs)
        hint = " Use None for a full matrix."
        self.rank = None if rank is None else check_whole("rank", rank, hint=hint)
        self.supports_masking = True

    def build(self, x0_shape, x_shape=None):
        if x_shape is not None and x_shape[-1] != x0_shape[-1]:
            raise ValueError(
                f"`x` must have the features of `x0`, got the shapes {tuple(x_shape)} and {tuple(x0_shape)}. "
                "Call the first layer as cross(x0), the others as cross(x0, x)."
            )
        size = known_size(x0_shape, "CrossLayer")
        if self.rank is not None:
            self.down = self.add_weight(name="down", shape=(size, self.rank))
        self.kernel = self.add_weight(name="kernel", shape=(self.rank or size, size))
        self.bias = self.add_weight(name="bias", shape=(size,), initializer="zeros")

    def call(self, x0: tf.Tensor, x: tf.Tensor | None = None) -> tf.Tensor:
        x = x0 if x is None else x
        hidden = x if self.rank is None else keras.ops.matmul(x, self.down)
        return x0 * (keras.ops.matmul(hidden, self.kernel) + self.bias) + x

    def compute_mask(self, x0, previous_mask=None):
        return previous_mask[0] if isinstance(previous_mask, (list, tuple)) else previous_mask

    def compute_output_shape(self, x0_shape, x_shape=None):
        return x0_shape

    def get_config(self):
        return {**super().get_config(), "rank": self.rank}


@keras.saving.register_keras_serializable(package="gradloom")
class Maxout(keras.layers.Layer):
    """The maximum of k features for each unit (Goodfellow et al. 2013, 1302.4389).

    Unit j is the maximum of the features j, j + units, j + 2 units, ...: the layer before it has k times as many units.

    Args:
        units: int >= 1, a divisor of the number of features.

    Shapes: float [B, ..., k units] -> [B, ..., units].

    Raises:
        ValueError: if `units` is not an int >= 1, or does not divide the number of features.
    """

    def __init__(self, units: int, **kwargs):
        super().__init__(**kwargs)
        self.units = check_whole("units", units)
        self.supports_masking = True

    def build(self, input_shape):
        size = known_size(input_shape, "Maxout")
        if size % self.units:
            raise ValueError(
                f"`units` must divide the number of features, got {self.units} for {size}. "
                f"Give the layer before a multiple of {self.units} units."
            )

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        pieces = inputs.shape[-1] // self.units
        shape = tf.concat([tf.shape(inputs)[:-1], [pieces, self.units]], 0)
        return tf.reduce_max(tf.reshape(inputs, shape), -2)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(package="gradloom")
class NoisyDense(keras.layers.Layer):
    """A dense layer with noise of trained scale on its weights (NoisyNet, Fortunato et al. 2018, 1706.10295, eq. 9 to
    11).

    act(x (mu_w + sigma_w * eps_w) + mu_b + sigma_b * eps_b) with factorized
    noise: eps_w = f(eps_in) f(eps_out)^T, eps_b = f(eps_out), f(e) =
    sign(e) sqrt(|e|) of normal numbers. In training, a call draws one sample for
    all its examples; evaluation uses the means.

    Args:
        units: int >= 1.
        activation: a function, a Keras name, or None.
        sigma: float >= 0; sigma_w and sigma_b are initialized to sigma / sqrt(F), the
            means in U[-1 / sqrt(F), 1 / sqrt(F)] (section 3.2).
        seed: int or None.

    Shapes: float [B, ..., F] -> [B, ..., units].

    Raises:
        ValueError: if `units` is not an int >= 1, or `sigma` < 0.
    """

    def __init__(
        self,
        units: int,
        activation: str | Callable | None = None,
        sigma: float = 0.5,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.units, self.seed = check_whole("units", units), seed
        self.activation = keras.activations.get(activation)
        self.sigma = check_number("sigma", sigma, 0.0)
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.supports_masking = True

    def build(self, input_shape):
        size = known_size(input_shape, "NoisyDense")
        bound = size**-0.5
        for name, shape in (("kernel", (size, self.units)), ("bias", (self.units,))):
            mean = keras.initializers.RandomUniform(-bound, bound)
            spread = keras.initializers.Constant(self.sigma * bound)
            setattr(self, name, self.add_weight(name=name, shape=shape, initializer=mean))
            setattr(self, f"{name}_sigma", self.add_weight(name=f"{name}_sigma", shape=shape, initializer=spread))

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        kernel, bias = self.kernel, self.bias
        if training:
            noise_in, noise_out = self._noise(inputs.shape[-1]), self._noise(self.units)
            kernel += self.kernel_sigma * (noise_in[:, tf.newaxis] * noise_out)
            bias += self.bias_sigma * noise_out
        return self.activation(keras.ops.matmul(inputs, kernel) + bias)

    def _noise(self, size):
        noise = keras.random.normal((size,), dtype="float32", seed=self.seed_generator)
        return tf.cast(tf.sign(noise) * tf.sqrt(tf.abs(noise)), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        activation = keras.activations.serialize(self.activation)
        arguments = {"units": self.units, "activation": activation, "sigma": self.sigma, "seed": self.seed}
        return {**super().get_config(), **arguments}
