"""How a global batch reaches the replicas of all workers, and what replicas say to each other."""

import tensorflow as tf

from trainer import data as data_lib
from trainer.inputs.batches import batch_size_of
from trainer.replicas.shares import Shard, split
from trainer.replicas.strategies import make_strategy as make_strategy  # its home for who imports it


def unpack(element):
    """Returns (batch, examples, global_examples) of what an iterator yields; traced, per replica."""
    if isinstance(element, Shard):
        return element.unpack()
    examples = batch_size_of(element)
    return element, examples, examples


def distribute(strategy, data, start=0):
    """Returns an iterable whose elements `strategy.run` takes: global batches from `start` on, split over all replicas.

    Replica i gets the examples from i*n//N to (i+1)*n//N of a batch of n, on
    whichever worker it is; nothing but the batch decides.

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
        # Every worker has the same number of elements; where there is no end, nobody has to ask the others for one.
        return (
            shards.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
            if source.infinite
            else shards
        )

    return strategy.distribute_datasets_from_function(local)


def replica_values(strategy, value):
    """Returns the list of what each replica of this process returned from `strategy.run`."""
    return list(strategy.experimental_local_results(value))


def sum_replicas(value):
    """Sums a nest of tensors over replicas; traced, per replica; one collective call, none on one replica."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)
