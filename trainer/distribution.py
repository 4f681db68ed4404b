"""How a global batch reaches the replicas of all workers, and what replicas say to each other."""

from typing import Any, NamedTuple

import tensorflow as tf

from trainer import data as data_lib
from trainer.data import batch_size_of
from trainer.strategies import make_strategy as make_strategy  # its home for who imports it


class Shard(NamedTuple):
    """One replica's part of a global batch.

    A replica for which no example is left holds a copy of the first one and
    counts 0, so that user code never meets an empty batch.
    """

    batch: Any
    examples: Any  # int32 scalar, real examples in `batch`
    global_examples: Any  # int32 scalar, real examples on all replicas


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
        shards = _split(source, start, first, first + count, replicas)
        # Every worker has the same number of elements; where there is no end, nobody has to ask the others for one.
        return shards.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)) if source.infinite else shards

    return strategy.distribute_datasets_from_function(local)


def _split(source, start, first, last, replicas):
    """Returns a dataset with a Shard for each of the replicas `first` to `last` - 1, in order, of each global batch."""
    shared = last - first < replicas and hasattr(source, "share")
    dataset = source.share(start, first, last, replicas) if shared else source.batches(start)

    def shard(batch, size, offset, replica):
        low, high = replica * size // replicas - offset, (replica + 1) * size // replicas - offset
        count = tf.cast(high - low, tf.int32)
        low, high = tf.cond(high > low, lambda: (low, high), lambda: (tf.zeros_like(low), tf.ones_like(low)))
        part = tf.nest.map_structure(lambda x: _rows(x, low, high, replicas if not shared else last - first), batch)
        return Shard(part, count, tf.cast(size, tf.int32))

    def shards(*batch):
        batch, size = batch if shared else (batch[0] if len(batch) == 1 else batch, None)
        size = tf.cast(batch_size_of(batch) if size is None else size, tf.int64)
        offset = first * size // replicas if shared else 0
        return tf.data.Dataset.range(first, last).map(lambda replica: shard(batch, size, offset, replica))

    return dataset.flat_map(shards).prefetch(2 * (last - first))


def _rows(value, low, high, replicas):
    if isinstance(value, tf.SparseTensor):
        start = tf.concat([[low], tf.zeros([value.shape.rank - 1], tf.int64)], 0)
        size = tf.concat([[high - low], value.dense_shape[1:]], 0)
        return tf.sparse.slice(value, start, size)
    rows = value[low:high]
    if isinstance(value, tf.Tensor) and value.shape[0] and value.shape[0] % replicas == 0:
        rows = tf.ensure_shape(rows, [value.shape[0] // replicas, *value.shape[1:]])
    return rows


def replica_values(strategy, value):
    """Returns the list of what each replica of this process returned from `strategy.run`."""
    return list(strategy.experimental_local_results(value))


def sum_replicas(value):
    """Sums a nest of tensors over replicas; traced, per replica; one collective call, none on one replica."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)
