"""Distillation against NumPy and its two limits."""

import numpy as np
import pytest
import tensorflow as tf

import losses

RANDOM = np.random.default_rng(0)
STUDENT, TEACHER, IDS = RANDOM.normal(size=(5, 4)), RANDOM.normal(size=(5, 4)), np.array([0, 3, 1, 2, 2])


def _log_softmax(z):
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def test_against_numpy():
    t, s = _log_softmax(TEACHER / 3), _log_softmax(STUDENT / 3)
    soft = 9 * (np.exp(t) * (t - s)).sum(-1)
    hard = -_log_softmax(STUDENT)[np.arange(5), IDS]
    np.testing.assert_allclose(losses.distill(IDS, STUDENT, TEACHER, 3.0, 0.7), 0.7 * soft + 0.3 * hard, rtol=1e-9)
    both = np.stack([STUDENT, TEACHER], 1)
    np.testing.assert_allclose(losses.Distillation(3.0, 0.7).call(IDS, both), 0.7 * soft + 0.3 * hard, rtol=1e-9)


def test_the_limits():
    np.testing.assert_allclose(losses.distill(IDS, STUDENT, STUDENT + 5.0, 2.0, 1.0), np.zeros(5), atol=1e-12)
    apart = (STUDENT - STUDENT.mean(-1, keepdims=True)) - (TEACHER - TEACHER.mean(-1, keepdims=True))
    hot = losses.distill(IDS, STUDENT, TEACHER, 1e4, 1.0)
    np.testing.assert_allclose(hot, (apart**2).sum(-1) / 2 / 4, rtol=1e-3)


def test_no_gradient_reaches_the_teacher():
    student, teacher = tf.constant(STUDENT), tf.constant(TEACHER)
    with tf.GradientTape() as tape:
        tape.watch([student, teacher])
        values = losses.distill(IDS, student, teacher)
    to_student, to_teacher = tape.gradient(values, [student, teacher])
    assert np.abs(to_student).max() > 0 and to_teacher is None


def test_a_class_that_both_exclude_is_no_nan():
    masked = tf.constant([[0.0, 1.0, -np.inf]])
    with tf.GradientTape() as tape:
        tape.watch(masked)
        values = losses.distill([0], masked, [[1.0, 0.0, -np.inf]])
    assert np.isfinite(values).all() and np.isfinite(tape.gradient(values, masked)).all()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: losses.Distillation(temperature=0), "`temperature` must be > 0, got 0"),
        (lambda: losses.Distillation(alpha=1.2), r"`alpha` must be in \[0.0, 1.0\], got 1.2"),
        (lambda: losses.distill(IDS, STUDENT, TEACHER[:, :3]), "`teacher_logits` of shape .5, 3. must have the shape"),
        (lambda: losses.Distillation().call(IDS, STUDENT), "`predictions` must be .B, ..., 2, C."),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
