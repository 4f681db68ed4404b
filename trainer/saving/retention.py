"""Selects the checkpoints to keep."""

import math
import numbers

from trainer.hooks import Best


class Retention:
    """Selects among whole checkpoints by their manifests, {step: manifest}.

    Args:
        keep: int >= 1, how many of the newest are kept.
        keep_every: int, steps; checkpoints at multiples of it are kept. None: off.
        monitor: a tag such as "validation/metrics/accuracy". The checkpoint
            with the best value is kept, and a step with a new best value is saved.
        mode: "min" or "max"; None: "min" for losses, and an error for other tags.
    """

    def __init__(self, keep=3, keep_every=None, monitor=None, mode=None):
        for argument, value in (("keep", keep), ("keep_every", keep_every)):
            if argument == "keep_every" and value is None:
                continue
            if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
                none = " or None (off)" if argument == "keep_every" else ""
                raise ValueError(
                    f"`{argument}` must be an int >= 1{none}, got {value!r}. The last good checkpoint is never "
                    "deleted; a large `keep` keeps all of them."
                )
        self._keep, self._keep_every = keep, keep_every
        if monitor is None and mode is not None:
            raise ValueError(
                f"`mode` must be None without a `monitor`, got {mode!r}. It says which values of `monitor` are better."
            )
        self._best = None if monitor is None else Best(monitor, mode)

    def monitored(self, metrics):
        """Returns the manifest's entry for the monitored value of a loop's `metrics`; None if it was not measured."""
        value = self._best.of(metrics) if self._best else None
        if value is None or math.isnan(value):
            return None
        return {"monitor": self._best.monitor, "mode": self._best.mode, "value": float(value)}

    def kept(self, manifests):
        """Returns the set of steps to keep."""
        steps = sorted(manifests)
        kept = set(steps[-self._keep :]) | {step for step in steps if self._keep_every and step % self._keep_every == 0}
        return kept | ({self.best_step(manifests)} - {None})

    def best_step(self, manifests):
        """Returns the step with the best value of the monitored tag, the earliest if equal, or None."""
        rated = self._rated(manifests)
        return min(rated, key=lambda step: (-rated[step], step), default=None)

    def is_best(self, metrics, manifests):
        """Returns whether the monitored value of `metrics` is better than that of any checkpoint."""
        return _rating(self.monitored(metrics)) > max(self._rated(manifests).values(), default=-math.inf)

    def _rated(self, manifests):
        rows = {step: manifest["monitored"] for step, manifest in manifests.items() if manifest.get("monitored")}
        if not rows:
            return {}
        monitor = self._best.monitor if self._best else rows[max(rows)]["monitor"]
        return {step: _rating(row) for step, row in rows.items() if row["monitor"] == monitor}


def _rating(row):
    """Returns the monitored value, with its sign changed if lower is better."""
    return row["value"] if row["mode"] == "max" else -row["value"]
