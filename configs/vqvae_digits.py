"""A vector-quantized autoencoder of scikit-learn's digits: its codebook follows the encoder without a gradient."""

import keras
import numpy as np
import tensorflow as tf

from trainer import Trainer, add_loss, all_gather, configurable, data


@configurable
def load(held_out=360):
    """Loads the images.

    Returns:
      (train images, test images): float32 [n, 8, 8, 1] in [0, 1].
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 16).astype("float32")
    return train_test_split(images, test_size=held_out, stratify=labels, random_state=0)


@configurable
def train_data(batch_size=64, seed=0):
    """Endless shuffled batches of images."""
    return data.from_arrays(load()[0], batch_size, seed=seed)


@configurable
def eval_data(batch_size=360):
    """The held-out images, in order, each once."""
    return data.from_arrays(load()[1], batch_size, repeat=False)


class Quantizer(keras.layers.Layer):
    """Replaces vectors by the nearest ones of a codebook; adds the loss `commitment`.

    Args:
      codes: int, K, vectors of the codebook.
      size: int, D.
      commitment: number, the weight of the loss that keeps vectors near to their codes.
    """

    def __init__(self, codes=32, size=8, commitment=0.25, **kwargs):
        super().__init__(**kwargs)
        self.commitment = commitment
        self.codebook, self.counts, self.sums = (
            self.add_weight(name=name, shape=shape, initializer=initializer, trainable=False)
            for name, shape, initializer in (
                ("codebook", (codes, size), keras.initializers.RandomNormal(stddev=0.5, seed=0)),
                ("counts", (codes,), "zeros"),  # moving averages: vectors of each code,
                ("sums", (codes, size), "zeros"),  # and their sum
            )
        )

    def call(self, vectors):
        """Returns (the codes' vectors [B, n, D], with the gradient of `vectors`, and the codes, int32 [B, n])."""
        distances = tf.reduce_sum(tf.square(self.codebook), 1) - 2 * tf.matmul(vectors, self.codebook, transpose_b=True)
        codes = tf.argmin(distances, -1, output_type=tf.int32)
        nearest = tf.gather(self.codebook.value, codes)
        add_loss(tf.square(vectors - nearest), "commitment", self.commitment)
        return vectors + tf.stop_gradient(nearest - vectors), codes

    def follow(self, vectors, codes, decay, seed):
        """Moves the codebook to the means of its vectors (van den Oord et al. 2017, 1711.00937, appendix A.1).

        A code that is used less than once a step is dead, and is put on a vector drawn from the batch (Dhariwal et al.
        2020, 2005.00341, section 3.3).

        Args:
          vectors, codes: those of the global batch, [n, D] and int32 [n].
          decay: number, the share of the averages that is kept.
          seed: int [2].
        """
        chosen = tf.one_hot(codes, self.counts.shape[0])  # [n, K]
        counts = decay * self.counts + (1 - decay) * tf.reduce_sum(chosen, 0)
        sums = decay * self.sums + (1 - decay) * tf.matmul(chosen, vectors, transpose_a=True)
        drawn = tf.random.stateless_uniform(counts.shape, seed, maxval=tf.shape(vectors)[0], dtype=tf.int32)
        dead = counts < 1
        self.counts.assign(tf.where(dead, 1.0, counts))
        self.sums.assign(tf.where(dead[:, None], tf.gather(vectors, drawn), sums))
        self.codebook.assign(self.sums / self.counts[:, None])


class VQVAE(keras.Model):
    """Images to a grid of 4 x 4 codes, and back."""

    def __init__(self, filters=32, codes=32, size=8, **kwargs):
        super().__init__(**kwargs)
        conv = keras.layers.Conv2D
        self.encoder = keras.Sequential(
            [
                conv(filters, 3, strides=2, padding="same", activation="relu"),  # [B, 4, 4, filters]
                conv(filters, 3, padding="same", activation="relu"),
                conv(size, 1),
                keras.layers.Reshape((16, size)),
            ]
        )
        self.quantizer = Quantizer(codes, size)
        self.decoder = keras.Sequential(
            [
                keras.layers.Reshape((4, 4, size)),
                conv(filters, 3, padding="same", activation="relu"),
                keras.layers.Conv2DTranspose(filters, 4, strides=2, padding="same", activation="relu"),
                conv(1, 3, padding="same"),
            ]
        )

    def call(self, images):
        """Returns (reconstructions, vectors of the encoder [B, 16, D], codes int32 [B, 16])."""
        vectors = self.encoder(images)
        quantized, codes = self.quantizer(vectors)
        return self.decoder(quantized), vectors, codes


class VQVAETrainer(Trainer):
    """The gradient trains encoder and decoder; after it the codebook follows the vectors of the global batch."""

    def __init__(self, model, decay=0.95, **kwargs):
        super().__init__(model, **kwargs)
        self.decay, self.perplexity = decay, Perplexity(model.quantizer.counts.shape[0])

    def compute_losses(self, batch, training):
        """Returns the squared error, and (vectors, codes); traced, per replica."""
        images, vectors, codes = self.model(batch)
        return {"reconstruction": tf.square(batch - images)}, (vectors, codes)

    def update_metrics(self, batch, outputs):
        """Counts the codes; traced, per replica."""
        self.perplexity.update_state(outputs[1])

    def after_update(self, batch, outputs):
        """Moves the codebook; traced, per replica, the same on all."""
        vectors, codes = all_gather(outputs)
        seed = tf.stack([0, tf.cast(self.global_step, tf.int32)])
        rows = tf.reshape(vectors, [-1, vectors.shape[-1]])
        self.model.quantizer.follow(rows, tf.reshape(codes, [-1]), self.decay, seed)

    def predict_step(self, batch):
        """Returns reconstructions; traced, per replica."""
        return self.model(batch)[0]


class Perplexity(keras.metrics.Metric):
    """e to the entropy of how often the codes are used: K if all are used alike, 1 if one is."""

    def __init__(self, codes, name="perplexity"):
        super().__init__(name=name)
        self.counts = self.add_weight(name="counts", shape=(codes,), initializer="zeros")

    def update_state(self, codes):
        """Adds codes, int32 of any shape."""
        self.counts.assign_add(tf.reduce_sum(tf.one_hot(tf.reshape(codes, [-1]), self.counts.shape[0]), 0))

    def result(self):
        """Returns the perplexity of all codes since the last reset."""
        shares = self.counts / tf.maximum(tf.reduce_sum(self.counts), 1)
        return tf.exp(-tf.reduce_sum(tf.math.xlogy(shares, shares)))


@configurable
class DrawReconstructions:
    """A hook: held-out images above their reconstructions, as a picture in TensorBoard every `every` steps."""

    def __init__(self, every=500, examples=12):
        self.every, self.images = every, load()[1][:examples]

    def __call__(self, trainer, step, metrics):
        """Draws where it is due; eager, after each loop."""
        if step % self.every == 0:
            source = data.from_arrays(self.images, len(self.images), repeat=False)
            trainer.summaries.image("reconstructions", draw(self.images, trainer.predict(source))[None])


def draw(*rows, scale=4):
    """Returns a picture, uint8 [height, width, 1], of rows of images [n, 8, 8, 1]."""
    picture = np.concatenate([np.concatenate(row.clip(0, 1), 1) for row in rows])
    return (255 * picture.repeat(scale, 0).repeat(scale, 1)).astype("uint8")
