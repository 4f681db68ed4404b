"""Meta-learning on sine waves: weights from which one gradient step fits a new wave (Finn et al. 2017)."""

import keras
import numpy as np
import tensorflow as tf

from trainer import Trainer, configurable, data


class Waves(data.Source):
    """Batches of tasks, drawn for each step from (seed, step): points to adapt to, and points to be right on.

    A batch is {"x", "y", "query_x", "query_y"}, float32 [tasks, points, 1].
    """

    def __init__(self, tasks, points, seed, steps=None):
        self.batch_size, self.infinite, self.cardinality = tasks, steps is None, steps
        self._points, self._seed = points, seed

    def batches(self, start=0, chunk=None):
        """See `Source.batches`."""
        steps = tf.data.Dataset.range(start, np.iinfo(np.int64).max if self.infinite else self.cardinality)
        drawn = steps.map(self._draw, num_parallel_calls=2, deterministic=True)
        return drawn.batch(chunk) if chunk else drawn

    def _draw(self, step):
        seeds = tf.random.split(tf.random.fold_in([self._seed, 0], step), 3)
        one, all_points = [self.batch_size, 1, 1], [self.batch_size, 2 * self._points, 1]
        amplitude = tf.random.stateless_uniform(one, seeds[0], 0.1, 5.0)
        phase = tf.random.stateless_uniform(one, seeds[1], 0.0, np.pi)
        x = tf.random.stateless_uniform(all_points, seeds[2], -5.0, 5.0)
        y = amplitude * tf.sin(x - phase)
        n = self._points
        return {"x": x[:, :n], "y": y[:, :n], "query_x": x[:, n:], "query_y": y[:, n:]}


@configurable
def train_data(tasks=25, points=10, seed=0):
    """Endless batches of tasks; no task comes twice."""
    return Waves(tasks, points, seed)


@configurable
def eval_data(tasks=600, points=10, seed=1):
    """One batch of tasks, always the same."""
    return Waves(tasks, points, seed, steps=1)


@configurable
def perceptron(units=(40, 40)):
    """Returns a model of x to y, [n, 1] both. `stateless_call` needs it built: it has an Input."""
    layers = [keras.layers.Dense(width, activation="relu") for width in units]
    return keras.Sequential([keras.Input((1,)), *layers, keras.layers.Dense(1)])


class MAMLTrainer(Trainer):
    """Each task adapts a copy of the weights; the loss is the copy's error on other points of the task (algorithm 2).

    Args:
      model: a model without state beside its weights.
      rate: number, the rate of the inner steps.
      steps: int, inner steps.
      first_order: bool; True takes inner gradients for constants (section 5.2).
    """

    def __init__(self, model, rate=0.01, steps=1, first_order=False, **kwargs):
        super().__init__(model, **kwargs)
        self.rate, self.steps, self.first_order = rate, steps, first_order

    def compute_losses(self, batch, training):
        """Returns the error after adaptation and that before it, which only reports, [tasks]; traced, per replica."""
        before, after = tf.vectorized_map(self._task, batch)
        return {"after": after, "before": before}

    def _task(self, task):
        weights = [tf.convert_to_tensor(v.value) for v in self.model.trainable_variables]
        before = self._error(weights, task["query_x"], task["query_y"])
        for _ in range(self.steps):
            with tf.GradientTape() as tape:
                tape.watch(weights)
                error = self._error(weights, task["x"], task["y"])
            gradients = tape.gradient(error, weights)
            if self.first_order:
                gradients = [tf.stop_gradient(gradient) for gradient in gradients]
            weights = [w - self.rate * gradient for w, gradient in zip(weights, gradients)]
        return before, self._error(weights, task["query_x"], task["query_y"])

    def _error(self, weights, x, y):
        predictions, _ = self.model.stateless_call(weights, self.model.non_trainable_variables, x)
        return tf.reduce_mean(tf.square(predictions - y))
