"""Hooks: callables `(trainer, step, metrics)` that run after each loop; none is needed.

`trainer.summaries` writes scalars, images, text and histograms at that step.
A hook that returns STOP ends the run after a checkpoint.
"""

import keras
import tensorflow as tf

from trainer.data import as_source
from trainer.distribution import distribute, replica_values, sum_replicas

STOP = "stop"


class LossGradients:
    """Reports how the losses pull: the norm of each one's gradient, and the cosine between each two.

    Tags `gradients/<loss>` and `cosines/<loss>/<loss>`, in TensorBoard under
    `train`. It takes a forward pass of its own on one batch, which changes no
    state, and costs nothing in the steps between.

    Args:
        data: a function that returns a source or dataset of training batches.
        every: int >= 1, steps between two reports.
    """

    def __init__(self, data, every=1_000):
        if every < 1:
            raise ValueError(f"`every` must be >= 1, got {every}.")
        self.data, self.every = data, every
        self._source = self._measure = None

    def __call__(self, trainer, step, metrics):
        """Reports where it is due; eager."""
        if step % self.every:
            return
        if self._measure is None:
            self._source = as_source(self.data)
            self._measure = tf.function(lambda element: trainer.strategy.run(_measure, args=(trainer, element)))
        for element in distribute(trainer.strategy, self._source.batches(step).take(1)):
            measured = tf.nest.map_structure(lambda x: replica_values(trainer.strategy, x)[0], self._measure(element))
            trainer.summaries.scalars("train", step, {tag: float(x) for tag, x in measured.items()})


def _measure(trainer, element):
    """Returns {tag: float32 scalar}, the same on all replicas; traced, per replica."""
    variables = [v.value for v in trainer.trainable_variables.values()]
    with keras.StatelessScope(), trainer._replica(element, trainer.groups) as batch:
        with tf.GradientTape(persistent=True) as tape:
            losses, _ = trainer.forward(batch, training=True)
        flat = {}
        for name, loss in losses.items():
            gradients = tape.gradient(loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            flat[name] = tf.concat([tf.reshape(tf.cast(tf.convert_to_tensor(g), tf.float32), [-1]) for g in gradients], 0)
        flat = dict(zip(flat, sum_replicas(list(flat.values()))))
    norms = {name: tf.norm(gradient) for name, gradient in flat.items()}
    tags = {f"gradients/{name}": norm for name, norm in norms.items()}
    names = list(flat)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            product = tf.reduce_sum(flat[first] * flat[second])
            tags[f"cosines/{first}/{second}"] = tf.math.divide_no_nan(product, norms[first] * norms[second])
    return tags
