"""Friedman's regression problem, with a model that adds a reconstruction loss in its `call`."""

import keras
import numpy as np
import tensorflow as tf

from trainer import add_loss, add_metric, configurable, data

EXAMPLES, FEATURES = 4_000, 10


@configurable
def load(train_examples=3_000, seed=0):
    """Draws y = 10 sin(pi x0 x1) + 20 (x2 - .5)^2 + 10 x3 + 5 x4 + noise, with five irrelevant inputs.

    Args:
      train_examples: int, 1 to 3,000 of them.
      seed: int.

    Returns:
      ((train inputs, noisy targets), (test inputs, targets without noise)): float32 [n, 10], [n, 1].
    """
    from sklearn.datasets import make_friedman1

    inputs, targets = make_friedman1(EXAMPLES, FEATURES, noise=0.0, random_state=seed)
    noisy = targets + np.random.default_rng(seed).normal(size=EXAMPLES)
    inputs, targets, noisy = (
        inputs.astype("float32"),
        targets.astype("float32")[:, None],
        noisy.astype("float32")[:, None],
    )
    return (inputs[:train_examples], noisy[:train_examples]), (inputs[-1_000:], targets[-1_000:])


@configurable
def train_data(batch_size=64, seed=0):
    """Endless shuffled batches with noisy targets."""
    arrays, _ = load()
    return data.from_arrays(arrays, batch_size, seed=seed)


@configurable
def eval_data(batch_size=1_000):
    """Held-out inputs with targets without noise, in order, each once."""
    _, arrays = load()
    return data.from_arrays(arrays, batch_size, repeat=False)


class ReconstructingRegressor(keras.Model):
    """A multilayer perceptron whose last hidden layer must also reconstruct the inputs.

    Args:
      units: widths of the hidden layers.
      reconstruction_weight: number or schedule of the step; 0 only reports.
    """

    def __init__(self, units=(64, 64), reconstruction_weight=1.0, **kwargs):
        super().__init__(**kwargs)
        self.reconstruction_weight = reconstruction_weight
        self.body = keras.Sequential([keras.layers.Dense(width, activation="relu") for width in units])
        self.reconstruct = keras.layers.Dense(FEATURES)
        self.head = keras.layers.Dense(1)

    def call(self, inputs):
        """Returns predictions, [B, 1]; adds a loss and a metric, which do nothing outside of a step."""
        hidden = self.body(inputs)
        error = tf.square(self.reconstruct(hidden) - inputs)  # [B, 10]
        add_loss(error, "reconstruction", weight=self.reconstruction_weight)
        add_metric(tf.sqrt(tf.reduce_max(error, -1)), "worst_input")  # of each example
        return self.head(hidden)
