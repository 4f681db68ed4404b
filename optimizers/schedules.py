"""Schedules that Keras lacks: numbers as functions of the step.

Each is a Keras `LearningRateSchedule`, so it serves as learning rate of any
optimizer; called with a step it returns a float32 scalar, so it also serves
as `weight_decay` of the optimizers in this folder and as a loss's weight in
OptimizerGroup. The step counts updates done: 0 is the first update.
"""

import math
from collections.abc import Callable

import keras
import tensorflow as tf

from optimizers.base import check_count, check_number, check_positive, config_of

_serializable = keras.saving.register_keras_serializable(package="gradloom")


class _Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Calls `value` with the step as float32, and keeps the constructor's arguments for `get_config`."""

    def __call__(self, step: int | tf.Tensor) -> tf.Tensor:
        return self.value(tf.cast(step, tf.float32))

    def get_config(self):
        return dict(self._arguments)


@_serializable
class LinearWarmup(_Schedule):
    """Rises linearly to the first value of a schedule, then follows the schedule from its step 0 (1706.02677, section
    2.2).

        step <  warmup_steps: initial + (schedule(0) - initial) * step / warmup_steps
        step >= warmup_steps: schedule(step - warmup_steps)

    Args:
        schedule: a schedule, or a number >= 0 to stay at.
        warmup_steps: int >= 0.
        initial: number >= 0, the value at step 0. With 0 the first update does nothing.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> schedule = LinearWarmup(0.1, warmup_steps=10)
        >>> [round(float(schedule(step)), 3) for step in (0, 5, 10, 1000)]
        [0.0, 0.05, 0.1, 0.1]
    """

    def __init__(self, schedule: float | Callable, warmup_steps: int, initial: float = 0.0):
        self.schedule = schedule if callable(schedule) else _check_value("schedule", schedule)
        self.warmup_steps = _check_steps("warmup_steps", warmup_steps, 0)
        self.initial = _check_value("initial", initial)
        self._arguments = {
            "schedule": config_of(self.schedule),
            "warmup_steps": self.warmup_steps,
            "initial": self.initial,
        }

    def __call__(self, step: int | tf.Tensor) -> tf.Tensor:
        # The inner schedule gets an integer step, as from an optimizer.
        step = tf.cast(step, tf.int64)
        inside = tf.maximum(step - self.warmup_steps, 0)
        target = tf.cast(self.schedule(inside) if callable(self.schedule) else self.schedule, tf.float32)
        share = tf.cast(step, tf.float32) / max(self.warmup_steps, 1)
        # During the rise `inside` is 0, so `target` is the schedule's first value.
        return tf.where(step < self.warmup_steps, self.initial + (target - self.initial) * share, target)

    @classmethod
    def from_config(cls, config):
        if isinstance(config["schedule"], dict):
            config = {**config, "schedule": keras.saving.deserialize_keras_object(config["schedule"])}
        return cls(**config)


@_serializable
class OneCycle(_Schedule):
    """Rises to a peak and falls far below the start, on half cosines (Smith, Topin 2017, 1708.07120; cosines as in
    fastai).

        step 0:                              peak / start_divisor
        step warmup_fraction * total_steps:  peak
        step total_steps and after:          peak / end_divisor

    Args:
        peak: number > 0.
        total_steps: int >= 2.
        warmup_fraction: number in (0, 1), fraction of the steps in which the rate rises.
        start_divisor: number >= 1.
        end_divisor: number >= 1.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        peak: float,
        total_steps: int,
        warmup_fraction: float = 0.3,
        start_divisor: float = 25.0,
        end_divisor: float = 1e5,
    ):
        self.peak = check_positive("peak", peak, "It is the largest learning rate.")
        self.total_steps = _check_steps("total_steps", total_steps, 2)
        fix = "0.3 rises for 30 % of the steps."
        self.warmup_fraction = check_number(
            "warmup_fraction", warmup_fraction, "a number in (0, 1)", lambda x: 0 < x < 1, fix
        )
        self.start_divisor = check_number(
            "start_divisor", start_divisor, "a number >= 1", lambda x: x >= 1, "1 starts at the peak."
        )
        self.end_divisor = check_number(
            "end_divisor", end_divisor, "a number >= 1", lambda x: x >= 1, "1 stays at the peak."
        )
        self._arguments = {
            "peak": self.peak, "total_steps": self.total_steps, "warmup_fraction": self.warmup_fraction,
            "start_divisor": self.start_divisor, "end_divisor": self.end_divisor,
        }  # fmt: skip

    def value(self, step):
        top = self.warmup_fraction * self.total_steps
        up = _cosine(self.peak / self.start_divisor, self.peak, step / top)
        down = _cosine(self.peak, self.peak / self.end_divisor, (step - top) / (self.total_steps - top))
        return tf.where(step < top, up, down)


@_serializable
class Cyclical(_Schedule):
    """Periodic triangles between two values (Smith 2017, 1506.01186, section 3.1).

        x = distance of the step from the nearest end of a cycle / half_cycle      a cycle has 2 * half_cycle steps
        low + (high - low) * x * height

    Args:
        low, high: numbers, 0 <= low <= high.
        half_cycle: int >= 1, steps from low to high; 2 to 10 epochs in the paper.
        mode: "triangular": height 1; "triangular2": height halves with each cycle; "exp_range": height gamma^step.
        gamma: number in (0, 1], of "exp_range".

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(self, low: float, high: float, half_cycle: int, mode: str = "triangular", gamma: float = 1.0):
        self.low, self.high = _check_value("low", low), _check_value("high", high)
        if self.low > self.high:
            raise ValueError(f"`low` and `high` must satisfy low <= high, got {low} and {high}. Swap them.")
        self.half_cycle = _check_steps("half_cycle", half_cycle, 1)
        if mode not in ("triangular", "triangular2", "exp_range"):
            raise ValueError(
                f"`mode` must be 'triangular', 'triangular2' or 'exp_range', got {mode!r}. 'triangular' keeps its "
                "height."
            )
        self.mode = mode
        self.gamma = check_number("gamma", gamma, "a number in (0, 1]", lambda x: 0 < x <= 1, "1 keeps the height.")
        self._arguments = {
            "low": self.low,
            "high": self.high,
            "half_cycle": self.half_cycle,
            "mode": mode,
            "gamma": self.gamma,
        }

    def value(self, step):
        cycle = tf.floor(step / (2 * self.half_cycle))  # from 0
        share = 1 - tf.abs(step / self.half_cycle - 2 * cycle - 1)
        if self.mode == "triangular2":
            share *= tf.pow(0.5, cycle)
        elif self.mode == "exp_range":
            share *= tf.pow(self.gamma, step)
        return self.low + (self.high - self.low) * share


