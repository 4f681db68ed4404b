"""Schedules at their boundaries, at step 0 and past the end; in configs, optimizers, decays and loss weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from optimizers import OptimizerGroup
from optimizers.large_batch import LARS
from optimizers.schedules import Cyclical, InverseSqrt, LinearWarmup, OneCycle, WarmupStableDecay

PIECES = keras.optimizers.schedules.PiecewiseConstantDecay([3], [1.0, 0.5])
HALF = 0.5 * (1 - np.cos(np.pi / 4))  # a half cosine at a quarter of its way

# (schedule, {step: value})
CASES = {
    "warm-up to a number": (LinearWarmup(0.1, 10), {0: 0, 1: 0.01, 9: 0.09, 10: 0.1, 11: 0.1, 10**9: 0.1}),
    "warm-up from a number": (LinearWarmup(1, 4, initial=0.2), {0: 0.2, 2: 0.6, 4: 1.0}),
    "warm-up of a schedule": (LinearWarmup(PIECES, 4), {0: 0, 2: 0.5, 3: 0.75, 4: 1.0, 7: 1.0, 8: 0.5}),
    "no warm-up": (LinearWarmup(PIECES, 0), {0: 1.0, 3: 1.0, 4: 0.5}),
    "warm-up of a warm-up": (
        LinearWarmup(LinearWarmup(1.0, 2, initial=0.5), 2),
        {0: 0, 1: 0.25, 2: 0.5, 3: 0.75, 4: 1.0},
    ),
    "one cycle": (
        OneCycle(1.0, 10, warmup_fraction=0.4, start_divisor=10, end_divisor=100),
        {0: 0.1, 1: 0.1 + 0.9 * HALF, 2: 0.55, 4: 1.0, 7: 0.505, 10: 0.01, 11: 0.01, 10**6: 0.01},
    ),
    "triangular": (Cyclical(1, 3, 4), {0: 1, 1: 1.5, 4: 3, 6: 2, 8: 1, 9: 1.5, 12: 3, 16: 1, 8 * 10**5: 1}),
    "triangular2": (Cyclical(1, 3, 2, "triangular2"), {0: 1, 2: 3, 4: 1, 6: 2, 8: 1, 10: 1.5, 12: 1}),
    "exp_range": (Cyclical(0, 1, 2, "exp_range", 0.5), {0: 0, 1: 0.25, 2: 0.25, 3: 0.0625, 4: 0, 6: 1 / 64}),
    "a cycle without height": (Cyclical(2, 2, 1), {0: 2, 1: 2, 2: 2}),
    "inverse root": (InverseSqrt(0.5, 4), {0: 0, 1: 0.125, 4: 0.5, 16: 0.25, 400: 0.05}),
    "trapezoid": (WarmupStableDecay(2, 4, 3, 4), {0: 0, 1: 0.5, 4: 2, 7: 2, 8: 1.5, 10: 0.5, 11: 0, 12: 0, 10**6: 0}),
    "trapezoid of roots": (WarmupStableDecay(1, 0, 2, 4, 0.2, "sqrt"), {0: 1, 2: 1, 3: 0.6, 6: 0.2, 7: 0.2}),
    "trapezoid of cosines": (
        WarmupStableDecay(1, 1, 0, 4, 0.0, "cosine"),
        {0: 0, 1: 1, 2: 1 - HALF, 3: 0.5, 5: 0, 9: 0},
    ),
}
EVERY = pytest.mark.parametrize("name", CASES)


@EVERY
def test_values_by_hand(name):
    schedule, values = CASES[name]
    graph = tf.function(schedule)
    for step, wanted in values.items():
        for found in (schedule(step), schedule(tf.constant(step, tf.int64)), graph(tf.constant(step, tf.int64))):
            assert found.dtype == tf.float32 and found.shape == ()
            np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-6, atol=1e-8, err_msg=f"step {step}")


@EVERY
def test_peaks_and_ends_are_exact(name):
    schedule, values = CASES[name]
    steps = [step for step, wanted in values.items() if wanted in (0, 1, 2, 3, 0.5, 0.2)]
    assert [schedule(step).numpy() for step in steps] == [np.float32(values[step]) for step in steps]


@EVERY
def test_an_optimizer_takes_the_value_at_its_update(name):
    schedule, _ = CASES[name]
    v, optimizer = keras.Variable(0.0), keras.optimizers.SGD(schedule)
    optimizer.build([v])
    total = 0.0
    for step in range(4):
        optimizer.apply([tf.constant(-1.0)])
        total += schedule(step).numpy()
        np.testing.assert_allclose(v.numpy(), total, rtol=1e-6)


@EVERY
def test_config_round_trip(name):
    schedule, values = CASES[name]
    again = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(schedule))
    assert type(again) is type(schedule) and again.get_config() == schedule.get_config()
    assert [float(again(step)) for step in values] == [float(schedule(step)) for step in values]
    optimizer = keras.optimizers.Adam(schedule)
    revived = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert revived.get_config() == optimizer.get_config()


def test_noam_is_the_papers_equation():
    d_model, warmup = 512, 4000
    schedule = InverseSqrt((d_model * warmup) ** -0.5, warmup)
    for step in (1, 100, 3999, 4000, 4001, 100_000):
        np.testing.assert_allclose(schedule(step), d_model**-0.5 * min(step**-0.5, step * warmup**-1.5), rtol=1e-6)


def test_a_warm_up_of_keras_cosine_equals_keras_own_warm_up():
    ours = LinearWarmup(keras.optimizers.schedules.CosineDecay(0.3, 20, alpha=0.1), 5, initial=0.1)
    theirs = keras.optimizers.schedules.CosineDecay(0.1, 20, alpha=0.1, warmup_target=0.3, warmup_steps=5)
    for step in range(30):
        np.testing.assert_allclose(ours(step), theirs(step), rtol=1e-5)


def test_the_peak_of_one_cycle_lies_between_steps_where_the_fraction_does():
    values = [float(OneCycle(1.0, 10, warmup_fraction=0.25)(step)) for step in range(11)]
    assert values[2] < values[3] < 1 and values[3:] == sorted(values[3:], reverse=True)


def test_gin_writes_ints_and_floats_for_each_other():
    assert LinearWarmup(1, 1e1).get_config() == {"schedule": 1.0, "warmup_steps": 10, "initial": 0.0}
    assert isinstance(OneCycle(1, 1e3).total_steps, int)
    assert isinstance(Cyclical(0, 1, 2.0).half_cycle, int) and isinstance(InverseSqrt(1, 5).peak, float)


def test_serves_as_weight_decay_and_as_loss_weight():
    v = keras.Variable([1.0])
    optimizer = LARS(0.1, momentum=0.0, weight_decay=LinearWarmup(0.5, 2))
    optimizer.build([v])
    for wanted in (1.0, 1.0 * (1 - 0.1 * 0.25), 0.975 * (1 - 0.1 * 0.5)):  # decay 0, 0.25, 0.5 at gradient 0
        optimizer.apply([tf.constant([0.0])])
        np.testing.assert_allclose(v.numpy(), [wanted], rtol=1e-6)
    group = OptimizerGroup(losses={"main": 1.0, "kl": LinearWarmup(1, 4)}, optimizer="sgd")
    losses = {"main": tf.constant(2.0), "kl": tf.constant(8.0)}
    assert [float(group.objective(losses, tf.constant(step, tf.int64))) for step in (0, 1, 4, 9)] == [
        2.0,
        4.0,
        10.0,
        10.0,
    ]


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: LinearWarmup("x", 1), "`schedule` must be a number >= 0, got 'x'"),
        (lambda: LinearWarmup(0.1, -1), "`warmup_steps` must be a whole number >= 0, got -1. It counts steps."),
        (lambda: LinearWarmup(0.1, 2.5), "got 2.5"),
        (lambda: LinearWarmup(0.1, 2, initial=-1), "`initial` must be"),
        (lambda: OneCycle(0, 10), "`peak` must be a number > 0, got 0"),
        (lambda: OneCycle(1, 1), "`total_steps` must be a whole number >= 2, got 1"),
        (lambda: OneCycle(1, 10, 1.0), r"`warmup_fraction` must be a number in \(0, 1\), got 1.0"),
        (lambda: OneCycle(1, 10, start_divisor=0.5), "`start_divisor` must be"),
        (lambda: OneCycle(1, 10, end_divisor=0), "`end_divisor` must be"),
        (lambda: Cyclical(2, 1, 3), "`low` and `high` must satisfy low <= high, got 2 and 1"),
        (lambda: Cyclical(1, 2, 0), "`half_cycle` must be"),
        (lambda: Cyclical(1, 2, 3, "square"), "`mode` must be 'triangular'.*got 'square'"),
        (lambda: Cyclical(1, 2, 3, "exp_range", 1.1), "`gamma` must be"),
        (lambda: InverseSqrt(1, 0), "`warmup_steps` must be a whole number >= 1, got 0"),
        (lambda: WarmupStableDecay(1, 1, 1, 0), "`decay_steps` must be"),
        (lambda: WarmupStableDecay(1, 1, 1, 1, shape="step"), "`shape` must be 'linear'"),
        (lambda: WarmupStableDecay(1, 1, -1, 1), "`stable_steps` must be"),
        (lambda: WarmupStableDecay(1, 1, 1, 1, final=-1), "`final` must be"),
    ],
)
def test_mistakes_are_reported(make, match):
    with pytest.raises(ValueError, match=match):
        make()
