"""`python -m trainer.check`: what is printed, and the exit codes."""

import os
import subprocess
import sys

import gin
import pytest

from trainer import check
from trainer.config import files as gin_files

MODULE = """
import keras
import numpy as np
import tensorflow as tf

from trainer import Trainer, configurable
from trainer.data import from_arrays


@configurable
def data(rows=8, at=None, repeat=True):
    x = np.linspace(-1, 1, 3 * rows, dtype=np.float32).reshape(rows, 3)
    if at is not None:
        x[at] = np.nan
    return from_arrays((x, np.ones([rows, 1], np.float32)), 4, shuffle=False, repeat=repeat)


@configurable
def net():
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)])


@configurable
class Rounded(Trainer):
    def compute_losses(self, batch, training):
        x, y = batch
        rounded = tf.round(self.model(x))
        return {"main": tf.square(rounded - y)}


@configurable
class Crashes(Trainer):
    def compute_losses(self, batch, training):
        raise KeyError("mine")
"""

CONFIG = """
import checked_module
run.trainer = @Trainer
run.train_data = @checked_module.data
run.train_steps = 10
Trainer.model = @checked_module.net()
Trainer.loss = 'mse'
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "checked_module.py").write_text(MODULE)
    (tmp_path / "a.gin").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    gin.clear_config()


def call(*arguments):
    return check.check(["check.py", *arguments])


FIRST = ("gradients", "--gin_file=a.gin", "--strategy=default")


def test_exit_codes_of_a_config(folder, capsys, monkeypatch):
    """One test, since one module of the user's is imported once per process."""
    assert call(*FIRST) == 0
    said = capsys.readouterr()
    assert "dense/kernel" in said.out and "None" not in said.out and said.err == ""
    assert call(*FIRST, "--gin_param=run.trainer = @checked_module.Rounded") == 1
    line = MODULE.splitlines().index("        rounded = tf.round(self.model(x))") + 1
    assert f"checked_module.py:{line}" in capsys.readouterr().out
    assert call(*FIRST, "--gin_param=checked_module.data.at = 2") == 1
    assert "The batch holds values that are not finite" in capsys.readouterr().out
    assert call(*FIRST, "--gin_param=run.trainer = @checked_module.Crashes") == 1
    assert capsys.readouterr().err.startswith("KeyError: 'mine'")
    assert list(folder.glob("runs*")) == []

    of_run = ("--gin_file=a.gin", "--strategy=default", "--gin_param=run.eval_data = {'a': @checked_module.data}")
    of_run += ("--gin_param=Trainer.metrics = ['mae']",)
    assert call("metrics", *of_run) == 2 and "never ends" in capsys.readouterr().err
    of_run += ("--gin_param=checked_module.data.repeat = False",)
    assert call("metrics", *of_run) == 0
    tags = capsys.readouterr().out.split()
    assert {"loss", "metrics/mean_absolute_error", "validation_a/loss"} < set(tags) and "validation/loss" not in tags
    assert call("metrics", *of_run, "--monitor=validation_a/loss") == 0
    assert call("metrics", *of_run, "--monitor=val/mean_absolute_error") == 2
    assert "Did you mean 'metrics/mean_absolute_error'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, text",
    [
        (
            ["gradient", "--gin_file=a.gin"],
            "There is no check `gradient`; the checks are config, gradients, learning_rate, metrics, replay, replicas, "
            "resume, speed, tpu. Did you mean `gradients`?",
        ),
        (
            ["--gin_file=a.gin"],
            "needs the name of a check first: config, gradients, learning_rate, metrics, replay, "
            "replicas, resume, speed, tpu.",
        ),
        ([], "needs the name of a check first"),
        (["gradients"], "`--gin_file` is missing"),
        (["gradients", "--gin_file=b.gin"], "the gin file `b.gin` does not exist"),
        (["resume", "--gin_file=a.gin", "--steps=5"], "`--steps` must be even and at least 2"),
        (["resume", "--gin_file=a.gin", "--steps=x"], "`--steps` must be a whole number"),
        (["gradients", "--gin_file=a.gin", "--mode=eval"], "`--mode` selects how to run"),
        (["gradients", "--gin_file=a.gin", "--gin_param=run.sed = 1"], "Did you mean `seed`?"),
        (["gradients", "--gin_file=a.gin", "--strategy=nope"], "`run.strategy` must be one of"),
    ],
)
def test_mistakes_exit_2_in_one_sentence(folder, capsys, arguments, text):
    assert call(*arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and text in said and "Traceback" not in said


def test_help_names_the_checks_and_the_flags(capsys):
    assert call("--help") == 0
    said = capsys.readouterr().out
    assert all(name in said for name in (*check.CHECKS, "--gin_file", "--gin_param", "--strategy"))
    assert "--model_dir" not in said


def test_the_module_runs(folder):
    env = {**os.environ, "PYTHONPATH": str(gin_files.ROOT)}
    command = [sys.executable, "-m", "trainer.check", "gradients", "--gin_file=a.gin"]
    ran = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "") and ran.stdout.startswith("variable")
