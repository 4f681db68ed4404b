"""The reports of a run: reads metrics.jsonl and finds the best values. Imports no TensorFlow."""

import json
import math
import pathlib
import re

from trainer import config

# Metrics whose name tells which values are better; others, such as `metrics/rate`, have no best value.
_MIN = re.compile(r"(.*/)?(loss|\w*(error|entropy|divergence|perplexity|mae|mse|rmse|mape|deviation|hinge)\w*)")
_MAX = re.compile(
    r"(.*/)?\w*(accuracy|auc|precision|recall|f1|fbeta|score|io_?u|dice|r2|correlation|similarity|kappa)\w*"
)


def read(folder, until=math.inf):
    """Returns the reports of a run folder up to the step `until`, as dicts: step, split, time, and tag -> float.

    NaN and infinities are floats. An incomplete last line (the run is writing, or was killed) is left out. A folder of
    None has no reports.

    Raises:
        config.ConfigError: for any other line that is not a report.
    """
    if folder is None:
        return []
    path, rows = pathlib.Path(folder) / "metrics.jsonl", []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            values = {tag: float(value) for tag, value in row.items() if tag not in ("step", "split")}
            rows.append({"step": int(row["step"]), "split": str(row["split"]), **values})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise config.ConfigError(f"{path}:{number} is not a report: {line.strip()[:60]!r}.") from error
    return [row for row in rows if row["step"] <= until]


def starts(folder):
    """Returns the starts of a run folder as dicts: time, step, command, texts; after its end also ended, spent, ..."""
    path, found = pathlib.Path(folder) / "starts.jsonl", []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the end of a line that a full disk or a kill cut
        if "ended" in row and found:
            found[-1].update(row)
        else:
            found.append(row)
    return found


def tags_of(row):
    """Returns {tag: float} of a report, without step, split and time."""
    return {tag: value for tag, value in row.items() if tag not in ("step", "split", "time")}


def last(rows):
    """Returns {split: {tag: float}} of the last report of each split."""
    return {row["split"]: tags_of(row) for row in rows}


def direction(tag):
    """Returns "min" or "max", which values of a loss or metric are better, by its name; None if that is unknown."""
    if not tag.startswith(("loss", "metrics/")):
        return None
    return "min" if _MIN.fullmatch(tag) else "max" if _MAX.fullmatch(tag) else None


class Bests(dict):
    """{(split, tag): (value, step)} of the best value of each evaluation; the earliest of equal ones, never NaN."""

    def __init__(self, rows=()):
        super().__init__()
        for row in rows:
            self.add(row["split"], row["step"], tags_of(row))

    def add(self, split, step, metrics):
        """Adds a report and returns the tags that are at their best."""
        found = [tag for tag, value in metrics.items() if split != "train" and self._improves(split, tag, value)]
        self.update({(split, tag): (metrics[tag], step) for tag in found})
        return found

    def _improves(self, split, tag, value):
        best, better = self.get((split, tag)), direction(tag)
        if better is None or math.isnan(value):
            return False
        return best is None or (value < best[0] if better == "min" else value > best[0])
