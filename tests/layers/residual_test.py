"""Residual and self-normalizing blocks against NumPy and the moments of the paper."""

import keras
import numpy as np
import pytest

import layers
from tests.layers.contract_test import check_gradients, set_weights

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 4))


def test_a_residual_block_adds_its_branch():
    block = layers.ResidualBlock(
        [L.Dense(3, "tanh", name="a", dtype="float64"), L.Dense(4, name="b", dtype="float64")], dtype="float64"
    )
    block.build((None, 4))
    a, b = RNG.normal(size=(4, 3)), RNG.normal(size=(3, 4))
    set_weights(block, {"a/kernel": a, "a/bias": np.ones(3), "b/kernel": b, "b/bias": np.zeros(4)})
    np.testing.assert_allclose(block(X), X + np.tanh(X @ a + 1) @ b, rtol=1e-10)
    check_gradients(block, X)


def test_a_branch_of_zeros_is_the_identity_also_for_images():
    x = RNG.normal(size=(2, 5, 5, 3)).astype("float32")
    block = layers.ResidualBlock(L.Conv2D(3, 3, padding="same", kernel_initializer="zeros"))
    np.testing.assert_array_equal(block(x), x)
    assert [v.name for v in block.trainable_weights] == ["kernel", "bias"]


def test_training_reaches_the_branch():
    block = layers.ResidualBlock([L.Dense(4, name="a"), L.BatchNormalization(), layers.DropPath(1.0)])
    x = X.astype("float32")
    np.testing.assert_array_equal(block(x, training=True), x)
    moving = block.branch[1].moving_mean.numpy()
    assert np.abs(moving).max() > 0
    assert not np.array_equal(block(x), x)
    np.testing.assert_array_equal(block.branch[1].moving_mean, moving)


def test_a_self_normalizing_block_is_a_selu():
    block = layers.SelfNormalizingBlock(3, dtype="float64")
    block.build((None, 4))
    kernel, bias = RNG.normal(size=(4, 3)), RNG.normal(size=3)
    set_weights(block, {"dense/kernel": kernel, "dense/bias": bias})
    z = X @ kernel + bias
    wanted = 1.0507009873554805 * np.where(z > 0, z, 1.6732632423543772 * np.expm1(z))
    np.testing.assert_allclose(block(X), wanted, rtol=1e-6)  # Keras holds the constants in float32
    check_gradients(block, X)


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_twenty_blocks_keep_mean_0_and_variance_1(rate):
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(1000, 64)).astype("float32")
    for _ in range(20):
        x = layers.SelfNormalizingBlock(256, rate)(x, training=True)
    x = np.array(x)
    assert abs(x.mean()) < 0.1 and 0.8 < x.std() < 1.2


def test_weights_begin_lecun_normal():
    block = layers.SelfNormalizingBlock(2000)
    block.build((None, 50))
    assert block.dense.kernel.numpy().std() == pytest.approx(50**-0.5, rel=0.02)  # Glorot's would be a sixth of it


def test_the_same_depth_of_relus_does_not():
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(1000, 64)).astype("float32")
    for _ in range(20):
        x = L.Dense(256, "relu", kernel_initializer="lecun_normal")(x)
    assert np.array(x).std() < 0.1


def test_alpha_dropout_is_off_in_evaluation():
    block = layers.SelfNormalizingBlock(50, 0.5, seed=1)
    np.testing.assert_array_equal(block(X), block(X))
    assert not np.array_equal(block(X, training=True), block(X, training=True))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: layers.ResidualBlock([]), r"`branch` must be a Keras layer or a list of them, got \[\]. In gin"),
        (lambda: layers.ResidualBlock(L.Dense), "`branch` must be a Keras layer .*In gin, call them: @Dense"),
        (
            lambda: layers.ResidualBlock(L.Dense(3))(X),
            r"`branch` must keep the shape, got \(5, 3\) from \(5, 4\). Give its last",
        ),
        (lambda: layers.SelfNormalizingBlock(0), "`units` must be a whole number >= 1, got 0"),
        (lambda: layers.SelfNormalizingBlock(3, 1.0), "`rate` must be < 1, got 1.0"),
        (lambda: layers.SelfNormalizingBlock(3, -0.1), r"`rate` must be a probability in \[0, 1\], got -0.1"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
