"""Hook that shows distributions of weights, gradients and updates in TensorBoard."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from optimizers.base import check_count
from optimizers.transforms import l2_norm
from trainer.data import as_source
from trainer.replicas.distribution import distribute, replica_values

if TYPE_CHECKING:
    from trainer.trainer import Trainer

__all__ = ["Histograms"]


class Histograms:
    """Distributions of weights, gradients and updates, and the ratio of the norms of update and weight.

    The tags are `weights/<variable>`, `gradients/<variable>`, `updates/<variable>` and
    `update_to_weight/<variable>`. Gradients and updates are those of a step on one
    batch, the next one of the training data; all state is then restored, so that
    the run is not changed.

    Args:
        every: int >= 1, steps between two reports.
        data: a function that returns a source or dataset of training batches; None: the run's training data.

    Raises:
        ValueError: at the start, if the training data cannot be read a second time and `data` is None.
    """

    def __init__(self, every: int = 1_000, data: Callable | None = None):
        self.every, self.data = check_count("every", every, 1, "It counts the steps between two reports."), data
        self._run = self._source = self._take_step = None
        self._last = 0

    def begin(self, run):
        """Takes the data of the run; called once, before its first loop."""
        self._run, self._last = run, run.step
        self._source = run.source if self.data is None else as_source(self.data)
        if self.data is None and not run.source.exact:
            raise ValueError("`data` must be given: the training data cannot be read a second time. Bind it.")
        self._take_step = tf.function(
            lambda element: run.trainer.strategy.run(_take_step, args=(run.trainer, element)), autograph=False
        )

    def __call__(self, trainer: "Trainer", step: int, metrics: dict[str, float]):
        """Reports if `every` steps were taken; eager."""
        due = step // self.every > self._last // self.every
        self._last = step
        if not due:
            return
        variables = trainer.trainable_variables
        before = {name: np.asarray(variable) for name, variable in variables.items()}
        for element in distribute(trainer.strategy, self._source.batches(step).take(1)):
            with self._run.state.kept():
                gradients = self._take_step(element)
                after = {name: np.asarray(variable) for name, variable in variables.items()}
            for name, gradient in gradients.items():
                weight, update = before[name], after[name] - before[name]
                trainer.summaries.histogram(f"weights/{name}", weight)
                trainer.summaries.histogram(f"gradients/{name}", replica_values(trainer.strategy, gradient)[0])
                trainer.summaries.histogram(f"updates/{name}", update)
                norm = np.linalg.norm(weight)
                trainer.summaries.scalar(f"update_to_weight/{name}", np.linalg.norm(update) / norm if norm else 0.0)


def _take_step(trainer, element):
    """Takes a step and returns {variable: its dense gradient}; traced, per replica."""
    with trainer.replica_pass(element) as p:
        _, gradients, _ = trainer.compute_gradients(p.batch)
        norms = {name: l2_norm(listed) for name, listed in gradients.items()}
        norms["all"] = tf.sqrt(tf.add_n([tf.square(norm) for norm in norms.values()]))
        trainer.apply_gradients(gradients, norms)
    return {
        name: tf.convert_to_tensor(gradient)
        for group in trainer.groups
        for name, gradient in zip(group.variable_names, gradients[group.name])
        if gradient is not None
    }
