"""How the rows of the teaching material train: through the Trainer, for a few steps, on one replica or two."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.runs import arrays_of
from trainer.replicas.distribution import make_strategy

both = pytest.mark.parametrize("strategy", ["default", "mirrored"])


def train(make, data, steps=5, strategy="default"):
    """Trains what `make` returns, a Trainer made in the strategy's scope, always on the one batch `data`.

    Returns:
        (trainer, metrics of the first step, metrics of the last of `steps` steps).
    """
    keras.utils.set_random_seed(0)
    with make_strategy(strategy).scope():
        trainer = make()
    dataset = data if isinstance(data, tf.data.Dataset) else tf.data.Dataset.from_tensors(data)
    iterator = iter(trainer.distribute(dataset.repeat()))
    first = trainer.train(iterator, 1)
    if steps > 2:
        trainer.train(iterator, steps - 2)
    return trainer, first, trainer.train(iterator, 1)


def learns(make, data, steps=5, strategy="default"):
    """`train`, after which the loss must have fallen and every trained variable moved; returns the trainer."""
    start = {}

    def built():
        trainer = make()
        trainer.train_begin = lambda: start or start.update(arrays_of(trainer.trainable_variables))
        return trainer

    trainer, first, last = train(built, data, steps, strategy)
    assert np.isfinite(last["loss"]) and last["loss"] < first["loss"]
    still = [name for name, v in trainer.trainable_variables.items() if np.array_equal(v.numpy(), start[name])]
    assert not still, f"{still} did not move"
    return trainer


def digits(n=32):
    """Returns the first of scikit-learn's digits, float32 [n, 8, 8, 1] in [0, 1], and their classes, int32 [n]."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return (pixels[:n].reshape(-1, 8, 8, 1) / 16).astype(np.float32), labels[:n].astype(np.int32)


def numbers(n=16, features=3):
    """Returns inputs, float32 [n, features], and targets, float32 [n, 1], that are a smooth function of them."""
    x = np.random.default_rng(0).normal(size=(n, features)).astype(np.float32)
    return x, np.tanh(x[:, :1] - x[:, 1:2])


def sequential(*layers, shape=(3,)):
    """Returns a Sequential model with inputs of `shape`."""
    return keras.Sequential([keras.Input(shape), *layers])
