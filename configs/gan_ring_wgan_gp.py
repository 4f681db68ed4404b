"""A Wasserstein GAN with gradient penalty on eight Gaussians in a ring: a subclass of a method, data, a metric."""

import keras
import numpy as np
import tensorflow as tf

from trainer import configurable, data
from trainer.methods import PenalizedGAN

MODES, RADIUS, DEVIATION = 8, 2.0, 0.05
CLOSE = 0.2  # a sample nearer than this to the centre of a mode belongs to the mode
_ANGLES = 2 * np.pi * np.arange(MODES) / MODES
CENTRES = (RADIUS * np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1)).astype("float32")  # [MODES, 2]


class Ring(data.Source):
    """Points of the ring, noise for the generator, and the points of the penalty, drawn for each step."""

    def __init__(self, batch_size, latent, seed, steps=None):
        self.batch_size, self.infinite, self.cardinality = batch_size, steps is None, steps
        self._latent, self._seed = latent, seed

    def batches(self, start=0, chunk=None):
        """See `Source.batches`."""
        steps = tf.data.Dataset.range(start, np.iinfo(np.int64).max if self.infinite else self.cardinality)
        drawn = steps.map(self._draw, num_parallel_calls=2, deterministic=True)
        return drawn.batch(chunk) if chunk else drawn

    def _draw(self, step):
        seeds = tf.random.split(tf.random.fold_in([self._seed, 0], step), 4)
        mode = tf.random.stateless_uniform([self.batch_size], seeds[0], maxval=MODES, dtype=tf.int32)
        spread = DEVIATION * tf.random.stateless_normal([self.batch_size, 2], seeds[1])
        return {
            "real": tf.gather(CENTRES, mode) + spread,
            "noise": tf.random.stateless_normal([self.batch_size, self._latent], seeds[2]),
            "epsilon": tf.random.stateless_uniform([self.batch_size], seeds[3]),
        }


@configurable
def train_data(batch_size=256, latent=8, seed=0):
    """Endless batches of new points."""
    return Ring(batch_size, latent, seed)


@configurable
def eval_data(examples=4_000, latent=8, seed=1):
    """One batch, always the same."""
    return Ring(examples, latent, seed, steps=1)


@configurable
def perceptron(outputs, activation, units=(128, 128)):
    """A multilayer perceptron, for generator or discriminator."""
    layers = [keras.layers.Dense(width, activation=activation) for width in units]
    return keras.Sequential([*layers, keras.layers.Dense(outputs, name="output")])


class RingGAN(PenalizedGAN):
    """Adds the metric; losses, penalty and step are inherited."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.coverage = Coverage()

    def update_metrics(self, batch, outputs):
        """Counts the modes; traced, per replica."""
        self.coverage.update_state(outputs)


class Coverage(keras.metrics.Metric):
    """Of generated points: the number of modes with at least 1 % of them, and the fraction close to any mode."""

    def __init__(self, name="coverage"):
        super().__init__(name=name)
        self.points = self.add_weight(name="points", shape=(MODES + 1,), initializer="zeros")  # the last: close to none

    def update_state(self, points):
        """Adds points, float32 [B, 2]."""
        distances = tf.norm(points[:, None] - CENTRES, axis=-1)  # [B, MODES]
        nearest = tf.argmin(distances, 1)
        mode = tf.where(tf.reduce_min(distances, 1) < CLOSE, nearest, MODES)
        self.points.assign_add(tf.math.bincount(tf.cast(mode, tf.int32), minlength=MODES + 1, dtype=tf.float32))

    def result(self):
        """Returns the tags `metrics/modes` and `metrics/close`."""
        shares = self.points / tf.maximum(tf.reduce_sum(self.points), 1)
        modes = tf.reduce_sum(tf.cast(shares[:MODES] >= 0.01, tf.float32))
        return {"modes": modes, "close": tf.reduce_sum(shares[:MODES])}
