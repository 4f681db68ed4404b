"""`check tpu`: what XLA and a TPU take passes; what they do not is named with the user's own line."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import Trainer
from trainer.data import from_arrays
from trainer.diagnosis.tpu import examine

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(8, 3)).astype(np.float32), RNG.normal(size=(8, 1)).astype(np.float32)


def _examine(function, data=(X, Y), repeat=True):
    source = from_arrays(data, 4, shuffle=False, repeat=repeat)

    def make(strategy):
        with strategy.scope():
            built = Custom(function)
        built.build(source.element_spec)
        return built

    return examine(make, source)


class Custom(Trainer):
    """A Trainer whose loss is `function(predictions, batch)`."""

    def __init__(self, function):
        super().__init__(
            keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]), optimizers=keras.optimizers.Adam(0.1)
        )
        self.function = function

    def compute_losses(self, batch, training):
        return {"main": self.function(self.model(batch[0], training=training), batch)}


def _squares(predictions, batch):
    return tf.square(predictions - batch[1])


def _masked(predictions, batch):
    error = tf.square(predictions - batch[1])
    return tf.reduce_mean(tf.boolean_mask(error, error > 1))  # here


def _python(predictions, batch):
    error = tf.square(predictions - batch[1])
    factor = tf.py_function(lambda x: x, [tf.constant(2.0)], tf.float32)  # here
    return error * tf.ensure_shape(factor, [])


def _strings(predictions, batch):
    length = tf.strings.length(tf.strings.as_string(predictions))  # here
    return tf.square(predictions - batch[1]) * tf.cast(length, tf.float32)


def _unknown_to_xla(predictions, batch):
    return tf.square(predictions - batch[1]) * tf.math.special.expint(tf.abs(batch[1]) + 1)  # here


def _unbounded(predictions, batch):
    power = tf.while_loop(lambda i, _: i < 2, lambda i, p: (i + 1, p * p), (0, predictions))[1]  # here
    return tf.square(power - batch[1])


def _doubles(predictions, batch):
    return tf.square(tf.cast(predictions, tf.float64) - tf.cast(batch[1], tf.float64))  # here


def test_a_step_of_static_shapes_passes():
    found = _examine(_squares)
    assert found.ok, str(found)
    assert "compiles with XLA" in str(found)


@pytest.mark.parametrize("loss, kind, text", [
    (_masked, "shape", "Where returns a result whose size depends on the values"),
    (_python, "python", "EagerPyFunc calls Python"),
    (_strings, "string", "AsString works on strings"),
    (_doubles, "type", "float64"),
    (_unbounded, "loop", "a gradient through a loop without a bound"),
    (_unknown_to_xla, "xla", "XLA has no Expint"),
])  # fmt: skip
def test_what_a_tpu_refuses_is_named_with_its_line(loss, kind, text):
    found = _examine(loss)
    lines, first = inspect.getsourcelines(loss)
    line = first + next(i for i, code in enumerate(lines) if "# here" in code)
    mine = [(what, place) for k, what, place in found.found if k == kind]
    assert not found.ok and any(text in what for what, _ in mine), str(found)
    assert any(place.endswith(f"tpu_test.py:{line}") for _, place in mine), str(found)


def test_the_input_counts_too():
    found = _examine(_squares, repeat=False, data=(X[:7], Y[:7]))
    assert not found.ok and "has no fixed shape" in str(found) and "drop_remainder" in str(found)
    words = np.array(["a"] * 8)
    assert "holds strings" in str(_examine(_squares, data=(X, Y, words)))
