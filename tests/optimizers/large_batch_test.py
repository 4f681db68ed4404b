"""LARS and LAMB against the papers' algorithms in NumPy (float64), and their corners."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from optimizers.large_batch import LAMB, LARS
from optimizers.momentum import MomentumSGD


def _run(optimizer, gradients, *starts):
    variables = [keras.Variable(np.asarray(start, np.float32)) for start in starts]
    optimizer.name_variables([f"v{i}" for i in range(len(starts))])
    optimizer.build(variables)
    for step in gradients:
        optimizer.apply([tf.constant(g, tf.float32) for g in step])
    return [v.numpy() for v in variables]


def _problem(steps=12):
    random = np.random.default_rng(0)
    return random.normal(size=(4, 3)), [[random.normal(size=(4, 3))] for _ in range(steps)]


def _lars(w, gradients, rate, momentum, decay, trust):
    m = np.zeros_like(w)
    for (g,) in gradients:
        ratio = trust * np.linalg.norm(w) / (np.linalg.norm(g) + decay * np.linalg.norm(w))
        m = momentum * m + rate * ratio * (g + decay * w)
        w = w - m
    return w


def _lamb(w, gradients, rate, decay, beta_1=0.9, beta_2=0.999, epsilon=1e-6):
    m = v = np.zeros_like(w)
    for t, (g,) in enumerate(gradients, 1):
        m, v = beta_1 * m + (1 - beta_1) * g, beta_2 * v + (1 - beta_2) * g**2
        r = m / (1 - beta_1**t) / (np.sqrt(v / (1 - beta_2**t)) + epsilon) + decay * w
        w = w - rate * np.linalg.norm(w) / np.linalg.norm(r) * r
    return w


def test_lars_is_the_papers_algorithm():
    start, gradients = _problem()
    wanted = _lars(start, gradients, 2.0, 0.9, 0.1, 0.05)
    np.testing.assert_allclose(_run(LARS(2.0, 0.9, 0.1, 0.05), gradients, start)[0], wanted, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lamb_is_the_papers_algorithm(decay):
    start, gradients = _problem()
    wanted = _lamb(start, gradients, 0.05, decay)
    np.testing.assert_allclose(_run(LAMB(0.05, weight_decay=decay), gradients, start)[0], wanted, rtol=1e-5, atol=1e-6)


def test_keras_lamb_agrees_without_decay_and_not_with_it():
    """The day that the second half fails, keras.optimizers.Lamb may take this one's place."""
    start, gradients = _problem()
    for decay, same in ((0.0, True), (0.1, False)):
        (ours,) = _run(LAMB(0.05, weight_decay=decay), gradients, start)
        v = keras.Variable(start.astype("float32"))
        theirs = keras.optimizers.Lamb(0.05, epsilon=1e-6, weight_decay=decay or None)
        for step in gradients:
            theirs.apply([tf.constant(step[0], tf.float32)], [v])
        assert (np.abs(ours - v.numpy()).max() < 1e-5) == same


def test_a_step_does_not_depend_on_the_size_of_the_gradient():
    start, gradients = _problem(1)
    for make in (lambda: LARS(1.0, 0.9), lambda: LAMB(0.1, epsilon=1e-30)):
        (small,), (large,) = (_run(make(), [[gradients[0][0] * scale]], start) for scale in (1.0, 1000.0))
        np.testing.assert_allclose(small, large, rtol=1e-5)


def test_zero_weights_leave_zero_with_ratio_one():
    zeros, gradient = np.zeros([2, 2]), np.full([2, 2], 3.0)
    np.testing.assert_allclose(_run(LARS(0.1, 0.9, 0.5), [[gradient]], zeros)[0], -0.1 * gradient, rtol=1e-6)
    np.testing.assert_allclose(
        _run(LAMB(0.1, weight_decay=0.5), [[gradient]], zeros)[0], -0.1 * np.ones([2, 2]), rtol=1e-5
    )


