"""Checks that models, optimizers, metrics and iterators belong to the Trainer's strategy."""

import keras
import tensorflow as tf

from trainer.step.variables import name_variables, raw


def check_scope(trainer):
    """Checks where the objects that a Trainer was given were made; eager, before anything is traced.

    Raises:
        ValueError: names the first one whose variables were not made in the scope in which the Trainer was.
    """
    for what, variables in _given(trainer):
        for variable in variables:
            if not trainer.strategy.extended.variable_created_in_scope(raw(variable)):
                raise ValueError(
                    f"{what} was made outside of the strategy's scope in which the Trainer was made "
                    f"({type(trainer.strategy).__name__}). Make both inside: `with strategy.scope(): model = ...; trainer = "
                    "Trainer(model, ...)`, optimizers and metrics included. `run` does it by itself: give it a function "
                    "`trainer` that makes them."
                )


def _given(trainer):
    """Yields (what it is, its variables) of all that has variables before the trainer is built."""
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
