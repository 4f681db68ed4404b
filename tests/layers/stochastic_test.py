"""DropPath: what is left out, how often, and the numbers that decide it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import layers
from trainer.distribution import make_strategy, replica_values

X = np.random.default_rng(0).normal(size=(8, 3, 4)).astype("float32")


def test_an_example_is_left_out_whole_or_scaled():
    y = np.array(layers.DropPath(0.25, seed=1)(np.tile(X, (50, 1, 1)), training=True))
    kept = np.abs(y).sum((1, 2)) > 0
    np.testing.assert_allclose(y[kept], np.tile(X, (50, 1, 1))[kept] / 0.75, rtol=1e-6)
    assert 0 < kept.sum() < 400


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_the_expectation_is_the_input(dtype):
    layer, n = layers.DropPath(0.3, seed=2, dtype=dtype), 40000
    y = tf.cast(layer(tf.ones([n, 1], layer.compute_dtype), training=True), tf.float32)
    assert float(tf.reduce_mean(tf.cast(y == 0, tf.float32))) == pytest.approx(0.3, abs=4 * np.sqrt(0.3 * 0.7 / n))
    assert float(tf.reduce_mean(y)) == pytest.approx(1.0, abs=0.015)


def test_nothing_happens_in_evaluation_or_at_rate_0_and_nothing_is_left_at_1():
    np.testing.assert_array_equal(layers.DropPath(0.9)(X), X)
    np.testing.assert_array_equal(layers.DropPath(0.0)(X, training=True), X)
    np.testing.assert_array_equal(layers.DropPath(1)(X, training=True), np.zeros_like(X))
    np.testing.assert_array_equal(layers.DropPath(1)(X), X)


def test_the_gradient_is_the_mask_and_inf_is_left_out():
    x = tf.constant(np.full((200, 2), np.inf, np.float32))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layers.DropPath(0.5, seed=3)(x, training=True)
    gradient = tape.gradient(y, x)
    dropped = np.array(y)[:, 0] == 0
    assert 50 < dropped.sum() < 150 and not np.isnan(y).any()
    np.testing.assert_array_equal(gradient, np.where(dropped[:, None], 0.0, 2.0) * np.ones((1, 2)))


def test_a_seed_repeats_its_draws_and_each_call_is_another():
    first, second, other = (layers.DropPath(0.5, seed=s) for s in (5, 5, 6))
    draws = [[np.array(layer(X, training=True)) for _ in range(4)] for layer in (first, second, other)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2]) and not np.array_equal(draws[0][0], draws[0][1])


def test_it_leaves_out_other_examples_on_each_replica_of_a_trainer():
    from trainer import Trainer

    strategy = make_strategy("mirrored")
    with strategy.scope():
        drop = layers.DropPath(0.5, seed=4)
        model = keras.Sequential([keras.Input((1,)), drop, keras.layers.Dense(1)])
        trainer = Trainer(model, "mse")
    trainer.distribute(tf.data.Dataset.from_tensors((np.ones((64, 1), "float32"), np.ones((64, 1), "float32"))))
    step = tf.function(lambda: strategy.run(lambda: drop(tf.ones([32, 1]), training=True)))
    one, two = replica_values(strategy, step())
    assert not np.array_equal(one, two)


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan"), "half"])
def test_a_bad_rate_is_named(rate):
    with pytest.raises(ValueError, match=r"`rate` must be a probability in \[0, 1\], got .* 0 keeps every branch"):
        layers.DropPath(rate)
