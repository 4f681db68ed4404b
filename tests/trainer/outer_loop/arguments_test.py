"""The arguments of `run` are checked where they are given, each by its name, before anything is built."""

import pathlib

import numpy as np
import pytest

from trainer import run
from trainer.experiment import arguments_of_run
from trainer.outer_loop.arguments import Arguments


def _never():
    raise AssertionError("built before the arguments were checked")


def _arguments(**given):
    return Arguments(**arguments_of_run(**{"model_dir": "new", "trainer": _never, "train_data": _never, **given}))


STEPS = ("steps_per_loop", "eval_interval", "checkpoint_interval", "summary_interval", "train_steps")
WRONG = {
    **{name: ("many", "10", 7.5, 0, -1, True, float("nan"), float("inf"), [1]) for name in STEPS},
    "epochs": ("x", 0, -1, float("inf"), float("nan"), True, [1]),
    "seed": ("x", 1.5, -1, 2**32, None, True),
    "deterministic": ("yes", 1, None),
    "precision": ("float99", 5, [1]),
    "checkpoints": (5, "x", [1]),
    "hooks": (5, "x", [5]),
    "mode": ("trian", 5, ["eval"], None, "eval"),  # eval: without eval_data
    "resume": ("maybe", True, None),
    "trainer": (5, "x", None),
    "train_data": (5, "x", None),
    "eval_data": ({}, {"a/b": _never}, {1: _never}, {"": _never}),
    "model_dir": ("", " ", "gs://bucket/run", pathlib.Path("s3://bucket"), 5, b"x"),
}


@pytest.mark.parametrize("argument, value", [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_argument_is_named_with_its_value(tmp_path, monkeypatch, argument, value):
    monkeypatch.chdir(tmp_path)
    named = "eval_data" if value == "eval" else argument
    with pytest.raises(ValueError, match=f"`{named}`.* must be"):
        run(**{"model_dir": "new", "trainer": _never, "train_data": _never, argument: value})
    assert not list(tmp_path.iterdir())


def test_whole_numbers_of_any_type_count_steps():
    for value in (10, 1e1, np.int64(10), np.float32(10)):
        given = _arguments(train_steps=value, steps_per_loop=value)
        assert (given.train_steps, type(given.train_steps)) == (10, int)
        assert (given.intervals.steps_per_loop, type(given.intervals.steps_per_loop)) == (10, int)
    assert _arguments(eval_interval=None).intervals.eval_interval is None


def test_a_relative_folder_is_that_of_the_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = _arguments(model_dir="runs/x")
    monkeypatch.chdir("/")
    assert given.model_dir == tmp_path / "runs" / "x"


def test_train_steps_and_epochs_are_alternatives():
    with pytest.raises(ValueError, match=r"`train_steps` \(5\) and `epochs` \(2\)"):
        _arguments(train_steps=5, epochs=2)
