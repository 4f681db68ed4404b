"""Twenty layers without normalization or skips, on scikit-learn's digits, to compare activations."""

import keras

from layers import ActivationMonitor
from trainer import configurable, data

PIXELS = 64
INITIALIZERS = {"selu": "lecun_normal", "relu": "he_normal"}  # keep the variance; other activations use Glorot's


@configurable
def load(held_out=360):
    """Loads the images, each pixel with mean 0 and variance 1 over the training images (0 where it never changes).

    Returns:
      ((train images, train labels), (test images, test labels)): float32 [n, 64], int32 [n].
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels.astype("int32"), test_size=held_out, stratify=labels, random_state=0
    )
    scaler = StandardScaler().fit(train_x)
    return (scaler.transform(train_x).astype("float32"), train_y), (scaler.transform(test_x).astype("float32"), test_y)


@configurable
def train_data(batch_size=64, seed=0):
    """Endless shuffled batches."""
    arrays, _ = load()
    return data.from_arrays(arrays, batch_size, seed=seed)


@configurable
def eval_data(batch_size=360):
    """The held-out images, in order, each once."""
    _, arrays = load()
    return data.from_arrays(arrays, batch_size, repeat=False)


@configurable
def network(activation="selu", depth=20, units=64, dropout=0.0, watched=(1, 10, 20)):
    """A deep perceptron that ends in logits (Klambauer et al. 2017, arXiv:1706.02515, for selu).

    Args:
      activation: name of the hidden layers' activation.
      depth: int, hidden layers.
      units: int, their width.
      dropout: rate of AlphaDropout after the last hidden layer, which keeps mean and variance.
      watched: numbers of the hidden layers, from 1, whose activations are reported as `metrics/layer_<number>/...`.
    """
    inputs = keras.Input((PIXELS,), name="image")
    x, initializer = inputs, INITIALIZERS.get(activation, "glorot_uniform")
    for number in range(1, depth + 1):
        x = keras.layers.Dense(units, activation=activation, kernel_initializer=initializer)(x)
        if number in watched:
            x = ActivationMonitor(name=f"layer_{number}")(x)
    if dropout:
        x = keras.layers.AlphaDropout(dropout)(x)
    return keras.Model(inputs, keras.layers.Dense(10, name="logits")(x), name="network")
