"""configs/friedman_huber: three losses by one binding, and a score against the function behind noisy targets."""

import importlib

import numpy as np
import pytest

from tests.runs import read_rows, run_config


@pytest.fixture
def friedman_huber():
    return importlib.import_module("friedman_huber")


def train(folder, *params):
    """Runs the shipped config; returns the last validation R2."""
    return read_rows(run_config("friedman_huber", folder, *params), "validation")[-1]["metrics/r2_score"]


def function(x):
    """Friedman's, as he wrote it down (1991)."""
    return 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]


def test_one_target_in_ten_is_far_off_and_the_held_out_ones_are_exact(friedman_huber):
    (train_x, train_y), (test_x, test_y) = friedman_huber.load()
    assert train_x.shape == (3000, 10) and train_y.shape == (3000, 1) and test_x.shape == (1000, 10)
    assert train_x.dtype == train_y.dtype == test_y.dtype == np.float32
    np.testing.assert_allclose(test_y[:, 0], function(test_x), atol=1e-4)
    noise = train_y[:, 0] - function(train_x)
    # Beyond 5 deviations lie 90 % of the outliers and nothing else.
    assert (np.abs(noise) > 5).mean() == pytest.approx(0.09, abs=0.015)
    assert noise[np.abs(noise) < 4].std() == pytest.approx(1, abs=0.1)
    assert noise[np.abs(noise) > 5].std() == pytest.approx(42, abs=4)  # the others of N(0, 40^2)
    np.testing.assert_array_equal(train_y, friedman_huber.load()[0][1])
    clean = friedman_huber.load(outliers=0.0)[0][1][:, 0] - function(train_x)
    assert clean.std() == pytest.approx(1, abs=0.05)


def test_it_learns_in_spite_of_outliers_where_the_squared_error_does_not(tmp_path):
    """Short form: the mean of the targets has R2 0, and a straight line through clean ones .73."""
    short = ["run.train_steps = 600", "run.eval_interval = None"]
    huber = train(tmp_path / "huber", *short)
    assert huber > 0.85
    assert train(tmp_path / "mse", *short, "Trainer.loss = 'mse'") < huber - 0.1


@pytest.mark.slow
def test_full_result_over_three_seeds(tmp_path):
    for seed in range(3):
        scores = {}
        for loss in ("huber", "mse", "mae"):
            scores[loss] = train(tmp_path / f"{loss}_{seed}", f"run.seed = {seed}", f"Trainer.loss = '{loss}'")
        assert scores["huber"] >= 0.93 and scores["huber"] >= scores["mse"] + 0.15
        assert scores["mae"] >= 0.93
