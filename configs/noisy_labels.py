"""Scikit-learn's digits with some wrong training labels; the held-out labels are true."""

import keras
import numpy as np

from trainer import configurable, data


def load(held_out=360):
    """Loads the images.

    Returns:
      ((train images, train labels), (test images, test labels)): float32 [n, 64] in [0, 1], int [n].
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype("float32")
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=held_out, stratify=labels, random_state=0
    )
    return (train_x, train_y), (test_x, test_y)


def corrupt(labels, noise, seed):
    """Changes a random fraction `noise` of the labels to one of the nine other classes, drawn uniformly."""
    random = np.random.default_rng(seed)
    wrong = random.permutation(len(labels))[: round(noise * len(labels))]
    labels = labels.copy()
    labels[wrong] = (labels[wrong] + random.integers(1, 10, len(wrong))) % 10
    return labels


@configurable
def train_data(batch_size=64, noise=0.4, seed=0):
    """Endless shuffled batches of images and label probabilities, [B, 10]; the same wrong labels in each epoch."""
    (images, labels), _ = load()
    return data.from_arrays((images, one_hot(corrupt(labels, noise, seed))), batch_size, seed=seed)


@configurable
def eval_data(batch_size=360):
    """The held-out images with their true labels, in order, each once."""
    _, (images, labels) = load()
    return data.from_arrays((images, one_hot(labels)), batch_size, repeat=False)


def one_hot(labels):
    """int [n] -> float32 [n, 10]."""
    return np.eye(10, dtype="float32")[labels]


@configurable
def mlp(units=(128, 128)):
    """A multilayer perceptron that ends in logits; large enough to memorize wrong labels."""
    hidden = [keras.layers.Dense(width, activation="relu") for width in units]
    return keras.Sequential([keras.Input((64,)), *hidden, keras.layers.Dense(10, name="logits")])
