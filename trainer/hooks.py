"""Hooks: callables `(trainer, step, metrics)` that run after each loop; all are optional.

`metrics` has the tags of the loop and, if it ended with an evaluation, the
evaluation's tags with the split as prefix ("validation/loss").
`trainer.summaries` writes scalars, images, text and histograms at that step.
A hook that returns STOP ends the run after a checkpoint. A dict of variables
`state` is checkpointed. If an attribute `ended` is true, a resumed run ends at
once. An attribute `monitor` is a tag, which `run` validates before training.
A method `begin(run)` is called before the first loop, and after a rollback, with
the Run: its `trainer`, `source`, `evals`, `model_dir`, `step` and `writes`;
`report(split, step, metrics)` on the chief for each report; `end()` at the end.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import keras
import tensorflow as tf

from optimizers.base import as_list, check_bool, check_count, check_number, check_positive
from trainer import console
from trainer.data import as_source
from trainer.histograms import Histograms
from trainer.loggers import Logger
from trainer.replicas.distribution import distribute, replica_values, sum_replicas
from trainer.views import ConfusionMatrix, Images, PRCurve, Projector

if TYPE_CHECKING:
    from trainer.trainer import Trainer

__all__ = [
    "STOP", "Best", "ConfusionMatrix", "EarlyStopping", "Histograms", "Images", "Logger", "LossGradients", "PRCurve",
    "Projector", "ReduceOnPlateau", "Rollback", "SpikeRecovery", "TimeLimit", "split_of",
]  # fmt: skip
STOP = "stop"


class Rollback(NamedTuple):
    """Returned by a hook to restore the last checkpoint and skip the data since then.

    Attributes:
        reason: one sentence for the terminal.
        stop: whether the run then ends, with the status of the non-finite guard.
    """

    reason: str
    stop: bool = False


class Best:
    """The best value of a monitored tag so far.

    Args:
        monitor: the tag.
        mode: "min", "max", or None: "min" for losses, an error for other tags.
        min_delta: number >= 0, the smallest change that counts as better.
    """

    def __init__(self, monitor, mode=None, min_delta=0.0):
        if not isinstance(monitor, str) or not monitor:
            raise ValueError(f"`monitor` must be a tag such as 'validation/loss', got {monitor!r:.80}.")
        if mode is None and monitor.rpartition("/")[2] != "loss" and "losses/" not in monitor:
            raise ValueError(f"`mode` must be 'min' or 'max' for `monitor` {monitor!r}, which is not a loss, got None.")
        if mode not in (None, "min", "max"):
            raise ValueError(f"`mode` must be 'min' or 'max', got {mode!r}.")
        self.monitor, self.mode = monitor, mode or "min"
        self._min_delta = check_number(
            "min_delta", min_delta, "a number >= 0", lambda x: x >= 0, "0 counts every improvement."
        )
        self.value = _number(math.inf if self.mode == "min" else -math.inf)

    def of(self, metrics):
        """Returns the monitored value of a loop, or None if the loop did not measure it.

        Raises:
            ValueError: if the split was reported without the tag.
        """
        split = split_of(self.monitor)
        measured = [tag for tag in metrics if split_of(tag) == split]
        if measured and self.monitor not in measured:
            raise ValueError(f"`monitor` {self.monitor!r} is not reported. There are: {', '.join(sorted(measured))}.")
        return metrics.get(self.monitor)

    def improves(self, value):
        """Returns whether `value` is the best so far, and stores it; NaN is never the best."""
        best = float(self.value.numpy())
        better = value < best - self._min_delta if self.mode == "min" else value > best + self._min_delta
        if better:
            self.value.assign(value)
        return better


class EarlyStopping:
    """Ends the run when a metric has stopped improving.

    Args:
        monitor, mode, min_delta: those of Best.
        patience: int >= 1, measurements without improvement after which the run ends.
    """

    def __init__(
        self, monitor: str = "validation/loss", mode: str | None = None, patience: int = 5, min_delta: float = 0.0
    ):
        self.monitor, self.patience = monitor, check_count("patience", patience, 1, "It counts measurements.")
        self._best = Best(monitor, mode, min_delta)
        self._waited = _number(0, tf.int64)
        self.state = {"best": self._best.value, "waited": self._waited}

    @property
    def ended(self):
        """True if this hook ended the run, so that a resumed run ends at once."""
        return bool(self._waited >= self.patience)

    def __call__(self, trainer: "Trainer", step: int, metrics: dict[str, float]):
        """Counts a measurement; eager."""
        value = self._best.of(metrics)
        if value is None:
            return None
        self._waited.assign(0 if self._best.improves(value) else self._waited + 1)
        if not self.ended:
            return None
        best = console.number(float(self._best.value.numpy()))
        console.line(
            f"Stopping early at step {step}: {self._best.monitor} is {console.number(value)}, {best} at its best, "
            f"{self.patience} measurements ago."
        )
        return STOP


class TimeLimit:
    """Ends the run after some time, with a checkpoint.

    Args:
        hours: number > 0.
        total: True counts the time of all starts of the run, up to their last
            checkpoints; False only the time of this start.
        clock: function that returns seconds; a parameter for tests.
    """

    def __init__(self, hours: float, total: bool = False, clock: Callable[[], float] = time.monotonic):
        self.hours = check_positive("hours", hours, "0.5 is half an hour.")
        self.total, self._clock = check_bool("total", total), clock
        self._spent, self._seen = _number(0.0), clock()
        self._before = None
        self.state = {"seconds": self._spent}

    def __call__(self, trainer: "Trainer", step: int, metrics: dict[str, float]):
        """Ends the run if the limit is reached; eager."""
        now = self._clock()
        if self._before is None:
            self._before = float(self._spent.numpy())  # it may have been restored
        self._spent.assign_add(now - self._seen)
        self._seen = now
        seconds = float(self._spent.numpy()) - (0 if self.total else self._before)
        if seconds < self.hours * 3600:
            return None
        console.line(f"Stopping at step {step}: `TimeLimit.hours` ({self.hours:g}) is reached.")
        return STOP


class ReduceOnPlateau:
    """Lowers the learning rate when a metric has stopped improving.

    Args:
        monitor, mode, min_delta: those of Best.
        factor: number in (0, 1), the factor of each reduction.
        patience: int >= 1, measurements without improvement before a reduction.
        min_learning_rate: number >= 0, the lower bound.
        groups: names of optimizer groups; None: all.

    Raises:
        ValueError: at the first call, if a group's learning rate is a schedule.
    """

    def __init__(
        self,
        monitor: str = "validation/loss",
        mode: str | None = None,
        factor: float = 0.1,
        patience: int = 5,
        min_delta: float = 0.0,
        min_learning_rate: float = 0.0,
        groups: Sequence[str] | None = None,
    ):
        self.monitor, self.patience = monitor, check_count("patience", patience, 1, "It counts measurements.")
        self._best = Best(monitor, mode, min_delta)
        self.factor = check_number("factor", factor, "a number in (0, 1)", lambda x: 0 < x < 1, "0.1 to 0.5 are usual.")
        self.min_learning_rate = check_number(
            "min_learning_rate", min_learning_rate, "a number >= 0", lambda x: x >= 0, "0 sets no bound."
        )
        self.groups = groups if groups is None else as_list(groups)
        self._waited = _number(0, tf.int64)
        self.state = {"best": self._best.value, "waited": self._waited}

    def __call__(self, trainer: "Trainer", step: int, metrics: dict[str, float]):
        """Counts a measurement; eager. A lower rate takes effect in the next loop and is checkpointed."""
        groups = self._groups(trainer)
        value = self._best.of(metrics)
        if value is None:
            return
        self._waited.assign(0 if self._best.improves(value) else self._waited + 1)
        if self._waited < self.patience:
            return
        self._waited.assign(0)
        for group in groups:
            rate = max(float(group.optimizer.learning_rate.numpy()) * self.factor, self.min_learning_rate)
            group.optimizer.learning_rate = rate
            console.line(
                f"step {step}: {self._best.monitor} is on a plateau, learning rate of {group.name} "
                f"{console.number(rate)}."
            )

    def _groups(self, trainer):
        names = [group.name for group in trainer.groups]
        for name in self.groups or ():
            if name not in names:
                raise ValueError(f"`groups` names {name!r}; the groups are {', '.join(names)}.")
        groups = [group for group in trainer.groups if self.groups is None or group.name in self.groups]
        for group in groups:
            if group.learning_rate is None:
                raise ValueError(
                    f"`learning_rate` of group {group.name!r} is a schedule, which ReduceOnPlateau cannot change. "
                    "Give it a number, or list the other groups in `groups`."
                )
        return groups


class SpikeRecovery:
    """Restores the last checkpoint when the loss of a loop spikes, and skips the batches since then.

    A spike is a value that is not finite, or above `threshold` times the
    median of the last `window` loops. It is found before the loop is saved.

    Args:
        monitor: tag of a loop's loss.
        threshold: number > 1.
        window: int >= 2, number of loops in the median; no spike is detected in the first `window` loops.
        max_times: int >= 1, recoveries after which a spike ends the run.
    """

    def __init__(self, monitor: str = "loss", threshold: float = 3.0, window: int = 10, max_times: int = 3):
        if not isinstance(monitor, str) or split_of(monitor) is not None:
            raise ValueError(f"`monitor` must be a tag of the training loop, which each loop reports, got {monitor!r}.")
        self.monitor = monitor
        self.threshold = check_number(
            "threshold", threshold, "a number > 1", lambda x: x > 1, "It multiplies the median loss."
        )
        window = check_count("window", window, 2, "It is the number of loops of the median.")
        self.max_times = check_count("max_times", max_times, 1, "It counts recoveries.")
        self._losses = _number([math.nan] * window)
        self._times = _number(0, tf.int64)
        self.state = {"losses": self._losses, "times": self._times}

    def __call__(self, trainer: "Trainer", step: int, metrics: dict[str, float]):
        """Checks the loop's loss; eager."""
        if self.monitor not in metrics:
            raise ValueError(f"`monitor` {self.monitor!r} is not reported. There are: {', '.join(sorted(metrics))}.")
        value, recent = metrics[self.monitor], self._losses.numpy()
        known = not any(math.isnan(loss) for loss in recent)
        spikes = not math.isfinite(value) or (known and value > self.threshold * statistics.median(recent))
        if not spikes:
            self._losses.assign([*recent[1:], value])
            return None
        what = f"{self.monitor} is {console.number(value)} in the loop that ended at step {step}"
        if self._times >= self.max_times:
            return Rollback(f"{what}, and `SpikeRecovery.max_times` ({self.max_times}) is reached.", stop=True)
        self._times.assign_add(1)
        return Rollback(f"{what}: recovery {int(self._times.numpy())} of {self.max_times}.")


