"""Shows what a run is doing, prints its reports, and measures where the time goes."""

import contextlib
import math
import threading
import time

from trainer import console, history

HOW = ("auto", "plain", "none")
_DRAW_SECONDS = 0.5  # between two drawings of a live region
_LINE_SECONDS, _SILENT_SECONDS = 5.0, 30.0  # between two plain lines: with news at least, without news at most
_ACCOUNTS = {  # phase: what the closing table calls its time
    "building": "build",
    "compiling": "compile",
    "training": "compute",
    "evaluating": "evaluation",
    "saving": "checkpoints",
    "hooks": "hooks",
}
_BAR, _SPINNER = 40, "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class Progress:
    """Shows the phase of a run, its steps and speed, and a line per report; a context with a thread that redraws.

    On a terminal a live region is drawn twice a second, whatever the main thread does. In a notebook it is one line.
    Elsewhere whole lines are printed: at most every 5 s, and every 30 s at least. The thread reads no device values.

    Args:
        how: "auto"; "plain", lines on a terminal too; "none".
        clock: function that returns seconds; a parameter for tests.

    Attributes:
        seconds: {name: seconds} of where the time went, up to the last change of the phase.
        rows: all reports of the run, as those of history.read.
    """

    def __init__(self, how="auto", clock=time.monotonic):
        self._how, self._clock, self.seconds, self.rows = how, clock, {}, []
        self._region = console.Region(self._lines)
        self._phase, self._since, self._of, self._done = "building", clock(), None, 0
        self._started, self._printed, self._news = clock(), clock(), False
        self._step, self._total, self._metrics, self._bests = 0, None, {}, history.Bests()
        self._first = self._at = None  # (seconds, step) after the first loop, and after the last one
        self._compiled_steps = 0  # steps of the loop in which the step was compiled
        self._closed, self._thread, self._lock = threading.Event(), None, threading.Lock()

    def __enter__(self):
        self._started = self._since = self._printed = self._clock()
        if self._how == "auto":
            self._region.__enter__()
        if self._how != "none":
            self._thread = threading.Thread(target=self._draw_again, name="progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Ends the thread and the region; off a terminal prints the last line. A second call has no effect."""
        self._charge()
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
            self._region.__exit__()
            self._thread = None

    # ---- What the run tells ----------------------------------------------------------------------------------------

    def begin(self, step, total, rows=()):
        """Starts the count at `step`. total: the last step, or None. rows: the reports of the run up to `step`."""
        self._step, self._total = step, total
        if self._phase == "building":
            self._enter("training", None)
        self.rows, self._bests = list(rows), history.Bests(rows)

    @contextlib.contextmanager
    def phase(self, name, what="", of=None):
        """A context of a phase in _ACCOUNTS; yields a function that takes how many batches of `of` are done."""
        outer = self._phase, self._of
        self._enter(f"{name} {what}".strip(), of)
        try:
            yield self._reach
        finally:
            self._enter(*outer)

    def called(self, steps, compiled):
        """Counts the steps of a call of the compiled loop. compiled: whether it was the first, which compiles."""
        self._step += steps
        if not compiled:
            return
        if self._how != "none":
            console.line(f"Compiled in {self._clock() - self._since:.1f} s.")
        self._enter("training", None)
        self._first = self._at = self._clock(), self._step
        self._compiled_steps = steps

    def reached(self, step, steps, waited, metrics):
        """Shows the end of a loop.

        Args:
            step: int, the step at its end.
            steps: int, how many it took.
            waited: float, seconds it waited for input; NaN if unknown.
            metrics: dict tag -> number; `loss`, metrics and speeds are shown.
        """
        self._step, self._metrics, self._at = step, metrics, (self._clock(), step)
        if self._first is None:
            self._first, self._compiled_steps = self._at, steps
        elif (waited := min(waited, self.seconds.get("compute", 0.0))) > 0:  # the first call waits while it compiles
            self._add("input", waited)
            self._add("compute", -waited)
        self._news = True
        self._print_if_due()

    def report(self, split, step, metrics):
        """Keeps a report and prints it: every one on a terminal, evaluations only elsewhere; marks the best values."""
        self.rows.append({"step": step, "split": split, "time": time.time(), **metrics})
        best = self._bests.add(split, step, metrics)
        if self._how == "none" or (split == "train" and not self._region.is_live):
            return
        parts = [f"step {step:>7,}  {split:<10}", *_shown(metrics)]
        console.line("  ".join(parts + ([f"best: {', '.join(map(_short, best))}"] if best else [])).rstrip())

    # ---- What is known at the end ----------------------------------------------------------------------------------

    def best_columns(self, splits):
        """Returns columns for console.closing_table: the best values of the evaluations `splits`, and their steps."""
        columns = {}
        for split in splits:
            of = f" {split}" if len(splits) > 1 else ""
            found = {tag: best for (name, tag), best in self._bests.items() if name == split}
            if found:
                columns[f"best{of}"] = {tag: value for tag, (value, _) in found.items()}
                columns[f"at step{of}"] = {tag: step for tag, (_, step) in found.items()}
        return columns

    def spent(self):
        """Returns rows (name, seconds as text, share as text) of where the time went, the longest first.

        The first loop traces, compiles and takes its steps; these count as computation at the speed of later ones.
        """
        self._charge()
        seconds, later = dict(self.seconds), self._at[1] - self._first[1] if self._at else 0
        if later and "compile" in seconds:
            steps = min(self._compiled_steps * seconds.get("compute", 0) / later, seconds["compile"])
            seconds["compile"] -= steps
            seconds["compute"] += steps
        elif "compile" in seconds:
            seconds["compile and first loop"] = seconds.pop("compile")
        total = sum(seconds.values())
        rows = sorted(((name, s) for name, s in seconds.items() if s > 0.001 * total), key=lambda row: -row[1])
        return [(name, f"{s:.1f} s", f"{s / total:.0%}") for name, s in rows] + [("in all", f"{total:.1f} s", "")]

    # ---- Time ------------------------------------------------------------------------------------------------------

    def _enter(self, phase, of):
        with self._lock:
            self._charge()
            self._phase, self._of, self._done = phase, of, 0

    def _reach(self, done):
        self._done = int(done)

    def _charge(self):
        now = self._clock()
        self._add(_ACCOUNTS.get(self._phase.partition(" ")[0], "other"), now - self._since)
        self._since = now

    def _add(self, account, seconds):
        self.seconds[account] = self.seconds.get(account, 0.0) + seconds

    # ---- What is shown ---------------------------------------------------------------------------------------------

    def _draw_again(self):  # the thread
        while not self._closed.wait(_DRAW_SECONDS):
            self._region.draw() if self._region.is_live else self._print_if_due()
        if self._news and not self._region.is_live:
            self._print()

    def _print_if_due(self):
        if self._how == "none" or self._region.is_live:
            return
        silent = self._clock() - self._printed
        if silent >= _SILENT_SECONDS or (self._news and silent >= _LINE_SECONDS):
            self._print()

    def _print(self):
        self._printed, self._news = self._clock(), False
        console.line("  ".join(self._lines(10_000, bar=False)))

    def _lines(self, width, bar=True):
        """Returns the lines of the region: what is done, how fast, with which loss; each fits into `width`."""
        now = self._clock()
        head, done, total = self._doing(now)
        if not bar and self._at and not head.startswith("step"):
            head = f"step {self._step:,}  {head}"
        share = done / total if total else None
        tail = [f"{share:.0%}" if share is not None else "", self._left(now)]
        tail = "  ".join(text for text in tail if text)
        room = min(_BAR, width - len(head) - len(tail) - 6)
        drawn = "━" * round(room * share) + "╌" * (room - round(room * share)) if share is not None and room > 5 else ""
        spinner = _SPINNER[int(now / _DRAW_SECONDS) % len(_SPINNER)] + " " if bar else ""
        lines = [spinner + "  ".join(text for text in (head, drawn if bar else "", tail) if text)]
        lines += [_fit(_speeds(self._metrics), width - 2), _fit(_shown(self._metrics), width - 2)]
        return [line if i == 0 or not bar else f"  {line}" for i, line in enumerate(lines) if line]

    def _doing(self, now):
        """Returns (text, done, total) of the phase; the total is None if it is not known."""
        if self._phase == "training" or (self._closed.is_set() and self._at):
            total = f"/{self._total:,}" if self._total else ""
            return f"step {self._step:,}{total}", self._step, self._total
        took = now - self._since
        head = self._phase + (f" {self._done}/{self._of}" if self._of else "")
        return head + (f"  {console.duration(took)}" if took >= 1 else ""), self._done, self._of

    def _left(self, now):
        if not self._total or not self._at:
            return ""
        if self._step >= self._total:
            return f"took {console.duration(now - self._started)}"
        if self._at[1] == self._first[1]:  # it compiled: no estimate for later ones
            return ""
        seconds = (self._at[0] - self._first[0]) / (self._at[1] - self._first[1]) * (self._total - self._step)
        return f"{console.duration(max(0, seconds - (now - self._at[0])))} left"


def _shown(metrics):
    """Returns texts of the loss and the metrics."""
    tags = [tag for tag in metrics if tag == "loss" or tag.startswith("metrics/")]
    return [f"{_short(tag)} {console.number(metrics[tag])}" for tag in sorted(tags, key=lambda tag: tag != "loss")]


def _short(tag):
    return tag.removeprefix("metrics/")


def _speeds(metrics):
    texts = []
    if metrics.get("step_milliseconds"):
        texts.append(f"{console.number(1e3 / metrics['step_milliseconds'])} steps/s")
    if "examples_per_second" in metrics:
        texts.append(f"{metrics['examples_per_second']:,.0f} examples/s")
    if not math.isnan(metrics.get("input_wait_fraction", math.nan)):
        texts.append(f"waits {metrics['input_wait_fraction']:.0%} for input")
    return texts


def _fit(texts, width):
    """Returns as many of `texts`, in order, as fit into `width`."""
    line = ""
    for text in texts:
        longer = f"{line}  {text}" if line else text
        if len(longer) > width:
            break
        line = longer
    return line
