"""Compares runs: `python -m trainer.compare runs/adam-0 runs/adam-1 runs/sgd-0 --out=compare.png`.

Plots metrics, losses and gradient norms against the step; prints the last
values and the bindings that differ. Runs whose configs differ only in `run.seed`
are drawn as one curve: the mean in a band from minimum to maximum. Exit codes:
0 done, 2 an error in the arguments or the folders.
"""

import dataclasses
import os
import pathlib
import re
import sys

import numpy as np
from absl import flags

from trainer import config, console, history
from trainer.config.paths import local_path
from trainer.config.run_folder import config_of

FLAGS = flags.FlagValues()
flags.DEFINE_string("out", "compare.png", "The picture to write: .png, .pdf or .svg.", flag_values=FLAGS)

_HELP = {"--help", "-help", "-h", "--helpshort", "--helpfull"}
_SHOWN = re.compile(r"(metrics/.+)|(loss)|(grad_norm.*)|(losses/.+)")  # the most important first
_PANELS = 6
_SEED = re.compile(r"[+-]trainer\.run\.seed =")
# Matches the end of "runs/adam_seed1", the common prefix of runs/adam_seed10 and runs/adam_seed11.
_END_OF_SHARED = re.compile(r"[-_./]*(seed)?[-_.]*\d*$")


@dataclasses.dataclass
class Run:
    """The contents of a run folder.

    Attributes:
        path: the folder.
        config: the text of its config.gin; "" for a run started from Python.
        curves: dict (split, tag) -> dict step -> number, in the order of the file; NaN and infinities are numbers.
    """

    path: str
    config: str
    curves: dict