def test_a_zero_gradient_takes_ratio_one():
    ones = np.ones([2, 2])
    np.testing.assert_array_equal(_run(LARS(0.1), [[0 * ones]], ones)[0], ones)
    np.testing.assert_array_equal(_run(LAMB(0.1), [[0 * ones]], ones)[0], ones)
    # With decay LARS takes off rate * decay * w at ratio 1; LAMB's direction is the decay, of ratio |w| / |decay w|.
    np.testing.assert_allclose(_run(LARS(0.1, weight_decay=0.5), [[0 * ones]], ones)[0], 0.95 * ones, rtol=1e-6)
    np.testing.assert_allclose(_run(LAMB(0.1, weight_decay=0.5), [[0 * ones]], ones)[0], 0.9 * ones, rtol=1e-6)


def test_excluded_variables_are_plain_momentum_and_plain_adam():
    start, gradients = _problem()
    pairs = [step * 2 for step in gradients]
    lars = _run(LARS(0.1, 0.9, 0.1, exclude_from_decay="v1"), pairs, start, start)
    plain = keras.Variable(start.astype("float32"))
    sgd = MomentumSGD(0.1, 0.9)
    for step in gradients:
        sgd.apply([tf.constant(step[0], tf.float32)], [plain])
    np.testing.assert_allclose(lars[1], plain.numpy(), rtol=1e-5, atol=1e-6)
    assert np.abs(lars[0] - lars[1]).max() > 0.1

    lamb = _run(LAMB(0.1, weight_decay=0.1, epsilon=1e-12, exclude_from_decay=["v1"]), pairs, start, start)
    plain.assign(start)
    adam = keras.optimizers.Adam(0.1, epsilon=1e-12)
    for step in gradients:
        adam.apply([tf.constant(step[0], tf.float32)], [plain])
    np.testing.assert_allclose(lamb[1], plain.numpy(), rtol=1e-5, atol=1e-6)
    assert np.abs(lamb[0] - lamb[1]).max() > 0.1


def test_decay_and_adaptation_are_excluded_each_by_its_own_patterns():
    start, gradients = _problem()
    made = LAMB(0.05, weight_decay=0.1, exclude_from_decay="v0", exclude_from_adaptation="v1")
    adapted, decayed = _run(made, [step * 2 for step in gradients], start, start)
    np.testing.assert_allclose(adapted, _lamb(start, gradients, 0.05, 0.0), rtol=1e-5, atol=1e-6)
    # AdamW with the decay inside the step: w <- w - rate * (adam + decay * w)
    v = keras.Variable(start.astype("float32"))
    adamw = keras.optimizers.AdamW(0.05, weight_decay=0.1, epsilon=1e-12)
    for step in gradients:
        adamw.apply([tf.constant(step[0], tf.float32)], [v])
    np.testing.assert_allclose(decayed, v.numpy(), rtol=1e-4, atol=1e-5)


def test_weight_decay_may_be_a_schedule():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.5, 0.0])  # 0.5 at update 0, then nothing
    start, gradients = np.ones([2, 2]), [[np.zeros([2, 2])]] * 2
    (v,) = _run(LARS(0.1, momentum=0.0, weight_decay=schedule), gradients, start)
    np.testing.assert_allclose(v, 0.95 * start, rtol=1e-6)
    made = LARS(0.1, weight_decay=schedule)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(made))
    assert again.get_config() == made.get_config() and float(again._decay(0)) == 0.5


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: LARS(momentum=1.0), r"`momentum` must be a number in \[0, 1\), got 1.0"),
        (lambda: LARS(weight_decay=-1), "`weight_decay` must be a number >= 0 or a schedule, got -1"),
        (lambda: LARS(trust_coefficient=0), "`trust_coefficient` must be a number > 0, got 0. The paper"),
        (lambda: LAMB(beta_2=-0.1), "`beta_2` must be"),
        (lambda: LAMB(epsilon=0.0), "`epsilon` must be a number > 0, got 0.0"),
        (
            lambda: _run(LAMB(exclude_from_decay="nothing"), [], [1.0]),
            "`LAMB.exclude_from_decay` 'nothing' matches no variable",
        ),
        (lambda: _run(LARS(exclude_from_adaptation="x"), [], [1.0]), "`LARS.exclude_from_adaptation` 'x'"),
    ],
)
def test_mistakes_are_reported(make, match):
    with pytest.raises(ValueError, match=match):
        make()
