"""Shuffled and augmented data, a network with dropout and moving statistics; says at which step it is."""

import keras
import numpy as np
import tensorflow as tf

from trainer import configurable
from trainer.data import from_arrays

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(64, 3)).astype(np.float32), RNG.normal(size=(64, 1)).astype(np.float32)


@configurable
def network():
    """4 units."""
    layers = [
        keras.layers.Dense(4, "tanh"),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(1),
    ]
    return keras.Sequential([keras.Input((3,)), *layers])


@configurable
def train_data():
    """Batches of 8, with noise."""
    return from_arrays(
        (X, Y), 8, augment=lambda example, seed: (example[0] + tf.random.stateless_normal([3], seed), example[1])
    )


@configurable
def eval_data():
    """13 examples in batches of 5."""
    return from_arrays((X[:13], Y[:13]), 5, repeat=False)


@configurable
def say(trainer, step, metrics):
    """A hook: tells the step to whoever waits for it."""
    print(f"at {step}\n", end="", flush=True)  # one piece: two workers share the pipe