def compare(argv: list[str] | None = None) -> int:
    """Reads the runs given as arguments, prints the table, draws the plot and returns the exit code, 0 or 2."""
    argv = sys.argv if argv is None else argv
    if _HELP.intersection(argv[1:]):
        print(f"{__doc__}\nFlags:\n  --out   {FLAGS['out'].help}")
        return 0
    FLAGS.unparse_flags()
    FLAGS["out"].unparse()
    try:
        folders = list(
            dict.fromkeys(path and os.path.normpath(path) for path in FLAGS(argv)[1:])
        )  # a folder given twice is one run
        if not folders:
            raise flags.Error("No run is given. Usage: `python -m trainer.compare runs/a runs/b --out=compare.png`.")
        _check_out(FLAGS.out)
        groups = fold([read(folder) for folder in folders])
        print_table(groups)
        draw(groups, FLAGS.out)
        console.line(f"\nThe curves are in {FLAGS.out}.")
    except (flags.Error, config.ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _check_out(out):
    if pathlib.Path(out).suffix not in (".png", ".pdf", ".svg"):
        raise flags.Error(f"`--out` must end in .png, .pdf or .svg, got {out!r}.")
    if not pathlib.Path(out).parent.is_dir():
        raise flags.Error(f"`--out` must be in an existing folder, got {out!r}.")


def read(folder: str) -> Run:
    """Reads a run folder.

    Raises:
        config.ConfigError: the folder does not exist, has no reports, or a line of them cannot be parsed.
    """
    try:
        path = local_path("RUN", folder)
    except ValueError as error:
        raise config.ConfigError(str(error)) from error
    if not path.is_dir():
        raise config.ConfigError(f"There is no folder {folder!r}. Give the `--model_dir` of a run.")
    asked, curves = config_of(path), {}
    for row in history.read(path):
        for tag, value in row.items():
            if _SHOWN.fullmatch(tag):
                curves.setdefault((row["split"], tag), {})[row["step"]] = value
    if not curves:
        raise config.ConfigError(f"{folder!r} has no reports in metrics.jsonl. Give the `--model_dir` of a run.")
    if len(names := {tag for _, tag in curves if tag.startswith("losses/")}) == 1:  # a duplicate of the loss
        curves = {key: points for key, points in curves.items() if key[1] not in names}
    text = asked.read_text() if asked.exists() else ""
    return Run(folder, text if re.search(r"^[^#\s]", text, re.MULTILINE) else "", curves)


def fold(runs: list[Run]) -> dict[str, list[Run]]:
    """Returns {name: runs of one config}, where the configs differ only in `run.seed` and the folder.

    Runs without bindings are not grouped, because their configs are unknown.
    """
    groups = []
    for run in runs:
        for group in groups:
            if run.config and group[0].config and not _difference(group[0], run):
                group.append(run)
                break
        else:
            groups.append([run])
    return dict(zip(_names(groups), groups, strict=True))


def _difference(one, other):
    lines = config.difference(one.config, other.config).splitlines()
    return "\n".join(line for line in lines if not _SEED.match(line))


def _names(groups):
    """Returns a name for each group: the common prefix of its folders, or its first path if two prefixes are equal."""
    names = []
    for group in groups:
        path = group[0].path
        shared = _END_OF_SHARED.sub("", os.path.commonprefix([run.path for run in group]))
        own = os.path.basename(path) if _END_OF_SHARED.sub("", os.path.basename(path)) else path  # all of adam/0
        names.append(os.path.basename(shared) if len(group) > 1 and shared else own)
    return [name if names.count(name) == 1 else group[0].path for name, group in zip(names, groups)]


def mean_curve(runs: list[Run], split: str, tag: str) -> tuple[np.ndarray, ...]:
    """Returns (steps, mean, minimum, maximum) at the steps that all runs have reported."""
    curves = [run.curves.get((split, tag), {}) for run in runs]
    steps = sorted(set(curves[0]).intersection(*curves))
    values = np.array([[curve[step] for step in steps] for curve in curves], np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf
        return np.array(steps), values.mean(0), values.min(0), values.max(0)


def last_values(runs: list[Run]) -> dict[str, str]:
    """Returns {"split tag": text}: the mean of the last values, with (minimum to maximum) of several runs."""
    texts = {}
    for key in sorted(set(runs[0].curves).intersection(*(run.curves for run in runs)), key=_order):
        values = [run.curves[key][max(run.curves[key])] for run in runs]
        with np.errstate(invalid="ignore"):
            texts[" ".join(key)] = console.number(np.mean(values))
        if len(runs) > 1:
            texts[" ".join(key)] += f" ({console.number(np.min(values))} to {console.number(np.max(values))})"
    return texts


def _order(key):
    """Sorts (split, tag): by kind and name, validation before training."""
    split, tag = key
    return _SHOWN.fullmatch(tag).lastindex, tag, split == "train", split


def print_table(groups: dict[str, list[Run]]) -> None:
    """Prints the last values, one column per config, and the differences of each config from the first."""
    columns = {}
    for name, runs in groups.items():
        ends = [max(step for curve in run.curves.values() for step in curve) for run in runs]
        if min(ends) < max(ends):
            console.warning(f"The runs of {name} end at {min(ends):,} to {max(ends):,} steps; the curve at the first.")
        columns[name] = {"runs": len(runs), "steps": max(ends), **last_values(runs)}
    console.closing_table("Last values; for several runs the mean (minimum to maximum):", columns)
    first, *others = groups
    for name in others:
        one, other = groups[first][0], groups[name][0]
        known = one.config and other.config
        console.line(f"\n{name} (+) differs from {first} (-) in")
        console.line(_difference(one, other) if known else "unknown: one of them was started without gin.")


def draw(groups: dict[str, list[Run]], out: str) -> None:
    """Draws one panel per tag, one colour per config and one line style per split.

    Raises:
        config.ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure  # not pyplot, which may open a window
        from matplotlib.lines import Line2D
    except ImportError as error:
        raise config.ConfigError("matplotlib is not installed: `pip install 'gradloom[examples]'`.") from error
    keys = sorted({key for runs in groups.values() for run in runs for key in run.curves}, key=_order)
    tags = list(dict.fromkeys(tag for _, tag in keys))
    if len(tags) > _PANELS:
        console.line(f"\nNot drawn, because the plot is full: {', '.join(tags[_PANELS:])}.")
    splits = sorted({split for split, _ in keys}, key=lambda split: (split != "train", split))
    styles = {split: "--" if split == "train" else "-" if split == "validation" else ":" for split in splits}
    palette = colormaps["tab10"].colors if len(groups) <= 10 else colormaps["turbo"](np.linspace(0, 1, len(groups)))

    panels = min(len(tags), _PANELS)
    figure = Figure(figsize=(4 * min(panels, 3), 3.2 * -(-panels // 3) + 0.8), layout="constrained")
    for i, tag in enumerate(tags[:_PANELS]):
        axes = figure.add_subplot(-(-panels // 3), min(panels, 3), i + 1, xlabel="step", ylabel=tag)
        axes.grid(alpha=0.3)
        for color, runs in zip(palette, groups.values()):
            for split in splits:
                _draw_curve(axes, mean_curve(runs, split, tag), color, styles[split], banded=len(runs) > 1)
        if not tag.startswith("metrics/"):
            _make_logarithmic(axes)
    labels = [name if len(runs) == 1 else f"{name}, {len(runs)} runs" for name, runs in groups.items()]
    handles = [Line2D([], [], color=color, label=label) for color, label in zip(palette, labels)]
    handles += [Line2D([], [], color="black", linestyle=style, label=split) for split, style in styles.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2 * min(panels, 3), frameon=False)
    figure.savefig(out, dpi=90)


def _draw_curve(axes, curve, color, style, banded):
    steps, mean, least, most = curve
    if not len(steps):
        return
    axes.plot(steps, mean, style, color=color, linewidth=1.5, marker="." if len(steps) < 30 else None)
    if banded:
        axes.fill_between(steps, least, most, color=color, alpha=0.15, linewidth=0)


def _make_logarithmic(axes):
    """Uses a logarithmic axis for losses and norms, unless a value is 0 or negative, as for a critic."""
    values = np.concatenate([line.get_ydata() for line in axes.lines] or [[]])
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() > 10 * values.min():
        axes.set_yscale("log")


if __name__ == "__main__":
    sys.exit(compare())
