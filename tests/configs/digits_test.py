"""The data and models of configs/digits.py; training itself is tested with the trainer."""

import importlib
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.configs.mnist_file import write_mnist


@pytest.fixture
def digits():
    return sys.modules.get("digits") or importlib.import_module("digits")


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """`keras.datasets.mnist.load_data()` without a network: its real code, on a generated file in its real place."""
    (tmp_path / "datasets").mkdir()
    arrays = write_mnist(tmp_path / "datasets" / "mnist.npz")
    module = importlib.import_module("keras.src.datasets.mnist")
    real = module.get_file

    def get_file(fname, origin, file_hash):
        return real(fname, origin, cache_dir=str(tmp_path))  # the hash is that of the original's bytes

    monkeypatch.setattr(module, "get_file", get_file)
    return arrays


def test_the_split_is_360_stratified_and_repeatable(digits):
    (train_x, train_y), (test_x, test_y) = digits.load()
    assert train_x.shape == (1437, 8, 8, 1) and test_x.shape == (360, 8, 8, 1)
    assert train_x.dtype == np.float32 and train_y.dtype == np.int32
    assert train_x.min() == 0 and train_x.max() == 1
    # The whole set has 178 182 177 183 181 182 181 179 174 180 images of 0 to 9; a fifth of each is held out.
    np.testing.assert_array_equal(
        np.bincount(np.concatenate([train_y, test_y])), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    )
    assert np.abs(np.bincount(test_y) - 36).max() <= 1
    np.testing.assert_array_equal(test_y, digits.load()[1][1])


def test_no_image_is_in_both_parts(digits):
    (train_x, _), (test_x, _) = digits.load()
    assert not {x.tobytes() for x in train_x} & {x.tobytes() for x in test_x}


def test_sources(digits):
    train, held_out = digits.train_data(batch_size=64), digits.eval_data()
    images, labels = train.element_spec
    assert images == tf.TensorSpec([64, 8, 8, 1], tf.float32) and labels == tf.TensorSpec([64], tf.int32)
    assert train.infinite and train.num_examples == 1437
    assert sum(int(y.shape[0]) for _, y in held_out.batches()) == 360


def test_shift_moves_an_image_by_up_to_one_pixel(digits):
    image = np.zeros([8, 8, 1], np.float32)
    image[3, 4] = 1
    seen = set()
    for seed in range(60):
        moved, label = digits.shift((tf.constant(image), tf.constant(7)), tf.constant([0, seed]))
        (position,) = np.argwhere(moved[..., 0].numpy() == 1)
        seen.add((int(position[0]) - 3, int(position[1]) - 4))
        assert moved.shape == [8, 8, 1] and int(label) == 7
    assert seen == {(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)}


def test_augmented_batches_keep_labels(digits):
    plain, shifted = (next(iter(digits.train_data(augment=augment).batches(5))) for augment in (False, True))
    np.testing.assert_array_equal(plain[1], shifted[1])
    assert (plain[0].numpy() != shifted[0].numpy()).any()


@pytest.mark.parametrize("model", ["cnn", "mlp"])
def test_models_end_in_logits_without_random_numbers(digits, model):
    # Dropout would differ between replicas: the digits job must train alike on 1 and 2.
    net = getattr(digits, model)()
    images = digits.load()[0][0][:3]
    logits = net(images, training=True)
    assert logits.shape == (3, 10) and logits.dtype == tf.float32
    np.testing.assert_array_equal(logits, net(images, training=True))
    assert (np.abs(logits.numpy().sum(1) - 1) > 1e-3).any()


def test_mnist_through_keras_datasets_with_one_binding(digits, mnist):
    import gin

    with gin.unlock_config():
        gin.bind_parameter("digits.load.dataset", "mnist")
    images, labels = next(iter(digits.eval_data().batches()))
    np.testing.assert_allclose(images[..., 0], mnist["x_test"] / 255.0, atol=1e-7)
    np.testing.assert_array_equal(labels, mnist["y_test"])
    assert digits.train_data().num_examples == 70
    assert digits.cnn().input_shape == digits.mlp().input_shape == (None, 28, 28, 1)


def test_mnist_from_a_local_file(digits, tmp_path):
    arrays = write_mnist(tmp_path / "mnist.npz")
    (train_x, train_y), (test_x, _) = digits.load(dataset="mnist", path=tmp_path / "mnist.npz")
    assert train_x.shape == (70, 28, 28, 1) and test_x.shape == (20, 28, 28, 1) and train_x.dtype == np.float32
    np.testing.assert_array_equal(train_y, arrays["y_train"])


def test_an_unknown_dataset_is_refused(digits):
    with pytest.raises(ValueError, match="'digits' or 'mnist', got 'cifar'"):
        digits.load(dataset="cifar")


def test_the_mlp_learns(digits):
    """A few seconds of `fit` on the real digits; far below what the gin file reaches, far above chance."""
    model, source = digits.mlp(), digits.train_data(batch_size=64)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(2e-3), loss, metrics=["accuracy"])
    model.fit(source.batches(), steps_per_epoch=200, epochs=1, verbose=0)
    assert model.evaluate(digits.eval_data().batches(), verbose=0)[1] > 0.88
