"""Two phases on scikit-learn's digits: a contrastive loss trains an encoder, then a linear layer classifies."""

import keras
import tensorflow as tf

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


@configurable
def train_data(batch_size=256, augment=False, seed=0):
    """Endless shuffled batches; with `augment`, each image shifted by up to one pixel."""
    return data.from_arrays(load()[0], batch_size, seed=seed, augment=shift if augment else None)


@configurable
def eval_data(batch_size=360):
    """The held-out images, in order, each once."""
    return data.from_arrays(load()[1], batch_size, repeat=False)


def shift(example, seed):
    """Shifts an image by up to one pixel each way, filling with background."""
    image, label = example
    padded = tf.pad(image, [[1, 1], [1, 1], [0, 0]])
    return tf.image.stateless_random_crop(padded, image.shape, seed), label


@configurable
def embedder(size=32):
    """The encoder and a projection for the contrastive loss."""
    projection = [keras.layers.Dense(64, activation="relu"), keras.layers.Dense(size)]
    return _behind_encoder(keras.Sequential(projection, name="projection"))


@configurable
def classifier():
    """The same encoder and one linear layer: `--init_from` loads the encoder without the projection."""
    return _behind_encoder(keras.layers.Dense(10, name="head"))


def _behind_encoder(head, filters=32, features=64):
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
    return keras.Model(images, head(encoder(images)))
