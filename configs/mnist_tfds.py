"""MNIST from TensorFlow Datasets: in memory, or streamed from the files that it prepares."""

import keras

from trainer import configurable, data


@configurable
def examples(split, name="mnist", data_dir=None):
    """Returns (image, label) one by one, in the order of the files; downloads and prepares missing data.

    Args:
      split: "train" or "test", or any other expression that TensorFlow Datasets knows, such as "train[:90%]".
      name: a set of images of one size with one label each, such as "fashion_mnist" or "cifar10".
      data_dir: folder of prepared sets, None for `~/tensorflow_datasets`.
    """
    import tensorflow_datasets as tfds

    return tfds.load(name, split=split, data_dir=data_dir, as_supervised=True, shuffle_files=False)


def load(split):
    """Returns (images, labels): uint8 [n, height, width, channels], int64 [n]."""
    dataset = examples(split)
    return dataset.batch(dataset.cardinality()).get_single_element()


@configurable
def train_data(batch_size=64, seed=0):
    """Endless shuffled batches of images in memory."""
    return data.from_arrays(load("train"), batch_size, seed=seed)


@configurable
def streamed_train_data(batch_size=64, buffer=10_000, seed=0):
    """The same for a set that does not fit into memory: a plain dataset, which a resumed run skips to its position."""
    shuffled = examples("train").shuffle(buffer, seed=seed, reshuffle_each_iteration=True)
    return shuffled.repeat().batch(batch_size, drop_remainder=True)


@configurable
def eval_data(batch_size=256):
    """The test images, in order, each once."""
    return data.from_arrays(load("test"), batch_size, repeat=False)


@configurable
def cnn(shape=(28, 28, 1), classes=10, filters=32, units=128, dropout=0.5):
    """A small convolutional network from bytes to logits."""
    inputs = keras.Input(shape, dtype="uint8", name="image")
    x = keras.layers.Rescaling(1 / 255)(inputs)
    for width in (filters, 2 * filters):
        x = keras.layers.Conv2D(width, 3, padding="same", activation="relu")(x)
        x = keras.layers.MaxPooling2D(2)(x)  # [B, H / 2, W / 2, width], then [B, H / 4, W / 4, 2 width]
    x = keras.layers.Dense(units, activation="relu")(keras.layers.Flatten()(x))
    x = keras.layers.Dropout(dropout)(x)
    return keras.Model(inputs, keras.layers.Dense(classes, name="logits")(x), name="cnn")
