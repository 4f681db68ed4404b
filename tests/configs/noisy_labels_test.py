"""configs/noisy_labels: as many labels are wrong as it says, none of those held out, and SAM learns fewer."""

import importlib

import numpy as np
import pytest

from tests.runs import read_last_rows, run_config

SAM = ["run.trainer = @SAM", "SAM.rho = 0.2"]
SMOOTHING = ["keras.losses.CategoricalCrossentropy.label_smoothing = 0.1"]


@pytest.fixture
def noisy_labels():
    return importlib.import_module("noisy_labels")


def train(folder, *params):
    """Runs the shipped config; returns {split: last row}."""
    return read_last_rows(run_config("noisy_labels", folder, *params))


def test_forty_percent_are_wrong_and_all_wrong_classes_alike(noisy_labels):
    labels = np.arange(10_000) % 10
    noisy = noisy_labels.corrupt(labels, 0.4, seed=0)
    assert (noisy != labels).sum() == 4_000
    shifts = np.bincount((noisy - labels) % 10, minlength=10)[1:]
    assert shifts.min() > 370 and shifts.max() < 520  # 444 of each; the deviation is 20
    np.testing.assert_array_equal(noisy, noisy_labels.corrupt(labels, 0.4, seed=0))
    assert (noisy != noisy_labels.corrupt(labels, 0.4, seed=1)).any()
    np.testing.assert_array_equal(labels, noisy_labels.corrupt(labels, 0.0, seed=0))


def test_held_out_labels_are_true(noisy_labels):
    (train_x, _), (test_x, test_y) = noisy_labels.load()
    assert not {x.tobytes() for x in train_x} & {x.tobytes() for x in test_x}
    (images, labels) = next(iter(noisy_labels.eval_data().batches()))
    np.testing.assert_array_equal(images, test_x)
    np.testing.assert_array_equal(labels.numpy().argmax(1), test_y)


def test_sam_learns_what_is_true(tmp_path):
    """Short form: chance is .1, and without SAM it is below .8 by now."""
    row = train(tmp_path, "run.train_steps = 400", "run.eval_interval = None", *SAM)["validation"]
    assert row["metrics/accuracy"] > 0.83


@pytest.mark.slow
def test_full_result_over_three_seeds(tmp_path):
    means = {}
    for name, params in {"sgd": [], "smoothing": SMOOTHING, "sam": SAM}.items():
        rows = [train(tmp_path / f"{name}{seed}", f"run.seed = {seed}", *params)["validation"] for seed in range(3)]
        means[name] = np.mean([row["metrics/accuracy"] for row in rows])
    assert means["sam"] >= means["sgd"] + 0.04
    assert means["smoothing"] >= means["sgd"] - 0.02
