"""Ten regressions of very different scale, balanced by loss weights that are trained (Chen et al. 2018, 1711.02257)."""

import keras
import numpy as np
import tensorflow as tf

from trainer import Trainer, configurable, data, global_mean, global_sum

SCALES = 1, 20  # of the first task and the last one; the others lie between


@configurable
def tasks(examples, tasks=10, inputs=64, outputs=10, seed=0):
    """Returns (x [n, inputs], y [n, tasks, outputs]): y_i = s_i tanh((B + e_i) x), as in section 4."""
    rng = np.random.default_rng(0)
    scales = np.linspace(*SCALES, tasks)
    shared = np.sqrt(10) * rng.normal(size=(1, outputs, inputs))
    own = np.sqrt(3.5) * rng.normal(size=(tasks, outputs, inputs))
    x = np.random.default_rng(seed).normal(size=(examples, inputs))
    y = scales[:, None] * np.tanh(np.einsum("toi,ni->nto", (shared + own) / 4 / np.sqrt(inputs), x))
    return x.astype("float32"), y.astype("float32")


@configurable
def train_data(batch_size=100, examples=8_000):
    """Endless shuffled batches."""
    return data.from_arrays(tasks(examples), batch_size)


@configurable
def eval_data(examples=2_000):
    """Other examples, each once."""
    return data.from_arrays(tasks(examples, seed=1), 500, repeat=False)


@configurable
class MultiTask(keras.Model):
    """Inputs to predictions of each task, [B, tasks, outputs], from shared features."""

    def __init__(self, tasks=10, inputs=64, outputs=10, units=(100, 100, 100), **kwargs):
        super().__init__(**kwargs)
        *first, last = units
        self.trunk = keras.Sequential([keras.layers.Dense(width, activation="relu") for width in first])
        self.shared = keras.layers.Dense(last, activation="relu")  # the layer whose gradients are balanced
        self.heads = keras.layers.Dense(tasks * outputs)
        self.split = keras.layers.Reshape((tasks, outputs))
        self(tf.zeros([1, inputs]))  # builds it: `compute_losses` asks for gradients of its kernel

    def call(self, x):
        """Returns the predictions."""
        return self.split(self.heads(self.shared(self.trunk(x))))


class LossWeights(keras.layers.Layer):
    """A weight for each task."""

    def __init__(self, tasks, **kwargs):
        super().__init__(**kwargs)
        self.weights_of_tasks = self.add_weight(name="weights", shape=(tasks,), initializer="ones")


class GradNormTrainer(Trainer):
    """Weights follow the norms of the tasks' gradients; tasks that learn slowly get larger ones (algorithm 1).

    Args:
      model: MultiTask.
      tasks: int.
      alpha: number, how strongly rates of learning are balanced; None leaves the weights at 1.
    """

    def __init__(self, model, tasks=10, alpha=0.12, **kwargs):
        super().__init__(model, **kwargs)
        self.alpha, self.balance = alpha, LossWeights(tasks)
        self.first = keras.Variable(tf.ones([tasks]), trainable=False, name="first")  # losses of the first step
        self.scales = np.linspace(*SCALES, tasks).astype("float32")

    def compute_losses(self, batch, training):
        """Returns the weighted error, [B], the loss of the weights, and the errors, [B, tasks]; traced, per replica."""
        x, y = batch
        weights = self.balance.weights_of_tasks.value
        with tf.GradientTape(persistent=True) as tape:
            errors = tf.reduce_mean(tf.square(self.model(x) - y), 2)  # [B, tasks]
            sums = tf.unstack(tf.reduce_sum(errors, 0))
        losses = {"tasks": tf.reduce_sum(tf.stop_gradient(weights) * errors, 1)}
        losses["relative"] = tf.reduce_sum(errors / tf.square(self.scales), 1)  # reported only
        losses["balance"] = tf.reduce_sum(tf.abs(weights - tf.stop_gradient(weights)))
        if training and self.alpha is not None:
            kernel = self.model.shared.kernel.value
            gradients = tf.stack([tape.gradient(total, kernel) for total in sums])  # of this replica's rows
            count = global_sum(tf.ones_like(errors[:, 0]))
            norms = tf.norm(global_sum(gradients[None]) / count, axis=(1, 2))
            losses["balance"] = self._imbalance(weights, tf.stop_gradient(norms), tf.stop_gradient(global_mean(errors)))
        return losses, errors

    def _imbalance(self, weights, norms, errors):
        """Returns the distance of the weighted norms from their aims, a scalar, the same on all replicas (eq. 2)."""
        ratios = errors / tf.where(self.global_step == 0, errors, self.first.value)
        rates = ratios / tf.reduce_mean(ratios)
        wanted = tf.reduce_mean(weights * norms) * rates**self.alpha
        return tf.reduce_sum(tf.abs(weights * norms - tf.stop_gradient(wanted)))

    def after_update(self, batch, outputs):
        """Keeps the sum of the weights, and the errors of the first step; traced, per replica, the same on all."""
        weights = self.balance.weights_of_tasks
        weights.assign(weights * weights.shape[0] / tf.reduce_sum(weights))
        self.first.assign(tf.where(self.global_step == 0, global_mean(outputs), self.first.value))
