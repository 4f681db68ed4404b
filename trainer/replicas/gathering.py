"""Gathers the examples of all replicas on each replica, for metrics whose state is not a sum."""

import tensorflow as tf

from trainer.replicas.distribution import sum_replicas


def gather_examples(nest, examples):
    """Returns `nest` with the rows of all replicas, in order; traced, per replica, outside of conditions.

    The copied row of a replica without examples is dropped; a float scalar becomes the mean over examples.

    Args:
        nest: tensors [B, ...] of this replica, or None.
        examples: int32 scalar, number of real examples in `nest`.
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
                f"A {type(x).__name__} cannot be gathered over replicas, as required by a metric whose state is not a "
                "sum over examples. Make it dense, or use a metric whose state is a sum."
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
