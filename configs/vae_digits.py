"""A variational autoencoder of scikit-learn's digits, whose KL divergence is a loss that a layer adds."""

import keras
import numpy as np
import tensorflow as tf

from layers import GaussianSampling, gaussian_kl
from trainer import Trainer, add_metric, configurable, data

PIXELS = 64


@configurable
def load(held_out=360):
    """Loads the images.

    Returns:
      ((train images, train labels), (test images, test labels)): float32 [n, 64] in [0, 1], int [n].
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        (images / 16).astype("float32"), labels, test_size=held_out, stratify=labels, random_state=0
    )
    return (train_x, train_y), (test_x, test_y)


@configurable
def train_data(batch_size=64, seed=0):
    """Endless shuffled batches of (image, image): the input is the target."""
    (images, _), _ = load()
    return data.from_arrays((images, images), batch_size, seed=seed)


@configurable
def eval_data(batch_size=360):
    """The held-out images, in order, each once."""
    _, (images, _) = load()
    return data.from_arrays((images, images), batch_size, repeat=False)


def crossentropy(targets, logits):
    """Returns -log p(image | latents) in nats, [B]: binary crossentropy, summed over pixels in [0, 1]."""
    return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(targets, logits), -1)


class VAE(keras.Model):
    """Images [B, 64] to logits of pixels [B, 64] through a few latents (Kingma, Welling 2014, arXiv:1312.6114).

    Args:
      latents: int, D.
      units: widths of the encoder's hidden layers; the decoder has them in reverse.
      kl_weight: number or schedule of the step, the weight of the divergence in the total loss.
    """

    def __init__(self, latents=8, units=(256, 128), kl_weight=1.0, **kwargs):
        super().__init__(**kwargs)
        self.encoder = keras.Sequential([keras.layers.Dense(width, activation="relu") for width in units])
        self.to_latents = keras.layers.Dense(2 * latents)  # means, then log variances
        self.sample = GaussianSampling(beta=kl_weight)  # adds the loss `kl`
        self.decoder = keras.Sequential([keras.layers.Dense(width, activation="relu") for width in reversed(units)])
        self.to_logits = keras.layers.Dense(PIXELS)

    def call(self, images, training=False):
        """Returns logits; adds the loss `kl` and a metric, which do nothing outside of a step."""
        logits = self.decode(self.sample(self.encode(images), training=training))
        add_metric(tf.square(images - tf.sigmoid(logits)), "squared_error")
        return logits

    def encode(self, images):
        """Returns means and log variances of the latents, side by side, [B, 2 D]."""
        return self.to_latents(self.encoder(images))

    def decode(self, latents):
        """Returns logits, [B, 64]."""
        return self.to_logits(self.decoder(latents))


class VAETrainer(Trainer):
    """The default Trainer, with two further metrics after each evaluation.

    The losses of an evaluation are taken at the means of the latents. The bound
    needs samples; their noise is constant and does not use the training's generator.
    """

    def eval_end(self, metrics):
        """Adds -ELBO and the accuracy of a linear probe on the means of the latents; eager."""
        from sklearn.linear_model import LogisticRegression

        (train_x, train_y), (test_x, test_y) = load()
        mean, _ = tf.split(self.model.encode(train_x), 2, -1)
        probe = LogisticRegression(max_iter=2_000).fit(mean.numpy(), train_y)
        latents = self.model.encode(test_x)
        mean, log_variance = tf.split(latents, 2, -1)
        sample = mean + tf.exp(log_variance / 2) * tf.random.stateless_normal(mean.shape, [0, 0])
        bound = crossentropy(test_x, self.model.decode(sample)) + gaussian_kl(latents)
        return {
            **metrics,
            "metrics/negative_elbo": float(tf.reduce_mean(bound)),
            "metrics/probe_accuracy": float(probe.score(mean.numpy(), test_y)),
        }


@configurable
class DrawReconstructions:
    """A hook: draws held-out images above their reconstructions, as an image in TensorBoard.

    Args:
      every: int, steps between two images.
      examples: int, images in a row.
    """

    def __init__(self, every=600, examples=10):
        _, (images, _) = load()
        self.every, self.images = every, images[:examples]

    def __call__(self, trainer, step, metrics):
        """Draws if due; eager, after each loop."""
        if step % self.every == 0:
            logits = trainer.predict(data.from_arrays((self.images, self.images), len(self.images), repeat=False))
            trainer.summaries.image("reconstructions", draw(self.images, 1 / (1 + np.exp(-logits)))[None])


def draw(*rows, scale=4):
    """Returns an image, uint8 [height, width, 1], of rows of images [n, 64] in [0, 1], white on black."""
    tiles = [np.concatenate(row.reshape(-1, 8, 8), 1) for row in rows]  # each [8, 8 n]
    picture = np.concatenate(tiles).repeat(scale, 0).repeat(scale, 1)
    return (255 * picture[..., None]).astype("uint8")
