"""Writes one page on runs: `python -m trainer.report RUN [RUN ...] --out=report.html`.

The page needs no network and no other file: what was asked, zoomable curves, last and best values, checkpoints, time,
environment, changes between starts, bad steps, and how to repeat each run. Exit codes: 0 done, 2 an error in the
arguments or the folders.
"""

import html
import importlib.resources
import json
import math
import os
import pathlib
import sys
import time

from absl import flags

from trainer import config, console, history
from trainer.config.paths import local_path

FLAGS = flags.FlagValues()
flags.DEFINE_string("out", "report.html", "The page to write, .html.", flag_values=FLAGS)
_HELP = {"--help", "-help", "-h", "--helpshort", "--helpfull"}
_TAGS = ("metrics/", "loss", "losses/", "grad_norm/", "learning_rate/", "examples_per_second", "input_wait_fraction")
_POINTS = 2_000  # of a curve; longer ones are thinned


def report(argv: list[str] | None = None) -> int:
    """Writes the page that the arguments ask for and returns the exit code, 0 or 2."""
    argv = sys.argv if argv is None else argv
    if _HELP.intersection(argv[1:]):
        print(f"{__doc__}\nFlags:\n  --out   {FLAGS['out'].help}")
        return 0
    FLAGS.unparse_flags()
    FLAGS["out"].unparse()
    try:
        folders = list(dict.fromkeys(path and os.path.normpath(path) for path in FLAGS(argv)[1:]))
        if not folders:
            raise flags.Error("No run is given. Usage: `python -m trainer.report runs/a runs/b --out=report.html`.")
        out = pathlib.Path(FLAGS.out)
        if out.suffix != ".html" or not out.parent.is_dir():
            raise flags.Error(f"`--out` must end in .html and be in an existing folder, got {FLAGS.out!r}.")
        out.write_text(page([_read(folder) for folder in folders]), encoding="utf-8")
        console.line(f"The report is in {FLAGS.out}.")
    except (flags.Error, config.ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _read(folder):
    """Returns {name, folder, rows, starts, checkpoints, bad} of a run folder."""
    try:
        path = local_path("RUN", folder)
    except ValueError as error:
        raise config.ConfigError(str(error)) from error
    rows = history.read(path) if path.is_dir() else []
    if not rows:
        raise config.ConfigError(f"{folder!r} has no reports in metrics.jsonl. Give the `--model_dir` of a run.")
    bad = path / "bad_steps.jsonl"
    return {
        "name": folder, "folder": path, "rows": rows, "starts": history.starts(path),
        "checkpoints": list(_checkpoints(path)),
        "bad": bad.read_text(encoding="utf-8").splitlines() if bad.exists() else [],
    }  # fmt: skip


def _checkpoints(folder):
    """Yields (step, size, monitored value or None, tag and mode, whether pinned) of the manifests, unverified."""
    for path in sorted((folder / "checkpoints").glob("step_*")):
        try:
            manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        size = sum(file.stat().st_size for file in path.iterdir())
        yield manifest["step"], size, manifest.get("monitored"), (path / "pinned").exists()


def page(runs):
    """Returns the HTML page on `runs`, dicts of _read."""
    tags = sorted({tag for run in runs for row in run["rows"] for tag in history.tags_of(row)}, key=_order)
    charts = [{"tag": tag, "curves": list(_curves(runs, tag))} for tag in tags if _order(tag)[0] < len(_TAGS)]
    parts = [f"<h1>{_text(', '.join(run['name'] for run in runs))}</h1>", _values(runs)]
    parts.append('<h2>Curves</h2><p class="hint">Drag to zoom, double-click to reset.</p><div id="charts"></div>')
    if len(runs) > 1:
        parts.append(_differences(runs))
    parts += [_run(run) for run in runs]
    data = json.dumps(charts).replace("</", "<\\/")
    file = importlib.resources.files("trainer").joinpath("report.template.html").read_text(encoding="utf-8")
    return file.replace("@TITLE@", _text(runs[0]["name"])).replace("@BODY@", "\n".join(parts)).replace("@DATA@", data)


def _order(tag):
    return next((i for i, start in enumerate(_TAGS) if tag.startswith(start)), len(_TAGS)), tag


def _curves(runs, tag):
    """Yields {run, split, steps, values} of a tag; NaN and infinities are null."""
    for run in runs:
        for split in dict.fromkeys(row["split"] for row in run["rows"]):
            points = [(row["step"], row[tag]) for row in run["rows"] if row["split"] == split and tag in row]
            points = points[:: -(-len(points) // _POINTS)] + points[-1:] if len(points) > _POINTS else points
            if points:
                steps, values = zip(*points)
                values = [value if math.isfinite(value) else None for value in values]
                yield {"run": run["name"], "split": split, "steps": steps, "values": values}


def _values(runs):
    """Returns the table of last and best values."""
    rows = []
    for run in runs:
        bests = history.Bests(run["rows"])
        for split, metrics in history.last(run["rows"]).items():
            for tag, value in metrics.items():
                if tag == "loss" or tag.startswith("metrics/"):
                    best, step = bests.get((split, tag), ("", ""))
                    rows.append((run["name"], split, tag, console.number(value), best and console.number(best), step))
    return "<h2>Values</h2>" + _table(("run", "split", "", "last", "best", "at step"), rows)


def _differences(runs):
    parts, first = ["<h2>Bindings that differ</h2>"], runs[0]
    for run in runs[1:]:
        texts = [(r["starts"][-1]["texts"]["config"] if r["starts"] else "") for r in (first, run)]
        difference = config.difference(*texts) if all(texts) else "unknown: a config was not recorded"
        parts.append(f"<p>{_text(run['name'])} (+) and {_text(first['name'])} (-)</p>{_pre(difference or 'none')}")
    return "".join(parts)


def _run(run):
    """Returns the section on one run."""
    starts, parts = run["starts"], [f"<h2>{_text(run['name'])}</h2>"]
    last = starts[-1] if starts else {}
    ended = f"{last['ended']} at step {last['end_step']:,}" if "ended" in last else "not recorded as ended"
    parts.append(f"<p>{_text(ended)}; {len(starts)} start{'s' * (len(starts) != 1)}.</p>")
    command = last.get("command") or "started from Python"
    parts.append(f"<h3>How to repeat it</h3>{_pre(command)}")
    if "spent" in last:
        parts.append("<h3>Time of the last start</h3>" + _table(("", "", ""), last["spent"]))
    parts.append("<h3>Checkpoints</h3>" + _checkpoint_table(run["checkpoints"]))
    if run["bad"]:
        parts.append(f"<h3>Steps that were not finite</h3>{_pre(chr(10).join(run['bad'][-20:]))}")
    if changes := _changes(starts):
        parts.append("<h3>Changes between starts</h3>" + changes)
    for title, name in (("What was asked", "config"), ("Environment", "environment")):
        if last:
            parts.append(f"<h3>{title}</h3>{_pre(last['texts'][name])}")
    return "\n".join(parts)


def _checkpoint_table(checkpoints):
    rated = {step: row["value"] * (1 if row["mode"] == "max" else -1) for step, _, row, _ in checkpoints if row}
    best = max(rated, key=lambda step: (rated[step], -step), default=None)
    rows = [
        (f"{step:,}", console.size(size), f"{row['monitor']} {console.number(row['value'])}" if row else "",
         ", ".join(["best"] * (step == best) + ["pinned"] * pinned))
        for step, size, row, pinned in checkpoints
    ]  # fmt: skip
    return _table(("step", "size", "monitored", ""), rows) if rows else "<p>none</p>"


def _changes(starts):
    parts = []
    for before, start in zip(starts, starts[1:]):
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(start["time"]))
        found = [config.difference(before["texts"]["config"], start["texts"]["config"])]
        old, new = (set(each["texts"]["environment"].splitlines()) for each in (before, start))
        found += [f"-{line}" for line in sorted(old - new)] + [f"+{line}" for line in sorted(new - old)]
        text = "\n".join(filter(None, found)) or "nothing"
        parts.append(f"<p>{when}, from step {start['step']:,}</p>{_pre(text)}")
    return "".join(parts)


def _table(headers, rows):
    head = "".join(f"<th>{_text(name)}</th>" for name in headers)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _pre(text):
    return f"<pre>{_text(text)}</pre>"


def _text(value):
    return html.escape(str(value))


if __name__ == "__main__":
    sys.exit(report())
