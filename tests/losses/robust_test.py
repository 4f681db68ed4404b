"""GCE, SCE and bi-tempered loss against hand numbers, the published values and a root finder."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

import losses
from losses.robust import log_tempered_softmax

RANDOM = np.random.default_rng(0)
LOGITS, IDS = RANDOM.normal(size=(5, 3)), np.array([2, 0, 1, 1, 0])
P = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
P_Y = P[np.arange(5), IDS]


def test_gce_by_hand():
    np.testing.assert_allclose(losses.generalized_crossentropy([0], [[0.0, 0.0]]), [0.5491826], rtol=1e-6)
    np.testing.assert_allclose(losses.generalized_crossentropy(IDS, LOGITS, 0.3), (1 - P_Y**0.3) / 0.3, rtol=1e-9)
    np.testing.assert_allclose(losses.generalized_crossentropy(IDS, LOGITS, 1.0), 1 - P_Y, rtol=1e-9)
    for q in (0.0, 1e-9):  # the limit is the cross-entropy
        np.testing.assert_allclose(losses.generalized_crossentropy(IDS, LOGITS, q), -np.log(P_Y), rtol=1e-6)


def test_keras_gce_has_no_gradient_at_a_probability_of_zero_and_ours_has():
    theirs = keras.losses.CategoricalGeneralizedCrossEntropy(q=0.7)
    p = tf.constant([[0.0, 1.0]])
    with tf.GradientTape() as tape:
        tape.watch(p)
        value = theirs(tf.constant([0]), p)
    assert not np.isfinite(tape.gradient(value, p)).all()
    logits = tf.constant([[-200.0, 0.0]])  # its softmax is (0, 1) in float32
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = losses.generalized_crossentropy([0], logits)
    np.testing.assert_allclose(value, [1 / 0.7], rtol=1e-6)
    assert np.isfinite(tape.gradient(value, logits)).all()


def test_symmetric_crossentropy_by_hand():
    wanted = -0.1 * np.log(P_Y) + 4 * (1 - P_Y)
    np.testing.assert_allclose(losses.symmetric_crossentropy(IDS, LOGITS), wanted, rtol=1e-9)
    soft = np.array([[0.5, 0.5, 0.0]])
    p = P[:1]
    reverse = -(p * np.array([[np.log(0.5), np.log(0.5), -6.0]])).sum(-1)
    wanted = 2 * -(soft * np.log(p)).sum(-1) + 3 * reverse
    np.testing.assert_allclose(losses.symmetric_crossentropy(soft, LOGITS[:1], 2.0, 3.0, -6.0), wanted, rtol=1e-9)


def test_bi_tempered_gives_the_published_values():
    # The test values of the authors' own code, google/bi-tempered-loss.
    labels = np.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1], [0.2, 0.8, 0.0]])
    activations = np.array([[-0.5, 0.1, 2.0], [0.1, 1.5, -5.0], [4.0, -3.0, -6.0]])
    np.testing.assert_allclose(
        losses.bi_tempered(labels, activations, 0.5, 1.5), [0.02301914, 0.18972909, 0.93874922], rtol=1e-6
    )


def test_bi_tempered_at_one_is_the_cross_entropy():
    np.testing.assert_allclose(losses.bi_tempered(IDS, LOGITS, 1.0, 1.0), -np.log(P_Y), rtol=1e-9)
    np.testing.assert_allclose(losses.bi_tempered(IDS, LOGITS, 1 - 1e-7, 1 + 1e-7), -np.log(P_Y), rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 0.99), st.floats(1.01, 4), st.integers(0, 2**31), st.floats(0.1, 20))
def test_bi_tempered_against_a_root_finder(t1, t2, seed, spread):
    z, y = np.random.default_rng(seed).normal(size=4) * spread, seed % 4

    def exp_t(x):
        return (1 + (1 - t2) * x) ** (1 / (1 - t2))

    largest = z.max()
    upper = largest + (4 ** (t2 - 1) - 1) / (t2 - 1) + 1e-9  # there each of 4 classes has at most 1/4
    normalizer = brentq(lambda x: exp_t(z - x).sum() - 1, largest, upper, xtol=1e-13)
    p = exp_t(z - normalizer)
    wanted = (1 - p[y] ** (1 - t1)) / (1 - t1) - (1 - (p ** (2 - t1)).sum()) / (2 - t1)
    np.testing.assert_allclose(losses.bi_tempered([y], z[None], t1, t2), [wanted], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("classes", [2, 1000])
@pytest.mark.parametrize("t", [1.001, 1.2, 2.0, 4.0])
def test_the_tempered_softmax_sums_to_one(classes, t):
    for spread in (0.0, 1.0, 100.0):
        logits = np.random.default_rng(0).normal(size=(4, classes)) * spread
        total = np.exp(log_tempered_softmax(logits.astype(np.float32), t)).sum(-1)
        np.testing.assert_allclose(total, 1.0, atol=2e-5)


def test_a_wrong_label_costs_a_bounded_amount():
    bounds = {losses.GeneralizedCrossentropy(): 1 / 0.7, losses.BiTempered(0.5, 1.0): 1 / 0.5 - 1 / 1.5 + 1 / 1.5}
    for loss, bound in bounds.items():
        assert float(loss([0], [[-1e4, 0.0]])) <= bound + 1e-5


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: losses.GeneralizedCrossentropy(q=1.5), r"`q` must be in \[0.0, 1.0\], got 1.5"),
        (lambda: losses.SymmetricCrossentropy(beta=-1), "`beta` must be >= 0.0, got -1"),
        (lambda: losses.SymmetricCrossentropy(log_zero=0), "`log_zero` must be < 0, got 0"),
        (lambda: losses.BiTempered(t1=1.2), r"`t1` must be in \[0.0, 1.0\], got 1.2"),
        (lambda: losses.BiTempered(t2=0.8), r"`t2` must be in \[1.0, 4.0\], got 0.8. Below 1"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
