"""One digit against the rest, with few positive examples: weights from class counts, metrics for a rare class."""

import keras
import numpy as np
import tensorflow as tf

from losses import class_balanced_weights
from trainer import configurable, data


@configurable
def load(digit=8, positives=15, seed=0):
    """Loads the images, with few training images of `digit`.

    Args:
      digit: int, label 1; the others are label 0.
      positives: int, training images of `digit`, drawn by `seed`. The held-out images are complete.

    Returns:
      ((train images, train labels), (test images, test labels)): float32 [n, 64] in [0, 1], float32 [n, 1].
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        (images / 16).astype("float32"), labels, test_size=360, stratify=labels, random_state=0
    )
    ones = np.random.default_rng(seed).permutation(np.flatnonzero(train_y == digit))[:positives]
    kept = np.sort(np.concatenate([np.flatnonzero(train_y != digit), ones]))

    def is_digit(labels):
        return (labels == digit).astype("float32")[:, None]

    return (train_x[kept], is_digit(train_y[kept])), (test_x, is_digit(test_y))


@configurable
def train_data(batch_size=64, seed=0):
    """Endless shuffled batches, most of them with at most one positive."""
    arrays, _ = load()
    return data.from_arrays(arrays, batch_size, seed=seed)


@configurable
def eval_data(batch_size=360):
    """The held-out images, in order, each once."""
    _, arrays = load()
    return data.from_arrays(arrays, batch_size, repeat=False)


@configurable
def alpha(beta=1.0):
    """Returns the weight of label 1, that of label 0 being 1 - alpha, in the proportion of class-balanced weights.

    With `beta` 0 both weights are equal; with 1 they are inverse to the counts of the training data.
    """
    (_, labels), _ = load()
    ones = int(labels.sum())
    zero, one = class_balanced_weights([len(labels) - ones, ones], beta)
    return one / (zero + one)


@configurable
def thresholds(largest=16.0, count=401):
    """Returns probabilities for `keras.metrics.AUC`, evenly spaced as logits.

    Its default thresholds are evenly spaced as probabilities. Below the lowest one, 1/200, they resolve no order, and
    the average precision of a model that is confident of the negatives is up to .065 too small here.
    """
    logits = np.linspace(-largest, largest, count)
    return (1 / (1 + np.exp(-logits))).tolist()


@configurable
class F1(keras.metrics.F1Score):
    """F1 of label 1, with decisions by the sign of the logit. Keras' F1Score has no threshold for logits."""

    def __init__(self, name="f1"):
        super().__init__(average="micro", threshold=0.5, name=name)

    def update_state(self, labels, logits, sample_weight=None):
        """Adds a batch: float [B, 1], float [B, 1]."""
        super().update_state(labels, tf.sigmoid(logits), sample_weight)


@configurable
def network(units=(64, 64)):
    """A multilayer perceptron that ends in one logit."""
    inputs = keras.Input((64,), name="pixels")
    x = inputs
    for width in units:
        x = keras.layers.Dense(width, activation="relu")(x)
    return keras.Model(inputs, keras.layers.Dense(1, name="logit")(x), name="network")
