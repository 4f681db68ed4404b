"""What a run shows while it runs: through a pseudo-terminal, through a pipe, and by a clock."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time

import pytest

from trainer import console, history
from trainer.outer_loop import progress as module
from trainer.outer_loop.progress import Progress

# No TensorFlow: the phases of a run, one of which works in Python for a while.
PROGRAM = """
import sys, time
from trainer import console, history
from trainer.outer_loop.progress import Progress

def work(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass

with Progress(*sys.argv[1:]) as progress:
    print("printed by a user")
    progress.begin(0, 600)
    with progress.phase("compiling"):
        work(1.2)
    metrics = {"loss": .5, "metrics/accuracy": .75, "step_milliseconds": 2.0, "examples_per_second": 32e3,
               "input_wait_fraction": .03, **{f"metrics/{'long' * 9}_{i}": 1.0 for i in range(4)}}
    progress.reached(300, 300, 0.0, metrics)
    progress.report("train", 300, {"loss": .5})
    progress.report("validation", 300, {"loss": .4, "metrics/accuracy": .8})
    console.warning("something to know")
    with progress.phase("training"):
        work(.7)
    with progress.phase("evaluating", "validation", 12) as reach:
        reach(4)
        work(.7)
    if "fail" in sys.argv[0]:
        raise KeyboardInterrupt
"""
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def _resize(terminal, columns):
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))


def _on_a_terminal(columns, *arguments, narrowed=None):
    """Runs PROGRAM on a pseudo-terminal; returns pieces of output, each with the seconds since the last one.

    narrowed: (columns, text), to resize it to when the text appears.
    """
    master, slave = pty.openpty()
    _resize(slave, columns)
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    environment["TERM"] = "xterm-256color"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments], stdin=slave, stdout=slave, stderr=slave, env=environment
    )
    os.close(slave)
    pieces, last = [], None
    while True:
        try:
            data = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        now = time.monotonic()
        pieces.append((data.decode(errors="replace"), now - (last or now)))
        last = now
        if narrowed and narrowed[1] in pieces[-1][0]:
            _resize(master, narrowed[0])
            narrowed = None
            pieces.append(("<narrowed>", 0.0))
    os.close(master)
    assert process.wait() == 0
    return pieces


@pytest.mark.parametrize("columns", [24, 80, 120])
def test_a_terminal_shows_a_live_region_that_fits(columns):
    pieces = _on_a_terminal(columns)
    text = "".join(piece for piece, _ in pieces)
    shown = ESCAPE.sub("", text).replace("\r", "\n").splitlines()
    # No piece later than a second after the one before it, also while Python works.
    assert max(seconds for _, seconds in pieces) < 1.5
    region = [line for line in shown if line.startswith(tuple(module._SPINNER)) or line.startswith("  ")]
    assert max(map(len, region)) <= columns
    assert any("compiling  1 s" in line for line in shown)
    assert any("step 300/600" in line for line in region)
    if columns >= 80:
        assert any("evaluating validation 4/12" in line and "━" in line and "33%" in line for line in region)
        assert any("500.0 steps/s  32,000 examples/s  waits 3% for input" in line for line in region)
        assert any("loss 0.5000  accuracy 0.7500" in line for line in region)
        assert "step     300  validation  loss 0.4000  accuracy 0.8000  best: loss, accuracy" in map(str.strip, shown)
        assert "step     300  train       loss 0.5000" in map(str.strip, shown)
    assert "printed by a user" in map(str.strip, shown) and "warning: something to know" in map(str.strip, shown)
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is shown again


def test_a_region_fits_after_a_resize():
    pieces = _on_a_terminal(120, narrowed=(40, "compiling"))
    before, after = "".join(piece for piece, _ in pieces).split("<narrowed>")
    widths = [
        max(len(line) for line in ESCAPE.sub("", text).replace("\r", "\n").splitlines() if line[:1] in module._SPINNER)
        for text in (before, after)
    ]
    assert widths[0] <= 120 and widths[1] <= 40


def test_plain_on_a_terminal_draws_nothing():
    text = "".join(piece for piece, _ in _on_a_terminal(80, "plain"))
    assert "\x1b[?25l" not in text and "step 300/600" in text


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def tick(monkeypatch):
    """(clock, function that advances it by seconds, half a second at a time, as the thread of a Progress would)."""
    monkeypatch.setattr(threading.Thread, "start", lambda self: None)
    monkeypatch.setattr(threading.Thread, "join", lambda self: None)
    clock = Clock()

    def advance(progress, seconds):
        for _ in range(round(2 * seconds)):
            clock.now += 0.5
            progress._print_if_due()

    return clock, advance


def test_off_a_terminal_whole_lines_at_least_every_30_s(tick, capsys):
    clock, advance = tick
    with Progress(clock=clock) as progress:
        progress.begin(200, 1000)
        with progress.phase("compiling"):
            advance(progress, 65)
        assert capsys.readouterr().out.splitlines() == ["compiling  30 s", "compiling  1:00 min"]
        metrics = {"loss": 0.5, "metrics/accuracy": 0.75, "examples_per_second": 12345.6}
        shown = "12,346 examples/s  loss 0.5000  accuracy 0.7500"
        for step in (300, 400, 500, 600):
            with progress.phase("training"):
                advance(progress, 2)
                progress.reached(step, 100, 0.5, metrics)
        progress.report("train", 600, {"loss": 1.0})
        progress.report("validation", 600, {"loss": 2.0})
        # No estimate from the loop that compiled; 200 steps in 4 s after it leave 500 in 10 s. News at most every 5 s.
        assert capsys.readouterr().out.splitlines() == [
            f"step 300/1,000  30%  {shown}",
            f"step 500/1,000  50%  9 s left  {shown}",
            "step     600  validation  loss 2.000  best: loss",
        ]  # fmt: skip


def test_no_time_left_is_known_from_the_call_that_compiled(tick, capsys):
    """A first loop of one step: it is counted when its call ends, and again, later, when the loop ends."""
    clock, advance = tick
    with Progress(clock=clock) as progress:
        progress.begin(0, 10)
        with progress.phase("compiling"):
            clock.now += 3
            progress.called(1, compiled=True)
        clock.now += 6
        progress.reached(1, 1, 0.0, {"loss": 1.0})
    assert "left" not in capsys.readouterr().out


def test_none_prints_nothing(tick, capsys):
    clock, advance = tick
    with Progress("none", clock=clock) as progress:
        progress.begin(0, None)
        advance(progress, 100)
        progress.reached(7, 7, 0.0, {"loss": 1.0})
        progress.report("validation", 7, {"loss": 1.0})
    assert capsys.readouterr().out == ""
    assert [(row["step"], row["split"], row["loss"]) for row in progress.rows] == [(7, "validation", 1.0)]


def test_where_the_time_went(tick):
    """Compilation is the first loop without its 10 steps of .5 s; input is what the loops waited."""
    clock, advance = tick
    with Progress("none", clock=clock) as progress:
        clock.now += 3
        progress.begin(0, 30)
        for step, seconds in ((10, 25.0), (20, 7.0), (30, 7.0)):
            with progress.phase("training" if step > 10 else "compiling"):
                clock.now += seconds
            progress.reached(step, 10, 2.0, {})
            with progress.phase("evaluating", "validation", 5):
                clock.now += 4
            with progress.phase("saving"):
                clock.now += 1
            with progress.phase("hooks"):
                clock.now += 2
    rows = {name: float(seconds.removesuffix(" s")) for name, seconds, _ in progress.spent()}
    assert rows == {"compile": 20.0, "compute": 15.0, "evaluation": 12.0, "hooks": 6.0, "input": 4.0,
                    "checkpoints": 3.0, "build": 3.0, "in all": 63.0}  # fmt: skip


def test_best_values_survive_a_resume_and_later_reports_do_not(tmp_path):
    rows = [{"step": s, "split": "validation", "time": 0.0, "loss": x} for s, x in ((10, 3), (20, 2), (30, 1))]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    progress = Progress("none")
    progress.begin(20, 40, history.read(tmp_path, 20))
    progress.report("validation", 30, {"loss": 2.5})
    assert progress.best_columns(["validation"]) == {"best": {"loss": 2}, "at step": {"loss": 20}}
    assert [row["loss"] for row in progress.rows] == [3, 2, 2.5]


def test_nothing_is_left_after_an_exception():
    before = threading.active_count(), sys.stdout
    with pytest.raises(KeyboardInterrupt), Progress():
        raise KeyboardInterrupt
    assert (threading.active_count(), sys.stdout) == before


def test_a_pipe_gets_whole_lines():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "printed by a user" and lines[-1].startswith("step 300/600  50%  ")
    assert "\x1b" not in done.stdout and done.stderr == "warning: something to know\n"
    assert console.number(1) == "1"
