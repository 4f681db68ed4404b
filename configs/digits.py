"""Handwritten digits: scikit-learn's 1,797 bundled images of 8 x 8, or MNIST with `digits.load.dataset = 'mnist'`."""

import keras
import numpy as np

from trainer import configurable
from trainer.data import from_arrays


@configurable
def load(dataset="digits", path=None):
    """Loads and scales the images.

    Args:
      dataset: "digits", which needs no network, or "mnist", which `keras.datasets` downloads once.
      path: a local `mnist.npz`, instead of the download.

    Returns:
      ((train images, train labels), (test images, test labels)): float32 [n, height, width, 1] in [0, 1], int32 [n].
    """
    if dataset == "digits":
        arrays, white = _load_digits(), 16
    elif dataset == "mnist":
        arrays, white = _load_mnist(path), 255
    else:
        raise ValueError(f"`dataset` must be 'digits' or 'mnist', got {dataset!r}.")
    return tuple((images[..., None].astype("float32") / white, labels.astype("int32")) for images, labels in arrays)


@configurable
def train_data(batch_size=64, augment=False, seed=0):
    """Endless shuffled batches; with `augment`, each image shifted by up to one pixel."""
    (images, labels), _ = load()
    return from_arrays((images, labels), batch_size, seed=seed, augment=shift if augment else None)


@configurable
def eval_data(batch_size=256):
    """The held-out images, in order, each once."""
    _, (images, labels) = load()
    return from_arrays((images, labels), batch_size, repeat=False)


def shift(example, seed):
    """Shifts an image by up to one pixel each way, filling with background."""
    import tensorflow as tf

    image, label = example
    padded = tf.pad(image, [[1, 1], [1, 1], [0, 0]])
    return tf.image.stateless_random_crop(padded, image.shape, seed), label


@configurable
def cnn(filters=32, units=128, dropout=0.0):
    """A small convolutional network that ends in logits, for the size of the images."""
    inputs = keras.Input(_image_shape(), name="image")
    x = keras.layers.Conv2D(filters, 3, padding="same", activation="relu")(inputs)  # [B, H, W, filters]
    x = keras.layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
    x = keras.layers.MaxPooling2D(2)(x)  # [B, H/2, W/2, filters]
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(units, activation="relu")(x)
    if dropout:
        x = keras.layers.Dropout(dropout)(x)
    return keras.Model(inputs, keras.layers.Dense(10, name="logits")(x), name="cnn")


@configurable
def mlp(units=(64, 64)):
    """A multilayer perceptron that ends in logits."""
    inputs = keras.Input(_image_shape(), name="image")
    x = keras.layers.Flatten()(inputs)
    for width in units:
        x = keras.layers.Dense(width, activation="relu")(x)
    return keras.Model(inputs, keras.layers.Dense(10, name="logits")(x), name="mlp")


def _image_shape():
    return load()[0][0].shape[1:]


def _load_digits():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        images.reshape(-1, 8, 8), labels, test_size=360, stratify=labels, random_state=0
    )
    return (train_x, train_y), (test_x, test_y)


def _load_mnist(path):
    if path is None:
        return keras.datasets.mnist.load_data()
    with np.load(path) as file:
        return (file["x_train"], file["y_train"]), (file["x_test"], file["y_test"])
