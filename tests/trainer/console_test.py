"""What is printed off a terminal, character for character, and that a terminal's tables cut no name."""

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


@pytest.mark.parametrize(
    "seconds, text", [(0.4, "0 s"), (59.4, "59 s"), (61, "1:01 min"), (3599.6, "1:00 h"), (3660, "1:01 h")]
)
def test_duration(seconds, text):
    assert console.duration(seconds) == text


def test_a_table_on_a_terminal_cuts_no_name(monkeypatch):
    out = io.StringIO()
    terminal = Console(file=out, force_terminal=True, width=40, highlight=False, soft_wrap=True)
    monkeypatch.setattr(console, "_console", lambda stderr=False: terminal)
    console.group_table([("generator/blocks/0/kernel", (3, 4), "generator", 0.1, "clip_by_global_norm")])
    assert "…" not in out.getvalue()


def test_it_loads_no_tensorflow():
    code = "import sys, trainer.console; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
