"""Shared by layers: float32 arithmetic for half precision, and validation of arguments."""

import numbers

import keras
import tensorflow as tf


def to_wide(x):
    """Returns `x` as a float32 tensor, or float64 if it is one. Half precision is for inputs and outputs only."""
    x = tf.convert_to_tensor(x)
    return x if x.dtype == tf.float64 else tf.cast(x, tf.float32)


def to_narrow(x, dtype):
    """Returns `x` cast to `dtype`; values out of its range become its largest finite number, not inf."""
    dtype = tf.as_dtype(dtype)
    if dtype.size < x.dtype.size:
        x = tf.clip_by_value(x, tf.cast(dtype.min, x.dtype), tf.cast(dtype.max, x.dtype))
    return tf.cast(x, dtype)


def as_scalar(value, dtype):
    """Returns a number, tensor or variable as `dtype`; a number is not rounded to float32 on its way to float64."""
    return tf.constant(value, dtype) if isinstance(value, numbers.Number) else tf.cast(value, dtype)


def check_whole(name, value, least=1, hint=""):
    """Returns `value` as an int; raises ValueError unless it is a whole number >= least."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or value != int(value) or value < least:
        raise ValueError(f"`{name}` must be a whole number >= {least}, got {value!r}.{hint}")
    return int(value)


def check_number(name, value, low=float("-inf"), above=False, hint=""):
    """Returns `value` as a float; raises ValueError unless it is finite and >= low (> low where `above`)."""
    fits = isinstance(value, numbers.Real) and not isinstance(value, bool) and abs(value) < float("inf")
    if not fits or value < low or (above and value == low):
        rule = "finite number" if low == float("-inf") else f"finite number {'>' if above else '>='} {low:g}"
        raise ValueError(f"`{name}` must be a {rule}, got {value!r}.{hint}")
    return float(value)


def check_rate(rate, hint=""):
    """Returns `rate` as a float; raises ValueError unless it is a probability."""
    if isinstance(rate, bool) or not isinstance(rate, numbers.Real) or not 0 <= rate <= 1:
        raise ValueError(f"`rate` must be a probability in [0, 1], got {rate!r}.{hint}")
    return float(rate)


def known_size(shape, layer):
    """Returns the size of the last axis; raises ValueError if it is unknown."""
    if len(shape) < 2 or shape[-1] is None:
        raise ValueError(
            f"`{layer}` needs inputs [B, ..., features] with a known number of features, got the shape {tuple(shape)}. "
            "Give keras.Input the size of the last axis."
        )
    return shape[-1]


def to_config(value):
    """Returns the representation of `value`, a number, a function or a schedule, for `get_config`."""
    return keras.saving.serialize_keras_object(value) if callable(value) else value


def to_object(value):
    """Returns the function or schedule of a `to_config`, or the number itself."""
    return keras.saving.deserialize_keras_object(value) if isinstance(value, dict) else value


class SameShape(keras.layers.Layer):
    """A layer whose output has the shape, dtype and mask of its input."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def compute_output_shape(self, input_shape):
        return input_shape
