"""The runs of a sweep: outcome and values of each, the ranking, sweep.csv, and the HParams page of TensorBoard."""

import contextlib
import csv
import dataclasses
import json
import math
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.plugins.hparams import summary_v2 as hparams
from tensorboard.summary.writer.record_writer import RecordWriter

from trainer import config, console, history
from trainer.config.search_space import Axis

_NOT_ENDED = {"status": "", "why": "", "started": 0.0, "ended": 0.0}


@dataclasses.dataclass(frozen=True)
class Run:
    """One process of a sweep: a trial with a seed.

    Attributes:
        trial: "trial_000".
        values: {parameter: value}.
        folder: its run folder.
    """

    trial: str
    seed: int
    values: dict[str, Any]
    folder: pathlib.Path

    @property
    def name(self) -> str:
        return f"{self.trial}/seed_{self.seed}"

    @property
    def is_done(self) -> bool:
        return self.outcome()["status"] == "done"

    def outcome(self) -> dict[str, Any]:
        """Returns status ("done", "failed", "stopped", or "" before its first end), why, started and ended."""
        with contextlib.suppress(OSError, ValueError):
            return json.loads((self.folder / "outcome.json").read_text())
        return _NOT_ENDED

    def end(self, status: str, why: str, started: float, ended: float) -> None:
        """Writes the outcome, also for TensorBoard; times are in seconds since 1970."""
        self._write_session(status, started, ended)
        temporary = self.folder / ".outcome.json.writing"
        temporary.write_text(json.dumps({"status": status, "why": why, "started": started, "ended": ended}))
        os.replace(temporary, self.folder / "outcome.json")

    def last_values(self) -> dict[str, float]:
        """Returns the last value of each tag; those of evaluations begin with the split, as for `monitor`."""
        values = {}
        with contextlib.suppress(config.ConfigError):  # a damaged file
            for row in history.read(self.folder):
                prefix = "" if row["split"] == "train" else f"{row['split']}/"
                values.update((prefix + tag, value) for tag, value in history.tags_of(row).items())
        return values

    def _write_session(self, status, started, ended):
        plain = {k: v if isinstance(v, bool | int | float | str) else repr(v) for k, v in self.values.items()}
        code = {"done": api_pb2.STATUS_SUCCESS, "failed": api_pb2.STATUS_FAILURE}.get(status, api_pb2.STATUS_UNKNOWN)
        end = plugin_data_pb2.HParamsPluginData(
            session_end_info=plugin_data_pb2.SessionEndInfo(status=code, end_time_secs=ended)
        )
        value = summary_pb2.Summary.Value(
            tag=metadata.SESSION_END_INFO_TAG,
            metadata=metadata.create_summary_metadata(end),
            tensor=metadata.NULL_TENSOR,
        )
        # Seeds of one trial are one group of sessions.
        start = hparams.hparams_pb(plain, trial_id=self.trial, start_time_secs=started)
        _write_events(self.folder, start, summary_pb2.Summary(value=[value]))


def write_experiment(folder: pathlib.Path, axes: Sequence[Axis], monitor: str) -> None:
    """Writes what is searched and the monitored tag, for TensorBoard."""
    split, _, tag = monitor.partition("/") if monitor.startswith("validation") else ("train", "", monitor)
    searched = [hparams.HParam(axis.key, _domain(axis)) for axis in axes]
    _write_events(folder, hparams.hparams_config_pb(searched, [hparams.Metric(tag, group=split)]))


def _domain(axis):
    if axis.draw:
        name, low, high = axis.draw
        return hparams.IntInterval(low, high) if name == "randint" else hparams.RealInterval(float(low), float(high))
    kinds = {type(value) for value in axis.values}
    if kinds <= {int, float}:
        return hparams.Discrete([float(value) for value in axis.values])
    plain = len(kinds) == 1 and kinds <= {bool, str}
    return hparams.Discrete(axis.values if plain else [repr(value) for value in axis.values])


def _write_events(folder, *summaries):
    temporary = folder / ".hparams.writing"
    with open(temporary, "wb") as file:
        writer = RecordWriter(file)
        writer.write(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        for summary in summaries:
            writer.write(event_pb2.Event(wall_time=time.time(), summary=summary).SerializeToString())
        writer.flush()
    os.replace(temporary, folder / "events.out.tfevents.0.hparams")


def ranked(runs: Sequence[Run], monitor: str, mode: str) -> list[tuple[str, list[float], list[Run]]]:
    """Returns (trial, monitored values of its runs that are done, its runs), the best mean first.

    Trials with a run that is not done come after the others; NaN is the worst. mode: "min" or "max".
    """
    trials: dict[str, list[Run]] = {}
    for run in runs:
        trials.setdefault(run.trial, []).append(run)
    rows = [
        (trial, [run.last_values().get(monitor, math.nan) for run in of_trial if run.is_done], of_trial)
        for trial, of_trial in trials.items()
    ]

    def order(row):
        mean = np.mean(row[1]) if row[1] else math.nan
        return len(row[1]) < len(row[2]), math.isnan(mean), -mean if mode == "max" else mean

    return sorted(rows, key=order)


def show(runs: Sequence[Run], axes: Sequence[Axis], monitor: str, mode: str) -> None:
    """Prints the trials by rank, with mean and standard deviation (n - 1) over seeds, and the runs that failed."""
    rows = []
    for trial, values, of_trial in ranked(runs, monitor, mode):
        mean = console.number(np.mean(values)) if values else ""
        deviation = console.number(np.std(values, ddof=1)) if len(values) > 1 else ""
        parameters = [_text(of_trial[0].values[axis.key]) for axis in axes]
        rows.append([trial, *parameters, mean, deviation, f"{len(values)} of {len(of_trial)}"])
    console.line(f"\nTrials by the last {monitor} ({mode}); mean and standard deviation over seeds:")
    console.table(["trial", *(axis.key for axis in axes), "mean", "deviation", "done"], rows, right=True)
    for run in runs:
        if (outcome := run.outcome())["status"] == "failed":
            console.line(f"{run.name} failed: {outcome['why']}\n    {run.folder / 'log.txt'}")


def write_csv(path: pathlib.Path, runs: Sequence[Run], axes: Sequence[Axis], monitor: str) -> None:
    """Writes a row per run: outcome, parameters and the last value of each tag, the monitored one first."""
    measured = [run.last_values() for run in runs]
    tags = list(dict.fromkeys([monitor, *sorted({tag for values in measured for tag in values})]))
    temporary = path.with_name(f".{path.name}.writing")
    with open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "seed", "status", "why", "seconds", *(axis.key for axis in axes), *tags])
        for run, values in zip(runs, measured):
            outcome = run.outcome()
            seconds = round(outcome["ended"] - outcome["started"])
            parameters = [_text(run.values[axis.key]) for axis in axes]
            row = [run.trial, run.seed, outcome["status"], outcome["why"], seconds, *parameters]
            writer.writerow([*row, *(values.get(tag, "") for tag in tags)])
    os.replace(temporary, path)


def _text(value):
    return value if isinstance(value, str) else repr(value)
