"""`python -m trainer.check resume`: compares a run with one that is stopped halfway and resumed, bit for bit."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import numpy as np
import tensorflow as tf

from trainer import console
from trainer.diagnosis.audit import unsaved_state
from trainer.outer_loop.reporting import TIMED
from trainer.saving.checkpoints import Checkpoints

_SHOWN = 8


@dataclasses.dataclass
class ResumeComparison:
    """The result of comparing two runs.

    Attributes:
        lines: list of str, the comparisons and their results.
        step: int, the first step whose state or report differs; None: all are equal.
        causes: list of sentences, the likely causes.
    """

    lines: list
    step: int | None = None
    causes: list = dataclasses.field(default_factory=list)

    @property
    def ok(self):
        return self.step is None

    def __str__(self):
        verdict = "The resumed run equals the run that was not stopped, bit for bit."
        causes = [f"cause: {cause}" for cause in self.causes]
        return "\n".join(
            [
                *self.lines,
                *causes,
                verdict if self.ok else "The resumed run does NOT equal the run that was not stopped.",
            ]
        )


class Runs:
    """Runs trainer.main in new processes, each with its own folder below `folder`.

    Args:
        flags: list of str, the user's flags, which select the config.
        folder: the folder of the run folders.
        steps: int, even, the last step; the states from half of the steps on are kept.
    """

    def __init__(self, flags, folder, steps):
        self._flags, self._folder, self.steps = flags, pathlib.Path(folder), steps

    def train(self, name, *ends):
        """Trains up to each of `ends`, each in a new process; returns the run folder."""
        for end in ends:
            console.line(f"{name}: training to step {end}")
            intervals = ("steps_per_loop", "checkpoint_interval", "summary_interval")
            bindings = {"train_steps": end, "epochs": None, **dict.fromkeys(intervals, 1)}
            params = [f"--gin_param=run.{key} = {value}" for key, value in bindings.items()]
            params += [
                "--gin_param=run.checkpoints = @Checkpoints()",
                f"--gin_param=Checkpoints.keep = {self.steps // 2 + 1}",
            ]
            flags = [*self._flags, *params, "--mode=train", f"--model_dir={self._folder / name}"]
            ended = subprocess.run([sys.executable, "-m", "trainer.main", *flags], capture_output=True, text=True)
            if ended.returncode:
                raise ValueError(
                    f"The run to step {end} ended with exit code {ended.returncode}:\n{ended.stderr.strip()[-4000:]}"
                )
        return self._folder / name

    def compare(self):
        """Returns the ResumeComparison of a run that was stopped halfway with one that was not, without causes.

        Raises:
            ValueError: with the output of a run that failed.
        """
        half, whole = self.steps // 2, self.train("whole", self.steps)
        stopped = self.train("stopped", half, self.steps)
        comparison = ResumeComparison([])
        for step in range(half, self.steps + 1):
            different = _differences(whole, stopped, step)
            if different:
                when = "before the stop" if step == half else f"{step - half} after the stop"
                comparison.lines.append(
                    f"The first difference is at step {step}, {when}, in {len(different)} of "
                    f"{len(_tensors(whole, step))} tensors:"
                )
                comparison.lines += [f"  {line}" for line in different[:_SHOWN]] + ["  ..."] * (len(different) > _SHOWN)
                comparison.step = step
                return comparison
        comparison.lines.append(
            f"State of steps {half} to {self.steps}: {len(_tensors(whole, self.steps))} tensors, all equal"
        )
        first = next((a or b for a, b in zip(_rows(whole), _rows(stopped)) if a != b), None)
        if first is not None or len(_rows(whole)) != len(_rows(stopped)):
            comparison.step = first["step"] if first else self.steps
            comparison.lines.append(
                f"The states are equal, but the reports in metrics.jsonl are not, first at step {comparison.step}."
            )
        return comparison

    def is_reproducible(self):
        """True if a second run without a stop equals the first one."""
        again = self.train("again", self.steps)
        return not any(
            _differences(self._folder / "whole", again, step) for step in range(self.steps // 2, self.steps + 1)
        )


def add_causes(comparison, runs, trainer, source, hooks, deterministic):
    """Adds the likely causes to a ResumeComparison with a difference; eager.

    Args:
        trainer, source, hooks: of the config, built in this process.
        deterministic: bool, `run.deterministic`.
    """
    if comparison.step == runs.steps // 2 or not runs.is_reproducible():
        cure = "It uses random numbers that `run.seed` does not set, or depends on time or on the order of threads."
        comparison.causes.append(
            "Two runs without a stop differ as well: the program is not reproducible. "
            + (cure if deterministic else "Bind run.deterministic = True, and try again.")
        )
        return
    half = runs.steps // 2
    if not source.exact:
        comparison.causes.append(
            f"{source.describe()} does not restore the position exactly: batches are skipped, and a shuffle or a "
            "random map draws new numbers. Use "
            "trainer.data.from_arrays, or a source whose batches(start) is a function of the step."
        )
    elif not _same_batch(source.batches(half), source.batches(0).skip(half)):
        comparison.causes.append(
            f"batches({half}) of {source.describe()} differs from batches(0) without its first {half} batches."
        )
    comparison.causes += _unsaved(trainer, source)
    forgetful = [type(hook).__name__ for hook in hooks if not hasattr(hook, "state") and vars(hook)]
    if forgetful and not comparison.causes:
        comparison.causes.append(
            f"{', '.join(forgetful)} has attributes, but no `state` (trainer/hooks.py) for checkpoints."
        )
    if not comparison.causes:
        comparison.causes.append(
            "Neither the step nor the data explains it. Your code may keep a count in a Python attribute or a module "
            "during training. Keep the number in a variable of the model or the Trainer, or in the `state` of a "
            "hook."
        )


def _unsaved(trainer, source):
    graph = trainer.loop_graph(iter(trainer.distribute(source, chunk=1)))
    return [] if graph is None else unsaved_state(trainer, graph, source)


def _same_batch(one, two):
    parts = [tf.nest.flatten(next(iter(data.take(1))), expand_composites=True) for data in (one, two)]
    return all(np.array_equal(a.numpy(), b.numpy(), equal_nan=a.dtype.is_floating) for a, b in zip(*parts))


def _tensors(model_dir, step):
    checkpoint = Checkpoints().open(model_dir).at(step)
    if checkpoint is None:
        raise ValueError(
            f"The run in the folder {model_dir.name!r} ended before step {step}: its data or a hook ended it. Use a "
            "smaller --steps."
        )
    return checkpoint.read()


def _differences(one, two, step):
    """Returns a line for each tensor that differs, in the order of the model."""
    states, lines = (_tensors(one, step), _tensors(two, step)), []
    for name, value in states[0].items():
        other = states[1].get(name)
        if name.startswith("hooks/") and name.endswith("TimeLimit/seconds"):
            continue
        if other is None or value.shape != other.shape:
            lines.append(f"{name}: in one of them only")
        elif value.tobytes() != other.tobytes():
            apart = (
                np.max(np.abs(np.asarray(value, np.float64) - np.asarray(other, np.float64)))
                if value.dtype != object
                else "values"
            )
            lines.append(f"{name}: up to {apart:.3g} apart")
    return lines


def _rows(model_dir):
    rows = map(json.loads, (model_dir / "metrics.jsonl").read_text().splitlines())
    return [{tag: value for tag, value in row.items() if tag not in ("time", *TIMED)} for row in rows]
