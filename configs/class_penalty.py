"""Digits with unequal costs of errors: two losses and a metric made from a cost matrix."""

import keras
import numpy as np
import tensorflow as tf

from losses import CostSensitive, WeightedCrossentropy
from trainer import configurable, data

CLASSES = 10


@configurable
def load(dataset="digits", path=None):
    """Loads the images.

    Args:
      dataset: "digits", scikit-learn's, or "mnist", which `keras.datasets` downloads once.
      path: a local `mnist.npz`, instead of the download.

    Returns:
      ((train images, train labels), (test images, test labels)): float32 [n, pixels] in [0, 1], int32 [n].
    """
    if dataset not in ("digits", "mnist"):
        raise ValueError(f"`dataset` must be 'digits' or 'mnist', got {dataset!r}.")
    parts, white = (_load_digits(), 16) if dataset == "digits" else (_load_mnist(path), 255)
    return tuple(
        (images.reshape(len(images), -1).astype("float32") / white, labels.astype("int32")) for images, labels in parts
    )


@configurable
def train_data(batch_size=64, seed=0):
    """Endless shuffled batches."""
    arrays, _ = load()
    return data.from_arrays(arrays, batch_size, seed=seed)


@configurable
def eval_data(batch_size=360):
    """The held-out images, in order, each once."""
    _, arrays = load()
    return data.from_arrays(arrays, batch_size, repeat=False)


@configurable
def costs(digit=8, penalty=10.0):
    """Returns the costs of errors, float [C, C], a row per true class: `penalty` for a missed `digit`, else 1."""
    matrix = 1 - np.eye(CLASSES)
    matrix[digit] *= penalty
    return matrix


@configurable
def weighted():
    """Crossentropy with the costs of each class as its weight."""
    return WeightedCrossentropy(class_weights=costs().max(1))


@configurable
def expected_cost():
    """The expected cost of the predictions."""
    return CostSensitive(costs())


@configurable
def plain():
    """Crossentropy, in which all errors have equal costs."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@configurable
class Cost(keras.metrics.Mean):
    """The mean cost of predicting the class with the largest logit."""

    def __init__(self, name="cost"):
        super().__init__(name=name)
        self.costs = tf.constant(costs(), tf.float32)

    def update_state(self, labels, logits, sample_weight=None):
        """Adds a batch: int [B], float [B, C]."""
        decisions = tf.stack([tf.cast(labels, tf.int32), tf.argmax(logits, -1, tf.int32)], -1)
        super().update_state(tf.gather_nd(self.costs, decisions), sample_weight)


@configurable
class Recall(keras.metrics.Mean):
    """The recall of a `digit`. Keras' Recall does not take class ids."""

    def __init__(self, digit=8, name="recall"):
        super().__init__(name=name)
        self.digit = digit

    def update_state(self, labels, logits, sample_weight=None):
        """Adds a batch: int [B], float [B, C]; only examples of the digit count."""
        of_digit = tf.cast(labels, tf.int32) == self.digit
        super().update_state(tf.argmax(logits, -1, tf.int32) == self.digit, of_digit)


@configurable
def network(units=16):
    """One small hidden layer and logits."""
    inputs = keras.Input(load()[0][0].shape[1:], name="pixels")
    x = keras.layers.Dense(units, activation="relu", name="hidden")(inputs)
    return keras.Model(inputs, keras.layers.Dense(CLASSES, name="logits")(x), name="network")


def _load_digits():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(images, labels, test_size=360, stratify=labels, random_state=0)
    return (train_x, train_y), (test_x, test_y)


def _load_mnist(path):
    if path is None:
        return keras.datasets.mnist.load_data()
    with np.load(path) as file:
        return (file["x_train"], file["y_train"]), (file["x_test"], file["y_test"])
