"""A physics-informed network: it solves u'' = -pi^2 sin(pi x), u(0) = u(1) = 0, from the equation alone."""

import math

import keras
import numpy as np
import tensorflow as tf

from trainer import Trainer, configurable, data

WAVE = math.pi


class Points(data.Source):
    """Points of the interval, drawn for each step from (seed, step), so that any step's batch can be computed alone."""

    infinite = True

    def __init__(self, batch_size, seed):
        self.batch_size, self._seed = batch_size, seed

    def batches(self, start=0, chunk=None):
        """See `Source.batches`."""
        drawn = tf.data.Dataset.range(start, np.iinfo(np.int64).max).map(self._draw)
        return drawn.batch(chunk) if chunk else drawn

    def _draw(self, step):
        """One point in each of B equal parts of [0, 1], float32 [B, 1]: less variance than independent points."""
        seed = tf.random.fold_in([self._seed, 0], step)
        part = tf.range(self.batch_size, dtype=tf.float32)[:, None]
        return (part + tf.random.stateless_uniform([self.batch_size, 1], seed)) / self.batch_size


@configurable
def train_data(batch_size=64, seed=0):
    """Endless batches of new points."""
    return Points(batch_size, seed)


@configurable
def eval_data(points=201):
    """A regular grid including both ends, in one batch."""
    return data.from_arrays(np.linspace(0, 1, points, dtype="float32")[:, None], points, repeat=False)


@configurable
def network(units=(32, 32, 32), activation="tanh"):
    """A smooth multilayer perceptron from x to u(x), with a second derivative."""
    layers = [keras.layers.Dense(width, activation=activation) for width in units]
    return keras.Sequential([*layers, keras.layers.Dense(1, name="u")], name="network")


class PoissonTrainer(Trainer):
    """Losses from the equation and its boundary, no labels (Raissi et al. 2019, doi:10.1016/j.jcp.2018.10.045)."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.relative_l2 = RelativeL2()

    def compute_losses(self, batch, training):
        """Returns the squared residuals per point, those at the ends, and u; traced, per replica."""
        with tf.GradientTape() as outer:
            outer.watch(batch)
            with tf.GradientTape() as inner:
                inner.watch(batch)
                u = self.model(batch, training=training)  # [B, 1]
            slope = inner.gradient(u, batch)  # of each u by its own x, since points are independent
        curvature = outer.gradient(slope, batch)
        residual = curvature + WAVE**2 * tf.sin(WAVE * batch)
        ends = self.model(tf.constant([[0.0], [1.0]]), training=training)
        return {"equation": tf.square(residual), "boundary": tf.reduce_mean(tf.square(ends))}, u

    def update_metrics(self, batch, outputs):
        """Compares u with the solution, sin(pi x), which the losses do not use; traced, per replica."""
        self.relative_l2.update_state(tf.sin(WAVE * batch), outputs)

    def predict_step(self, batch):
        """Returns u; traced, per replica."""
        return self.model(batch, training=False)


class RelativeL2(keras.metrics.Metric):
    """sqrt(sum (u - v)^2 / sum u^2), over all points of a report."""

    def __init__(self, name="relative_l2"):
        super().__init__(name=name)
        self.error = self.add_weight(name="error", initializer="zeros")
        self.size = self.add_weight(name="size", initializer="zeros")

    def update_state(self, solution, values):
        """Adds points, [B, 1] each."""
        self.error.assign_add(tf.reduce_sum(tf.square(values - solution)))
        self.size.assign_add(tf.reduce_sum(tf.square(solution)))

    def result(self):
        """Returns the tag `metrics/relative_l2`."""
        return tf.sqrt(self.error / tf.maximum(self.size, 1e-12))
