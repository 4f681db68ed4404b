"""The learning-rate range test (Smith 2017, arXiv:1506.01186): the loss while the rate rises step by step."""

import dataclasses
import math

import numpy as np

from trainer import console
from trainer.step.guard import NonFiniteError

_FIRST, _LAST = 1e-6, 10.0
_DIVERGED = 4.0  # the test ends if the smoothed loss exceeds its minimum by this factor of the fall so far
_SMOOTHING = 0.9  # share of the running mean that a step keeps


def range_test(trainer, source, steps):
    """Trains a built trainer while its learning rates rise from 1e-6 to 10; returns a RangeTest; eager.

    The group with the largest rate gets these rates; the others keep their ratio to it.

    Args:
        trainer: a Trainer that nothing else needs: its weights are useless afterwards.
        source: the training data.
        steps: int >= 2, the number of rates.

    Raises:
        ValueError: if a group has a schedule.
    """
    for group in trainer.groups:
        if group.learning_rate is None:
            raise ValueError(
                f"`learning_rate` of group {group.name!r} is a schedule, which the range test cannot replace. Bind a "
                "number for the check, with --gin_param."
            )
    largest = max(group.learning_rate for group in trainer.groups)
    iterator = iter(trainer.distribute(source, start=0, chunk=1))
    tested = RangeTest([], [])
    for rate in np.geomspace(_FIRST, _LAST, steps):
        for group in trainer.groups:
            group.optimizer.learning_rate = rate * group.learning_rate / largest
        try:
            metrics = trainer.train(iterator, 1)
        except NonFiniteError:
            break
        if not math.isfinite(metrics.get("loss", math.nan)) or metrics.get("skipped_steps"):
            break  # no metrics: the data has ended
        tested.add(float(rate), metrics["loss"])
        if tested.has_diverged():
            break
    return tested


@dataclasses.dataclass
class RangeTest:
    """The result of a range test.

    Attributes:
        rates: learning rates, rising.
        losses: the loss of each step, before its update.
    """

    rates: list
    losses: list

    def add(self, rate, loss):
        self.rates.append(rate)
        self.losses.append(loss)

    @property
    def smoothed(self):
        """The running mean of the losses, without its bias to the start: list of float."""
        mean, smoothed = 0.0, []
        for i, loss in enumerate(self.losses, 1):
            mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
            smoothed.append(mean / (1 - _SMOOTHING**i))
        return smoothed

    def has_diverged(self):
        """Whether the loss has risen far above its minimum."""
        smoothed = self.smoothed
        return smoothed[-1] > min(smoothed) + _DIVERGED * max(smoothed[0] - min(smoothed), abs(smoothed[0]) / 10)

    @property
    def suggestion(self):
        """The rate at which the smoothed loss falls fastest per decade, or None if it never falls."""
        smoothed = self.smoothed
        last = int(np.argmin(smoothed)) if smoothed else 0
        if last < 2:
            return None
        slopes = np.gradient(smoothed[: last + 1], np.log(self.rates[: last + 1]))
        return self.rates[int(np.argmin(slopes))] if min(slopes) < 0 else None

    @property
    def ok(self):
        return self.suggestion is not None

    def __str__(self):
        rows = [f"{'learning rate':>13}  {'loss':>10}  {'smoothed':>10}"]
        shown = sorted({round(i) for i in np.linspace(0, len(self.rates) - 1, 15)}) if self.rates else []
        smoothed = self.smoothed
        rows += [
            f"{self.rates[i]:>13.1e}  {console.number(self.losses[i]):>10}  {console.number(smoothed[i]):>10}"
            for i in shown
        ]
        if not self.ok:
            return "\n".join(
                [*rows, "The loss falls at no rate. `trainer.check gradients` says whether gradients arrive."]
            )
        lowest = self.rates[int(np.argmin(smoothed))]
        return "\n".join(
            [*rows, f"The loss falls fastest at {self.suggestion:.1e} and is lowest at {lowest:.1e}: a rate between a "
             "tenth of the second and the first is a usual start."]
        )  # fmt: skip

    def draw(self, path):
        """Writes a plot of loss against rate; returns whether matplotlib is there to do so."""
        try:
            from matplotlib.figure import Figure  # not pyplot, which may open a window
        except ImportError:
            return False
        axes = (figure := Figure(figsize=(6, 4), layout="constrained")).subplots()
        axes.plot(self.rates, self.losses, alpha=0.3, label="loss")
        axes.plot(self.rates, self.smoothed, label="running mean")
        if self.ok:
            axes.axvline(self.suggestion, linestyle=":", color="black", label=f"falls fastest, {self.suggestion:.1e}")
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
        axes.legend()
        figure.savefig(path, dpi=150)
        return True
