"""Which rows of a global batch a replica gets."""

from typing import Any, NamedTuple

import tensorflow as tf

from trainer.inputs.source import batch_size_of


class Shard(NamedTuple):
    """One replica's part of a global batch.

    A replica for which no example is left holds a copy of the first one and
    counts 0, so that user code never meets an empty batch.
    """

    batch: Any
    examples: Any  # int32 scalar, real examples in `batch`
    global_examples: Any  # int32 scalar, real examples on all replicas


def split(source, start, first, last, replicas):
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
