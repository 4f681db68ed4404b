"""Distributes global batches to the replicas of all workers, and sums tensors over replicas."""

import tensorflow as tf

from trainer import data as data_lib
from trainer.inputs.batches import batch_size_of
from trainer.replicas.shards import Shard, split
from trainer.replicas.strategies import make_strategy as make_strategy  # re-exported


def unpack(element):
    """Returns (batch, examples, global_examples) of an element; traced, per replica."""
    if isinstance(element, Shard):
        return element.unpack()
    examples = batch_size_of(element)
    return element, examples, examples


def distribute(strategy, data, start=0):
    """Returns an iterable of elements for `strategy.run`: the global batches from `start` on, split over all replicas.

    Replica i gets the examples from i*n//N to (i+1)*n//N of a batch of n. The
    split does not depend on the workers.

    Args:
        data: a source or a tf.data.Dataset of global batches.
    """
    source, replicas = data_lib.as_source(data), strategy.num_replicas_in_sync
    if replicas == 1:
        return source.batches(start)

    def local(context):  # once per worker
        count = replicas // context.num_input_pipelines
        first = context.input_pipeline_id * count
        shards = split(source, start, first, first + count, replicas)
        # Every worker has the same number of elements. For infinite data no worker needs to ask the others for the end.
        return (
            shards.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
            if source.infinite
            else shards
        )

    return strategy.distribute_datasets_from_function(local)


def replica_values(strategy, value):
    """Returns the list of the values of each replica of this process, from a result of `strategy.run`."""
    return list(strategy.experimental_local_results(value))


def sum_replicas(value):
    """Sums a nest of tensors over replicas; traced, per replica; one collective call, none on one replica."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)
