"""configs/focal: the focal loss on digits and, with one binding, on MNIST; and that it gains nothing there."""

import importlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.configs.mnist_file import write_mnist
from tests.runs import read_rows, run_config


@pytest.fixture
def focal():
    return importlib.import_module("focal")


def train(folder, *params):
    """Runs the shipped config; returns the last row of the validation."""
    return read_rows(run_config("focal", folder, *params), "validation")[-1]


def test_digits_are_split_and_shifted_as_in_the_shortest_experiment(focal):
    (train_x, train_y), (test_x, test_y) = focal.load()
    assert train_x.shape == (1437, 8, 8, 1) and test_x.shape == (360, 8, 8, 1) and train_x.max() == 1
    assert not {x.tobytes() for x in train_x} & {x.tobytes() for x in test_x}
    image = np.zeros([8, 8, 1], np.float32)
    image[3, 4] = 1
    for seed in range(20):
        moved, label = focal.shift((tf.constant(image), tf.constant(7)), tf.constant([0, seed]))
        (position,) = np.argwhere(moved[..., 0].numpy() == 1)
        assert np.abs(position - [3, 4]).max() <= 1 and int(label) == 7


def test_mnist_with_one_binding_and_from_a_file(focal, tmp_path, monkeypatch):
    import gin

    arrays = write_mnist(tmp_path / "mnist.npz")
    (train_x, train_y), (test_x, test_y) = focal.load("mnist", tmp_path / "mnist.npz")
    np.testing.assert_allclose(train_x[..., 0], arrays["x_train"] / 255, atol=1e-7)
    np.testing.assert_array_equal(test_y, arrays["y_test"])
    assert train_x.dtype == np.float32 and train_y.dtype == np.int32 and test_x.shape == (20, 28, 28, 1)

    downloaded = tuple((arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in ("train", "test"))
    monkeypatch.setattr(keras.datasets.mnist, "load_data", lambda: downloaded)
    with gin.unlock_config():
        gin.bind_parameter("focal.load.dataset", "mnist")
    assert focal.train_data().num_examples == 70 and focal.eval_data().num_examples == 20
    assert focal.network().input_shape == (None, 28, 28, 1)
    with pytest.raises(ValueError, match="'digits' or 'mnist', got 'cifar'"):
        focal.load(dataset="cifar")


def test_mnist_runs_from_the_command_line(tmp_path):
    write_mnist(tmp_path / "mnist.npz")
    row = train(tmp_path / "run", "focal.load.dataset = 'mnist'", f"focal.load.path = '{tmp_path}/mnist.npz'",
                "run.train_steps = 2", "run.eval_interval = None", "focal.network.filters = 4")  # fmt: skip
    assert np.isfinite(row["loss"]) and 0 <= row["metrics/accuracy"] <= 1


def test_it_learns(tmp_path):
    """Short form: chance is .1. With gamma 2 the loss of an untrained network is ln(10) (9/10)^2."""
    row = train(tmp_path, "run.train_steps = 150", "run.eval_interval = None")
    assert row["metrics/accuracy"] > 0.9 and row["loss"] < 0.4


@pytest.mark.slow
def test_full_result_over_three_seeds(tmp_path):
    means = {}
    for gamma in (2.0, 0.0):
        params = [f"CategoricalFocal.gamma = {gamma}"]
        rows = [train(tmp_path / f"{gamma}_{seed}", f"run.seed = {seed}", *params) for seed in range(3)]
        means[gamma] = np.mean([row["metrics/accuracy"] for row in rows])
    assert means[2.0] >= 0.97 and abs(means[2.0] - means[0.0]) < 0.01, "no gain, as the header says"