class LossGradients:
    """Reports the gradient norm of each loss, and the cosine between the gradients of each two.

    The tags are `gradients/<loss>` and `cosines/<loss>/<loss>`, in TensorBoard's run
    `train`. It takes a separate forward pass on one batch, which changes no
    state. Other steps cost nothing extra.

    Args:
        data: a function that returns a source or dataset of training batches.
        every: int >= 1, steps between two reports.
    """

    def __init__(self, data: Callable, every: int = 1_000):
        self.data, self.every = data, check_count("every", every, 1, "It counts the steps between two reports.")
        self._source = self._measure = None

    def __call__(self, trainer: "Trainer", step: int, metrics: dict[str, float]):
        """Reports if due; eager."""
        if step % self.every:
            return
        if self._measure is None:
            self._source = as_source(self.data)
            self._measure = tf.function(
                lambda element: trainer.strategy.run(_measure, args=(trainer, element)), autograph=False
            )
        for element in distribute(trainer.strategy, self._source.batches(step).take(1)):
            measured = tf.nest.map_structure(lambda x: replica_values(trainer.strategy, x)[0], self._measure(element))
            trainer.summaries.scalars("train", step, {tag: float(x) for tag, x in measured.items()})


def split_of(tag):
    """Returns the split that a tag starts with, or None for a tag of the loop."""
    first = tag.partition("/")[0]
    return first if first.startswith("validation") else None


def _number(value, dtype=tf.float64):
    return tf.Variable(value, dtype=dtype, trainable=False)


def _measure(trainer, element):
    """Returns {tag: float32 scalar}, the same on all replicas; traced, per replica."""
    variables = [v.value for v in trainer.trainable_variables.values()]
    with keras.StatelessScope(), trainer.replica_pass(element) as p:
        with tf.GradientTape(persistent=True) as tape:
            losses, _ = trainer.forward(p.batch, training=True)
        flat = {}
        for name, loss in losses.items():
            gradients = tape.gradient(loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            flat[name] = tf.concat(
                [tf.reshape(tf.cast(tf.convert_to_tensor(g), tf.float32), [-1]) for g in gradients], 0
            )
        flat = dict(zip(flat, sum_replicas(list(flat.values()))))
    norms = {name: tf.norm(gradient) for name, gradient in flat.items()}
    tags = {f"gradients/{name}": norm for name, norm in norms.items()}
    names = list(flat)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            product = tf.reduce_sum(flat[first] * flat[second])
            tags[f"cosines/{first}/{second}"] = tf.math.divide_no_nan(product, norms[first] * norms[second])
    return tags
