"""configs/siamese_pcgrad: the method on a shared encoder, and its alternatives by bindings."""

import importlib

import numpy as np
import pytest

from tests.runs import read_last_rows, run_config

OUTPUTS = ("left", "right", "same")
WEIGHTS = [
    "run.trainer = @UncertaintyWeighting",
    f"UncertaintyWeighting.tasks = {dict.fromkeys(OUTPUTS, 'classification')}",
    "main/OptimizerGroup.losses = None",
]


@pytest.fixture
def siamese_pcgrad():
    return importlib.import_module("siamese_pcgrad")


def train(folder, *params):
    """Runs the shipped config; returns {split: last row}."""
    return read_last_rows(run_config("siamese_pcgrad", folder, *params))


def test_half_of_the_pairs_are_alike_and_labels_are_true(siamese_pcgrad):
    (images, labels), (test_images, _) = siamese_pcgrad.load()
    names = {image.tobytes(): label for image, label in zip(images, labels)}
    assert not set(names) & {image.tobytes() for image in test_images}
    inputs, targets = siamese_pcgrad.pairs(images, labels, partners=4, seed=0)
    for side in ("left", "right"):
        np.testing.assert_array_equal(targets[side], [names[image.tobytes()] for image in inputs[side]])
    np.testing.assert_array_equal(targets["same"][:, 0], targets["left"] == targets["right"])
    assert targets["same"].mean() == 0.5


def test_it_learns_all_three(tmp_path):
    """Short form: chance is .1 for the classes, .5 for the comparison."""
    row = train(tmp_path, "run.train_steps = 200", "run.eval_interval = None")["validation"]
    assert (
        min(row["metrics/left_accuracy"], row["metrics/right_accuracy"]) > 0.85 and row["metrics/same_accuracy"] > 0.8
    )


def test_the_first_steps_differ_from_the_plain_sum_and_weights_are_learned(tmp_path):
    quick = ["run.train_steps = 20", "run.eval_interval = None", "run.eval_data = None"]
    surgery, plain, learned = (
        train(tmp_path / name, *quick, *params)["train"]
        for name, params in {"pcgrad": [], "sum": ["run.trainer = @Trainer"], "weights": WEIGHTS}.items()
    )
    assert surgery["grad_norm/main"] != plain["grad_norm/main"]
    assert all(learned[f"metrics/log_variance/{name}"] != 0 for name in OUTPUTS)


@pytest.mark.slow
def test_full_result_over_three_seeds(tmp_path):
    for seed in range(3):
        row = train(tmp_path / str(seed), f"run.seed = {seed}")["validation"]
        assert (row["metrics/left_accuracy"] + row["metrics/right_accuracy"]) / 2 >= 0.97
        assert row["metrics/same_accuracy"] >= 0.92
