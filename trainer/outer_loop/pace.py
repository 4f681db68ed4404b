"""The sizes of the calls of the compiled loop: short enough to show progress and to stop for a signal."""

import time

from trainer.replicas import cluster

_PROMPT = 2.0  # seconds of a loop that a signal waits for


class Pace:
    """The `call_size` of `Trainer.train`: one element, to show what compiling takes, then what fits into `seconds`.

    A loop that would go on for more than 2 s after a signal ends early, unless that could change results: once a loop,
    moving statistics are averaged over replicas, `train_begin` and `train_end` run, and a `monitor` of the training
    metrics is compared.

    Args:
        seconds: float, what a call may take.
        trainer: a built Trainer.
        monitors: the hooks and the Checkpoints of the run.
        signals, progress: the Signals and the Progress of the run.

    Attributes:
        may_end_early: bool, whether loops end early after a signal.
        ended_early: bool, whether the current loop did.
    """

    def __init__(self, seconds, trainer, monitors, signals, progress):
        self._seconds, self._trainer, self._signals = seconds, trainer, signals
        self._progress = progress
        averages = trainer.built.replica_state.averaged and trainer.strategy.num_replicas_in_sync > 1
        tags = [monitor for thing in monitors if (monitor := getattr(thing, "monitor", None))]
        self.may_end_early = (
            all(tag.startswith("validation") for tag in tags)
            and not averages
            and not any(map(trainer.overrides, ("train_begin", "train_end")))
        )
        self.ended_early = False
        self._has_compiled = trainer.compile == "eager"  # which compiles nothing
        self._element_seconds = None  # of the last call that did not compile
        self._began = None  # start of a call that has not ended
        self._left = 0  # elements that were left then
        self._element_steps = 1

    def train(self, iterator, num_steps, since):
        """Returns `Trainer.train(iterator, num_steps, since)`, taken at this pace; eager."""
        self.ended_early, self._began, self._num_steps = False, None, num_steps
        metrics = self._trainer.train(iterator, num_steps, since, call_size=self)
        self._end_call(0)
        return metrics

    def __call__(self, left):
        """Returns the size of the next call of a loop with `left` elements left, 0 to end it; the same on all workers.

        Ends the previous call.
        """
        is_first = self._began is None
        if is_first:
            self._element_steps = self._num_steps // left
        self._end_call(left)
        seconds = self._element_seconds
        stops = not is_first and self.may_end_early and self._signals.received is not None
        stops = stops and seconds is not None and left * seconds > _PROMPT
        size = 1 if seconds is None else max(1, min(left, int(self._seconds / seconds)))
        decided = cluster.exchange(self._trainer.strategy, [stops, size])
        self.ended_early = bool(decided[:, 0].any())
        if self.ended_early:
            return 0
        self._began, self._left = time.perf_counter(), left
        return int(decided[:, 1].min())

    def _end_call(self, left):
        """Times the call that ended with `left` elements left; the first of all includes tracing and compiling."""
        if self._began is None:
            return
        seconds, taken = time.perf_counter() - self._began, self._left - left
        self._progress.called(taken * self._element_steps, compiled=not self._has_compiled)
        if self._has_compiled:
            self._element_seconds = seconds / taken
        self._has_compiled, self._began = True, None
