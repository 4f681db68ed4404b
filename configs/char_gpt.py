"""A small GPT that writes Python's own documentation, character by character."""

import math
import sys

import keras
import numpy as np
import tensorflow as tf

from trainer import Trainer, configurable, data


def load(held_out=0.1):
    """Loads the help topics that come with Python.

    Returns:
      (train ids, test ids, alphabet): int32 [n], int32 [m], and a str whose character i has id i.
    """
    from pydoc_data.topics import topics

    text = "".join(topics[name] for name in sorted(topics))
    alphabet, ids = np.unique(list(text), return_inverse=True)
    train, test = np.split(ids.astype("int32"), [int(len(ids) * (1 - held_out))])
    return train, test, "".join(alphabet)


@configurable
def train_data(batch_size=32, length=64, seed=0):
    """Endless shuffled batches of (ids, next ids), int32 [B, length]; the windows of each epoch have other starts."""
    ids = tf.constant(load()[0])

    def window(start, seed):
        start += tf.random.stateless_uniform([], seed, maxval=length, dtype=tf.int32)
        piece = tf.slice(ids, [start], [length + 1])
        return piece[:-1], piece[1:]

    return data.from_arrays(np.arange(0, len(ids) - 2 * length, length, "int32"), batch_size, seed=seed, augment=window)


@configurable
def eval_data(batch_size=64, length=64):
    """The held-out text in windows of `length`, each once."""
    ids = load()[1]
    rows = (len(ids) - 1) // length
    windows = tuple(ids[i : i + rows * length].reshape(rows, length) for i in (0, 1))
    return data.from_arrays(windows, batch_size, repeat=False)


