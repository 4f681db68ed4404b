"""Triplet losses against NumPy loops over anchors, positives and negatives."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import losses


def _loop(labels, z, margin, mining):
    """The mean over what counts, by the definitions; semi-hard as TensorFlow Addons had it."""
    d = np.sqrt(((z[:, None] - z[None]) ** 2).sum(-1))
    n, values = len(z), []
    for a in range(n):
        positives = [p for p in range(n) if p != a and labels[p] == labels[a]]
        negatives = [k for k in range(n) if labels[k] != labels[a]]
        if not positives or not negatives:
            continue
        if mining == "all":
            values += [max(d[a, p] - d[a, k] + margin, 0) for p in positives for k in negatives]
        elif mining == "hard":
            values.append(max(max(d[a, p] for p in positives) - min(d[a, k] for k in negatives) + margin, 0))
        else:
            for p in positives:
                beyond = [d[a, k] for k in negatives if d[a, k] > d[a, p]]
                to_negative = min(beyond) if beyond else max(d[a, k] for k in negatives)
                values.append(max(d[a, p] - to_negative + margin, 0))
    return np.mean(values) if values else 0.0


@pytest.mark.parametrize("mining", ["all", "hard", "semi_hard"])
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.floats(0.1, 3), st.integers(0, 2**31))
def test_the_mean_is_that_of_a_loop(mining, n, classes, margin, seed):
    rng = np.random.default_rng(seed)
    labels, z = rng.integers(0, classes, n), rng.normal(size=(n, 3))
    values = losses.triplet(labels, z, margin, mining)
    assert values.shape == (n,)
    assert float(np.mean(values)) == pytest.approx(_loop(labels, z, margin, mining), rel=1e-6, abs=1e-9)
    np.testing.assert_allclose(losses.triplet(labels[:, None], z, margin, mining), values)


def test_by_hand():
    labels, z = [0, 0, 1, 1], np.array([[0.0], [1.0], [3.0], [7.0]])
    # hard, margin 3: anchors 0: 1-3+3; 1: 1-2+3; 2: 4-2+3; 3: 4-6+3
    np.testing.assert_allclose(losses.triplet(labels, z, 3.0, "hard"), [1, 2, 5, 1], rtol=1e-6)
    # semi-hard: anchor 2's positive is at 4, no negative beyond: the farthest, at 3
    np.testing.assert_allclose(losses.triplet(labels, z, 3.0, "semi_hard"), [1, 2, 4, 1], rtol=1e-6)
    # all, 2 negatives each, 8 triplets for 4 anchors: sums / 2
    np.testing.assert_allclose(losses.triplet(labels, z, 3.0, "all"), [0.5, 1, (5 + 4) / 2, 0.5], rtol=1e-6)


@pytest.mark.parametrize("mining", ["all", "hard", "semi_hard"])
@pytest.mark.parametrize("labels", [[0], [0, 0, 0], [0, 1, 2]], ids=["one example", "one class", "no positives"])
def test_without_a_triplet_all_is_zero(mining, labels):
    z = tf.constant(np.random.default_rng(0).normal(size=(len(labels), 2)))
    with tf.GradientTape() as tape:
        tape.watch(z)
        values = losses.triplet(labels, z, mining=mining)
    assert not values.numpy().any() and not tape.gradient(values, z).numpy().any()


@pytest.mark.parametrize("mining", ["all", "hard", "semi_hard"])
def test_equal_embeddings_have_a_finite_gradient(mining):
    z = tf.ones([4, 3])
    with tf.GradientTape() as tape:
        tape.watch(z)
        values = losses.triplet([0, 0, 1, 1], z, 0.5, mining)
    np.testing.assert_allclose(np.mean(values), 0.5)
    assert np.isfinite(tape.gradient(values, z)).all()
    broken = tf.constant([[0.0, 0.0]])
    with tf.GradientTape() as tape:  # what the double where is for
        tape.watch(broken)
        norm = tf.norm(broken)
    assert np.isnan(tape.gradient(norm, broken)).all()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: losses.Triplet(margin=0), "`margin` must be > 0, got 0"),
        (lambda: losses.Triplet(mining="semihard"), "`mining` must be one of all, hard, semi_hard, got 'semihard'"),
        (lambda: losses.triplet([0, 1], np.zeros((2, 2, 2))), "`embeddings` must be .B, D."),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def _lifted_loop(labels, z, margin):
    """The mean over positive pairs that have a negative."""
    d = np.sqrt(((z[:, None] - z[None]) ** 2).sum(-1))
    n, values = len(z), []
    for i in range(n):
        for j in range(n):
            pushed = [np.exp(margin - d[a, k]) for a in (i, j) for k in range(n) if labels[k] != labels[a]]
            if i != j and labels[i] == labels[j] and pushed:
                values.append(max(0, np.log(sum(pushed)) + d[i, j]) ** 2 / 2)
    return np.mean(values) if values else 0.0


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.floats(0.1, 3), st.integers(0, 2**31))
def test_lifted_structure_is_a_loop_over_pairs(n, classes, margin, seed):
    rng = np.random.default_rng(seed)
    labels, z = rng.integers(0, classes, n), rng.normal(size=(n, 3))
    assert float(np.mean(losses.lifted_structure(labels, z, margin))) == pytest.approx(
        _lifted_loop(labels, z, margin), abs=1e-9
    )


def test_lifted_structure_by_hand_and_without_a_pair():
    # Two classes, each two points at a distance of 1, four times a distance of 2 or more between them.
    z = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [1.0, 2.0]])
    pair = np.log(2 * (np.exp(3 - 2) + np.exp(3 - np.sqrt(5)))) + 1
    np.testing.assert_allclose(losses.lifted_structure([0, 0, 1, 1], z, 3.0), np.full(4, pair**2 / 2), rtol=1e-7)
    for labels in ([0], [0, 0, 0], [0, 1, 2]):
        z = tf.ones([len(labels), 2])
        with tf.GradientTape() as tape:
            tape.watch(z)
            values = losses.lifted_structure(labels, z)
        assert not values.numpy().any() and not tape.gradient(values, z).numpy().any()
