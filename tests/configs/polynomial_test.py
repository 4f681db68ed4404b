"""configs/polynomial: trained polynomials as the only nonlinearity, and the same network without them."""

import importlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.configs.mnist_file import write_mnist
from tests.runs import read_checkpoint, read_rows, run_config

WITHOUT = "polynomial.network.degree = None"


@pytest.fixture
def polynomial():
    return importlib.import_module("polynomial")


def train(folder, *params):
    """Runs the shipped config; returns (last validation accuracy, {name: array} of the last checkpoint)."""
    run_config("polynomial", folder, *params)
    return read_rows(folder, "validation")[-1]["metrics/accuracy"], read_checkpoint(folder)


def curvature(model):
    """Returns the largest |f(a + b) - f(a) - f(b) + f(0)|, which is 0 of a linear function and a constant."""
    a, b = np.random.default_rng(0).random([2, 5, 8, 8, 1], np.float32)
    return float(np.abs(model(a + b) - model(a) - model(b) + model(0 * a)).max())


def test_pixels_are_scaled_and_no_image_is_in_both_parts(polynomial):
    (train_x, train_y), (test_x, test_y) = polynomial.load()
    assert train_x.shape == (1437, 8, 8, 1) and test_x.shape == (360, 8, 8, 1) and train_x.max() == test_x.max() == 1
    assert train_x.dtype == np.float32 and train_y.dtype == test_y.dtype == np.int32
    assert not {x.tobytes() for x in train_x} & {x.tobytes() for x in test_x}


def test_without_polynomials_the_network_is_linear(polynomial):
    plain, curved = polynomial.network(degree=None), polynomial.network(degree=3)
    assert curvature(plain) < 1e-5
    layers = [layer for layer in curved.layers if layer.name.startswith("polynomial_")]
    assert [layer.coefficients.shape for layer in layers] == [(4, 16), (4, 32)]
    assert len(curved.trainable_variables) == len(plain.trainable_variables) + 2
    assert curvature(curved) < 1e-5, "it begins as the identity"
    layers[0].coefficients.assign(np.random.default_rng(1).normal(size=(4, 16)))
    assert curvature(curved) > 0.01


def test_images_move_by_up_to_one_pixel_and_keep_their_labels(polynomial):
    image = np.zeros([8, 8, 1], np.float32)
    image[3, 4] = 1
    for seed in range(20):
        moved, label = polynomial.shift((tf.constant(image), tf.constant(7)), tf.constant([0, seed]))
        (position,) = np.argwhere(moved[..., 0].numpy() == 1)
        assert np.abs(position - [3, 4]).max() <= 1 and int(label) == 7


def test_mnist_with_one_binding_and_from_a_file(polynomial, tmp_path, monkeypatch):
    import gin

    arrays = write_mnist(tmp_path / "mnist.npz")
    (train_x, train_y), (test_x, test_y) = polynomial.load("mnist", tmp_path / "mnist.npz")
    np.testing.assert_allclose(train_x[..., 0], arrays["x_train"] / 255, atol=1e-7)
    np.testing.assert_array_equal(test_y, arrays["y_test"])
    assert train_x.dtype == np.float32 and train_y.dtype == np.int32 and test_x.shape == (20, 28, 28, 1)

    downloaded = tuple((arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in ("train", "test"))
    monkeypatch.setattr(keras.datasets.mnist, "load_data", lambda: downloaded)
    with gin.unlock_config():
        gin.bind_parameter("polynomial.load.dataset", "mnist")
    assert polynomial.train_data().num_examples == 70 and polynomial.eval_data().num_examples == 20
    assert polynomial.network().input_shape == (None, 28, 28, 1)
    with pytest.raises(ValueError, match="'digits' or 'mnist', got 'cifar'"):
        polynomial.load(dataset="cifar")


def test_it_learns_what_the_linear_network_does_not(tmp_path):
    """Short form: chance is .1, and without polynomials the network ends below .86 however long it trains."""
    accuracy, tensors = train(tmp_path, "STEPS = 250", "run.eval_interval = None")
    assert accuracy > 0.9
    coefficients = tensors["polynomial_1/coefficients"]
    assert np.abs(coefficients[2:]).max() > 0.05, "the square and the cube are in use"


@pytest.mark.slow
def test_full_result_over_three_seeds(tmp_path):
    with_them, without = [], []
    for seed in range(3):
        with_them.append(train(tmp_path / f"with_{seed}", f"run.seed = {seed}")[0])
        accuracy, tensors = train(tmp_path / f"without_{seed}", f"run.seed = {seed}", WITHOUT)
        without.append(accuracy)
        assert not [name for name in tensors if "polynomial" in name]
    assert np.mean(with_them) >= 0.97 and np.mean(with_them) >= np.mean(without) + 0.1
