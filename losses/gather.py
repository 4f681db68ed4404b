"""The global batch on every replica, for losses that compare its examples with each other."""

import tensorflow as tf


def gather(x: tf.Tensor) -> tf.Tensor:
    """Returns the rows of all replicas in replica order, [b, ...] -> [B, ...]; eager or traced, per replica.

    Replicas may hold different numbers of rows. Outside a replica, and on
    one replica, it is `x` itself.

    A replica's loss is its share of the global one (its rows, over the size
    of the global batch), and gradients are summed over replicas. The
    gradient of a gathered row is therefore the sum over all replicas,
    returned to the replica of the row, as on a single device. (TensorFlow's own gradient of `all_gather` means the
    same, but fails for a nest of several dtypes.)

    Args:
        x: a tensor [b, ...]; there is no gradient for integers.

    Returns:
        A tensor [B, ...].

    Raises:
        RuntimeError: inside a loop or condition of a replica, such as micro-batches, which allows no collective.
    """
    context = several_replicas()
    if context is None:
        return tf.convert_to_tensor(x)

    @tf.custom_gradient
    def gathered(x):
        start, rows = first_row(x), tf.shape(x)[0]

        def gradient(upstream):
            total = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.convert_to_tensor(upstream))
            return total[start : start + rows]

        return _all_gather(context, x), gradient

    return gathered(tf.convert_to_tensor(x))


def first_row(x):
    """Returns the index of this replica's first row in `gather(x)`, an int32 scalar."""
    context = several_replicas()
    if context is None:
        return tf.constant(0)
    rows = _all_gather(context, tf.shape(x)[:1])  # [replicas]
    return tf.reduce_sum(rows[: context.replica_id_in_sync_group])


def several_replicas():
    """Returns the replica context, or None on a single replica."""
    context = tf.distribute.get_replica_context()
    return None if context is None or context.num_replicas_in_sync == 1 else context


def _all_gather(context, x):
    try:
        # An input tensor has no device, which a collective between processes needs.
        return context.all_gather(tf.identity(x), axis=0)
    except RuntimeError as error:
        if "merge_call" not in str(error):
            raise
        raise RuntimeError(
            "`gather` is in a loop or condition inside a replica, which allows no collective. A loss that compares "
            "the examples of the global batch needs `micro_batches` = 1 on several replicas."
        ) from error
