"""Two phases on scikit-learn's digits: five classes, then five others with a few examples of each."""

import keras
import numpy as np

from trainer import configurable, data


@configurable
def load(classes, held_out=180):
    """Loads the images of some classes.

    Args:
      classes: ints, of 0 to 9; labels are positions in this list.
      held_out: int, test images, equally many of each class.

    Returns:
      ((train images, train labels), (test images, test labels)): float32 [n, 8, 8, 1] in [0, 1], int32 [n].
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, digits = load_digits(return_X_y=True)
    images = (pixels.reshape(-1, 8, 8, 1) / 16).astype("float32")
    labels = np.array([classes.index(digit) if digit in classes else -1 for digit in digits], "int32")
    images, labels = images[labels >= 0], labels[labels >= 0]
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=held_out, stratify=labels, random_state=0
    )
    return (train_x, train_y), (test_x, test_y)


@configurable
def train_data(classes, per_class=None, batch_size=50, seed=0):
    """Endless shuffled batches; with `per_class`, of this number of examples per class, drawn by `seed`."""
    (images, labels), _ = load(classes)
    if per_class is not None:
        order = np.random.default_rng(seed).permutation(len(labels))
        chosen = np.concatenate([order[labels[order] == label][:per_class] for label in range(len(classes))])
        images, labels = images[chosen], labels[chosen]
    return data.from_arrays((images, labels), batch_size, seed=seed)


@configurable
def eval_data(classes, batch_size=180):
    """The held-out images, in order, each once."""
    _, (images, labels) = load(classes)
    return data.from_arrays((images, labels), batch_size, repeat=False)


@configurable
def classifier(classes, filters=32, features=64):
    """An encoder, and a head named after its classes, so that `--init_from` loads only the encoder."""
    encoder = keras.Sequential(
        [
            keras.layers.Conv2D(filters, 3, padding="same", activation="relu"),  # [B, 8, 8, filters]
            keras.layers.Conv2D(filters, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(2),  # [B, 4, 4, filters]
            keras.layers.Flatten(),
            keras.layers.Dense(features, activation="relu"),
        ],
        name="encoder",
    )
    images = keras.Input((8, 8, 1), name="image")
    head = keras.layers.Dense(len(classes), name="head_" + "".join(map(str, classes)))
    return keras.Model(images, head(encoder(images)), name="classifier")
