"""Records steps with non-finite gradients, and pins the checkpoint from which they can be replayed."""

import json
import pathlib
import shlex

from trainer import console


class BadSteps:
    """Writes DIR/bad_steps.jsonl: {"first", "last", "variables", "checkpoint", "stopped"} for each loop with bad steps.

    The last checkpoint before the first bad step since the start is pinned for
    `python -m trainer.check replay`; a run that skips often pins only one.

    Args:
        model_dir: the run folder; None: nothing is written (dry runs, workers other than the chief).
        checkpoints: its Checkpoints.
        cause: function (first, last, labels) that returns a sentence on the data of these steps; None: no sentence.
    """

    def __init__(self, model_dir, checkpoints, cause=None):
        self._file, self._checkpoints = model_dir and pathlib.Path(model_dir) / "bad_steps.jsonl", checkpoints
        self._cause, self._warned = cause or (lambda first, last, labels: ""), False

    def rows(self):
        """Returns the lines as dicts, oldest first, without a line torn by a crash or a full disk."""
        lines = self._file.read_text().splitlines() if self._file and self._file.exists() else []
        return [row for row in map(_row, lines) if row is not None]

    def warn_of_recurrence(self, guard, step):
        """Warns that a run that the guard stopped will fail at the same step again, because it resumes exactly."""
        stopped = [row for row in self.rows() if row["stopped"] and row["last"] > step]
        if stopped and guard != "skip":
            console.warning(
                f"The last run was stopped: {stopped[-1]['stopped']} The same step will fail again. Trainer.guard "
                "= 'skip' skips such steps."
            )

    def look(self, trainer, began_at, skipped):
        """Records the last skipped step of a loop, and warns of the first one since the start; eager.

        Args:
            trainer: the Trainer.
            began_at: int, first step of the loop.
            skipped: number, the steps skipped so far.
        """
        step = int(trainer.built.guard.last_skipped.numpy()) if skipped else -1
        if step < began_at:
            return
        is_first, self._warned = not self._warned, True
        self._note(step, step, trainer.built.guard.bad_variables, "", pin=is_first)
        if is_first and (cause := self._cause(step, step + 1, labels=False)):
            console.warning(f"Step {step} was skipped. {cause}")

    def stopped(self, error, first, last):
        """Prints and records the NonFiniteError that ended the run in the steps from `first` to `last`."""
        console.error(f"{error} {self._cause(first, last, labels=True)}")
        self._note(first, last, error.variables, str(error), pin=True)

    def _note(self, first, last, variables, stopped, pin):
        if self._file is None:
            return
        try:
            pinned = self._checkpoints.pin(first) if pin else None
            row = {"first": first, "last": last, "variables": variables, "checkpoint": pinned, "stopped": stopped}
            if row not in self.rows():  # the same step is repeated after a crash
                with open(self._file, "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
        except OSError as error:
            console.warning(f"Steps {first} to {last} were not finite; {self._file} could not be written: {error}.")
            return
        if pinned is not None:
            which = f"step {first}" if first == last else f"steps {first} to {last - 1}"
            console.line(
                f"Not finite in {which}: the checkpoint of step {pinned} is kept, and "
                f"`python -m trainer.check replay {shlex.quote(str(self._file.parent))}"
                + (f" --step={first}" if first == last else "")
                + "` shows the operation."
            )


def _row(line):
    try:
        return json.loads(line)
    except ValueError:
        return None
