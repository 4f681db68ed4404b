"""The examples of all replicas on each of them, for metrics that do not add up."""

import tensorflow as tf

from trainer.replicas.distribution import sum_replicas


def gather_examples(nest, examples):
    """Returns `nest` with the rows of all replicas, in order; traced, per replica, outside of conditions.

    The copied row of an empty replica is dropped; a floating scalar becomes the mean over examples.

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
