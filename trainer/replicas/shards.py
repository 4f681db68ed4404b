"""Splits global batches into one Shard for each replica."""

from typing import Any, NamedTuple

import tensorflow as tf

from trainer.inputs.batches import batch_size_of, cut, from_plain, is_plain, to_plain, units_of


class Shard(NamedTuple):
    """One replica's part of a global batch.

    A replica without examples holds a copy of the first one and the count 0, so
    that user code never gets an empty batch.
    """

    batch: Any
    examples: Any  # int32 scalar, real examples in `batch`
    global_examples: Any  # int32 scalar, real examples on all replicas

    def unpack(self):
        """Returns (batch, examples, global_examples)."""
        return tuple(self)


def split(source, start, first, last, replicas):
    """Returns a dataset of the Shards of the replicas `first` to `last` - 1, in order, of each global batch."""
    shared = last - first < replicas and hasattr(source, "shards")
    dataset = source.shards(start, first, last, replicas) if shared else source.batches(start)
    spec = dataset.element_spec[0] if shared else dataset.element_spec
    make = Shard if is_plain(spec) else _packed_shard(spec)
    parts = last - first if shared else replicas

    def shard(batch, units, size, offset, replica):
        total = size if shared else units
        low, high = replica * total // replicas - offset, (replica + 1) * total // replicas - offset
        low, high, real = tf.cond(
            high > low,
            lambda: (low, high, tf.constant(1, tf.int64)),
            lambda: (tf.zeros_like(low), tf.ones_like(low), tf.constant(0, tf.int64)),
        )
        part = cut(batch, low, high, units, parts)
        examples = real * (high - low) * (1 if shared else size // units)
        return make(part if make is Shard else to_plain(part), tf.cast(examples, tf.int32), tf.cast(size, tf.int32))

    def shards(*batch):
        batch, size = batch if shared else (batch[0] if len(batch) == 1 else batch, None)
        size = tf.cast(batch_size_of(batch) if size is None else size, tf.int64)
        units = units_of(batch, 1 if shared else replicas, f"{replicas} shards, one for each replica")
        offset = first * size // replicas if shared else tf.constant(0, tf.int64)
        return tf.data.Dataset.range(first, last).map(lambda replica: shard(batch, units, size, offset, replica))

    shards = tf.autograph.experimental.do_not_convert(
        shards
    )  # our code needs no AutoGraph, which is slow and warns of code that it cannot read
    return dataset.flat_map(shards).prefetch(2 * (last - first))


def _packed_shard(spec):
    """Returns a Shard type that holds the leaves of its batch, and restores the batch in `unpack`: see `is_plain`."""

    class Packed(Shard):
        def unpack(self):
            return from_plain(spec, self.batch), self.examples, self.global_examples

    return _PACKED.setdefault(
        repr(spec), Packed
    )  # one type per spec: tf.function distinguishes elements by their types


_PACKED = {}
