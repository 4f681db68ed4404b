"""Accumulates the report since the last line of metrics.jsonl; its sums are saved with each checkpoint."""

import math

import numpy as np

from trainer import console

TIMED = ("step_milliseconds", "input_wait_fraction", "examples_per_second")  # tags that differ between any two runs


class Reporter:
    """Adds the reports of loops; eager.

    Args:
        trainer: a built Trainer.
        source: the training source, whose batch size gives examples per second.
    """

    def __init__(self, trainer, source):
        self._trainer, self._source = trainer, source
        self._report, self._elapsed = None, np.zeros(3)  # seconds, seconds waited for batches, steps

    @property
    def report(self):
        """The Report of all loops since the last line, or None."""
        return self._report

    def add(self, seconds, steps):
        """Adds the report of the trainer's last loop of `steps` steps."""
        report = self._trainer.report
        self._report = self._report.then(report) if self._report else report
        self._elapsed += [seconds, self._trainer.seconds_waited, steps]

    def speed(self):
        """Returns {tag: float}: the speed since the last report, and the number of corrupt records."""
        seconds, waited, steps = map(float, self._elapsed)
        speed = {"step_milliseconds": 1e3 * seconds / max(steps, 1)}
        if not math.isnan(waited):  # unknown in a deterministic run
            speed["input_wait_fraction"] = waited / max(seconds, 1e-9)
        if self._source.batch_size and seconds:
            speed["examples_per_second"] = self._source.batch_size * steps / seconds
        if self._source.corrupt_records:
            speed["data/corrupt_records"] = float(self._source.corrupt_records)
        return speed

    def take(self):
        """Returns {tag: float} of all loops since the last report, and starts the next one."""
        metrics = {**self._trainer.summarize(self._report), **self.speed()}
        self._report, self._elapsed = None, np.zeros(3)
        return metrics

    @property
    def measured(self):
        """True if steps were taken since the last report."""
        return self._report is not None and bool(self._report.sums[1].any())

    @property
    def tensors(self):
        """{name: array} for a checkpoint, so that a resumed run continues the report."""
        return {f"report/{name}": value for name, value in self._report._asdict().items()} if self._report else {}

    @property
    def layout(self):
        """Names and kinds of the values in `tensors`, for the manifest."""
        return self._trainer.built.reports.layout

    def restore(self, tensors, layout=None):
        """Continues the report in the `tensors` of a checkpoint; `layout`: its program's, None in old checkpoints."""
        self._report = None
        if tensors:
            arrays = {name.removeprefix("report/"): value for name, value in tensors.items()}
            self._report, dropped = self._trainer.built.reports.adopt(arrays, layout)
            if dropped:
                console.line(
                    "Defined differently than in the checkpoint, so the next report starts again for: "
                    f"{', '.join(dropped)}"
                )
