"""Overlap losses per example against NumPy and Keras; and Keras' scalar ones under two replicas."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import losses
from tests.losses.contract_test import fit_and_train
from trainer.replicas.distribution import make_strategy, replica_values

RANDOM = np.random.default_rng(0)
TARGETS = (RANDOM.uniform(size=(3, 4, 5, 2)) < 0.4).astype(float)
P = RANDOM.uniform(size=(3, 4, 5, 2))


def _index(y, p, alpha, beta, smoothing):
    """Tversky index of each example and class."""
    hit, over, missed = (y * p).sum((1, 2)), ((1 - y) * p).sum((1, 2)), (y * (1 - p)).sum((1, 2))
    return (hit + smoothing) / (hit + alpha * over + beta * missed + smoothing)


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 1), st.floats(0.01, 1), st.floats(0.2, 3), st.floats(1e-3, 10))
def test_against_numpy(alpha, beta, gamma, smoothing):
    index = _index(TARGETS, P, alpha, beta, smoothing)
    np.testing.assert_allclose(losses.soft_tversky(TARGETS, P, alpha, beta, smoothing), (1 - index).mean(-1), rtol=1e-9)
    focal = ((1 - index) ** gamma).mean(-1)
    np.testing.assert_allclose(losses.focal_tversky(TARGETS, P, alpha, beta, gamma, smoothing), focal, rtol=1e-6)
    overlap = (2 * (TARGETS * P).sum((1, 2)) + smoothing) / ((TARGETS + P).sum((1, 2)) + smoothing)
    np.testing.assert_allclose(losses.soft_dice(TARGETS, P, smoothing), (1 - overlap).mean(-1), rtol=1e-9)


def test_one_class_equals_keras_example_by_example():
    y, p = TARGETS[..., :1].astype(np.float32), P[..., :1].astype(np.float32)
    theirs = [float(keras.losses.dice(y[i : i + 1], p[i : i + 1])) for i in range(3)]
    np.testing.assert_allclose(losses.soft_dice(y, p, 1e-7), theirs, rtol=1e-5)
    np.testing.assert_array_equal(losses.soft_dice(y[..., 0], p), losses.soft_dice(y, p))


def test_by_hand():
    y, p = np.array([[[1.0], [1.0], [0.0], [0.0]]]), np.array([[[1.0], [0.0], [1.0], [0.0]]])
    np.testing.assert_allclose(losses.soft_dice(y, p), [1 - 3 / 5])  # (2 + 1) / (2 + 1 + 1 + 1)
    np.testing.assert_allclose(losses.soft_tversky(y, p), [1 - 2 / 3])  # (1 + 1) / (1 + .3 + .7 + 1)
    for perfect in (y, 0 * y):  # a match, and an empty mask that is left empty
        np.testing.assert_allclose(losses.soft_dice(perfect, perfect), [0.0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_large_maps_and_perfect_matches_are_finite_in_half_precision(dtype):
    for y, p in ((np.ones((2, 400, 300, 1)), 1.0), (np.zeros((2, 40, 30, 1)), 0.0), (np.ones((2, 40, 30, 1)), 0.0)):
        p = tf.constant(np.full(y.shape, p), dtype)
        for function in (losses.soft_dice, losses.soft_tversky, losses.focal_tversky):
            with tf.GradientTape() as tape:
                tape.watch(p)
                values = function(y, p)
            assert values.dtype == tf.float32 and np.isfinite(values).all() and values.shape == (2,)
            assert np.isfinite(tf.cast(tape.gradient(values, p), tf.float32)).all()


@pytest.mark.parametrize("function", [losses.soft_dice, losses.soft_tversky, losses.focal_tversky])
def test_the_gradient_is_that_of_finite_differences(function):
    p = tf.constant(P)
    with tf.GradientTape() as tape:
        tape.watch(p)
        values = function(TARGETS, p)
    gradient = tape.gradient(values, p).numpy()
    for position in ((0, 0, 0, 0), (1, 2, 3, 1), (2, 3, 4, 0)):
        up, down = P.copy(), P.copy()
        up[position] += 1e-6
        down[position] -= 1e-6
        wanted = (np.sum(function(TARGETS, up)) - np.sum(function(TARGETS, down))) / 2e-6
        assert gradient[position] == pytest.approx(wanted, rel=1e-5)


def test_keras_scalar_dice_is_not_divided_by_the_number_of_replicas_and_ours_is():
    strategy = make_strategy("mirrored")
    y, p = tf.constant(TARGETS[:1], tf.float32), tf.constant(P[:1], tf.float32)

    def total(loss):  # what `fit` minimizes: the sum over replicas
        return float(np.sum([x.numpy() for x in replica_values(strategy, strategy.run(lambda: loss(y, p)))]))

    for theirs in (keras.losses.Dice(), keras.losses.Tversky()):
        assert total(theirs) == pytest.approx(2 * float(theirs(y, p)), rel=1e-6)  # twice too much
    for ours in (losses.SoftDice(), losses.SoftTversky(), losses.FocalTversky()):
        assert total(ours) == pytest.approx(float(ours(y, p)), rel=1e-6)


@pytest.mark.parametrize("loss", [losses.SoftDice(2.0), losses.SoftTversky(0.2, 0.8), losses.FocalTversky(gamma=1.3)])
def test_serialization_keeps_the_values(loss):
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(again) is type(loss) and again.get_config() == loss.get_config()
    np.testing.assert_array_equal(again.call(TARGETS, P), loss.call(TARGETS, P))
    weights = np.array([0.0, 1.0, 2.0])
    assert float(loss(TARGETS, P, weights)) == pytest.approx(np.mean(loss.call(TARGETS, P) * weights), rel=1e-5)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: losses.SoftDice(smoothing=0), "`smoothing` must be > 0, got 0. It sets"),
        (lambda: losses.SoftTversky(alpha=-1), "`alpha` must be >= 0.0, got -1"),
        (lambda: losses.FocalTversky(gamma=0), "`gamma` must be > 0, got 0"),
        (lambda: losses.soft_dice(TARGETS[..., 0], P), "`targets` of shape .3, 4, 5. do not fit .*one-hot"),
        (lambda: losses.soft_dice(TARGETS[:1], P), "`targets` of shape .1, 4, 5, 2. do not fit"),
        (lambda: losses.soft_dice(np.ones((3, 2)), np.ones((3, 2))), "both are .B, ..., C."),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_fit_and_the_trainer_agree():
    x = RANDOM.uniform(size=(3, 4, 2)).astype(np.float32)
    y = TARGETS[:, :, 0].astype(np.float32)
    fitted, trained = fit_and_train(losses.SoftDice(), x, y, outputs=2, activation="sigmoid")
    np.testing.assert_allclose(trained, fitted, rtol=1e-5, atol=1e-6)
