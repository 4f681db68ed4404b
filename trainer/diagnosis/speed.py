"""Times settings of a config that change its speed: `python -m trainer.check speed`."""

import dataclasses
import statistics
import time

import tensorflow as tf

from trainer import console
from trainer.diagnosis import explain
from trainer.replicas.distribution import distribute

_ROUNDS = 5
_HOPELESS = 2.0  # ratio after which one turn is enough
_LOOPS = (1, 10, 100)  # values of steps_per_loop
_FASTER = 0.97  # ratio below which a setting is kept
_BOUND = 0.05  # share of a step that the input may cost before it is called the bottleneck


class Speed:
    """Times one change of the config after the other against the best settings so far, in turns; keeps the winners.

    Every trainer is built for this and thrown away; nothing is written.

    Args:
        make: function of {attribute of a Trainer or, for `fused`, of its groups: value} that returns a built Trainer.
        source: the training data.
        steps_per_loop: int, that of the config.
        name: name of the Trainer's class in gin.
        seconds: float, of each of the five turns that a setting takes.
    """

    def __init__(self, make, source, steps_per_loop, name="Trainer", seconds=0.5):
        self._make, self._source, self._name, self._seconds = make, source, name, seconds
        self._best = self._contestant({}, steps_per_loop)
        self.first = self.fastest = statistics.median(self._best.turn(seconds) for _ in range(_ROUNDS))
        self.rows = [("as in the config", self.first, "")]
        self.lines, self.input_seconds, self.compute_seconds = [], None, None

    def measure(self):
        """Times all settings and the input; returns itself."""
        trainer = self._best.trainer
        for steps in _LOOPS:
            if steps != self._best.steps_per_loop and trainer.compile != "xla_loop":
                self._try(f"run.steps_per_loop = {steps}", {}, steps)
        for mode in ("graph", "xla_step", "xla_loop"):
            if mode != trainer.compile:
                self._try(f"{self._name}.compile = '{mode}'", {"compile": mode}, max(self._best.steps_per_loop, 10))
        for guard in ("skip", "stop"):
            if guard != trainer.guard:
                self._try(f"{self._name}.guard = '{guard}'", {"guard": guard})
        fused = all(group.fused for group in trainer.groups)
        self._try(f"OptimizerGroup.fused = {not fused}", {"fused": not fused})
        for parts in (1, 2):
            if parts != trainer.micro_batches:
                self._try(f"{self._name}.micro_batches = {parts}", {"micro_batches": parts})
        self._time_input()
        return self

    def _contestant(self, changes, steps_per_loop):
        return _Contestant(self._make(changes), self._source, steps_per_loop, changes)

    def _try(self, line, changes, steps_per_loop=None):
        """Times a gin line on top of the best settings so far, and keeps it if it is faster by more than 3 %."""
        steps_per_loop = steps_per_loop or self._best.steps_per_loop
        try:
            new = self._contestant({**self._best.changes, **changes}, steps_per_loop)
            ratios = [new.turn(self._seconds) / self._best.turn(self._seconds)]
            while ratios[0] < _HOPELESS and len(ratios) < _ROUNDS:
                ratios.append(new.turn(self._seconds) / self._best.turn(self._seconds))
        except Exception as error:  # the mode cannot run; XLA's errors have many types
            text = explain.lesson(error) if explain.is_teaching(error) else str(error)
            self.rows.append((line, None, text.strip().split("\n")[0]))
            return
        ratio = statistics.median(ratios)
        seconds = ratio * self.fastest
        if ratio < _FASTER:
            self._best, self.fastest = new, seconds
            self.lines.append(line)
            if "xla_loop" in line:
                self.lines.append(f"run.steps_per_loop = {steps_per_loop}")
        self.rows.append((line, seconds, "faster, kept" if ratio < _FASTER else ""))

    def _time_input(self):
        """Times the input without a step, and the fastest settings without input: on one batch again and again."""
        strategy = self._best.trainer.strategy
        iterator, taken = iter(distribute(strategy, self._source)), 0
        take = tf.function(_take, autograph=False, reduce_retracing=True)
        take(iterator)
        began = time.perf_counter()
        while time.perf_counter() - began < self._seconds:
            if not take(iterator).numpy():
                iterator = iter(distribute(strategy, self._source))
            taken += 1
        self.input_seconds = (time.perf_counter() - began) / taken
        again = tf.data.Dataset.from_tensors(next(iter(self._source.batches(0)))).repeat()
        alone = _Contestant(self._best.trainer, again, self._best.steps_per_loop, {})
        turns = [(alone.turn(self._seconds), self._best.turn(self._seconds)) for _ in range(_ROUNDS)]
        self.compute_seconds = self.fastest * statistics.median(one / other for one, other in turns)

    def __str__(self):
        width = max(len(line) for line, *_ in self.rows)
        lines = [f"{'':<{width}}  ms a step  of the config's"]
        for line, seconds, note in self.rows:
            figures = (
                f"{console.number(1e3 * seconds):>9}  {seconds / self.first:>15.2f}" if seconds else f"{'-':>9}{'':17}"
            )
            lines.append(f"{line:<{width}}  {figures}  {note}".rstrip())
        share = 1 - self.compute_seconds / self.fastest
        bound = f"the input is the bottleneck: it costs {share:.0%} of a step" if share > _BOUND else "it is hidden"
        lines += [
            "",
            f"The input alone takes {console.number(1e3 * self.input_seconds)} ms a batch, the fastest step without it "
            f"{console.number(1e3 * self.compute_seconds)} ms: {bound}.",
            "No setting is faster than the config's." if not self.lines else
            f"Fastest, {self.fastest / self.first:.2f} of the config's time a step:\n  " + "\n  ".join(self.lines),
        ]  # fmt: skip
        return "\n".join(lines)


@dataclasses.dataclass
class _Contestant:
    """A trainer on its way through the data."""

    trainer: object
    source: object
    steps_per_loop: int
    changes: dict

    def __post_init__(self):
        self._iterator = self._step_seconds = None
        self._take(1)  # compiles

    def turn(self, seconds):
        """Trains for about `seconds`; returns the seconds a step."""
        if self._step_seconds is None:
            self._step_seconds = self._take(1)
        loops = max(1, round(seconds / (self._step_seconds * self.steps_per_loop)))
        self._step_seconds = self._take(loops)
        return self._step_seconds

    def _take(self, loops):
        steps, began = loops * self.steps_per_loop, time.perf_counter()
        while steps:
            step = self.trainer.global_step.numpy()
            if self._iterator is None:
                self._iterator = iter(self.trainer.distribute(self.source, chunk=self.steps_per_loop))
            self.trainer.train(self._iterator, min(steps, self.steps_per_loop))
            taken = int(self.trainer.global_step.numpy() - step)
            if taken < min(steps, self.steps_per_loop):
                self._iterator = None  # the data ended
            steps -= taken
        return (time.perf_counter() - began) / (loops * self.steps_per_loop)


def _take(iterator):
    """Takes an element and nothing of it; returns whether there was one; traced."""
    return iterator.get_next_as_optional().has_value()
