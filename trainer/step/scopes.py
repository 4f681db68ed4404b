"""Checks that models, optimizers, metrics and iterators belong to the Trainer's strategy."""

import keras
import tensorflow as tf

from trainer.step.variables import name_variables, raw


def check_scope(trainer):
    """Checks where the objects given to a Trainer were created; eager, before anything is traced.

    Raises:
        ValueError: names the first one whose variables were not created in the Trainer's scope.
    """
    for what, variables in _given(trainer):
        for variable in variables:
            if not trainer.strategy.extended.variable_created_in_scope(raw(variable)):
                raise ValueError(
                    f"{what} was created outside of the strategy's scope in which the Trainer was created "
                    f"({type(trainer.strategy).__name__}). Create both inside: `with strategy.scope(): model = ...; "
                    "trainer = Trainer(model, ...)`, optimizers and metrics included. `run` does so itself: give it a "
                    "function `trainer` that creates them."
                )


def _given(trainer):
    """Yields (description, variables) of all objects that have variables before the trainer is built."""
    for name, variable in name_variables(trainer.held()).items():
        in_model = trainer.model is not None and any(variable is v for v in trainer.model.variables)
        yield (f"`model` (its variable {name})" if in_model else f"{name}, which the Trainer holds,"), [variable]
    for group in trainer.groups:
        yield f"`optimizer` {type(group.optimizer).__name__} of group {group.name!r}", [group.optimizer.iterations]
    for metric in tf.nest.flatten(trainer.requested_metrics):
        metric = getattr(metric, "metric", metric)  # trainer.weighted
        if isinstance(metric, keras.metrics.Metric):
            yield f"Metric {metric.name!r}", metric.variables


def check_iterator(strategy, iterator):
    """Raises ValueError for an iterator whose elements are not split over the strategy's replicas; eager."""
    several = strategy.num_replicas_in_sync > 1
    kinds = tf.distribute.DistributedIterator if several else (tf.data.Iterator, tf.distribute.DistributedIterator)
    if not isinstance(iterator, kinds):
        raise ValueError(
            f"`iterator` must be iter(trainer.distribute(data)){' on several replicas' if several else ''}, got "
            f"{type(iterator).__name__}. `distribute` takes a dataset of global batches, or a source."
        )
