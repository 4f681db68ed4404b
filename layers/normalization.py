"""Weight normalizations as wrappers, and a normalization of activations without batch statistics.

A wrapper does not change the kernel of its layer, which is trained, regularized
and checkpointed. Each call computes a normalized kernel from it, under the
tape, for the layer to use.
"""

import math

import keras
import tensorflow as tf

from layers.base import check_number, check_whole, known_size, to_narrow, to_wide

_TINY = 1e-12  # smallest squared norm, so that a kernel of zeros gives zeros and a finite gradient


class _KernelWrapper(keras.layers.Wrapper):
    """Calls `layer` with `effective_kernel(training)` in place of its kernel.

    Args:
        layer: a Keras layer with one kernel: Dense, EinsumDense, Conv*, Conv*Transpose, DepthwiseConv*.

    Raises:
        ValueError: if `layer` is not a layer or, when built, does not have exactly one kernel.
    """

    names = ("kernel",)

    def __init__(self, layer: keras.layers.Layer, **kwargs):
        if not isinstance(layer, keras.layers.Layer):
            raise ValueError(f"`layer` must be a Keras layer, got {layer!r:.80}. In gin, call it: @Dense().")
        kwargs.setdefault("dtype", layer.dtype_policy)
        # Without autocast the kernel has full precision here; `layer` casts its result.
        super().__init__(layer, autocast=False, **kwargs)
        self.supports_masking = layer.supports_masking

    def build(self, input_shape):
        super().build(input_shape)
        kernels = [v for v in self.layer.weights if v.name in self.names or "kernel" in v.name]
        if len(kernels) != 1 or kernels[0].name not in self.names:
            found = ", ".join(v.name for v in self.layer.weights) or "none"
            raise ValueError(
                f"`layer` must have one weight named {' or '.join(self.names)}, got {type(self.layer).__name__} with "
                f"the weights {found}. Wrap the layers inside it one by one."
            )
        self._kernel = kernels[0]
        self._units, self._inside = _axes(self.layer, len(self._kernel.shape))

    def effective_kernel(self, training=False):
        """Returns the kernel for a call: float32 or float64, of the shape of the layer's kernel."""
        raise NotImplementedError

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        kernel = tf.cast(self.effective_kernel(training), self._kernel.dtype)
        rest = [(v, tf.convert_to_tensor(v)) for v in self.layer.variables if v is not self._kernel]
        with keras.StatelessScope(
            [(self._kernel, kernel), *rest], collect_losses=True, initialize_variables=False
        ) as scope:
            outputs = self.layer(inputs)
        # Changes of the layer's losses and other variables would be lost with the scope.
        for loss in scope.losses:
            self.add_loss(loss)
        for variable, before in rest:
            after = scope.get_current_value(variable)
            if after is not before:
                variable.assign(after)
        return outputs

    def compute_mask(self, inputs, previous_mask=None):
        return self.layer.compute_mask(inputs, previous_mask)

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)


def _axes(layer, rank):
    """Returns (axes of a kernel over its output units, axes within a unit)."""
    while isinstance(layer, keras.layers.Wrapper):
        layer = layer.layer
    transposed = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)
    if isinstance(layer, transposed):
        units = (rank - 2,)  # [..., out, in]
    elif isinstance(layer, (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)):
        units = (rank - 2, rank - 1)  # [..., in, multiplier]
    elif isinstance(layer, keras.layers.EinsumDense):
        inputs, output = layer.equation.replace(" ", "").split("->")
        units = tuple(i for i, letter in enumerate(inputs.split(",")[1]) if letter in output)
    else:
        units = (rank - 1,)
    return units, tuple(i for i in range(rank) if i not in units)


@keras.saving.register_keras_serializable(package="gradloom")
class WeightNorm(_KernelWrapper):
    """w = g v / ||v|| for each output unit: length and direction are trained separately (Salimans & Kingma 2016,
    1602.07868, eq. 2).

    v is the layer's kernel, g the variable `gain`, initialized to ||v||, so that
    the initial layer is unchanged.

    Args:
        layer: Dense, EinsumDense, Conv*, Conv*Transpose or DepthwiseConv*.

    Shapes, dtypes and mask: those of `layer`.

    Raises:
        ValueError: if `layer` is not a layer with exactly one kernel.

    Example:
        >>> WeightNorm(keras.layers.Dense(3))(tf.ones([2, 4])).shape
        TensorShape([2, 3])
    """

    def build(self, input_shape):
        super().build(input_shape)
        shape = [1 if axis in self._inside else size for axis, size in enumerate(self._kernel.shape)]
        self.gain = self.add_weight(name="gain", shape=shape, initializer=self._first_gain, autocast=False)

    def _first_gain(self, shape, dtype=None):
        return tf.cast(tf.sqrt(self._square(to_wide(self._kernel))), dtype)

    def _square(self, kernel):
        return tf.reduce_sum(tf.square(kernel), self._inside, keepdims=True)

    def effective_kernel(self, training=False):
        v = to_wide(self._kernel)
        return to_wide(self.gain) * v * tf.math.rsqrt(tf.maximum(self._square(v), _TINY))


