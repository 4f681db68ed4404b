"""Intervals between evaluations, checkpoints and summaries, in steps."""

import dataclasses
import math
import numbers

import numpy as np


def count(argument, value, none=""):
    """Returns an argument that counts steps as an int.

    Args:
        argument: its name.
        value: a whole number >= 1 of any type, also 1e3; None, if `none` explains its meaning.

    Raises:
        ValueError: for anything else.
    """
    if value is None and none:
        return None
    is_number = isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_)) and math.isfinite(value)
    if not is_number or value < 1 or value != int(value):
        none = f" or None ({none})" if none else ""
        raise ValueError(f"`{argument}` must be an int >= 1{none}, got {value!r}.")
    return int(value)


@dataclasses.dataclass
class Intervals:
    """Steps between events. Loops end at multiples of each interval; None: only at the end of the run."""

    steps_per_loop: int
    eval_interval: int | None
    checkpoint_interval: int | None
    summary_interval: int | None

    def __post_init__(self):
        self.steps_per_loop = count("steps_per_loop", self.steps_per_loop)
        for name in ("eval_interval", "checkpoint_interval", "summary_interval"):
            setattr(self, name, count(name, getattr(self, name), none="at the end only"))

    def intervals(self):
        return [value for value in vars(self).values() if value is not None]

    def check_multiples(self):
        for name, value in vars(self).items():
            if value is not None and value % self.steps_per_loop:
                raise ValueError(
                    f"`{name}` ({value}) must be a multiple of `steps_per_loop` ({self.steps_per_loop}) with "
                    "compile='xla_loop', which takes whole chunks of batches."
                )

    def next_stop(self, step, end):
        """Returns the step at which the loop from `step` ends: the next multiple of any interval."""
        return min([step + interval - step % interval for interval in self.intervals()] + ([end] if end else []))


@dataclasses.dataclass
class Loop:
    """The result of one call of `Trainer.train`."""

    step: int  # the step at which it ended
    steps: int  # how many steps it took
    metrics: dict
    data_ended: bool
    is_last: bool

    def is_due(self, interval, at_end=False):
        """Returns whether `interval` is due after the loop. at_end: whether it is also due at the end of the run."""
        due = interval is not None and self.step % interval == 0
        if not self.steps:  # the data ended with the previous loop, which did everything due at this step
            return at_end and not due
        return due or (at_end and self.is_last)
