"""Friedman's regression problem with outliers in the training targets, for the comparison of losses."""

import keras

from trainer import configurable, data

EXAMPLES, HELD_OUT, FEATURES = 4_000, 1_000, 10


@configurable
def load(outliers=0.1, factor=40.0, noise=1.0, seed=0):
    """Draws y = 10 sin(pi x0 x1) + 20 (x2 - .5)^2 + 10 x3 + 5 x4 + noise, with five irrelevant inputs.

    Args:
      outliers: fraction of the training examples whose noise is `factor` times as large.
      factor: float.
      noise: float, the standard deviation of the noise of the others.
      seed: int.

    Returns:
      ((train inputs, noisy targets), (test inputs, targets without noise)): float32 [n, 10], [n, 1].
    """
    import numpy as np
    from sklearn.datasets import make_friedman1

    inputs, targets = make_friedman1(EXAMPLES, FEATURES, noise=0.0, random_state=seed)
    random = np.random.default_rng(seed)
    deviation = np.where(random.random(EXAMPLES) < outliers, factor * noise, noise)
    noisy = targets + deviation * random.normal(size=EXAMPLES)
    inputs, targets, noisy = (
        inputs.astype("float32"),
        targets.astype("float32")[:, None],
        noisy.astype("float32")[:, None],
    )
    return (inputs[:-HELD_OUT], noisy[:-HELD_OUT]), (inputs[-HELD_OUT:], targets[-HELD_OUT:])


@configurable
def train_data(batch_size=64, seed=0):
    """Endless shuffled batches with noisy targets."""
    arrays, _ = load()
    return data.from_arrays(arrays, batch_size, seed=seed)


@configurable
def eval_data(batch_size=HELD_OUT):
    """Held-out inputs with targets without noise, in order, each once."""
    _, arrays = load()
    return data.from_arrays(arrays, batch_size, repeat=False)


@configurable
def perceptron(units=(64, 64), activation="relu"):
    """A multilayer perceptron that ends in one number."""
    inputs = keras.Input((FEATURES,), name="inputs")
    x = inputs
    for width in units:
        x = keras.layers.Dense(width, activation=activation)(x)
    return keras.Model(inputs, keras.layers.Dense(1, name="prediction")(x), name="perceptron")
