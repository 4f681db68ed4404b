"""Shared by optimizers: float32 arithmetic for variables of any precision, and patterns on variable names."""

import difflib
import numbers
import re
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf


class Optimizer(keras.optimizers.Optimizer):
    """A Keras optimizer whose slot variables are float32 or wider, for variables of any precision.

    In float16 a squared gradient overflows at 256 and underflows below 2e-4, so
    an average of squares would be wrong. Copy momentum.py to write an optimizer:
    four methods, `__init__`, `build`, `update_step`, `get_config`.

    Args:
        learning_rate: number, schedule, or callable without arguments.
        **kwargs: those of `keras.optimizers.Optimizer`.
    """

    def __init__(self, learning_rate: float | Callable, **kwargs):
        # gin passes the int of `learning_rate = 1`; Keras accepts floats only.
        super().__init__(float(learning_rate) if isinstance(learning_rate, int) else learning_rate, **kwargs)
        self._names = None

    def add_variable(self, shape, initializer="zeros", dtype=None, **kwargs):
        """Like Keras' method, with half precision widened to float32."""
        return super().add_variable(shape, initializer, dtype=_wide(tf.as_dtype(dtype or "float32")).name, **kwargs)

    def name_variables(self, names):
        """Sets the names that patterns match, in the order of `build`'s variables.

        Call it before `build`. Default: `variable.path`.
        """
        self._names = tuple(names)

    def find(self, argument, patterns, variables):
        """Returns for each of `variables` the numbers of the `patterns` that match its whole name.

        Raises:
            ValueError: a pattern of the constructor's `argument` matches none of them.
        """
        return find(f"{type(self).__name__}.{argument}", patterns, self.names_of(variables))

    def names_of(self, variables):
        return self._names or tuple(variable.path for variable in variables)

    def index(self, variable):
        """Returns the index of `variable` (as `update_step` gets it) among `build`'s variables.

        The only use of a Keras method that is documented only by example
        (keras.optimizers.Optimizer); tests/optimizers/momentum_test.py notices when it changes.
        """
        return self._get_variable_index(variable)

    def at_step(self, value, dtype):
        """Returns a number, or a schedule's value at the current update, as a tensor."""
        return tf.cast(value(self.iterations) if callable(value) else value, dtype)

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Creates the optimizer from a `get_config`, including schedules in any argument."""
        revive = keras.saving.deserialize_keras_object
        nested = {key: revive(value, custom_objects) for key, value in config.items() if _is_object(value)}
        return super().from_config({**config, **nested}, custom_objects)


def _is_object(value):
    return isinstance(value, dict) and "class_name" in value


def find(where, patterns, names):
    """Returns for each of `names` the numbers of the `patterns` that match the whole of it.

    Args:
        where: class and argument, for the message.
        patterns: regular expressions, one or a list.
        names: variable names.

    Raises:
        ValueError: a pattern is not a regular expression, or matches none of `names`.
    """
    found = [[] for _ in names]
    for number, pattern in enumerate(as_list(patterns)):
        try:
            hits = [i for i, name in enumerate(names) if re.fullmatch(pattern, name)]
        except (re.error, TypeError) as error:
            raise ValueError(f"`{where}` must hold regular expressions, got {pattern!r}: {error}.") from None
        if not hits:
            near = difflib.get_close_matches(pattern, names, 1)
            raise ValueError(
                f"`{where}` {pattern!r} matches no variable."
                + (f" Did you mean {near[0]!r}?" if near else "")
                + f" A pattern must match a whole name; the names are {', '.join(names[:12])}"
                + (", ..." if len(names) > 12 else "")
                + "."
            )
        for i in hits:
            found[i].append(number)
    return found


def widen(values):
    """Returns `values` (tensor, variable or IndexedSlices) as a dense tensor, float32 or wider."""
    values = tf.convert_to_tensor(values)
    return tf.cast(values, _wide(values.dtype))


def _wide(dtype):
    return tf.float32 if dtype.is_floating and dtype.size < 4 else dtype


def config_of(value):
    """Returns the representation of a number or a schedule for `get_config`."""
    return keras.saving.serialize_keras_object(value) if callable(value) else value


def check_number(name, value, rule, holds, fix):
    """Returns `value` as a float.

    Raises ValueError with the `rule` in words and the `fix` if `holds(value)` is false.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not holds(value):
        raise ValueError(f"`{name}` must be {rule}, got {value!r}. {fix}")
    return float(value)


def check_positive(name, value, fix):
    return check_number(name, value, "a number > 0", lambda x: x > 0, fix)


def check_decay_rate(
    name, value, fix="It is the fraction of a moving average that a step keeps; 0.9 to 0.999 are usual."
):
    return check_number(name, value, "a number in [0, 1)", lambda x: 0 <= x < 1, fix)


def check_weight_decay(value):
    """Returns a weight decay as a float, or a schedule unchanged."""
    if callable(value):
        return value
    return check_number("weight_decay", value, "a number >= 0 or a schedule", lambda x: x >= 0, "0 switches it off.")


def check_count(name, value, least, fix):
    """Returns `value` as an int; gin may write it as 1e3."""
    check_number(name, value, f"a whole number >= {least}", lambda x: x >= least and x == int(x), fix)
    return int(value)


def keras_object(argument, kind, name):
    """Returns `keras.<kind>.get(name)`; raises ValueError with the nearest name."""
    module = getattr(keras, kind)
    try:
        return module.get(name)
    except ValueError:
        public = [n for n, value in vars(module).items() if n[0] != "_" and callable(value)]
        snake_case = [re.sub(r"(?<=[a-z])(?=[A-Z])", "_", n).lower() for n in public]
        near = difflib.get_close_matches(name, [*snake_case, *public], 1)
        cure = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"`{argument}` must be a name that keras.{kind}.get knows, got {name!r}.{cure}") from None


def check_bool(name, value):
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"`{name}` must be True or False, got {value!r}.")
    return bool(value)


def check_callable(name, value, rule):
    """Returns a function or None; raises ValueError with the `rule` for anything else."""
    if value is not None and not callable(value):
        raise ValueError(f"`{name}` must be {rule} or None, got {value!r:.80}.")
    return value


def as_list(value):
    return list(value) if isinstance(value, (list, tuple)) else [value]
