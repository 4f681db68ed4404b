"""The global batch on every replica: its rows, and sums and means over them, with gradients.

`all_gather`, `global_sum` and `global_mean` take the rows of one replica and return what the same call would return on
a single replica that holds the global batch. They work in losses, in models and in `Trainer.after_update`, in training
and evaluation. On one replica, and outside of a step, they reduce `x` itself.

A replica's loss is its share of the global one (its rows, over the size of the global batch), and gradients are summed
over replicas. The gradient that reaches a row is therefore the sum over all replicas, as on a single device, also for a
loss that is the same on all replicas, such as a function of `global_sum(x)`.
"""

import contextlib
import threading
from typing import Any

import tensorflow as tf

_thread = threading.local()


def all_gather(nest: Any) -> Any:
    """Returns `nest` with the rows of all replicas, in the order of the global batch; eager or traced, per replica.

    Replicas may hold different numbers of rows; the copied row of a replica without examples is dropped.

    Args:
        nest: a nest of tensors [b, ...], dense or ragged, and None. A floating scalar becomes the mean over examples.

    Returns:
        The nest with tensors [B, ...].

    Raises:
        RuntimeError: in a micro-batch, or inside a loop or condition of a replica, where collectives are not allowed.
        ValueError: for tensors of other kinds.
    """
    context, p = _replicas("all_gather")
    return tf.nest.map_structure(lambda x: _gather(context, p, x), nest) if context else nest


def global_sum(x: tf.Tensor) -> tf.Tensor:
    """Returns `tf.reduce_sum(x, 0)` of the global batch, [b, ...] -> [...]; eager or traced, per replica.

    Args:
        x: a tensor with one or more rows per example; the copied row of a replica without examples is dropped.

    Raises:
        RuntimeError: as `all_gather`.
        ValueError: for a scalar.
    """
    context, p = _replicas("global_sum")
    return _sum(context, tf.reduce_sum(_real_rows(p, _rows("global_sum", x)), 0))


def global_mean(x: tf.Tensor) -> tf.Tensor:
    """Returns `tf.reduce_mean(x, 0)` of the global batch, [b, ...] -> [...], in a floating dtype. See `global_sum`."""
    context, p = _replicas("global_mean")
    x = _real_rows(p, _rows("global_mean", x))
    x = x if x.dtype.is_floating or x.dtype.is_complex else tf.cast(x, tf.float32)
    count = _sum(context, tf.cast(tf.shape(x)[0], tf.float32))
    return _sum(context, tf.reduce_sum(x / tf.cast(count, x.dtype), 0))


def first_row(x):
    """Returns the index of this replica's first row in `all_gather(x)`, an int32 scalar."""
    context, p = _replicas("first_row")
    if context is None:
        return tf.constant(0)
    rows = _collect(context, tf.shape(_real_rows(p, x))[:1])  # [replicas]
    return tf.reduce_sum(rows[: context.replica_id_in_sync_group])


def several_replicas():
    """Returns the replica context, or None on a single replica."""
    context = tf.distribute.get_replica_context()
    return None if context is None or context.num_replicas_in_sync == 1 else context


@contextlib.contextmanager
def in_pass(p):
    """A context in which calls of this thread use the ReplicaPass `p`: its real examples, and whether it is a part."""
    outer, _thread.current = getattr(_thread, "current", None), p
    try:
        yield
    finally:
        _thread.current = outer


def _replicas(function):
    """Returns (replica context or None, the trainer's ReplicaPass or None); raises RuntimeError in a micro-batch."""
    p = getattr(_thread, "current", None)
    if p is not None and p.is_part:
        raise RuntimeError(
            f"`{function}` needs the global batch, but this forward pass has a micro-batch. Use `micro_batches` = 1, "
            "or compute the value in `Trainer.after_update`, which gets the outputs of all micro-batches."
        )
    return several_replicas(), p


def _real_rows(p, x):
    """Returns `x` without the copied row of a replica that has no examples."""
    if p is None or not p.may_be_copy:
        return x
    return x[: tf.where(p.examples > 0, tf.shape(x, tf.int64)[0], 0)]


def _rows(function, x):
    x = tf.convert_to_tensor(x)
    if x.shape.rank == 0:
        raise ValueError(
            f"`{function}` takes a row for each example, [b, ...], got a scalar. Pass the values before they are "
            "summed or averaged over this replica's rows."
        )
    return x


def _gather(context, p, x):
    if x is None or isinstance(x, (bool, int, float, str)):
        return x
    if not isinstance(x, (tf.Tensor, tf.RaggedTensor)):
        try:
            x = tf.convert_to_tensor(x)
        except (TypeError, ValueError):
            raise ValueError(
                f"A {type(x).__name__} cannot be gathered over replicas. Make it dense; for a metric whose state is "
                "not a sum over examples, use one whose state is a sum."
            ) from None
    if x.shape.rank == 0:
        if not x.dtype.is_floating:
            return x
        count = tf.constant(1, x.dtype) if p is None else tf.cast(p.examples, x.dtype)
        return _sum(context, x * count) / _sum(context, count)
    x = _real_rows(p, x)
    if isinstance(x, tf.RaggedTensor):
        lengths = [_collect(context, n) for n in x.nested_row_lengths()]
        return tf.RaggedTensor.from_nested_row_lengths(_collect(context, x.flat_values), lengths)
    return _collect(context, x)


def _collect(context, x):
    """Returns the rows of all replicas, with a gradient for floats."""
    if x.dtype == tf.bool or (x.dtype.is_integer and x.dtype.size < 4):  # collectives support few types
        return tf.cast(_collective(lambda: context.all_gather(tf.cast(x, tf.int32), axis=0)), x.dtype)

    # TensorFlow's own gradient of `all_gather` is the same, but fails for a nest of several dtypes.
    @tf.custom_gradient
    def gathered(x):
        def gradient(upstream):
            total = _sum(context, tf.convert_to_tensor(upstream))
            counts = context.all_gather(tf.shape(x)[:1], axis=0)
            start = tf.reduce_sum(counts[: context.replica_id_in_sync_group])
            return total[start : start + tf.shape(x)[0]]

        # An input tensor has no device, which a collective between processes needs.
        return _collective(lambda: context.all_gather(tf.identity(x), axis=0)), gradient

    return gathered(x)


def _sum(context, x):
    if context is None:
        return x
    return _collective(lambda: context.all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(x)))


def _collective(call):
    try:
        return call()
    except RuntimeError as error:
        if "merge_call" not in str(error):
            raise
        raise RuntimeError(
            "A collective over replicas was called in a loop or condition inside a replica, where none is allowed. "
            "Call `all_gather`, `global_sum` and losses that compare the examples of the global batch outside of it."
        ) from error
