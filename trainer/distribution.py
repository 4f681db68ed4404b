"""Strategies, what replicas share, and how a global batch reaches them."""

from typing import Any, NamedTuple

import tensorflow as tf

from trainer.source import batch_size_of

STRATEGIES = ("auto", "default", "one_device", "mirrored")
_made = {}


def make_strategy(name="auto"):
    """Returns the process's one strategy of that name (or the given tf.distribute.Strategy itself).

    `auto` is `mirrored` where there are several GPUs or several logical CPU
    devices, else `one_device` on a GPU, else TensorFlow's default. Two
    MirroredStrategy objects over the same devices break each other's
    collectives, hence one of each per process.
    """
    if isinstance(name, tf.distribute.Strategy):
        return name
    if name not in STRATEGIES:
        raise ValueError(f"`strategy` must be one of {', '.join(STRATEGIES)}, got {name!r}.")
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        _grow_memory(gpu)
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if name == "auto":
        name = "mirrored" if len(devices) > 1 else "one_device" if gpus else "default"
    if name not in _made:
        _made[name] = _make(name, [device.name for device in devices], on_gpu=bool(gpus))
    return _made[name]


def _make(name, devices, on_gpu):
    if name == "default":
        return tf.distribute.get_strategy()
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy(devices[0])
    reduce = None if on_gpu else tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=reduce)


def _grow_memory(gpu):
    try:
        tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError:
        pass  # GPUs are in use already; whoever started them chose their memory.


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


def distribute(strategy, dataset):
    """Returns an iterable whose elements `strategy.run` takes: global batches, split over the replicas.

    Replica i gets the examples from i*n//N to (i+1)*n//N of a batch of n, the
    same on any machine; nothing but the batch decides.
    """
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return dataset
    return strategy.distribute_datasets_from_function(lambda context: _split(dataset, replicas))


def _split(dataset, replicas):
    """Returns a dataset with `replicas` elements for each one of `dataset`, in replica order."""

    def shard(batch, replica):
        size = tf.cast(batch_size_of(batch), tf.int64)
        low, high = replica * size // replicas, (replica + 1) * size // replicas
        count = tf.cast(high - low, tf.int32)
        low, high = tf.cond(high > low, lambda: (low, high), lambda: (tf.zeros_like(low), tf.ones_like(low)))
        part = tf.nest.map_structure(lambda x: _rows(x, low, high, replicas), batch)
        return Shard(part, count, tf.cast(size, tf.int32))

    def shards(*batch):
        batch = batch[0] if len(batch) == 1 else batch
        return tf.data.Dataset.range(replicas).map(lambda replica: shard(batch, replica))

    return dataset.flat_map(shards).prefetch(2 * replicas)


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
