"""Swaps in the weights for evaluation and export: weight averages, and those of schedule-free optimizers."""

import contextlib

import keras
import numpy as np
import tensorflow as tf

from optimizers.averages import SWA
from trainer.data import as_source
from trainer.replicas.distribution import distribute, replica_values, sum_replicas


class EvaluatedWeights:
    """Swaps the evaluated weights in, and out bit for bit; created when the trainer is built.

    Args:
        trainer: a Trainer whose groups are built.
        layers: its layers.
    """

    def __init__(self, trainer, layers):
        self._trainer, self._average = trainer, trainer.averages
        inner = [(getattr(group.optimizer, "inner", group.optimizer), group) for group in trainer.groups]
        self._schedule_free = [(optimizer, group) for optimizer, group in inner if hasattr(optimizer, "swap_to_eval")]
        self._normalizations = [x for x in layers if isinstance(x, keras.layers.BatchNormalization) and x.trainable]
        self._inside, self._statistics_at = False, (None, [])
        if self._average is None:
            return
        if self._schedule_free:
            raise ValueError(
                f"`averages` must be None with {type(self._schedule_free[0][0]).__name__}, which averages the weights "
                "itself."
            )
        if isinstance(self._average, SWA) and self._normalizations and self._average.data is None:
            raise ValueError(
                "`SWA.data` must be given: the model has BatchNormalization, whose moving statistics are not "
                "those of the averaged weights and must be computed on training batches. In gin: SWA.data = "
                "@train_data."
            )
        self._average.build(trainer.trainable_variables)
        self._measure = tf.function(
            lambda element: trainer.strategy.run(self._statistics_of, args=(element,)), autograph=False
        )

    def begin(self):
        """Initializes the average at step 0; eager, before each loop."""
        self._statistics_at = None, []  # after a rollback the same step has different weights
        if self._average is not None and int(self._trainer.global_step.numpy()) == 0:
            self._average.begin()

    @contextlib.contextmanager
    def use(self):
        """A context with the evaluated weights; eager. Nested contexts have no effect."""
        if self._inside:
            yield
            return
        values, kept, self._inside = self._average.averaged() if self._average is not None else [], [], True
        try:
            for optimizer, group in self._schedule_free:
                optimizer.swap_to_eval(group.variables)
            _swap(values, kept)
            if values:
                _swap(self._statistics(), kept)
            yield
        finally:
            for variable, value in kept:
                variable.assign(value)
            for optimizer, group in self._schedule_free:
                optimizer.swap_to_train(group.variables)
            self._inside = False

    def _statistics(self):
        """Returns [(variable, value)] of BatchNormalization's statistics for the current weights, once per step.

        They are means over the batches of each batch's mean and variance, as in
        1803.05407 (section 3.2).
        """
        if self._average.data is None or not self._normalizations:
            return []
        variables, step = self._moving, int(self._trainer.global_step.numpy())
        if self._statistics_at[0] != step:
            batches = as_source(self._average.data).batches(0).take(self._average.batches)
            measured = [self._measure_batch(element) for element in distribute(self._trainer.strategy, batches)]
            self._statistics_at = step, [np.mean(values, 0) for values in zip(*measured)]
        return list(zip(variables, self._statistics_at[1]))

    @property
    def _moving(self):
        return [v for layer in self._normalizations for v in (layer.moving_mean, layer.moving_variance)]

    def _measure_batch(self, element):
        momenta = [layer.momentum for layer in self._normalizations]
        try:
            for layer in self._normalizations:
                layer.momentum = 0.0  # so that moving statistics equal the batch's statistics
            return [
                replica_values(self._trainer.strategy, x)[0].numpy().astype(np.float64) for x in self._measure(element)
            ]
        finally:
            for layer, momentum in zip(self._normalizations, momenta):
                layer.momentum = momentum

    def _statistics_of(self, element):
        """Returns the batch's statistics over all replicas; traced, per replica. Nothing is assigned."""
        trainer = self._trainer
        with keras.StatelessScope() as scope, trainer.replica_pass(element, ()) as p:
            trainer.loss_terms(p.batch, training=True)
            share = tf.cast(p.examples / p.global_examples, tf.float32)
        return sum_replicas([tf.cast(scope.get_current_value(v), tf.float32) * share for v in self._moving])


def _swap(values, kept):
    """Assigns [(variable, value)], and appends the old values to `kept`."""
    for variable, value in values:
        kept.append((variable, tf.identity(variable.value)))
        variable.assign(tf.cast(value, variable.dtype))