@keras.saving.register_keras_serializable(package="gradloom")
class SpectralNorm(_KernelWrapper):
    """W / sigma(W): a largest singular value of 1 (Miyato et al. 2018, 1802.05957, eq. 8, algorithm 1).

    sigma = v^T W u by power iteration from the stored `u`. The gradient goes
    through sigma, and W itself is never assigned. Each call in training updates
    `u`; evaluation does not. It depends on W only, so that replicas agree. For a
    convolution W is the kernel as a matrix [other axes, output units].

    Args:
        layer: Dense, EinsumDense, Embedding, Conv*, Conv*Transpose or DepthwiseConv*.
        power_iterations: int >= 1, for each call.

    Shapes, dtypes and mask: those of `layer`.

    Raises:
        ValueError: if `layer` is not a layer with exactly one kernel, or `power_iterations` < 1.
    """

    names = ("kernel", "embeddings")

    def __init__(self, layer: keras.layers.Layer, power_iterations: int = 1, **kwargs):
        super().__init__(layer, **kwargs)
        self.power_iterations = check_whole("power_iterations", power_iterations)

    def build(self, input_shape):
        super().build(input_shape)
        size = math.prod(self._kernel.shape[axis] for axis in self._units)
        self.u = self.add_weight(name="u", shape=(size,), initializer=self._first_u, trainable=False, autocast=False)

    def _first_u(self, shape, dtype=None):
        # With a random start sigma would be too small, and the first steps too large.
        start = keras.random.normal(shape, dtype="float32", seed=0)
        matrix = self._matrix(to_wide(self._kernel))
        return tf.cast(self._iterate(matrix, tf.cast(start, matrix.dtype), 20)[0], dtype)

    def _matrix(self, kernel):
        flat = tf.transpose(kernel, (*self._inside, *self._units))
        return tf.reshape(flat, [-1, math.prod(self._kernel.shape[axis] for axis in self._units)])

    def _iterate(self, matrix, u, times):
        v = None
        for _ in range(times):
            v = _direction(tf.linalg.matvec(matrix, u))
            u = _direction(tf.linalg.matvec(matrix, v, transpose_a=True))
        return u, v

    def effective_kernel(self, training=False):
        kernel = to_wide(self._kernel)
        matrix = self._matrix(kernel)
        u, v = self._iterate(tf.stop_gradient(matrix), tf.stop_gradient(to_wide(self.u)), self.power_iterations)
        sigma = tf.tensordot(v, tf.linalg.matvec(matrix, u), 1)
        if training:
            self.u.assign(tf.cast(u, self.u.dtype))
        return kernel / tf.maximum(sigma, _TINY**0.5)

    def get_config(self):
        return {**super().get_config(), "power_iterations": self.power_iterations}


def _direction(vector):
    """Returns `vector` at length 1, also where its squares would underflow; zeros stay zeros."""
    largest = tf.reduce_max(tf.abs(vector))
    return tf.math.l2_normalize(tf.math.divide_no_nan(vector, largest), epsilon=_TINY)


