"""How a global batch reaches the replicas of all workers, and what replicas say to each other."""

import tensorflow as tf

from trainer import data as data_lib
from trainer.inputs.source import batch_size_of
from trainer.replicas.shares import Shard, split
from trainer.replicas.strategies import make_strategy as make_strategy  # its home for who imports it


def unpack(element):
    """Returns (batch, examples, global_examples) of what an iterator yields; traced, per replica."""
    if isinstance(element, Shard):
        return tuple(element)
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


def gather_examples(nest, examples):
    """Returns `nest` with the rows of all replicas, in order; traced, per replica, outside of conditions.

    The row that stands in for an empty replica is left out; a floating scalar becomes the mean over examples.

    Args:
        nest: tensors [B, ...] of this replica, or None.
        examples: int32 scalar, how many real examples they are of.
    """
    context = tf.distribute.get_replica_context()

    def dense(x):
        small = x.dtype == tf.bool or (x.dtype.is_integer and x.dtype.size < 4)  # collectives know few types
        return tf.cast(context.all_gather(tf.cast(x, tf.int32) if small else tf.identity(x), 0), x.dtype)

    def gather(x):
        if x is None or isinstance(x, (bool, int, float, str)):
            return x
        if not isinstance(x, (tf.Tensor, tf.RaggedTensor)):
            raise ValueError(
                f"A {type(x).__name__} cannot be gathered over replicas, which a metric needs whose state is no sum over "
                "examples. Make it dense, or use a metric that adds up over examples."
            )
        if x.shape.rank == 0:
            count = tf.cast(examples, x.dtype) if x.dtype.is_floating else None
            return x if count is None else sum_replicas(x * count) / sum_replicas(count)
        x = x[: tf.where(examples > 0, tf.shape(x, tf.int64)[0], 0)]
        if isinstance(x, tf.RaggedTensor):
            return tf.RaggedTensor.from_nested_row_lengths(
                dense(x.flat_values), [dense(n) for n in x.nested_row_lengths()]
            )
        return dense(x)

    return tf.nest.map_structure(gather, nest)


def replica_values(strategy, value):
    """Returns the list of what each replica of this process returned from `strategy.run`."""
    return list(strategy.experimental_local_results(value))


def sum_replicas(value):
    """Sums a nest of tensors over replicas; traced, per replica; one collective call, none on one replica."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)
