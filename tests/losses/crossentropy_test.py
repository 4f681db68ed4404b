"""Weighted, cost-sensitive, Poly-1 and LDAM cross-entropy against NumPy, Keras and the papers' formulas."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import losses
from tests.losses.contract_test import fit_and_train

RANDOM = np.random.default_rng(0)
LOGITS, IDS = RANDOM.normal(size=(5, 3)), np.array([2, 0, 1, 1, 0])
WEIGHTS = [0.5, 2.0, 1.25]


def _softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


P = _softmax(LOGITS)
P_Y = P[np.arange(5), IDS]


@pytest.mark.parametrize("from_logits", [True, False])
def test_class_weights_are_keras_sample_weights(from_logits):
    predictions = (LOGITS if from_logits else P).astype(np.float32)
    theirs = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    wanted = theirs(IDS, predictions, sample_weight=np.array(WEIGHTS)[IDS])
    ours = losses.WeightedCrossentropy(WEIGHTS, from_logits=from_logits)
    assert float(ours(IDS, predictions)) == pytest.approx(float(wanted), rel=1e-6)
    np.testing.assert_allclose(
        ours.call(IDS, LOGITS if from_logits else P), -np.array(WEIGHTS)[IDS] * np.log(P_Y), rtol=1e-6
    )


def test_smoothed_labels_are_keras_label_smoothing():
    hot = np.eye(3)[IDS]
    wanted = keras.losses.categorical_crossentropy(hot, LOGITS, from_logits=True, label_smoothing=0.1)
    ours = losses.weighted_crossentropy(hot * 0.9 + 0.1 / 3, LOGITS, [1, 1, 1])
    np.testing.assert_allclose(ours, wanted, rtol=1e-6)


def test_a_weight_of_zero_keeps_an_infinite_loss_out():
    values = losses.weighted_crossentropy([0], [[0.0, -200.0, 200.0]], [0.0, 1.0, 1.0])
    np.testing.assert_array_equal(values, [0.0])


@pytest.mark.parametrize("ignored", [-1, 255])
def test_ignored_elements_are_masked_as_keras_masks_them(ignored):
    ids = IDS.copy()
    ids[[1, 3]] = ignored
    theirs = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=ignored)
    ours = losses.WeightedCrossentropy([1, 1, 1], ignore_class=ignored)
    logits = LOGITS.astype(np.float32)
    for targets in (ids, ids[:, None]):
        assert float(ours(targets, logits)) == pytest.approx(float(theirs(ids, logits)), rel=1e-6)
    np.testing.assert_array_equal(ours.call(ids, LOGITS)[1:4:2], [0.0, 0.0])
    assert float(ours(np.full(5, ignored), logits)) == 0.0  # nothing counts
    with pytest.raises(ValueError, match="`ignore_class` needs class ids"):
        losses.weighted_crossentropy(np.eye(3)[IDS], LOGITS, WEIGHTS, ignore_class=ignored)


def test_probabilities_of_zero_are_finite():
    p = tf.constant([[0.0, 1.0], [0.0, 1.0]])
    with tf.GradientTape() as tape:
        tape.watch(p)
        values = losses.weighted_crossentropy([0, 1], p, [1, 1], from_logits=False)
    assert np.isfinite(values).all() and np.isfinite(tape.gradient(values, p)).all()


def test_the_cost_matrix_by_hand():
    costs = np.array([[0, 1, 5], [2, 0, 1], [9, 1, 0]])
    np.testing.assert_allclose(
        losses.cost_sensitive(IDS, LOGITS, costs), [costs[y] @ p for y, p in zip(IDS, P)], rtol=1e-12
    )
    # all errors alike: the probability of an error
    np.testing.assert_allclose(losses.cost_sensitive(IDS, LOGITS, 1 - np.eye(3)), 1 - P_Y, rtol=1e-12)


def test_poly1_by_hand():
    np.testing.assert_allclose(losses.poly1([0], [[0.0, 0.0]], 1.0), [1.193147], rtol=1e-6)  # ln 2 + 1/2
    np.testing.assert_allclose(losses.poly1(IDS, LOGITS, 0.0), -np.log(P_Y), rtol=1e-12)
    # epsilon -1 takes the first term of sum_k (1 - p)^k / k away: what is left starts at (1 - p)^2 / 2
    near = losses.poly1([0], np.array([[12.0, 0.0]]), -1.0).numpy()
    q = 1 / (1 + np.exp(12.0))
    np.testing.assert_allclose(near, [q**2 / 2], rtol=1e-3)


@pytest.mark.parametrize(
    "counts, beta, wanted",
    [
        ([1, 10, 100], 0.0, [1, 1, 1]),
        ([1, 2, 4], 1.0, np.array([4, 2, 1]) * 3 / 7),
        ([1, 2], 0.5, [1.2, 0.8]),  # 1 and .5 / .75
        ([1, 2, 4], 1 - 1e-12, np.array([4, 2, 1]) * 3 / 7),
    ],
)
def test_class_balanced_weights_by_hand(counts, beta, wanted):
    np.testing.assert_allclose(losses.class_balanced_weights(counts, beta), wanted, rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 10**7), min_size=2, max_size=30), st.floats(0, 0.99999))
def test_class_balanced_weights_in_general(counts, beta):
    weights = np.array(losses.class_balanced_weights(counts, beta))
    assert weights.sum() == pytest.approx(len(counts))
    assert (np.diff(weights[np.argsort(counts)]) <= 1e-9).all()  # never more for a class that has more
    raw = (1 - beta) / (1 - beta ** np.array(counts, float))
    np.testing.assert_allclose(weights, raw * len(counts) / raw.sum(), rtol=1e-6)


def test_ldam_against_the_papers_code_in_numpy():
    counts = np.array([1000, 50, 3])
    margins = 1 / np.sqrt(np.sqrt(counts))
    margins *= 0.5 / margins.max()
    lowered = LOGITS - np.eye(3)[IDS] * margins[IDS][:, None]
    wanted = -np.log(_softmax(30 * lowered)[np.arange(5), IDS])
    np.testing.assert_allclose(losses.ldam(IDS, LOGITS, counts), wanted, rtol=1e-9)
    # equal counts: one margin for all, the plain cross-entropy without it
    np.testing.assert_allclose(
        losses.ldam(IDS, LOGITS, [5, 5, 5], max_margin=1e-12, scale=1.0), -np.log(P_Y), rtol=1e-9
    )


def test_a_larger_margin_costs_more():
    rare_first, rare_last = (losses.ldam([0], np.array([[1.0, 0.0]]), counts) for counts in ([1, 100], [100, 1]))
    assert float(rare_first[0]) > float(rare_last[0])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: losses.WeightedCrossentropy([[1, 2]]), "`class_weights` must be a list"),
        (lambda: losses.WeightedCrossentropy([1, -2]), "`class_weights` must be .* >= 0"),
        (lambda: losses.WeightedCrossentropy([1, np.nan]), "`class_weights` must be .* finite"),
        (lambda: losses.weighted_crossentropy(IDS, LOGITS, [1, 2]), "`class_weights` has 2 numbers for 3 classes"),
        (lambda: losses.CostSensitive([[0, 1]]), "`costs` must be a square matrix"),
        (lambda: losses.cost_sensitive(IDS, LOGITS, np.eye(2)), "`costs` is 2 x 2 for 3 classes"),
        (lambda: losses.Poly1(-1.5), "`epsilon` must be >= -1.0, got -1.5"),
        (lambda: losses.class_balanced_weights([3, 0, 1]), "`counts` must be >= 1, got 0 for class 1"),
        (lambda: losses.class_balanced_weights([3, 1], 1.1), r"`beta` must be in \[0.0, 1.0\], got 1.1"),
        (lambda: losses.LDAM([3, 0]), "`counts` must be >= 1, got 0 for class 1"),
        (lambda: losses.LDAM([3, 1], max_margin=0), "`max_margin` must be > 0, got 0"),
        (lambda: losses.LDAM([3, 1], scale=-1), "`scale` must be > 0, got -1"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("weights", [None, np.array([1, 0, 2, 1, 1, 0.5], np.float32)])
def test_fit_and_the_trainer_agree(weights):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(6, 3)).astype(np.float32), np.array([0, 1, 2, 2, -1, 0])
    loss = losses.WeightedCrossentropy(WEIGHTS, ignore_class=-1)
    fitted, trained = fit_and_train(loss, x, y, outputs=3, weights=weights)
    np.testing.assert_allclose(trained, fitted, rtol=1e-5, atol=1e-6)
