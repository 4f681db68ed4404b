"""Writes scikit-learn's digits as TensorFlow Datasets stores MNIST; needs no network."""

import numpy as np
import pytest
import tensorflow as tf


def write_mnist(folder, train=None):
    """Writes TFRecord files and their description below `folder`/mnist.

    Args:
      folder: a path.
      train: int, training examples, None for all 1,437. There are 360 test examples.

    Returns:
      {split: (images uint8 [n, 28, 28, 1], labels int64 [n])}, in the order of the files.
    """
    tfds = pytest.importorskip("tensorflow_datasets")
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = np.kron(pixels.reshape(-1, 8, 8), np.ones([3, 3])) * (255 / 16)  # 8 x 8 in 0 to 16 -> 24 x 24 in 0 to 255
    images = np.pad(images, [[0, 0], [2, 2], [2, 2]]).astype("uint8")[..., None]
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = images[order], labels[order].astype("int64")
    parts = {"train": (images[360:][:train], labels[360:][:train]), "test": (images[:360], labels[:360])}
    tfds.dataset_builders.store_as_tfds_dataset(
        name="mnist",
        version=str(tfds.builder_cls("mnist").VERSION),
        features=tfds.features.FeaturesDict(
            {"image": tfds.features.Image(shape=(28, 28, 1)), "label": tfds.features.ClassLabel(num_classes=10)}
        ),
        split_datasets={
            split: tf.data.Dataset.from_tensor_slices({"image": x, "label": y}) for split, (x, y) in parts.items()
        },
        data_dir=folder,
        disable_shuffling=True,
    )
    return parts
