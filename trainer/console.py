"""Terminal output: lines, tables, and a region that is drawn in place. Imports no TensorFlow.

A terminal gets colours and a live region. Anything else, such as a log file, gets plain lines without wrapping.
"""

import functools
import math

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

_UNITS = ("B", "kB", "MB", "GB", "TB")
_PLAIN_WIDTH = 10_000  # lines are not wrapped off a terminal, so that paths and variable names stay whole


@functools.cache
def _console(stderr=False):
    """Returns the console of a stream, created on first use. It looks up sys.stdout at each print, as print() does."""
    options = {"stderr": stderr, "highlight": False, "soft_wrap": True, "force_jupyter": False}
    if _in_notebook():  # ipykernel sets FORCE_COLOR, which rich takes for a terminal
        options["force_terminal"] = False
    console = Console(**options)
    return console if console.is_terminal else Console(**options, no_color=True, width=_PLAIN_WIDTH)


def _in_notebook():
    return Console().is_jupyter


def _errors():
    """Returns the console of warnings: stderr's, or that of a terminal's live region, which they must not overwrite."""
    errors = _console(stderr=True)
    return _console() if errors.is_terminal and _console().is_terminal and not _console().quiet else errors


def only_warn(yes=True):
    """Prints warnings and errors only, if `yes`: other workers would repeat the output of the chief."""
    _console().quiet = bool(yes)


def line(text=""):
    """Prints one line to stdout."""
    _console().print(str(text), markup=False)


def warning(text):
    """Prints a warning to stderr."""
    _errors().print(f"[bold yellow]warning:[/] {escape(str(text))}")


def error(text):
    """Prints an error to stderr."""
    _errors().print(f"[bold red]error:[/] {escape(str(text))}")


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


class Region:
    """Lines at the end of the output that are drawn again in place, while other output appears above them.

    A context. On a terminal it is a live region, in a notebook one output; elsewhere nothing is drawn.

    Args:
        render: function (width in characters) -> list of lines of text; called by `draw`.
    """

    def __init__(self, render):
        self._render, self._live, self._handle = render, None, None

    @property
    def is_live(self):
        """True if `draw` shows something."""
        return self._live is not None or self._handle is not None

    def __enter__(self):
        if _console().is_terminal and not _console().quiet:
            self._live = Live(get_renderable=self._text, console=_console(), auto_refresh=False, transient=True)
            self._live.start()
        elif _in_notebook() and not _console().quiet:
            from IPython.display import display  # a notebook has it

            self._handle = display({"text/plain": ""}, raw=True, display_id=True)
        return self

    def draw(self):
        """Draws the lines again; any thread."""
        if self._live:
            self._live.refresh()
        elif self._handle:
            self._handle.update({"text/plain": "  ".join(self._render(_PLAIN_WIDTH))}, raw=True)

    def __exit__(self, *_):
        self.draw()
        if self._live:
            self._live.stop()
        self._live = self._handle = None

    def _text(self):
        return Group(*(Text(text, no_wrap=True, overflow="ellipsis") for text in self._render(_console().width)))


def show_cursor():
    """Shows the terminal's cursor, which a live region hides, before the process exits without closing it."""
    _console().show_cursor()


def duration(seconds):
    """Returns seconds as text: `12 s`, `1:05 min`, `2:30 h`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60}:{seconds % 60:02d} min"
    return f"{seconds // 3600}:{seconds % 3600 // 60:02d} h"


def size(number):
    """Returns a number of bytes as text, such as `306 kB`."""
    unit = min(len(_UNITS) - 1, (len(str(int(number))) - 1) // 3)
    return f"{number / 1e3**unit:.3g} {_UNITS[unit]}"


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
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for i, header in enumerate(headers):
        # Wrapped, not truncated: users need whole variable names for patterns.
        shown.add_column(header, justify="right" if right and i else "left", overflow="fold")
    for row in rows:
        shown.add_row(*map(escape, row))
    _console().print(shown)
