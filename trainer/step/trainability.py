"""Warns of changes of `trainable` after building, which have no effect."""

from trainer import console


class Trainability:
    """The values of `trainable` when the step was traced.

    Args:
        variables: {name: variable} of the Trainer.
    """

    def __init__(self, variables):
        self._variables = dict(variables)
        self._then = self._now()

    def _now(self):
        return {name: bool(getattr(v, "trainable", False)) for name, v in self._variables.items()}

    def warn(self):
        """Warns of changes since building, or since the last warning; eager."""
        now = self._now()
        for value in (False, True):
            changed = [name for name, new in now.items() if new is value and self._then[name] is not value]
            if changed:
                shown = ", ".join(changed[:6]) + (f" and {len(changed) - 6} more" if len(changed) > 6 else "")
                effect = "are still trained" if not value else "are still not trained"
                console.warning(
                    f"`trainable` of {shown} was set to {value} after the Trainer was built, which has no effect: they "
                    f"{effect}. Use Trainer.frozen (patterns) for variables that never train, and `start` and `stop` "
                    "of an OptimizerGroup for those that train for some steps; a new Trainer of the same model uses "
                    "the current values of `trainable`."
                )
        self._then = now
