"""The range test, on a quadratic whose best and largest rates are known."""

import keras
import numpy as np
import pytest

from trainer import Trainer, check
from trainer.config.paths import ROOT
from trainer.data import from_arrays
from trainer.diagnosis.learning_rate import RangeTest, range_test


def _linear(optimizer):
    """The loss is mean((w x)^2) with mean(x^2) = 1: its curvature is 2, so gradient descent diverges above rate 1."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
    trainer = Trainer(model, "mse", (), optimizer)
    x = np.ones([64, 1], "float32")
    source = from_arrays((x, np.zeros_like(x)), 64)
    trainer.build(source.element_spec)
    return trainer, source


def test_gradient_descent_diverges_above_two_over_the_curvature():
    tested = range_test(*_linear(keras.optimizers.SGD(0.1)), 140)
    assert tested.ok and 1e-2 < tested.suggestion < 1.0
    assert tested.rates[0] == pytest.approx(1e-6) and tested.losses[0] == pytest.approx(1.0)
    assert 1.0 < tested.rates[-1] < 10.0  # it stopped where the loss rose
    lines = str(tested).splitlines()
    assert len(lines) <= 17 and "falls fastest" in lines[-1]


def test_a_loss_that_only_rises_gives_no_rate():
    assert RangeTest([1e-6, 1e-3, 1.0], [1.0, 2.0, 3.0]).suggestion is None
    assert "falls at no rate" in str(RangeTest([1e-6, 1e-3, 1.0], [1.0, 2.0, 3.0]))


def test_a_schedule_is_refused():
    with pytest.raises(ValueError, match="`learning_rate` of group 'main' is a schedule"):
        range_test(*_linear(keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 10))), 20)


def test_the_command_draws_a_plot_and_changes_nothing_else(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = [f"--gin_file={ROOT}/configs/friedman_huber.gin", "--steps=12", "--gin.Adam.learning_rate=1e-3"]
    assert check.check(["check", "learning_rate", *flags]) in (0, 1)
    assert "learning rate" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["learning_rate.png"]
    assert check.check(["check", "learning_rate", "--steps=3"]) == 2
