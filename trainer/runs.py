"""Lists runs: `python -m trainer.runs DIR`, or the checkpoints of one: `python -m trainer.runs --checkpoints RUN`.

Shows all run folders below DIR with state, last step, best value, age and size.
Exit codes: 0 done, 2 an error in the arguments or the folders.
"""

import os
import pathlib
import re
import sys
import time

from absl import flags

from trainer import config, console, history
from trainer.config.paths import local_path

FLAGS = flags.FlagValues()
flags.DEFINE_string("checkpoints", None, "A run folder: list its checkpoints instead.", flag_values=FLAGS)
flags.DEFINE_enum(
    "sort", "age", ["age", "name", "step", "best", "size"], "The column to sort by; best first.", flag_values=FLAGS
)
flags.DEFINE_string(
    "filter", "", "A regular expression; lists the runs whose folder or state has it.", flag_values=FLAGS
)
flags.DEFINE_string(
    "metric", "", "The tag of `best`, such as validation/metrics/accuracy; default: a metric, else the loss.",
    flag_values=FLAGS,
)  # fmt: skip
_HELP = {"--help", "-help", "-h", "--helpshort", "--helpfull"}
_BEAT = 30.0  # seconds without a heartbeat after which a run counts as dead


def list_runs(argv: list[str] | None = None) -> int:
    """Prints the table that the arguments ask for and returns the exit code, 0 or 2."""
    argv = sys.argv if argv is None else argv
    if _HELP.intersection(argv[1:]):
        print(__doc__ + "\nFlags:")
        print(*(f"  --{name:<13}{FLAGS[name].help}" for name in ("checkpoints", "sort", "filter", "metric")), sep="\n")
        return 0
    FLAGS.unparse_flags()
    for name in FLAGS:
        FLAGS[name].unparse()
    try:
        folders = FLAGS(argv)[1:]
        if FLAGS.checkpoints is not None and not folders:
            _print_checkpoints(_folder(FLAGS.checkpoints))
        elif FLAGS.checkpoints is None and len(folders) == 1:
            _print_runs(_folder(folders[0]))
        else:
            raise flags.Error("Give one folder: `python -m trainer.runs DIR`, or `--checkpoints RUN`.")
    except (flags.Error, config.ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _folder(name):
    try:
        path = local_path("DIR", name)
    except ValueError as error:
        raise config.ConfigError(str(error)) from error
    if not path.is_dir():
        raise config.ConfigError(f"There is no folder {name!r}.")
    return path


def _print_runs(top):
    try:
        wanted = re.compile(FLAGS.filter)
    except re.error as error:
        raise config.ConfigError(f"`--filter` must be a regular expression, got {FLAGS.filter!r}: {error}.") from error
    found = [describe(folder, FLAGS.metric) for folder in run_folders(top)]
    found = [run for run in found if wanted.search(f"{run['folder']} {run['state']}")]
    found.sort(key=_KEYS[FLAGS.sort])
    headers = ("run", "state", "step", "best", "of", "at step", "age", "size")
    console.table(headers, [_row(run, top) for run in found], right=True)
    console.line(f"{len(found)} run{'s' * (len(found) != 1)} below {top}.")


def _row(run, top):
    best, tag, step = run["best"] or (None, "", None)
    best, step = ("", "") if step is None else (console.number(best), f"{step:,}")
    name, age, bytes_ = os.path.relpath(run["folder"], top), console.duration(run["age"]), console.size(run["bytes"])
    return name, run["state"], f"{run['step']:,}", best, tag, step, age, bytes_


def _of_best(run):
    if run["best"] is None:
        return float("inf")
    value, tag, _ = run["best"]
    return -value if history.direction(tag.partition("/")[2]) == "max" else value


_KEYS = {
    "age": lambda run: run["age"],
    "name": lambda run: str(run["folder"]),
    "step": lambda run: -run["step"],
    "best": _of_best,
    "size": lambda run: -run["bytes"],
}


def run_folders(top):
    """Yields the run folders in and below `top`: those with a metrics.jsonl; earlier_N inside a run are not runs."""
    for folder, names, files in os.walk(top):
        if "metrics.jsonl" in files or "starts.jsonl" in files:
            yield pathlib.Path(folder)
            names[:] = []
        names[:] = sorted(name for name in names if not name.startswith("."))


def describe(folder, metric=""):
    """Returns a dict on a run folder: folder, state, step, best (value, "split/tag", step) or None, age, bytes.

    state: "running" (its lock has a heartbeat), "damaged" (a report cannot be read), the status with which it ended,
    such as "done" or "SIGINT", or "stopped": it ended without one. age: seconds since the last report.
    """
    try:
        rows, damaged = history.read(folder), False
    except config.ConfigError:
        rows, damaged = [], True
    paths = [path for path in folder.rglob("*") if path.is_file()]
    last = rows[-1]["time"] if rows else max((path.stat().st_mtime for path in paths), default=0.0)
    state = "damaged" if damaged else "running" if is_running(folder) else _ended(folder)
    return {
        "folder": folder,
        "state": state,
        "step": max((row["step"] for row in rows), default=0),
        "best": _best(rows, metric),
        "age": max(0.0, time.time() - last),
        "bytes": sum(path.stat().st_size for path in paths),
    }


def _ended(folder):
    starts = history.starts(folder)
    return starts[-1].get("ended", "stopped") if starts else "stopped"


def is_running(folder):
    """Returns whether a process trains in `folder`: its lock has a heartbeat."""
    lock = folder / ".lock"
    return lock.exists() and time.time() - lock.stat().st_mtime < _BEAT


def _best(rows, metric):
    """Returns (value, "split/tag", step) of the best value of a tag, by default of a metric, else of the loss."""
    found = {f"{split}/{tag}": best for (split, tag), best in history.Bests(rows).items()}
    if metric:
        found = {tag: best for tag, best in found.items() if tag == metric}
    order = sorted(found, key=lambda tag: ("/metrics/" not in tag, tag.count("/"), tag))
    return (found[order[0]][0], order[0], found[order[0]][1]) if order else None


def _print_checkpoints(folder):
    config.quiet_import()  # TensorFlow verifies the checksums of the tensors
    from trainer.saving.checkpoints import Checkpoints

    checkpoints, rows = Checkpoints().open(folder), []
    found, best = list(checkpoints.survey()), checkpoints.best()
    for step, path, manifest, damage, is_pinned in found:
        value = (manifest or {}).get("monitored")
        marks = ["best"] * (best is not None and step == best.step) + ["pinned"] * is_pinned
        shown = f"{value['monitor']} {console.number(value['value'])}" if value else ""
        bytes_ = sum(file.stat().st_size for file in path.iterdir())
        rows.append((f"{step:,}", console.size(bytes_), shown, ", ".join(marks), damage or "whole"))
    if not rows:
        raise config.ConfigError(f"There is no checkpoint in {checkpoints.directory}.")
    console.table(("step", "size", "monitored", "", "state"), rows)


if __name__ == "__main__":
    sys.exit(list_runs())
