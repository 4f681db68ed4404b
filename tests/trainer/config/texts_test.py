"""The resolved config: every value with its origin; read again, it gives the same run."""

import sys

import numpy as np
import pytest
import tensorflow as tf

from trainer import check, config, main
from trainer.config.paths import ROOT


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def _weights(folder):
    reader = tf.train.load_checkpoint(
        tf.train.latest_checkpoint(folder) or next(folder.glob("checkpoints/*/*.index")).with_suffix("")
    )
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def test_each_value_has_its_origin(folder):
    (folder / "a.gin").write_text(
        "STEPS = 7\nrun.train_steps = %STEPS\nAdam.epsilon = 1e-6\nslow/Adam.learning_rate = 0.5\n"
        "Trainer.metrics = [@slow/Adam(), %STEPS]\n"
    )
    config.read(["a.gin"], ["run.seed = 3"])
    config.bind()
    with_scope = config.bound_value("trainer.Trainer", "metrics")
    assert with_scope[1] == 7
    lines = config.resolved_text().splitlines()
    assert "trainer.run.train_steps = 7  # a.gin:2" in lines
    assert "trainer.run.seed = 3  # --gin_param 'run.seed = 3'" in lines
    assert "slow/keras.optimizers.Adam.epsilon = 1e-06  # a.gin:3" in lines
    assert "slow/keras.optimizers.Adam.learning_rate = 0.5  # a.gin:4" in lines
    assert "slow/keras.optimizers.Adam.beta_1 = 0.9  # default" in lines
    assert "trainer.Trainer.metrics = [@slow/keras.optimizers.Adam(), 7]  # a.gin:5" in lines
    assert not [line for line in lines if "STEPS" in line]


def test_read_again_it_gives_the_same_run(folder):
    short = [
        "--gin_param=run.deterministic = True",
        "--gin_param=run.train_steps = 4",
        "--gin_param=run.steps_per_loop = 2",
    ]
    assert main.main(["main", f"--gin_file={ROOT}/configs/friedman_huber.gin", "--model_dir=first", *short]) == 0
    assert main.main(["main", "--gin_file=first/resolved_config.gin", "--model_dir=second"]) == 0
    first, second = _weights(folder / "first"), _weights(folder / "second")
    assert set(first) == set(second) and len(first) > 5
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key], err_msg=key)
    texts = [(folder / run / "resolved_config.gin").read_text().splitlines()[1:] for run in ("first", "second")]
    bindings = [[line.split("  # ")[0] for line in text if " = " in line] for text in texts]
    assert bindings[0] == bindings[1]


def test_check_config_prints_it_and_names_what_is_unused(folder, capsys):
    flags = [f"--gin_file={ROOT}/configs/friedman_huber.gin"]
    assert check.check(["check", "config", *flags]) == 0
    shown = capsys.readouterr().out
    assert (
        "friedman_huber.gin:" in shown and "# default" in shown and "trainer.run.precision = None  # default" in shown
    )
    assert check.check(["check", "config", *flags, "--gin_param=SGD.momentum = 0.5"]) == 1
    assert "`SGD.momentum` is never used" in capsys.readouterr().out
