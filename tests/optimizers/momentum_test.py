"""MomentumSGD against Keras' SGD and the closed form; and the base that all optimizers of ours stand on."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from optimizers.base import Optimizer
from optimizers.momentum import MomentumSGD


def _run(optimizer, gradients, start):
    v = keras.Variable(start)
    optimizer.build([v])
    for gradient in gradients:
        optimizer.apply([tf.constant(gradient)])
    return v.numpy()


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_equals_keras_sgd(momentum, nesterov):
    random = np.random.default_rng(0)
    start, gradients = random.normal(size=(4, 3)).astype("float32"), random.normal(size=(10, 4, 3)).astype("float32")
    ours = _run(MomentumSGD(0.1, momentum, nesterov), gradients, start)
    theirs = _run(keras.optimizers.SGD(0.1, momentum=momentum, nesterov=nesterov), gradients, start)
    np.testing.assert_allclose(ours, theirs, atol=2e-7)


def test_a_constant_gradient_moves_by_the_closed_form():
    # m_t = -eta g (1 - mu^t) / (1 - mu), and v is the sum of them
    eta, mu, g = 0.1, 0.5, 2.0
    wanted = -eta * g / (1 - mu) * sum(1 - mu**t for t in range(1, 6))
    np.testing.assert_allclose(_run(MomentumSGD(eta, mu), [g] * 5, 0.0), wanted, rtol=1e-6)


@pytest.mark.parametrize("momentum", [-0.1, 1.1, "0.9", None, True])
def test_momentum_is_checked(momentum):
    with pytest.raises(ValueError, match=r"`momentum` must be a number in \[0, 1\], got"):
        MomentumSGD(0.1, momentum)


# ---- optimizers.base -----------------------------------------------------------------------------------------------


def test_an_int_as_learning_rate_is_taken():
    assert float(MomentumSGD(1).learning_rate) == 1.0


def test_a_sparse_gradient_counts_rows_that_come_twice():
    v = keras.Variable(np.zeros([3, 1], np.float32))
    optimizer = MomentumSGD(1.0, momentum=0.0)
    optimizer.build([v])
    optimizer.apply([tf.IndexedSlices(tf.constant([[1.0], [2.0]]), tf.constant([1, 1]), tf.constant([3, 1]))])
    np.testing.assert_array_equal(v.numpy(), [[0.0], [-3.0], [0.0]])


def test_keras_still_tells_the_place_of_a_variable():
    """Notices when `_get_variable_index` of Keras goes: all optimizers here find their slots by it."""
    a, b = keras.Variable(0.0), keras.Variable(1.0)
    optimizer = MomentumSGD(0.1)
    optimizer.build([a, b])
    assert [optimizer.index(v) for v in (b, a, b.value)] == [1, 0, 1]


class Shifted(Optimizer):
    """Moves what `patterns` match by `amount`."""

    def __init__(self, amount, patterns):
        super().__init__(1.0)
        self.amount, self.patterns = amount, patterns

    def build(self, variables):
        super().build(variables)
        self._moves = self.find("patterns", self.patterns, variables)


def test_patterns_match_the_names_that_were_given_else_the_paths():
    with keras.name_scope("dense"):
        kernel, bias = keras.Variable(0.0, name="kernel"), keras.Variable(0.0, name="bias")
    optimizer = Shifted(1.0, ["dense/.*s"])
    optimizer.build([kernel, bias])
    assert optimizer._moves == [[], [0]]
    optimizer = Shifted(1.0, ".*/weight")
    optimizer.name_variables(["a/weight", "a/offset"])
    optimizer.build([kernel, bias])
    assert optimizer._moves == [[0], []]


def test_a_pattern_without_a_match_is_told_with_the_nearest_name():
    optimizer = Shifted(1.0, ["a/wieght"])
    optimizer.name_variables(["a/weight"])
    with pytest.raises(
        ValueError, match=r"`Shifted.patterns` 'a/wieght' matches no variable. Did you mean 'a/weight'\?"
    ):
        optimizer.build([keras.Variable(0.0)])
    with pytest.raises(ValueError, match="A pattern must match a whole name"):
        Shifted(1.0, "weight").build([keras.Variable(0.0, name="weights")])
    with pytest.raises(ValueError, match="regular expressions, got '\\*'"):
        Shifted(1.0, "*").build([keras.Variable(0.0)])
