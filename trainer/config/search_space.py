"""The search space of a sweep: lists of values (`--grid`), random draws (`--random`), and the trials they give."""

import ast
import dataclasses
import difflib
import itertools
import random
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from trainer.config import files
from trainer.config.binding import ConfigError, raise_all
from trainer.config.statements import Macro, key_of

_DRAWS = {
    "uniform": lambda generator, low, high: low + (high - low) * generator.random(),
    "log_uniform": lambda generator, low, high: low * (high / low) ** generator.random(),
    "randint": lambda generator, low, high: generator.randint(low, high),  # both included
}
_FORMS = "uniform(low, high), log_uniform(low, high), randint(low, high), or a list such as [16, 32]"
_SEEDS = ("run.seed", "trainer.run.seed")


@dataclasses.dataclass(frozen=True)
class Axis:
    """One parameter of a sweep.

    Attributes:
        flag: the flag as given, for messages.
        key: "Adam.learning_rate".
        values: those of a list, or ().
        draw: (name, low, high) of a distribution, or ().
        is_random: whether a value of the list is drawn, instead of each being tried.
    """

    flag: str
    key: str
    values: tuple = ()
    draw: tuple = ()
    is_random: bool = False

    def sample(self, trial: int) -> Any:
        """Returns the value of the trial with this number: always the same."""
        generator = random.Random(f"{self.key} {trial}")
        if not self.draw:
            return generator.choice(self.values)
        name, low, high = self.draw
        value = _DRAWS[name](generator, low, high)
        return value if name == "randint" else min(max(float(f"{value:.4g}"), low), high)  # 4 digits, as it is shown


def read_axes(grid: Sequence[str], drawn: Sequence[str]) -> list[Axis]:
    """Returns the parameters of the flags `--grid` and `--random`; raises ConfigError with all mistakes."""
    axes, problems = [], []
    for name, texts in (("--grid", grid), ("--random", drawn)):
        for text in texts:
            axis, found = _read_axis(name, text)
            problems += found
            if axis and axis.key in _SEEDS:
                problems.append(f"{axis.flag}: `run.seed` is not searched. Use --seeds=N for N seeds of each trial.")
            elif axis and axis.key in [other.key for other in axes]:
                problems.append(f"{axis.flag}: `{axis.key}` has values already. Remove one of the flags.")
            elif axis:
                axes.append(axis)
    raise_all(problems)
    return axes


def _read_axis(name: str, text: str) -> tuple[Axis | None, list[str]]:
    flag = f"{name} {shlex.quote(text)}"
    draw = re.fullmatch(r"\s*([\w./]+)\s*=\s*(\w+)\s*\((.*)\)\s*", text)
    if name == "--random" and draw:
        problem = _problem_of_draw(draw[2], draw[3])
        return (
            (None, [f"{flag}: {problem}"])
            if problem
            else (Axis(flag, draw[1], (), (draw[2], *_numbers(draw[3])), True), [])
        )
    asked = files.read([], [text], [], {})
    problems = [line.replace("--gin_param", name) for line in asked.problems]
    if problems or not asked.statements:
        return None, problems or [f"{flag}: write NAME.PARAMETER=[value, value]."]
    statement = asked.statements[0]
    if not isinstance(statement.value, list | tuple) or not statement.value:
        rule = "a list of values" if name == "--grid" else f"a distribution: {_FORMS}"
        return None, [f"{flag}: `{key_of(statement)}` needs {rule}; got {statement.value!r}."]
    return Axis(flag, key_of(statement), tuple(statement.value), (), name == "--random"), []


def _numbers(text: str) -> tuple:
    try:
        return ast.literal_eval(f"({text},)")
    except (ValueError, SyntaxError):
        return ()


def _problem_of_draw(kind: str, text: str) -> str | None:
    bounds = _numbers(text)
    if kind not in _DRAWS:
        near = difflib.get_close_matches(kind, _DRAWS, n=1)
        return f"`{kind}` is not a distribution; there are {_FORMS}." + (f" Did you mean `{near[0]}`?" if near else "")
    number = (int,) if kind == "randint" else (int, float)
    if len(bounds) != 2 or not all(type(b) in number for b in bounds) or not bounds[0] < bounds[1]:
        what = "ints" if kind == "randint" else "numbers"
        return f"`{kind}` takes two {what}, low < high, got ({text})."
    return f"`log_uniform` needs low > 0, got {bounds[0]}." if kind == "log_uniform" and bounds[0] <= 0 else None


def trials_of(axes: Sequence[Axis], count: int | None) -> list[dict[str, Any]]:
    """Returns the distinct trials, {key: value} each: all points of the grid, or `count` random draws.

    With both, the draws go through the points of the grid in turn. The first trials of a larger `count` are the same.

    Raises:
        ConfigError: if `count` does not fit.
    """
    grid = [axis for axis in axes if not axis.is_random]
    points = [dict(zip([a.key for a in grid], point)) for point in itertools.product(*(a.values for a in grid))]
    drawn = [axis for axis in axes if axis.is_random]
    if drawn and count is None:
        raise ConfigError("`--random` needs `--trials`, the number of trials to draw.")
    if drawn and count < len(points):
        raise ConfigError(f"`--trials={count}` is too few: the grid has {len(points)} points, each is tried once.")
    if not drawn and count not in (None, len(points)):
        raise ConfigError(f"`--trials` counts draws of `--random`; without it there are {len(points)} trials.")
    every = [points[i % len(points)] | {a.key: a.sample(i) for a in drawn} for i in range(count or len(points))]
    return list({repr(trial): trial for trial in every}.values())


def bindings_of(trial: dict[str, Any]) -> list[str]:
    """Returns the gin bindings of a trial."""
    return [f"{key} = {value!r}" for key, value in trial.items()]


def check_trials(axes: Sequence[Axis], trials: Sequence[dict], read: Callable[[list[str]], None]) -> None:
    """Checks the config of each trial with `read(bindings)`; raises ConfigError with all mistakes of all of them."""
    problems = []
    for trial in trials:
        try:
            read(bindings_of(trial))
        except ConfigError as error:
            lines = error.problems or [str(error)]
            for axis in axes:
                given = f"--gin_param {shlex.quote(bindings_of({axis.key: trial[axis.key]})[0])}: "
                lines = [line.replace(given, f"{axis.flag}: ", 1) for line in lines]
            problems += lines
    raise_all(problems)


def shared_config(*arguments) -> tuple[str, int]:
    """Returns the bindings that all trials share as text, and `run.seed`; the arguments are those of `files.read`."""
    values = {key_of(s): s.value for s in files.read(*arguments).statements}
    seed = next((values[key] for key in reversed(_SEEDS) if key in values), 0)
    while isinstance(seed, Macro):
        seed = values.get(seed.name, 0)
    return "".join(f"{key} = {value!r}\n" for key, value in sorted(values.items())), seed
