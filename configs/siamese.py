"""Pairs of scikit-learn's digits: two inputs, one shared encoder, three outputs."""

import keras
import numpy as np

from trainer import configurable, data


@configurable
def load(held_out=360):
    """Loads the images.

    Returns:
      ((train images, train labels), (test images, test labels)): float32 [n, 8, 8, 1] in [0, 1], int32 [n].
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    images = (pixels.reshape(-1, 8, 8, 1) / 16).astype("float32")
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels.astype("int32"), test_size=held_out, stratify=labels, random_state=0
    )
    return (train_x, train_y), (test_x, test_y)


def pairs(images, labels, partners, seed):
    """Pairs each image with `partners` others, alternately of the same class and of any other.

    Returns:
      (inputs, targets): {"left", "right"}: [n * partners, 8, 8, 1]; {"left", "right"}: int32, the classes, and "same":
      float32 [n * partners, 1].
    """
    random = np.random.default_rng(seed)
    left, same = np.repeat(np.arange(len(labels)), partners), np.arange(len(labels) * partners) % 2 == 0
    right = np.empty_like(left)
    for label in np.unique(labels):
        for alike in (True, False):
            rows = (labels[left] == label) & (same == alike)
            right[rows] = random.choice(np.flatnonzero((labels == label) == alike), rows.sum())
    inputs = {"left": images[left], "right": images[right]}
    return inputs, {"left": labels[left], "right": labels[right], "same": same.astype("float32")[:, None]}


@configurable
def train_data(batch_size=64, partners=8, seed=0):
    """Endless shuffled batches of pairs of training images, the same pairs in each epoch."""
    (images, labels), _ = load()
    return data.from_arrays(pairs(images, labels, partners, seed), batch_size, seed=seed)


@configurable
def eval_data(batch_size=720, partners=4, seed=1):
    """Pairs of held-out images, in order, each once."""
    _, (images, labels) = load()
    return data.from_arrays(pairs(images, labels, partners, seed), batch_size, repeat=False)


@configurable
def siamese(filters=32, features=64):
    """One encoder for both images; its features give the class of each, and whether the classes are the same."""
    encoder = keras.Sequential(
        [
            keras.layers.Conv2D(filters, 3, padding="same", activation="relu"),  # [B, 8, 8, filters]
            keras.layers.MaxPooling2D(2),  # [B, 4, 4, filters]
            keras.layers.Conv2D(filters, 3, padding="same", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(features, activation="relu"),
        ],
        name="encoder",
    )
    inputs = {side: keras.Input((8, 8, 1), name=side) for side in ("left", "right")}
    left, right = (encoder(inputs[side]) for side in ("left", "right"))
    to_class = keras.layers.Dense(10, name="class")
    x = keras.layers.Dense(features, activation="relu", name="compare")(keras.ops.abs(left - right))
    same = keras.layers.Dense(1, name="same")(x)
    return keras.Model(inputs, {"left": to_class(left), "right": to_class(right), "same": same}, name="siamese")
