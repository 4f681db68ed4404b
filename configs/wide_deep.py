"""Wide & Deep on synthetic clicks that depend on pairs of ids (Cheng et al. 2016, arXiv:1606.07792)."""

import keras
import numpy as np

from trainer import configurable, data

SITES, DEVICES, NUMBERS = 40, 30, 4
VOCABULARY = [f"site_{i:02d}" for i in range(SITES)]


@configurable
def clicks(examples=40_000, seed=0):
    """Draws examples, their labels, and the probabilities behind the labels.

    Three in ten of the 1,200 pairs (site, device) have a separate effect; the numbers act through a sine and a
    product; sites, devices and one number alone explain little.

    Returns:
      (features, labels, probabilities): a dict of string [n], int64 [n] and float32 [n, 4]; float32 [n]; float32 [n].
    """
    random = np.random.default_rng(seed)
    site, device = random.integers(0, SITES, examples), random.integers(0, DEVICES, examples)
    x = random.normal(size=(examples, NUMBERS)).astype("float32")
    pairs = random.normal(0, 3, (SITES, DEVICES)) * (random.random((SITES, DEVICES)) < 0.3)
    linear = 0.4 * x[:, 3] + random.normal(0, 0.15, SITES)[site] + random.normal(0, 0.15, DEVICES)[device]
    logits = -1 + linear + pairs[site, device] + 1.1 * np.sin(3 * x[:, 0]) + 0.7 * x[:, 1] * x[:, 2]
    probabilities = (1 / (1 + np.exp(-logits))).astype("float32")
    labels = (random.random(examples) < probabilities).astype("float32")
    return {"site": np.array(VOCABULARY)[site], "device": device, "numbers": x}, labels, probabilities


@configurable
def train_data(batch_size=128, seed=0):
    """Endless shuffled batches of the first four fifths."""
    return data.from_arrays(_part(slice(None, -_held_out())), batch_size, seed=seed)


@configurable
def eval_data(batch_size=1_000):
    """The last fifth, in order, each once."""
    return data.from_arrays(_part(slice(-_held_out(), None)), batch_size, repeat=False)


@configurable
def wide_and_deep(embedding=4, units=(64, 32)):
    """The sum of the logits of two models; the variables of one are named `wide/...`, of the other `deep/...`."""
    inputs = {
        "site": keras.Input((), dtype="string", name="site"),
        "device": keras.Input((), dtype="int64", name="device"),
        "numbers": keras.Input((NUMBERS,), name="numbers"),
    }
    logits = [part(inputs) for part in (_wide(inputs), _deep(inputs, embedding, units))]
    return keras.Model(inputs, keras.layers.Add(name="logit")(logits), name="wide_and_deep")


def _wide(inputs):
    """A linear model of numbers, ids and pairs of ids, initialized to zero, where FTRL's L1 penalty keeps weights."""

    def weights(ids, count, name):  # [B] -> [B, 1], a weight for each id
        return keras.layers.Embedding(count, 1, embeddings_initializer="zeros", name=name)(ids)

    site, device = _site_ids(inputs), inputs["device"]
    logits = [
        weights(site, SITES + 1, "site_weights"),
        weights(device, DEVICES, "device_weights"),
        weights(site * DEVICES + device, (SITES + 1) * DEVICES, "pair_weights"),
        keras.layers.Dense(1, kernel_initializer="zeros", name="number_weights")(inputs["numbers"]),
    ]
    return keras.Model(inputs, keras.layers.Add()(logits), name="wide")


def _deep(inputs, embedding, units):
    """Embeddings of the ids concatenated with the numbers, then a multilayer perceptron."""
    x = keras.layers.Concatenate()(
        [
            keras.layers.Embedding(SITES + 1, embedding, name="site_embedding")(_site_ids(inputs)),
            keras.layers.Embedding(DEVICES, embedding, name="device_embedding")(inputs["device"]),
            inputs["numbers"],
        ]
    )  # [B, 2 * embedding + NUMBERS]
    for width in units:
        x = keras.layers.Dense(width, activation="relu")(x)
    return keras.Model(inputs, keras.layers.Dense(1, name="logit")(x), name="deep")


def _site_ids(inputs):
    """Numbers the sites from 1 on; 0 is a site that is not in the training data."""
    return keras.layers.StringLookup(vocabulary=VOCABULARY)(inputs["site"])


def _held_out():
    return len(clicks()[1]) // 5


def _part(rows):
    features, labels, _ = clicks()
    return {name: values[rows] for name, values in features.items()}, labels[rows]
