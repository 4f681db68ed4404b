"""configs/noisy_labels_gce: wrong training labels, and a loss that does not learn them by heart."""

import importlib

import numpy as np
import pytest

from tests.runs import read_rows, run_config


@pytest.fixture
def noisy_labels_gce():
    return importlib.import_module("noisy_labels_gce")


def train(folder, *params):
    """Runs the shipped config; returns the accuracies of its evaluations."""
    return [row["metrics/accuracy"] for row in read_rows(run_config("noisy_labels_gce", folder, *params), "validation")]


def test_nine_tenths_of_the_drawn_labels_are_wrong_and_the_held_out_ones_are_true(noisy_labels_gce):
    (images, noisy), (test_x, test_y) = noisy_labels_gce.load()
    (_, true), (_, held_out) = noisy_labels_gce.load(noise=0.0)
    assert images.shape == (1437, 64) and test_x.shape == (360, 64) and noisy.dtype == test_y.dtype == np.int32
    assert not {x.tobytes() for x in images} & {x.tobytes() for x in test_x}
    # .36, with a standard deviation of .013
    assert (noisy != true).mean() == pytest.approx(0.4 * 0.9, abs=0.04)
    wrong = np.bincount(noisy[noisy != true], minlength=10)
    assert wrong.min() > 0.5 * wrong.mean(), "drawn from all classes alike"
    np.testing.assert_array_equal(test_y, held_out)
    np.testing.assert_array_equal(np.bincount(test_y), np.bincount(held_out))
    np.testing.assert_array_equal(noisy, noisy_labels_gce.load()[0][1])
    assert (noisy_labels_gce.load(seed=1)[0][1] != noisy).any()
    from sklearn.datasets import load_digits

    known = {(x / 16).astype("float32").tobytes(): y for x, y in zip(*load_digits(return_X_y=True))}
    np.testing.assert_array_equal(true, [known[x.tobytes()] for x in images])
    np.testing.assert_array_equal(test_y, [known[x.tobytes()] for x in test_x])


def test_it_learns(tmp_path):
    """Short form: chance is .1."""
    assert train(tmp_path, "run.train_steps = 300", "run.eval_interval = None")[-1] > 0.88


@pytest.mark.slow
def test_full_result_over_three_seeds(tmp_path):
    robust, plain = [], []
    for seed in range(3):
        robust.append(train(tmp_path / f"gce_{seed}", f"run.seed = {seed}"))
        plain.append(train(tmp_path / f"ce_{seed}", f"run.seed = {seed}", "GeneralizedCrossentropy.q = 0.0"))
    assert np.mean([scores[-1] for scores in robust]) >= 0.92
    assert np.mean([scores[-1] for scores in robust]) >= np.mean([scores[-1] for scores in plain]) + 0.05
    assert np.mean(np.max(robust, 1)) > np.mean(np.max(plain, 1))
