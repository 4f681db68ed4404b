"""Identity functions with a modified gradient, and gradients for functions that have none.

Each function is also a layer, for Functional models. Forward values are exact:
they are not computed as x + (y - x).
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from layers.base import SameShape, as_scalar, check_number, to_wide

_OPS = ("round", "sign", "argmax")


def scale_gradient(x: tf.Tensor, scale: float | tf.Tensor) -> tf.Tensor:
    """Returns x; its gradient is multiplied by `scale`.

    Second derivatives are scaled again: that of y = scale_gradient(x)^2 is 2 scale^2.

    Args:
        x: float tensor of any shape.
        scale: number or float scalar; 0 stops the gradient, with zeros where `tf.stop_gradient` gives None.
    """
    x = tf.convert_to_tensor(x)
    # custom_gradient differentiates every argument, so it gets x only.
    scale = as_scalar(scale, x.dtype)

    @tf.custom_gradient
    def identity(x):
        return tf.identity(x), lambda dy: dy * scale

    return identity(x)


def gradient_reversal(x: tf.Tensor, strength: float | tf.Tensor = 1.0) -> tf.Tensor:
    """Returns x; its gradient is multiplied by -strength (Ganin et al. 2016, 1505.07818; lambda there).

    Args:
        x: float tensor of any shape.
        strength: number or float scalar.
    """
    return scale_gradient(x, -strength)


def clip_gradient(x: tf.Tensor, limit: float | tf.Tensor) -> tf.Tensor:
    """Returns x; each element of its gradient is limited to [-limit, limit].

    It acts within a replica's backward pass, on the gradient of that replica's
    share of the loss. To clip the reduced gradient, use a transform.

    Args:
        x: float tensor of any shape.
        limit: number > 0 or float scalar.
    """
    x = tf.convert_to_tensor(x)
    limit = as_scalar(limit, x.dtype)

    @tf.custom_gradient
    def identity(x):
        return tf.identity(x), lambda dy: tf.clip_by_value(dy, -limit, limit)

    return identity(x)


def straight_through(x: tf.Tensor, op: str | Callable, window: float | None = None) -> tf.Tensor:
    """Returns op(x); its gradient is that of the identity (Bengio et al. 2013, 1308.3432), or of a clip to +-window.

    Args:
        x: float tensor [...]; [..., C] for "argmax".
        op: "round" to the nearest, ties to even; "sign", which is 1 where
            x >= 0 and else -1 (1602.02830, eq. 1); "argmax", a one-hot of the
            largest of the last axis, the first one in a tie; or a
            function from a tensor to one of its shape.
        window: None, or a number > 0: no gradient where |x| > window. 1 is
            usual for "sign" (1602.02830, eq. 4), and keeps x bounded.

    Returns:
        Tensor of x's shape and dtype.

    Raises:
        ValueError: for another `op`, one that changes the shape, or a `window` <= 0.
    """
    x = tf.convert_to_tensor(x)
    forward = _operation(op)
    if window is not None:
        check_number("window", window, 0.0, above=True, hint=" Use None for a gradient everywhere.")

    @tf.custom_gradient
    def apply(x):
        y = tf.cast(forward(x), x.dtype)
        if not y.shape.is_compatible_with(x.shape):
            raise ValueError(f"`op` must keep the shape, got {y.shape} from {x.shape}. Sum or pool in a separate step.")

        def gradient(dy):
            return dy if window is None else tf.where(tf.abs(x) <= as_scalar(window, x.dtype), dy, tf.zeros_like(dy))

        return y, gradient

    return apply(x)


def _operation(op):
    if callable(op):
        return op
    if op not in _OPS:
        raise ValueError(f"`op` must be one of {', '.join(_OPS)}, or a function, got {op!r}.")
    if op == "round":
        return tf.round
    if op == "sign":
        return lambda x: tf.where(x >= 0, tf.ones_like(x), -tf.ones_like(x))
    return lambda x: tf.one_hot(tf.argmax(x, -1), tf.shape(x)[-1], dtype=x.dtype)


def gumbel_softmax(
    logits: tf.Tensor,
    temperature: float | tf.Tensor = 1.0,
    hard: bool = False,
    seed: int | keras.random.SeedGenerator | None = None,
) -> tf.Tensor:
    """Draws a differentiable sample of a softmax (Jang et al. 2017, 1611.01144, eq. 2).

    softmax((logits + g) / temperature) with g = -log(-log u), u uniform: its
    largest entry is distributed like softmax(logits), at any temperature.

    Args:
        logits: float [..., C]; -inf excludes a class.
        temperature: number > 0 or float scalar; near 0 the draw is one-hot, and its gradient vanishes or is large.
        hard: bool; True gives a one-hot draw with the gradient of the soft one (straight through).
        seed: int, keras.random.SeedGenerator or None.

    Returns:
        Tensor like `logits`, non-negative, sum 1 over the last axis.
    """
    logits = tf.convert_to_tensor(logits)
    wide = to_wide(logits)
    # u = 0 would give -inf noise, so the smallest normal number is the minimum.
    u = keras.random.uniform(tf.shape(wide), minval=wide.dtype.as_numpy_dtype(1e-37), dtype=wide.dtype.name, seed=seed)
    return _relaxed(wide - tf.math.log(-tf.math.log(u)), temperature, hard, logits.dtype)


def _relaxed(logits, temperature, hard, dtype):
    # The maximum is subtracted first, since logits divided by a small temperature could overflow.
    logits -= tf.stop_gradient(tf.reduce_max(logits, -1, keepdims=True))
    soft = tf.nn.softmax(logits / as_scalar(temperature, logits.dtype))
    return tf.cast(straight_through(soft, "argmax") if hard else soft, dtype)


@keras.saving.register_keras_serializable(package="gradloom")
class ScaleGradient(SameShape):
    """`scale_gradient` as a layer.

    Args:
        scale: finite number.
    """

    def __init__(self, scale: float, **kwargs):
        super().__init__(**kwargs)
        self.scale = check_number("scale", scale)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return scale_gradient(inputs, self.scale)

    def get_config(self):
        return {**super().get_config(), "scale": self.scale}


@keras.saving.register_keras_serializable(package="gradloom")
class GradientReversal(SameShape):
    """`gradient_reversal` as a layer, for domain-adversarial training.

    `strength` is a non-trainable variable. For a schedule, as in the paper, use a
    hook that calls `layer.strength.assign(value)`.

    Args:
        strength: number >= 0, the initial value.
    """

    def __init__(self, strength: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        hint = " The gradient is multiplied by -strength; ScaleGradient keeps the sign."
        self.initial_strength = check_number("strength", strength, 0.0, hint=hint)

    def build(self, input_shape):
        self.strength = _schedulable(self, "strength", self.initial_strength)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return gradient_reversal(inputs, self.strength)

    def get_config(self):
        return {**super().get_config(), "strength": self.initial_strength}


def _schedulable(layer, name, value):
    start = keras.initializers.Constant(value)
    return layer.add_weight(name=name, shape=(), initializer=start, trainable=False, autocast=False)


@keras.saving.register_keras_serializable(package="gradloom")
class ClipGradient(SameShape):
    """`clip_gradient` as a layer.

    Args:
        limit: number > 0.
    """

    def __init__(self, limit: float, **kwargs):
        super().__init__(**kwargs)
        self.limit = check_number("limit", limit, 0.0, above=True, hint=" Remove the layer to switch clipping off.")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return clip_gradient(inputs, self.limit)

    def get_config(self):
        return {**super().get_config(), "limit": self.limit}


@keras.saving.register_keras_serializable(package="gradloom")
class StraightThrough(SameShape):
    """`straight_through` as a layer.

    Args:
        op: "round", "sign", "argmax", or a function;
            to save the model, one that is registered with Keras (keras.saving.register_keras_serializable).
        window: None, or a number > 0.
    """

    def __init__(self, op: str | Callable, window: float | None = None, **kwargs):
        super().__init__(**kwargs)
        # A saved function is loaded as its config.
        self.op = keras.saving.deserialize_keras_object(op) if isinstance(op, dict) else op
        self.window = window
        _operation(self.op)
        if window is not None:
            self.window = check_number("window", window, 0.0, above=True, hint=" Use None for a gradient everywhere.")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return straight_through(inputs, self.op, self.window)

    def get_config(self):
        op = keras.saving.serialize_keras_object(self.op) if callable(self.op) else self.op
        return {**super().get_config(), "op": op, "window": self.window}


@keras.saving.register_keras_serializable(package="gradloom")
class GumbelSoftmax(SameShape):
    """`gumbel_softmax` as a layer: it samples in training; in evaluation it is softmax(logits / temperature) without
    noise.

    `temperature` is a non-trainable variable. Anneal it with a hook that calls
    `layer.temperature.assign(value)`.

    Args:
        temperature: number > 0, the initial value.
        hard: bool; one-hot outputs, also in evaluation.
        seed: int or None.
    """

    def __init__(self, temperature: float = 1.0, hard: bool = False, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.initial_temperature = check_number("temperature", temperature, 0.0, above=True)
        self.hard, self.seed = bool(hard), seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape):
        self.temperature = _schedulable(self, "temperature", self.initial_temperature)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        if training:
            return gumbel_softmax(inputs, self.temperature, self.hard, self.seed_generator)
        return _relaxed(to_wide(inputs), self.temperature, self.hard, inputs.dtype)

    def get_config(self):
        arguments = {"temperature": self.initial_temperature, "hard": self.hard, "seed": self.seed}
        return {**super().get_config(), **arguments}