@keras.saving.register_keras_serializable(package="gradloom")
class WeightStandardization(_KernelWrapper):
    """(W - mean) / sqrt(var + 1e-5) over each output unit's inputs (Qiao et al. 2019, 1903.10520).

    With `gamma` it is the scaled form gamma g (W - mean) / sqrt(max(N var, 1e-4)) for N inputs and
    a trained `gain` g per unit, which keeps the variance of a signal without any
    normalization of activations (Brock et al. 2021, 2101.08692; 2102.06171, eq. 1).

    Args:
        layer: Dense, EinsumDense, Conv*, Conv*Transpose or DepthwiseConv* with more than one input per unit.
        gamma: None, or the gain of the activation before the layer: 1 for none, 1.7129 for relu.

    Shapes, dtypes and mask: those of `layer`.

    Raises:
        ValueError: if `layer` is not a layer with exactly one kernel, has one input per unit, or `gamma` <= 0.
    """

    def __init__(self, layer: keras.layers.Layer, gamma: float | None = None, **kwargs):
        super().__init__(layer, **kwargs)
        hint = " Use None for the form without scale."
        self.gamma = None if gamma is None else check_number("gamma", gamma, 0.0, above=True, hint=hint)

    def build(self, input_shape):
        super().build(input_shape)
        self._inputs = math.prod(self._kernel.shape[axis] for axis in self._inside)
        if self._inputs == 1:
            raise ValueError(
                f"`layer` must have more than one input per unit, got a kernel of shape {tuple(self._kernel.shape)}: "
                "without its mean it is 0. Use the layer without WeightStandardization."
            )
        if self.gamma is not None:
            shape = [1 if axis in self._inside else size for axis, size in enumerate(self._kernel.shape)]
            self.gain = self.add_weight(name="gain", shape=shape, initializer="ones", autocast=False)

    def effective_kernel(self, training=False):
        kernel = to_wide(self._kernel)
        mean, variance = tf.nn.moments(kernel, self._inside, keepdims=True)
        if self.gamma is None:
            return (kernel - mean) * tf.math.rsqrt(variance + 1e-5)
        scale = self.gamma * to_wide(self.gain) * tf.math.rsqrt(tf.maximum(self._inputs * variance, 1e-4))
        return (kernel - mean) * scale

    def get_config(self):
        return {**super().get_config(), "gamma": self.gamma}


@keras.saving.register_keras_serializable(package="gradloom")
class FilterResponseNorm(keras.layers.Layer):
    """gamma x / sqrt(mean(x^2) + |epsilon|) + beta: FRN (Singh & Krishnan 2020, 1911.09737).

    The mean is over an example's own positions. There are no batch statistics:
    the result is the same in training and evaluation, on any number of replicas.
    Use TLU as its activation. The output has no mask.

    Args:
        epsilon: float > 0.
        learned_epsilon: bool; True trains `epsilon` per channel. The paper uses it, from 1e-4 on, for inputs with a
            single position, where x / sqrt(x^2 + epsilon) with a small constant is the sign of x.

    Shapes: float [B, ..., C] with one or more axes between -> the same. Computed in float32 at least.

    Raises:
        ValueError: for an `epsilon` <= 0, or inputs without positions.
    """

    def __init__(self, epsilon: float = 1e-6, learned_epsilon: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.initial_epsilon = check_number("epsilon", epsilon, 0.0, above=True)
        self.learned_epsilon = bool(learned_epsilon)

    def build(self, input_shape):
        size = known_size(input_shape, "FilterResponseNorm")
        if len(input_shape) < 3:
            raise ValueError(
                f"`FilterResponseNorm` needs inputs [B, positions, ..., C], got the shape {tuple(input_shape)}. "
                "For vectors use keras.layers.RMSNormalization."
            )
        self.gamma = self.add_weight(name="gamma", shape=(size,), initializer="ones", autocast=False)
        self.beta = self.add_weight(name="beta", shape=(size,), initializer="zeros", autocast=False)
        if self.learned_epsilon:
            start = keras.initializers.Constant(self.initial_epsilon)
            self.epsilon = self.add_weight(name="epsilon", shape=(size,), initializer=start, autocast=False)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        x = to_wide(inputs)
        epsilon = tf.abs(to_wide(self.epsilon)) if self.learned_epsilon else self.initial_epsilon
        square = tf.reduce_mean(tf.square(x), list(range(1, x.shape.rank - 1)), keepdims=True)
        return to_narrow(to_wide(self.gamma) * x * tf.math.rsqrt(square + epsilon) + to_wide(self.beta), inputs.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        arguments = {"epsilon": self.initial_epsilon, "learned_epsilon": self.learned_epsilon}
        return {**super().get_config(), **arguments}


@keras.saving.register_keras_serializable(package="gradloom")
class TLU(keras.layers.Layer):
    """max(x, tau) with a trained threshold per channel, initialized to 0, which is a relu (1911.09737).

    Shapes: float [B, ..., C] -> the same.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def build(self, input_shape):
        self.tau = self.add_weight(name="tau", shape=(known_size(input_shape, "TLU"),), initializer="zeros")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.maximum(inputs, tf.convert_to_tensor(self.tau))

    def compute_output_shape(self, input_shape):
        return input_shape
