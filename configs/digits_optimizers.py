"""Scikit-learn's digits and a multilayer perceptron, small enough to compare five optimizers in a minute."""

import keras

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


@configurable
def train_data(batch_size=64, seed=0):
    """Endless shuffled batches; the order depends on `seed`, not on `run.seed`."""
    train, _ = load()
    return data.from_arrays(train, batch_size, seed=seed)


@configurable
def eval_data(batch_size=360):
    """The held-out images, in order, each once."""
    _, test = load()
    return data.from_arrays(test, batch_size, repeat=False)


@configurable
def mlp(units=(64, 64)):
    """A multilayer perceptron that ends in logits."""
    hidden = [keras.layers.Dense(width, activation="relu") for width in units]
    return keras.Sequential([keras.Input((64,)), *hidden, keras.layers.Dense(10, name="logits")])
