"""Terminal output: banner, tables, progress. Imports no TensorFlow.

A terminal gets colours and one live line. Anything else, such as a log file, gets plain lines without wrapping.
"""

import functools
import math
import time

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

_PLAIN_WIDTH = 10_000  # lines are not wrapped off a terminal, so that paths and variable names stay whole
_LINE_SECONDS = 5.0  # seconds between two progress lines off a terminal


@functools.cache
def _console(stderr=False):
    """Returns the console of a stream, created on first use. It looks up sys.stdout at each print, as print() does."""
    console = Console(stderr=stderr, highlight=False, soft_wrap=True)
    return (
        console
        if console.is_terminal
        else Console(stderr=stderr, highlight=False, soft_wrap=True, no_color=True, width=_PLAIN_WIDTH)
    )


def only_warn(yes=True):
    """Prints warnings and errors only, if `yes`: other workers would repeat the output of the chief."""
    _console().quiet = bool(yes)


def line(text=""):
    """Prints one line to stdout."""
    _console().print(str(text), markup=False)


def warning(text):
    """Prints a warning to stderr."""
    _console(stderr=True).print(f"[bold yellow]warning:[/] {escape(str(text))}")


def error(text):
    """Prints an error to stderr."""
    _console(stderr=True).print(f"[bold red]error:[/] {escape(str(text))}")


def banner(rows):
    """Prints the settings of a run.

    Args:
      rows: list of (what, value), such as ("model", "cnn, 52,202 parameters").
    """
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        _console().print(f"[bold]{escape(name):<{width}}[/]  {escape(str(value))}")
    line()


def group_table(rows):
    """Prints a table of the variables and how each is trained.

    Args:
      rows: list of (variable, shape, group, learning rate, transforms, or the reason why the variable is not trained).
    """
    headers = ("variable", "shape", "group", "learning rate", "transforms")
    table(headers, [[_cell(value) for value in row] for row in rows])


def closing_table(title, rows):
    """Prints the final metrics, a line per metric and a column per split.

    Args:
      title: line above the table.
      rows: dict split -> dict tag -> number, in order: {"train": {...}, "validation": {...}}.
    """
    tags = list(dict.fromkeys(tag for metrics in rows.values() for tag in metrics))
    line(title)
    table(
        ["", *rows],
        [[tag, *(_value(tag, m[tag]) if tag in m else "" for m in rows.values())] for tag in tags],
        right=True,
    )


def _value(tag, x):
    return number(int(x)) if tag.startswith(("updates/", "skipped_steps")) else number(x)  # integers are counts


def number(x):
    """Returns a number as text: 4 significant digits, or an integer with thousands separators.

    Example:
      >>> number(0.123456), number(12345), number(1234567.0)
      ('0.1235', '12,345', '1.235e+06')
    """
    if isinstance(x, bool) or not hasattr(x, "__float__"):
        return str(x)
    if hasattr(x, "__index__"):
        return f"{int(x):,}"
    x = float(f"{float(x):.3e}")  # rounded first: 9.9999 becomes 10.00
    if x == 0 or not math.isfinite(x):
        return f"{x:.0f}"
    if 1e-3 <= abs(x) < 1e5:
        digits = max(0, 3 - math.floor(math.log10(abs(x))))
        return f"{x:,.{digits}f}"
    return f"{x:.3e}"


class Progress:
    """Shows the progress of a run: step, time left, loss, examples per second.

    Use it as a context manager, or call `close`.
    """

    def __init__(self, total_steps, start_step=0, clock=time.monotonic):
        """Starts the clock.

        Args:
          total_steps: the last step, or None if the run ends with the data.
          start_step: the first step.
          clock: function returning seconds; a parameter for tests.
        """
        self._total, self._start, self._clock = total_steps, start_step, clock
        self._started = clock()
        self._printed = -math.inf
        self._waiting = None  # the latest line that has not been printed
        self._live = None
        if _console().is_terminal:
            self._live = Live(console=_console(), auto_refresh=False, transient=False)
            self._live.start()

    def update(self, step, metrics):
        """Shows the progress at `step`. metrics: dict tag -> number; `loss` and `examples_per_second` are shown."""
        text = self._text(step, metrics)
        if self._live:
            self._live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
            return
        self._waiting = text
        if self._clock() - self._printed >= _LINE_SECONDS:
            self._print()

    def close(self):
        """Ends the live line; off a terminal prints the latest line if it has not been printed."""
        if self._live:
            self._live.stop()
            self._live = None
        self._print()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _print(self):
        if self._waiting is not None:
            line(self._waiting)
            self._waiting, self._printed = None, self._clock()

    def _text(self, step, metrics):
        total = f"/{self._total:,} ({step / self._total:.0%})" if self._total else ""
        parts = [f"step {step:,}{total}"]
        if self._total and step > self._start:
            seconds = (self._clock() - self._started) / (step - self._start) * (self._total - step)
            parts.append(
                f"{_duration(seconds)} left"
                if step < self._total
                else f"took {_duration(self._clock() - self._started)}"
            )
        if "loss" in metrics:
            parts.append(f"loss {number(metrics['loss'])}")
        parts += [
            f"{tag.removeprefix('metrics/')} {number(value)}"
            for tag, value in metrics.items()
            if tag.startswith("metrics/")
        ]
        if "examples_per_second" in metrics:
            parts.append(f"{metrics['examples_per_second']:,.0f} examples/s")
        return "  ".join(parts)


def _duration(seconds):
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60}:{seconds % 60:02d} min"
    return f"{seconds // 3600}:{seconds % 3600 // 60:02d} h"


def _cell(value):
    if isinstance(value, (tuple, list)):
        return " x ".join(map(str, value)) or "scalar"
    if isinstance(value, float):
        return f"{value:.4g}"  # learning rates: 0.001, not 0.001000
    return "" if value is None else str(value)


def table(headers, rows, right=False):
    """Prints a table of texts. right: whether all columns but the first are aligned to the right."""
    if not _console().is_terminal:
        cells = [list(headers), *rows]
        widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
        for row in cells:
            padded = (
                c.rjust(w) if right and i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
            )
            line("  ".join(padded).rstrip())
        return
    drawn = Table(box=None, header_style="bold", pad_edge=False)
    for i, header in enumerate(headers):
        # Wrapped, not truncated: users need whole variable names for patterns.
        drawn.add_column(header, justify="right" if right and i else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*map(escape, row))
    _console().print(drawn)
