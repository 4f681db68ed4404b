"""Regression losses against hand numbers, NumPy and Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import losses
from tests.losses.contract_test import fit_and_train


def _gradient(function, targets, predictions, **arguments):
    predictions = tf.constant(predictions)
    with tf.GradientTape() as tape:
        tape.watch(predictions)
        values = function(targets, predictions, **arguments)
    return tape.gradient(values, predictions).numpy()


def test_pseudo_huber_by_hand():
    # e = 3/4 of delta: sqrt(1 + 9/16) - 1 = 1/4
    np.testing.assert_allclose(losses.pseudo_huber([0.0], np.array([1.5]), 2.0), [1.0], rtol=1e-12)
    # far away it is a line of slope delta, near 0 half the square, also where sqrt(1 + x^2) rounds to 1
    np.testing.assert_allclose(_gradient(losses.pseudo_huber, [0.0], [1e4], delta=3.0), [3.0], rtol=1e-5)
    np.testing.assert_allclose(losses.pseudo_huber([0.0], tf.constant([1e-5])), [0.5e-10], rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.01, 10), st.integers(0, 2**31), st.sampled_from([(5,), (5, 1), (5, 3), (2, 3, 4)]))
def test_pseudo_huber_is_the_formula_and_lies_below_keras_huber(delta, seed, shape):
    rng = np.random.default_rng(seed)
    y, p = rng.normal(size=shape), rng.normal(size=shape)
    wanted = delta**2 * (np.sqrt(1 + ((y - p) / delta) ** 2) - 1)
    values = losses.pseudo_huber(y, p, delta)
    np.testing.assert_allclose(values, wanted.mean(-1) if len(shape) > 1 else wanted, rtol=1e-6, atol=1e-12)
    assert np.mean(values) <= float(keras.losses.Huber(delta, dtype="float64")(y, p)) + 1e-9


@pytest.mark.parametrize("delta", [1.0, 3.0])
def test_two_derivatives_of_pseudo_huber(delta):
    """e / r and 1 / r^3 with r = sqrt(1 + (e / delta)^2): its gradient is written by hand."""
    error = tf.constant([-50.0, -2.0, -1e-4, 0.0, 1e-4, 0.5, 3.0], tf.float64)
    with tf.GradientTape() as outer:
        outer.watch(error)
        with tf.GradientTape() as inner:
            inner.watch(error)
            values = losses.pseudo_huber(tf.zeros_like(error), error, delta)
        slope = inner.gradient(values, error)
    r = np.sqrt(1 + (error.numpy() / delta) ** 2)
    np.testing.assert_allclose(slope, error / r, rtol=1e-12)
    np.testing.assert_allclose(outer.gradient(slope, error), r**-3, rtol=1e-12)


def test_pinball_by_hand():
    np.testing.assert_allclose(losses.pinball([3.0, 1.0], np.array([1.0, 3.0]), 0.9), [1.8, 0.2], rtol=1e-12)
    y, p = np.random.default_rng(0).normal(size=(2, 6, 3))
    np.testing.assert_allclose(losses.pinball(y, p), keras.losses.mean_absolute_error(y, p) / 2, rtol=1e-7)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 5), (4, 5, 1)])
def test_several_quantiles_share_a_target(shape):
    tau, rng = [0.1, 0.5, 0.9], np.random.default_rng(0)
    targets = rng.normal(size=shape)
    flat = targets[..., 0] if shape[-1] == 1 else targets
    predictions = rng.normal(size=(*flat.shape, 3))
    each = [losses.pinball(flat[..., None], predictions[..., i : i + 1], t) for i, t in enumerate(tau)]
    np.testing.assert_allclose(losses.pinball(targets, predictions, tau), np.mean(each, 0), rtol=1e-12)


def test_the_minimum_of_pinball_is_the_quantile():
    sample = np.random.default_rng(0).normal(size=999)
    grid = np.linspace(-3, 3, 601)
    for tau in (0.1, 0.5, 0.8):
        costs = [np.mean(losses.pinball(sample, np.full(999, g), tau)) for g in grid]
        assert grid[np.argmin(costs)] == pytest.approx(np.quantile(sample, tau), abs=0.02)


def test_winsorised_by_hand():
    np.testing.assert_allclose(losses.winsorised([0.0, 0.0, 0.0], [1.0, -2.0, 50.0], 3.0), [1.0, 4.0, 9.0])
    np.testing.assert_array_equal(_gradient(losses.winsorised, [0.0, 0.0], [1.0, 50.0], limit=3.0), [2.0, 0.0])
    y, p = np.random.default_rng(0).normal(size=(2, 6, 3))
    np.testing.assert_allclose(losses.winsorised(y, p, 1e3), keras.losses.mean_squared_error(y, p), rtol=1e-7)


def test_the_nll_is_that_of_a_normal_and_its_minimum_the_squared_error():
    rng = np.random.default_rng(0)
    y, mean, s = rng.normal(size=(3, 6, 2))
    wanted = 0.5 * (s + (y - mean) ** 2 * np.exp(-s))
    np.testing.assert_allclose(losses.heteroscedastic_nll(y, np.concatenate([mean, s], -1)), wanted.mean(-1), rtol=1e-9)
    at_minimum = [[1.0, np.log(4.0)]]  # e = 2: the best log variance is log 4
    np.testing.assert_allclose(_gradient(losses.heteroscedastic_nll, [3.0], at_minimum)[0, 1], 0, atol=1e-6)
    np.testing.assert_allclose(
        losses.heteroscedastic_nll([3.0], np.array(at_minimum)), [(np.log(4) + 1) / 2], rtol=1e-9
    )


def test_beta_one_gives_the_mean_the_gradient_of_the_squared_error():
    predictions = [[1.0, 3.0], [0.5, -2.0]]
    gradient = _gradient(losses.heteroscedastic_nll, [2.0, 2.0], predictions, beta=1.0)
    np.testing.assert_allclose(gradient[:, 0], [-1.0, -1.5], rtol=1e-5)
    plain = _gradient(losses.heteroscedastic_nll, [2.0, 2.0], predictions, beta=0.5)
    np.testing.assert_allclose(plain[:, 0], [-1.0 * np.exp(-1.5), -1.5 * np.exp(1.0)], rtol=1e-5)


@pytest.mark.parametrize("log_variance, sign", [(-60.0, -1), (60.0, 1)])
def test_a_log_variance_out_of_bounds_is_led_back(log_variance, sign):
    gradient = _gradient(losses.heteroscedastic_nll, [2.0], [[0.0, log_variance]])
    assert np.sign(gradient[0, 1]) == sign and np.isfinite(gradient).all()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: losses.PseudoHuber(0), "`delta` must be > 0, got 0"),
        (lambda: losses.Pinball(1.0), r"`tau` must be in \(0, 1\), or a list of such numbers, got 1.0"),
        (lambda: losses.Pinball([]), r"`tau` must be in \(0, 1\)"),
        (lambda: losses.pinball([1.0], [[1.0, 2.0]], [0.1, 0.5, 0.9]), "do not fit 3 quantiles in `tau`"),
        (lambda: losses.Winsorised(-2), "`limit` must be > 0, got -2"),
        (lambda: losses.HeteroscedasticNLL(2), r"`beta` must be in \[0.0, 1.0\], got 2"),
        (lambda: losses.heteroscedastic_nll([1.0], [[1.0, 2.0, 3.0]]), "`predictions` must be .B, ..., 2 D."),
        (lambda: losses.heteroscedastic_nll([1.0], [1.0]), "`predictions` must be .B, ..., 2 D."),
        (lambda: losses.pseudo_huber(np.zeros(3), np.zeros((3, 3))), "`targets` of shape .3,. do not fit"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_fit_and_the_trainer_agree():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(6, 3)).astype(np.float32), rng.normal(size=6).astype(np.float32)
    fitted, trained = fit_and_train(losses.Pinball(0.8), x, y, outputs=1)
    np.testing.assert_allclose(trained, fitted, rtol=1e-5, atol=1e-6)
