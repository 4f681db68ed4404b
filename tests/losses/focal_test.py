"""Focal losses against hand numbers, NumPy and Keras: equal where Keras is right, and right where it is not."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import losses
from losses.base import log_softmax_and_rest
from tests.losses.contract_test import fit_and_train


def _value_and_gradient(function, labels, logits, **arguments):
    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        values = function(labels, logits, **arguments)
    return values.numpy(), tape.gradient(values, logits).numpy()


def test_binary_focal_by_hand():
    z = np.log(0.9 / 0.1)
    np.testing.assert_allclose(losses.binary_focal([1.0], np.array([z])), [2.634013e-4], rtol=1e-6)
    value, gradient = _value_and_gradient(losses.binary_focal, [1.0], [0.0], alpha=None)
    np.testing.assert_allclose([value[0], gradient[0]], [0.173287, -0.298287], rtol=1e-5)
    # label 0 gets 1 - alpha
    np.testing.assert_allclose(losses.binary_focal([0.0], np.array([-z])), [3 * 2.634013e-4], rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    st.floats(0, 5),
    st.one_of(st.none(), st.floats(0, 1)),
    st.integers(0, 2**31),
    st.sampled_from([(7,), (7, 1), (7, 3), (3, 4, 2)]),
)
def test_binary_focal_is_the_formula(gamma, alpha, seed, shape):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=shape) * 3, rng.uniform(size=shape)
    p = 1 / (1 + np.exp(-logits))
    a, b = (1, 1) if alpha is None else (alpha, 1 - alpha)
    wanted = -labels * a * (1 - p) ** gamma * np.log(p) - (1 - labels) * b * p**gamma * np.log(1 - p)
    values = losses.binary_focal(labels, logits, gamma, alpha)
    np.testing.assert_allclose(values, wanted.mean(-1) if len(shape) > 1 else wanted, rtol=1e-7, atol=1e-12)


def test_binary_focal_equals_keras_where_keras_is_right():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(8, 3)).astype(np.float32), rng.integers(0, 2, (8, 3)).astype(np.float32)
    theirs = keras.losses.BinaryFocalCrossentropy(apply_class_balancing=True, from_logits=True)
    assert float(losses.BinaryFocal()(labels, logits)) == pytest.approx(float(theirs(labels, logits)), rel=1e-5)
    plain = keras.losses.binary_crossentropy(labels, logits, from_logits=True)
    np.testing.assert_allclose(losses.binary_focal(labels, logits, gamma=0.0, alpha=None), plain, rtol=1e-5)


def test_an_alpha_for_each_label():
    labels, logits = np.array([[1.0, 0.0]]), np.array([[0.3, -0.2]])
    one, two = (float(losses.binary_focal([y], [z], alpha=a)[0]) for y, z, a in ((1.0, 0.3, 0.2), (0.0, -0.2, 0.7)))
    np.testing.assert_allclose(losses.binary_focal(labels, logits, alpha=[0.2, 0.7]), [(one + two) / 2], rtol=1e-6)


def test_keras_binary_focal_has_no_gradient_at_logit_40_and_ours_has():
    theirs = keras.losses.BinaryFocalCrossentropy(gamma=0.5, from_logits=True)
    _, broken = _value_and_gradient(theirs, tf.constant([[1.0]]), [[40.0]])
    assert np.isnan(broken).all()
    value, gradient = _value_and_gradient(losses.binary_focal, [[1.0]], [[40.0]], gamma=0.5, alpha=None)
    # (1 - p)^1.5 for p near 1: e^-60, and its slope -1.5 e^-60
    np.testing.assert_allclose(value, np.exp([-60.0]), rtol=1e-4)
    np.testing.assert_allclose(gradient, [[-1.5 * np.exp(-60.0)]], rtol=1e-4)


def test_categorical_focal_by_hand_and_by_the_formula():
    rng = np.random.default_rng(0)
    logits, ids, alpha = rng.normal(size=(6, 4)) * 2, np.array([0, 1, 2, 3, 0, 1]), np.array([1, 2, 0.5, 0])
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    p = p[np.arange(6), ids]
    np.testing.assert_allclose(
        losses.categorical_focal(ids, logits, 2.0, alpha), -alpha[ids] * (1 - p) ** 2 * np.log(p), rtol=1e-9
    )
    np.testing.assert_allclose(
        losses.categorical_focal(ids, logits, 0.5, 0.25), -0.25 * (1 - p) ** 0.5 * np.log(p), rtol=1e-9
    )
    np.testing.assert_allclose(losses.categorical_focal(ids, logits, 0.0), -np.log(p), rtol=1e-9)
    # two classes with logits (z, 0) are one binary logit z
    z = np.array([0.7, -2.0, 3.0])
    binary = losses.binary_focal(np.ones(3), z, 1.7, None)
    np.testing.assert_allclose(losses.categorical_focal([0, 0, 0], np.stack([z, 0 * z], 1), 1.7), binary, rtol=1e-9)


def test_categorical_focal_equals_keras_where_keras_is_right():
    rng = np.random.default_rng(1)
    logits, ids = rng.normal(size=(6, 4)).astype(np.float32), np.array([0, 1, 2, 3, 0, 1])
    theirs = keras.losses.CategoricalFocalCrossentropy(alpha=0.25, gamma=2.0, from_logits=True)
    ours = losses.CategoricalFocal(gamma=2.0, alpha=0.25)
    assert float(ours(ids, logits)) == pytest.approx(float(theirs(np.eye(4, dtype=np.float32)[ids], logits)), rel=1e-4)


def test_keras_categorical_focal_has_no_gradient_for_a_wrong_and_sure_logit_and_ours_has():
    hot, logits = np.array([[1.0, 0.0]], np.float32), np.array([[-20.0, 0.0]], np.float32)
    theirs = keras.losses.CategoricalFocalCrossentropy(alpha=1.0, gamma=2.0, from_logits=True)
    value, gradient = _value_and_gradient(theirs, hot, logits)
    assert float(value) == pytest.approx(16.118, abs=1e-3) and not gradient.any()
    value, gradient = _value_and_gradient(losses.categorical_focal, [0], logits)
    np.testing.assert_allclose(value, [20.0], rtol=1e-5)
    np.testing.assert_allclose(gradient, [[-1.0, 1.0]], rtol=1e-5)


def test_what_is_left_of_a_probability_that_rounds_to_one():
    logits = tf.constant([[20.0, 0.0, 0.0], [100.0, -100.0, -100.0]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        _, rest = log_softmax_and_rest(logits)
        of_largest = rest[:, 0]
    np.testing.assert_allclose(of_largest, [np.log(2) - 20, np.log(2) - 200], rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(of_largest, logits), [[-1, 0.5, 0.5]] * 2, rtol=1e-5)
    # so that a right and sure prediction keeps its slope: (1 - p)^1.5 = e^-18 at 12
    _, gradient = _value_and_gradient(losses.categorical_focal, [0], [[12.0, 0.0, -80.0]], gamma=0.5)
    np.testing.assert_allclose(gradient[0, :2], [-1.5 * np.exp(-18.0), 1.5 * np.exp(-18.0)], rtol=2e-2)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_class_ids_and_one_hot_labels_take_two_ways_to_one_loss(gamma):
    """Also at both ends, where one of p and 1 - p rounds to 1, and with a class of probability 0."""
    rng = np.random.default_rng(0)
    logits = np.concatenate([rng.normal(size=(20, 4)) * 5, 40 * np.eye(4), -40 * np.eye(4)]).astype("float32")
    logits[:5, 3] = -np.inf
    labels = np.concatenate([rng.integers(0, 3, 20), range(4), range(4)])
    for alpha in (None, [0.1, 0.2, 0.3, 0.4]):
        by_id, by_vector = (
            _value_and_gradient(losses.categorical_focal, given, logits, gamma=gamma, alpha=alpha)
            for given in (labels, np.eye(4, dtype="float32")[labels])
        )
        for a, b in zip(by_id, by_vector):
            assert np.isfinite(a).all()
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-30)


def test_asymmetric_is_the_papers_formula():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(6, 5)) * 3, rng.integers(0, 2, (6, 5)).astype(float)
    p = 1 / (1 + np.exp(-logits))
    q = np.maximum(p - 0.05, 0)
    wanted = -(labels * (1 - p) * np.log(p) + (1 - labels) * q**4 * np.log(1 - q)).mean(-1)
    np.testing.assert_allclose(losses.asymmetric(labels, logits, 1.0, 4.0, 0.05), wanted, rtol=1e-9)
    plain = keras.losses.binary_crossentropy(labels, logits, from_logits=True)
    np.testing.assert_allclose(losses.asymmetric(labels, logits, 0.0, 0.0, 0.0), plain, rtol=1e-7)
    unweighted = losses.binary_focal(labels, logits, 2.0, None)
    np.testing.assert_allclose(losses.asymmetric(labels, logits, 2.0, 2.0, 0.0), unweighted, rtol=1e-9)


def test_an_easy_negative_has_no_loss():
    value, gradient = _value_and_gradient(losses.asymmetric, [0.0], [-4.0])  # p = .018 < .05
    assert value[0] == 0 and gradient[0] == 0


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: losses.BinaryFocal(gamma=-1), "`gamma` must be >= 0.0, got -1"),
        (lambda: losses.BinaryFocal(alpha=1.5), "`alpha` must be None, or weights of label 1"),
        (lambda: losses.binary_focal([[1.0, 0]], [[0.0, 0]], alpha=[0.1] * 3), "`alpha` has 3 numbers for logits"),
        (lambda: losses.CategoricalFocal(gamma=float("nan")), "`gamma` must be >= 0.0, got nan"),
        (lambda: losses.CategoricalFocal(alpha=-1), "`alpha` must be >= 0.0, got -1"),
        (lambda: losses.categorical_focal([0], [[0.0, 0]], alpha=[1, 2, 3]), "`alpha` has 3 numbers for 2 classes"),
        (lambda: losses.Asymmetric(gamma_negative=-2), "`gamma_negative` must be >= 0.0, got -2"),
        (lambda: losses.Asymmetric(margin=1), r"`margin` must be in \[0, 1\), got 1"),
        (lambda: losses.binary_focal([1.0, 0.0], np.zeros((2, 2))), "`targets` of shape .2,. do not fit"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_fit_and_the_trainer_agree():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(6, 3)).astype(np.float32), np.array([0.0, 1, 1, 0, 1, 0], np.float32)
    fitted, trained = fit_and_train(losses.BinaryFocal(gamma=1.5), x, y, outputs=1)
    np.testing.assert_allclose(trained, fitted, rtol=1e-5, atol=1e-6)
