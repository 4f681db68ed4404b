"""`python -m trainer.check replay DIR [--step=N]`: repeats a step whose gradients were not finite, and explains it."""

import tensorflow as tf

from trainer import console
from trainer.diagnosis.diagnostics import explain_gradients
from trainer.outer_loop.bad_steps import BadSteps
from trainer.saving.checkpoints import Checkpoints
from trainer.saving.state import restore
from trainer.step.guard import NonFiniteError


class Replay:
    """Repeats the steps of a run from a checkpoint before the bad step; eager.

    Args:
        trainer: a Trainer, built like the run's.
        source: the run's training data.
        settings: its Intervals, which determine where its loops ended.
        model_dir: the run folder; it is not changed.
    """

    def __init__(self, trainer, source, settings, model_dir):
        self._trainer, self._source, self._settings = trainer, source, settings
        self._checkpoints = Checkpoints().open(model_dir)
        self._rows = BadSteps(model_dir, self._checkpoints).rows()

    def explain(self, step=None):
        """Returns the GradientReport of the gradients of `step` (None: the last bad step in bad_steps.jsonl).

        Raises:
            ValueError: if no bad step is known, or no checkpoint before it is kept.
        """
        if step is None:
            if not self._rows:
                raise ValueError(
                    f"`--step` must be given: {self._checkpoints.directory.parent} has recorded no step that was "
                    "not finite."
                )
            row = self._rows[-1]
            step = row["first"] if row["first"] == row["last"] else self._find(row["first"], row["last"])
        position = self._run_to(step)
        console.line(f"Step {step}, as the run took it:")
        return explain_gradients(self._trainer, next(iter(self._source.batches(position).take(1))))

    def _find(self, first, last):
        """Returns the bad step in [first, last) of a run with guard="stop", which recorded only the loop."""
        position = self._run_to(first)
        iterator = iter(self._trainer.distribute(self._source, start=position, chunk=1))
        for step in range(first, last):
            try:
                metrics = self._trainer.train(iterator, 1)
            except NonFiniteError:
                return step
            if metrics["skipped_steps"]:
                return step
        raise ValueError(
            f"The steps from {first} to {last - 1} were finite this time: the run cannot be replayed exactly."
        )

    def _run_to(self, step):
        """Restores, trains up to `step` in the loops of the run, and returns the position of its batch in the data."""
        before = [known for known in self._checkpoints.steps() if known <= step]
        checkpoint = next((c for c in map(self._checkpoints.at, reversed(before)) if c is not None), None)
        if checkpoint is None:
            raise ValueError(
                f"There is no whole checkpoint at or before step {step}; kept: {self._checkpoints.steps()}."
            )
        skipped = int(restore(self._trainer, checkpoint).get("data/skipped_batches", 0))
        console.line(f"From the checkpoint of step {checkpoint.step}: {step - checkpoint.step} steps to step {step}.")
        iterator = iter(self._trainer.distribute(self._source, start=checkpoint.step + skipped, chunk=1))
        while (now := int(tf.convert_to_tensor(self._trainer.global_step))) < step:
            self._trainer.train(iterator, self._settings.next_stop(now, step) - now)
        return step + skipped
