"""The state of a run in a checkpoint, in addition to its Trainer's; saves and resumes a run."""

import numpy as np

from trainer import config, console
from trainer.config.run_folder import config_of
from trainer.inputs.batches import spec_to_json, static_batch_size
from trainer.saving import state
from trainer.step.replica_state import unchanged


class RunState:
    """Saves and restores a run: its trainer, hooks, the sums of the next report, and the position in the data.

    Args:
        trainer, source: a built Trainer and its training source.
        hooks: its hooks.
        reporter: the Reporter, whose sums are saved.
        checkpoints: the Checkpoints of the run folder.
        writes: whether this process writes checkpoints, as the chief does.

    Attributes:
        skipped_batches: int, batches skipped by rollbacks: step s uses batch s + skipped_batches.
        saved_at: the step that was saved or restored last, or None.
    """

    def __init__(self, trainer, source, hooks, reporter, checkpoints, writes):
        self.skipped_batches, self.saved_at = 0, None
        self._trainer, self._source, self._hooks, self._reporter = trainer, source, hooks, reporter
        self._checkpoints, self._writes = checkpoints, writes

    def resume(self, how, must=False):
        """Restores the newest checkpoint; returns whether there is one.

        Args:
            how: `run.resume`: "auto", "never" or "must".
            must: whether the mode needs a checkpoint.

        Raises:
            ValueError: if there is none and one is needed, all are damaged, or there is one and `how` is "never".
        """
        checkpoint = self._checkpoints.latest()
        if checkpoint is None:
            damaged = self._checkpoints.steps()  # a new start would delete the reports of the old run
            if must or how == "must" or damaged:
                cure = (
                    " To start again from step 0, move the damaged ones away; nothing was changed." if damaged else ""
                )
                raise ValueError(f"There is no whole checkpoint in {self._checkpoints.directory}.{cure}")
            return False
        if how == "never":
            raise ValueError(
                f"`resume` is 'never', but {self._checkpoints.directory.parent} has a checkpoint of step "
                f"{checkpoint.step}. Use another folder."
            )
        console.line(f"Resuming from {checkpoint.path}")
        self._show_changes()
        self.restore(checkpoint)
        self._show_changed_data(checkpoint)
        if not self._source.exact:
            console.line(
                "The position in this data cannot be restored exactly: batches are skipped, and the shuffle order "
                "changes."
            )
        return True

    def _show_changes(self):
        """Shows what the user changed in the config since the last start."""
        before = config_of(self._checkpoints.directory.parent)
        changes = config.difference(before.read_text(), config.config_text()) if before.exists() else ""
        if changes:
            console.line(f"The config changed since the last start:\n{changes}")

    def _show_changed_data(self, checkpoint):
        """Warns of changes of the data since the checkpoint, and states their effect on the order."""
        then, now = checkpoint.manifest.get("data", {}), self._order()
        changes = [f"{name} {then[name]} -> {now.get(name)}" for name in then if then[name] != now.get(name)]
        if changes:
            batch = checkpoint.step + self.skipped_batches
            console.line(
                f"The data changed since the checkpoint: {', '.join(changes)}. Training continues with batch {batch} "
                "of the new order: in this epoch some examples are repeated and others are left out."
            )

    def _order(self):
        """Returns `Source.order`; if no spec has the batch size, it is that of the first batch."""
        order = self._source.order()
        return {**order, "batch size": order["batch size"] or static_batch_size(self._trainer.batch_spec)}

    def restore(self, checkpoint, hooks=True):
        """Restores a Checkpoint; eager. hooks: whether to restore the hooks' state too."""
        extra = state.restore(self._trainer, checkpoint, self._hooks if hooks else ())
        self.skipped_batches = int(extra.pop("data/skipped_batches", 0))
        self._reporter.restore(extra, checkpoint.manifest.get("report"))
        self.saved_at = checkpoint.step

    def kept(self):
        """Returns a context after which the state of the trainer is as before it, on each replica; eager."""
        return unchanged(self._trainer.strategy, state.state_of(self._trainer).values())

    def roll_back(self, step):
        """Restores the newest checkpoint and skips the batches up to `step`; hooks keep their state.

        Returns:
            Whether there is one.
        """
        checkpoint = self._checkpoints.latest()
        if checkpoint is None:
            console.warning("There is no checkpoint to restore yet; the run continues.")
            return False
        self.restore(checkpoint, hooks=False)
        left_out = step - checkpoint.step
        self.skipped_batches += left_out
        console.line(f"Restored step {checkpoint.step}; the batches of the {left_out} steps after it are skipped.")
        return True

    def save(self, step, metrics):
        """Saves `step` in the background; eager, on every worker. `metrics`: of the loop, for `Checkpoints.monitor`."""
        self.saved_at = step
        tensors = {**state.copy_state(self._trainer, self._hooks), **self._reporter.tensors}
        tensors["data/skipped_batches"] = np.int64(self.skipped_batches)
        details = {
            "data": self._order(),
            "element_spec": spec_to_json(self._trainer.element_spec),
            "batch_spec": spec_to_json(self._trainer.batch_spec),
            "learning_rates": state.learning_rates(self._trainer),
            "report": self._reporter.layout,
            "optimizers": state.optimizer_classes(self._trainer),
        }
        if self._writes:
            self._checkpoints.save(step, tensors, details, metrics, flush=self._trainer.summaries.flush)

    def finish(self, step):
        """Saves `step`, the last one, unless it is saved; returns whether it is on disk."""
        if self.saved_at != step:
            self.save(step, {})
        return self._checkpoints.finish(step)
