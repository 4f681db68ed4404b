"""Paragraphs of NumPy's documentation: ragged batches of hashed words, labelled by module."""

import importlib
import inspect
import re

import keras
import numpy as np
import tensorflow as tf

from layers import RaggedPool
from trainer import configurable, data

FAMILIES = ("chebyshev", "hermite", "hermite_e", "laguerre", "legendre", "polynomial")
MODULES = {  # each class, and the modules whose public names it documents
    "fft": ["numpy.fft"],
    "linalg": ["numpy.linalg"],
    "ma": ["numpy.ma"],
    "polynomial": ["numpy.polynomial", *(f"numpy.polynomial.{family}" for family in FAMILIES)],
    "random": ["numpy.random"],
    "testing": ["numpy.testing"],
}


@configurable
def load(held_out=0.2, least=6, most=80):
    """Reads the paragraphs of the installed NumPy that have `least` to `most` words and belong to one class only.

    Returns:
      ((train texts, train labels), (test texts, test labels)): string [n], int32 [n], positions in MODULES. Texts are
      unique.
    """
    classes = {}
    for label, modules in enumerate(MODULES.values()):
        for text in (text for module in modules for text in paragraphs(importlib.import_module(module))):
            if least <= len(text.split()) <= most:
                classes.setdefault(text, set()).add(label)
    found = [(text, *labels) for text, labels in classes.items() if len(labels) == 1]
    texts, labels = np.array([text for text, _ in found]), np.array([label for _, label in found], "int32")
    order = np.random.default_rng(0).permutation(len(found))
    test, train = np.split(order, [round(held_out * len(order))])
    return (texts[train], labels[train]), (texts[test], labels[test])


def paragraphs(module):
    """Yields the paragraphs, with single spaces, of the docstrings of `module`: functions, classes and methods."""
    for name in sorted(vars(module)):
        member = getattr(module, name)
        if name.startswith("_") or not callable(member):
            continue
        inside = vars(member) if inspect.isclass(member) else {}
        for documented in (member, *(inside[key] for key in sorted(inside) if not key.startswith("_"))):
            for paragraph in re.split(r"\n\s*\n", inspect.getdoc(documented) or ""):
                yield " ".join(paragraph.split())


class HashedWords(data.ArraySource):
    """Texts as ragged ids, made in the pipeline: a batch is a function of the step, as for any arrays."""

    def batches(self, start=0, chunk=None):
        """See `Source.batches`: ((ids, ragged int64 [B, (words)]), labels)."""
        return super().batches(start, chunk).map(lambda texts, labels: (hash_words(texts), labels))


@configurable
def hash_words(texts, buckets=16_384):
    """Returns ids in [0, buckets), ragged int64 [B, (words)], of strings [B] in the pipeline; words may share an id."""
    words = tf.strings.split(tf.strings.regex_replace(tf.strings.lower(texts), "[^a-z0-9_]+", " "))
    return tf.strings.to_hash_bucket_fast(words, buckets)


@configurable
def train_data(batch_size=64, seed=0):
    """Endless shuffled batches."""
    return HashedWords(load()[0], batch_size, seed=seed)


@configurable
def eval_data(batch_size=256):
    """The held-out paragraphs, in order, each once."""
    return HashedWords(load()[1], batch_size, repeat=False)


@configurable
def bag_of_words(buckets=16_384, size=64, dropout=0.5):
    """The mean and the maximum of the embeddings of a text's words, then a linear layer."""
    ids = keras.Input((None,), dtype="int64", ragged=True, name="ids")
    words = keras.layers.Embedding(buckets, size, name="words")(ids)  # ragged [B, (words), size]
    x = keras.layers.Concatenate()([RaggedPool("mean")(words), RaggedPool("max")(words)])  # [B, 2 size]
    x = keras.layers.Dropout(dropout)(x)
    return keras.Model(ids, keras.layers.Dense(len(MODULES), name="module")(x), name="bag_of_words")
