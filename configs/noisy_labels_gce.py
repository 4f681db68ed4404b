"""Digits with wrong training labels, and a loss that is robust to them."""

import keras
import numpy as np

from trainer import configurable, data

CLASSES = 10


@configurable
def load(noise=0.4, seed=0):
    """Loads the images, and replaces some training labels by random ones.

    Args:
      noise: fraction of the training labels that are replaced, uniformly over all classes: one in ten stays correct.
      seed: int, of the draws.

    Returns:
      ((train images, noisy labels), (test images, true labels)): float32 [n, 64] in [0, 1], int32 [n].
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        (images / 16).astype("float32"), labels.astype("int32"), test_size=360, stratify=labels, random_state=0
    )
    random = np.random.default_rng(seed)
    drawn = random.integers(CLASSES, size=len(train_y), dtype="int32")
    return (train_x, np.where(random.random(len(train_y)) < noise, drawn, train_y)), (test_x, test_y)


@configurable
def train_data(batch_size=64, seed=0):
    """Endless shuffled batches with noisy labels, the same ones in each epoch."""
    arrays, _ = load()
    return data.from_arrays(arrays, batch_size, seed=seed)


@configurable
def eval_data(batch_size=360):
    """The held-out images with their true labels, in order, each once."""
    _, arrays = load()
    return data.from_arrays(arrays, batch_size, repeat=False)


@configurable
def network(units=(128, 64)):
    """A multilayer perceptron that ends in logits, large enough to memorize wrong labels."""
    inputs = keras.Input((64,), name="pixels")
    x = inputs
    for width in units:
        x = keras.layers.Dense(width, activation="relu")(x)
    return keras.Model(inputs, keras.layers.Dense(CLASSES, name="logits")(x), name="network")
