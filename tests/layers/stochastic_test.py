"""DropPath: what it drops, how often, and by which seeds. GaussianSampling: its samples and its KL divergence."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import layers
from layers.internals import collecting
from tests.runs import train
from trainer import Trainer
from trainer.replicas.distribution import make_strategy, replica_values

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


def test_the_divergence_by_hand():
    """Zero from itself, 1 / 2 for each mean of 1, and (4 + 4 - log 4 - 1) / 2 for a mean of 2 and a variance of 4."""
    rows = [[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [2.0, -1.0, np.log(4.0), 0.0]]
    np.testing.assert_allclose(layers.gaussian_kl(np.array(rows)), [0, 1, (7 - np.log(4)) / 2 + 0.5], rtol=1e-12)
    sequence = layers.gaussian_kl(np.array(rows).reshape(1, 3, 4))
    np.testing.assert_array_equal(sequence, [layers.gaussian_kl(np.array(rows))])


def test_the_divergence_is_that_of_an_integral():
    """The mean of log N(z; m, v) - log N(z; 0, 1), summed over a fine grid."""
    mean, log_variance = 0.7, -1.3
    z, step = np.linspace(-12, 12, 200_001, retstep=True)
    log_q = -((z - mean) ** 2) / (2 * np.exp(log_variance)) - (np.log(2 * np.pi) + log_variance) / 2
    wanted = np.sum(np.exp(log_q) * (log_q + z**2 / 2 + np.log(2 * np.pi) / 2)) * step
    assert float(layers.gaussian_kl(np.array([[mean, log_variance]]))[0]) == pytest.approx(wanted, rel=1e-9)


def test_extreme_log_variances_are_finite_and_find_their_way_back():
    x = tf.constant([[0.0, 500.0], [0.0, -500.0]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = layers.gaussian_kl(x)
    np.testing.assert_allclose(value, [(np.exp(20) - 21) / 2, (np.exp(-20) + 19) / 2], rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(value, x)[:, 1], [(np.exp(20) - 1) / 2, -0.5], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_samples_in_training_and_the_mean_otherwise(dtype):
    layer = layers.GaussianSampling(seed=3, dtype=dtype)
    x = tf.tile(tf.constant([[3.0, -1.0, np.log(4.0), np.log(0.25)]]), [20_000, 1])
    np.testing.assert_array_equal(tf.cast(layer(x), tf.float32), x[:, :2])
    drawn, again = (tf.cast(layer(x, training=True), tf.float64).numpy() for _ in range(2))
    np.testing.assert_allclose(drawn.mean(0), [3, -1], atol=0.06)
    np.testing.assert_allclose(drawn.std(0), [2, 0.5], rtol=0.03)
    assert (drawn != again).mean() > 0.9
    same = layers.GaussianSampling(seed=3, dtype=dtype)
    np.testing.assert_array_equal(tf.cast(same(x, training=True), tf.float64), drawn)


def test_the_gradient_of_a_draw_is_that_of_its_formula():
    x = tf.constant([[1.0, 2.0, 0.5, -0.5]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layers.GaussianSampling(seed=1)(x, training=True)
    noise = (y - x[:, :2]) / tf.exp(x[:, 2:] / 2)
    np.testing.assert_allclose(tape.gradient(y, x), [[1, 1, *(noise * tf.exp(x[:, 2:] / 2) / 2)[0]]], rtol=1e-5)


def test_the_price_is_a_loss_of_the_layers_name_in_training_and_evaluation():
    x = tf.constant([[[1.0, 0.0], [2.0, 0.0]]])
    layer = layers.GaussianSampling(beta=0.25, name="price")
    for training in (True, False):
        with collecting() as collected:
            layer(x, training=training)
        (said,) = collected.losses["price"]
        np.testing.assert_allclose(said.value, [[0.5, 2.0]])
        assert said.detail == 0.25 and said.owner is layer
    with collecting() as collected:
        layer(x, mask=tf.constant([[True, False]]))
    values, weights = collected.losses["price"][0].value
    np.testing.assert_allclose(values, [[0.5, 2.0]])
    np.testing.assert_array_equal(weights, [[True, False]])


HALF = keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.5, 7.0])  # 1 / 2 at step 0


@pytest.mark.parametrize("strategy, beta, weight", [("default", 2, 2.0), ("mirrored", HALF, 0.5)])
def test_beta_weighs_it_in_the_total(strategy, beta, weight):
    """One step on means of 1 and log variances of 0: 1 / 2 for each of two dimensions, on one and on two replicas."""
    with make_strategy(strategy).scope():
        bias = lambda shape, dtype: tf.constant([1.0, 1.0, 0.0, 0.0], dtype)  # noqa: E731
        encoder = keras.layers.Dense(4, kernel_initializer="zeros", bias_initializer=bias)
        model = keras.Sequential(
            [keras.Input((3,)), encoder, layers.GaussianSampling(beta, seed=4), keras.layers.Dense(1)]
        )
        trainer = Trainer(model, "mse", optimizers="sgd")
    data = tf.data.Dataset.from_tensors((np.ones((6, 3), "float32"), np.ones((6, 1), "float32")))
    report = train(trainer, data, 1)
    assert report["losses/kl"] == pytest.approx(1.0, rel=1e-6)
    assert report["loss"] == pytest.approx(report["losses/main"] + weight, rel=1e-5)


def test_a_schedule_and_a_seed_come_back():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.9)
    layer = layers.GaussianSampling(schedule, seed=9, name="z")
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config() and again.name == "z" and again.seed == 9
    assert float(again.beta(10)) == pytest.approx(0.45)


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: layers.GaussianSampling(-1),
            "`beta` must be a finite number >= 0, got -1. Give a number, or a schedule",
        ),
        (
            lambda: layers.GaussianSampling()(tf.ones([2, 3])),
            r"`inputs` must be \[B, ..., 2 D\].* got the shape \(2, 3\)",
        ),
        (lambda: layers.gaussian_kl([[1.0]]), "twice as many units as there are latents"),
    ],
)
def test_bad_arguments_of_a_sampling_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