class Attention(keras.layers.Layer):
    """Causal self-attention, with a cache of the keys and values of earlier positions."""

    def __init__(self, width, heads, **kwargs):
        super().__init__(**kwargs)
        self.heads = heads
        self.project = keras.layers.Dense(3 * width, use_bias=False)
        self.merge = keras.layers.Dense(width, use_bias=False)

    def call(self, x, cache, position):
        """Returns (outputs, cache) of x [B, t, width] at `position` and after; see GPT."""
        new = tf.reshape(self.project(x), [*tf.unstack(tf.shape(x)[:2]), 3, self.heads, x.shape[2] // self.heads])
        queries, new = new[:, :, 0], new[:, :, 1:]  # [B, t, heads, D]; [B, t, keys and values, heads, D]
        cache = new if cache is None else keras.ops.slice_update(cache, [0, position, 0, 0, 0], new)
        keys, values = cache[:, :, 0], cache[:, :, 1]
        visible = tf.range(tf.shape(keys)[1]) <= position + tf.range(tf.shape(x)[1])[:, None]
        scores = tf.cast(tf.einsum("bqhd,bkhd->bhqk", queries, keys), tf.float32) / math.sqrt(queries.shape[-1])
        weights = tf.cast(tf.nn.softmax(tf.where(visible, scores, -1e9)), values.dtype)
        mixed = tf.einsum("bhqk,bkhd->bqhd", weights, values)
        return self.merge(tf.reshape(mixed, tf.shape(x))), cache


class Block(keras.layers.Layer):
    """Attention and a perceptron, each added to its normalized inputs."""

    def __init__(self, width, heads, **kwargs):
        super().__init__(**kwargs)
        self.attention_norm, self.mlp_norm = keras.layers.LayerNormalization(), keras.layers.LayerNormalization()
        self.attention = Attention(width, heads)
        self.widen = keras.layers.Dense(4 * width, activation="gelu")
        self.narrow = keras.layers.Dense(width)

    def call(self, x, cache, position):
        """Returns (outputs, cache); see GPT."""
        mixed, cache = self.attention(self.attention_norm(x), cache=cache, position=position)
        x += mixed
        return x + self.narrow(self.widen(self.mlp_norm(x))), cache


class GPT(keras.Model):
    """Ids to logits of the next ids, through the same embedding both ways (Radford et al. 2019).

    Args:
      vocabulary: int, V.
      context: int, the longest text.
      width, blocks, heads: int.
    """

    def __init__(self, vocabulary, context, width, blocks, heads, **kwargs):
        super().__init__(**kwargs)
        small = keras.initializers.RandomNormal(stddev=0.02)
        self.embedding = keras.layers.ReversibleEmbedding(vocabulary, width, embeddings_initializer=small)
        self.places = keras.layers.Embedding(context, width, embeddings_initializer=small)
        self.blocks = [Block(width, heads) for _ in range(blocks)]
        self.norm = keras.layers.LayerNormalization()
        self.context, self.cache_shape = context, [blocks, context, 2, heads, width // heads]

    def call(self, ids, cache=None, position=0):
        """Returns (logits float32 [B, t, V], cache).

        Args:
          ids: int32 [B, t], characters at `position` and after.
          cache: None: `ids` is the whole text. Otherwise a tensor of each block, [B, context, 2, heads, D], with the
            keys and values of the characters before `position`.
          position: int32 scalar.
        """
        x = self.embedding(ids) + self.places(position + tf.range(tf.shape(ids)[1]))
        caches = []
        for block, of_block in zip(self.blocks, cache or [None] * len(self.blocks)):
            x, of_block = block(x, cache=of_block, position=position)
            caches.append(of_block)
        return tf.cast(self.embedding(self.norm(x), reverse=True), tf.float32), caches


@configurable
def gpt(context=64, width=64, blocks=2, heads=4):
    """Returns a GPT for the characters of the text."""
    return GPT(len(load()[2]), context, width, blocks, heads)


@configurable
def adamw(learning_rate, weight_decay=0.1, beta_2=0.95):
    """Returns an AdamW that decays neither norms nor biases."""
    optimizer = keras.optimizers.AdamW(learning_rate, weight_decay, beta_2=beta_2)
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    return optimizer


class Perplexity(keras.metrics.Mean):
    """e to the mean crossentropy: the number of equally likely characters that would be as hard to predict."""

    def __init__(self, name="perplexity", **kwargs):
        super().__init__(name, **kwargs)

    def update_state(self, ids, logits, sample_weight=None):
        """Adds the crossentropies of ids [B, t] and logits [B, t, V]."""
        super().update_state(tf.nn.sparse_softmax_cross_entropy_with_logits(ids, logits), sample_weight)

    def result(self):
        """Returns the perplexity of all characters since the last reset."""
        return tf.exp(super().result())


class GPTTrainer(Trainer):
    """Predicts the next character; shows a text at each evaluation."""

    def compute_losses(self, batch, training):
        """Returns the crossentropy per character, [B, t], and the logits; traced, per replica."""
        ids, following = batch
        logits, _ = self.model(ids)
        return {"crossentropy": tf.nn.sparse_softmax_cross_entropy_with_logits(following, logits)}, logits

    def eval_end(self, metrics):
        """Writes a text that begins with "The " to TensorBoard; eager."""
        if self.summaries is not None:
            self.summaries.text("sample", generate(self.model, "The "))
        return metrics


def generate(model, prompt, temperature=0.7, seed=0):
    """Returns `prompt` and what the model writes after it, up to its context; eager.

    The prompt is read at once, then each character costs one position: the cache holds the keys and values of the rest.

    Args:
      model: GPT.
      prompt: str of 1 to `context` characters.
      temperature: number that divides the logits; 0 takes the likeliest character.
      seed: int.
    """
    alphabet = load()[2]
    blocks, *shape = model.cache_shape

    @tf.function
    def write(ids):
        cache = [tf.zeros([1, *shape], model.compute_dtype)] * blocks
        logits, cache = model(ids[None], cache=cache)
        for place in tf.range(tf.size(ids), model.context):
            tf.autograph.experimental.set_loop_options(
                shape_invariants=[(ids, tf.TensorShape([None])), (logits, tf.TensorShape([1, None, len(alphabet)]))]
            )
            drawn = tf.random.stateless_categorical(logits[:, -1] / temperature, 1, [seed, place], tf.int32)
            drawn = drawn if temperature else tf.argmax(logits[:, -1:], -1, tf.int32)
            ids = tf.concat([ids, drawn[0]], 0)
            logits, cache = model(drawn, cache=cache, position=place)
        return ids

    return "".join(alphabet[i] for i in write(tf.constant([alphabet.index(character) for character in prompt])))


if __name__ == "__main__":  # python configs/char_gpt.py DIR [PROMPT]: continues a text with the model of a run
    from trainer import load as load_run

    print(generate(load_run(sys.argv[1]).model, " ".join(sys.argv[2:]) or "The "))