@_serializable
class InverseSqrt(_Schedule):
    """Rises linearly to a peak, then falls with the inverse square root of the step (Vaswani et al. 2017, 1706.03762,
    eq. 3).

        peak * min(step / warmup_steps, sqrt(warmup_steps / step))

    The paper's ("Noam") peak is (d_model * warmup_steps)^-0.5. The paper counts
    steps from 1; here step 0 is the first and has rate 0.

    Args:
        peak: number > 0, the value at step `warmup_steps`.
        warmup_steps: int >= 1.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(self, peak: float, warmup_steps: int):
        self.peak = check_positive("peak", peak, "It is the value where the rise ends.")
        self.warmup_steps = _check_steps("warmup_steps", warmup_steps, 1)
        self._arguments = {"peak": self.peak, "warmup_steps": self.warmup_steps}

    def value(self, step):
        # The maximum keeps the branch that `where` leaves out finite at step 0.
        falling = tf.sqrt(self.warmup_steps / tf.maximum(step, self.warmup_steps))
        return self.peak * tf.where(step < self.warmup_steps, step / self.warmup_steps, falling)


@_serializable
class WarmupStableDecay(_Schedule):
    """A trapezoid: rises, stays constant, falls (Hu et al. 2024, 2404.06395; Haegele et al. 2024, 2405.18392).

        0 .. warmup_steps                   0 to peak, linearly
        .. + stable_steps                   peak
        .. + decay_steps, and after         peak to final

    Args:
        peak: number > 0.
        warmup_steps, stable_steps: ints >= 0.
        decay_steps: int >= 1; 10 to 20 % of all in the paper.
        final: number >= 0, the value after the decay.
        shape: of the decay at its fraction s: "linear": 1 - s; "sqrt": 1 - sqrt(s), the best of 2405.18392; "cosine".

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        peak: float,
        warmup_steps: int,
        stable_steps: int,
        decay_steps: int,
        final: float = 0.0,
        shape: str = "linear",
    ):
        self.peak = check_positive("peak", peak, "It is the value between rise and decay.")
        self.warmup_steps = _check_steps("warmup_steps", warmup_steps, 0)
        self.stable_steps = _check_steps("stable_steps", stable_steps, 0)
        self.decay_steps = _check_steps("decay_steps", decay_steps, 1)
        self.final = _check_value("final", final)
        if shape not in ("linear", "sqrt", "cosine"):
            raise ValueError(
                f"`shape` must be 'linear', 'sqrt' or 'cosine', got {shape!r}. 'linear' is the plain trapezoid."
            )
        self.shape = shape
        self._arguments = {
            "peak": self.peak, "warmup_steps": self.warmup_steps, "stable_steps": self.stable_steps,
            "decay_steps": self.decay_steps, "final": self.final, "shape": shape,
        }  # fmt: skip

    def value(self, step):
        share = (step - self.warmup_steps - self.stable_steps) / self.decay_steps
        if self.shape == "cosine":
            down = _cosine(self.peak, self.final, share)
        else:
            share = tf.clip_by_value(share, 0.0, 1.0)
            down = _line(self.peak, self.final, tf.sqrt(share) if self.shape == "sqrt" else share)
        return tf.where(step < self.warmup_steps, self.peak * step / max(self.warmup_steps, 1), down)


def _line(first, last, share):
    # As a weighted mean it is `last` exactly where share is 1; first + (last - first) * share is not.
    return (1 - share) * first + share * last


def _cosine(first, last, share):
    """Returns the half cosine from `first` to `last` at a fraction of the way, clipped to [0, 1]."""
    return _line(first, last, 0.5 - 0.5 * tf.cos(math.pi * tf.clip_by_value(share, 0.0, 1.0)))


def _check_value(name, value):
    return check_number(name, value, "a number >= 0", lambda x: x >= 0, "A learning rate or weight is not negative.")


def _check_steps(name, value, least):
    return check_count(name, value, least, "It counts steps.")
