"""What is printed off a terminal, character for character, and that a terminal gets one live line."""

import io
import subprocess
import sys

import pytest
from rich.console import Console

from trainer import console


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    cached = console._console
    cached.cache_clear()
    yield
    cached.cache_clear()


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(
    "value, text",
    [
        (0.123456, "0.1235"),
        (12.3456, "12.35"),
        (12345.678, "12,350"),
        (0.99996, "1.000"),
        (9.99999, "10.00"),
        (-3.5, "-3.500"),
        (1e-3, "0.001000"),
        (9.9999e-4, "0.001000"),
        (1.23456e-4, "1.235e-04"),
        (1234567.0, "1.235e+06"),
        (0.0, "0"),
        (7, "7"),
        (1234567, "1,234,567"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (-float("inf"), "-inf"),
        ("adam", "adam"),
        (True, "True"),
    ],
)
def test_number(value, text):
    assert console.number(value) == text


def test_banner_wraps_no_path_and_takes_brackets_literally(capsys):
    path = "/a path with spaces/" * 20
    console.banner([("model", "cnn [bold]"), ("TensorBoard", f"tensorboard --logdir '{path}'")])
    assert capsys.readouterr().out == (f"model        cnn [bold]\nTensorBoard  tensorboard --logdir '{path}'\n\n")


def test_group_table(capsys):
    console.group_table(
        [
            ("conv2d/kernel", (3, 3, 1, 32), "default", 1e-3, "clip_by_global_norm"),
            ("scale", (), "", None, "frozen by 'sc.*[a]'"),
        ]
    )
    assert capsys.readouterr().out == (
        "variable       shape           group    learning rate  transforms\n"
        "conv2d/kernel  3 x 3 x 1 x 32  default  0.001          clip_by_global_norm\n"
        "scale          scalar                                  frozen by 'sc.*[a]'\n"
    )


def test_closing_table(capsys):
    console.closing_table("Done.", {"train": {"loss": 0.25}, "validation": {"loss": 0.5, "metrics/accuracy": 0.98}})
    assert capsys.readouterr().out == (
        "Done.\n"
        "                   train  validation\n"
        "loss              0.2500      0.5000\n"
        "metrics/accuracy              0.9800\n"
    )


def test_warnings_and_errors_go_to_stderr(capsys):
    console.line("text [x]")
    console.warning("low [y] disk")
    console.error("bad 'z'")
    captured = capsys.readouterr()
    assert captured.out == "text [x]\n"
    assert captured.err == "warning: low [y] disk\nerror: bad 'z'\n"


def test_progress_lines_are_rare_and_the_last_one_is_always_printed(capsys):
    clock = Clock()
    progress = console.Progress(1000, start_step=200, clock=clock)
    for step in (300, 400, 500, 600, 1000):
        clock.now += 2
        progress.update(step, {"loss": 0.5, "metrics/accuracy": 0.75, "examples_per_second": 12345.6})
    progress.close()
    progress.close()
    assert capsys.readouterr().out.splitlines() == [
        # 100 steps in 2 s leave 700 in 14 s; the next line comes 5 s later at the earliest
        "step 300/1,000 (30%)  14 s left  loss 0.5000  accuracy 0.7500  12,346 examples/s",
        "step 600/1,000 (60%)  8 s left  loss 0.5000  accuracy 0.7500  12,346 examples/s",
        "step 1,000/1,000 (100%)  took 10 s  loss 0.5000  accuracy 0.7500  12,346 examples/s",
    ]


def test_progress_without_an_end_and_without_steps(capsys):
    with console.Progress(None, clock=Clock()) as progress:
        progress.update(7, {})
    with console.Progress(10, clock=Clock()):
        pass
    assert capsys.readouterr().out == "step 7\n"


@pytest.mark.parametrize(
    "seconds, text", [(0.4, "0 s"), (59.4, "59 s"), (61, "1:01 min"), (3599.6, "1:00 h"), (3660, "1:01 h")]
)
def test_duration(seconds, text):
    assert console._duration(seconds) == text


def test_a_terminal_gets_one_live_line(monkeypatch):
    out = io.StringIO()
    terminal = Console(file=out, force_terminal=True, width=60, highlight=False, soft_wrap=True)
    monkeypatch.setattr(console, "_console", lambda stderr=False: terminal)
    with console.Progress(20, clock=Clock()) as progress:
        progress.update(10, {"loss": 0.5})
        progress.update(20, {"loss": 0.25, "metrics/a_very_long_name_that_does_not_fit_into_the_line": 1.0})
    lines = out.getvalue().split("\n")
    assert len(lines) == 2  # one line in place, however long: a wrapped one would be repeated at each refresh
    assert "step 10/20" in lines[0] and "loss 0.2500" in lines[0]


def test_a_table_on_a_terminal_cuts_no_name(monkeypatch):
    out = io.StringIO()
    terminal = Console(file=out, force_terminal=True, width=40, highlight=False, soft_wrap=True)
    monkeypatch.setattr(console, "_console", lambda stderr=False: terminal)
    console.group_table([("generator/blocks/0/kernel", (3, 4), "generator", 0.1, "clip_by_global_norm")])
    assert "…" not in out.getvalue()


def test_it_loads_no_tensorflow():
    code = "import sys, trainer.console; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
