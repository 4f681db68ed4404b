"""The two traced loops over an iterator: training steps, which measure the waits for data, and evaluation batches."""

import numpy as np
import tensorflow as tf

from optimizers.base import check_count

CALL_SPEC = tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.bool), tf.TensorSpec([], tf.bool)  # of `train_loop`


def take_steps(iterator, num_elements, advance):
    """Calls `advance(element)` until `num_elements` are taken or the data ends; traced or eager, cross-replica.

    The next element is fetched at the end of the body: a step inside `if element.has_value()` takes 10 % longer.

    Returns:
        (int64 scalar: the elements taken, float64 scalar: seconds spent waiting for them).
    """

    def more(taken, waited, element):
        return tf.logical_and(taken < num_elements, element.has_value())

    def body(taken, waited, element):
        advance(element.get_value())
        nothing = lambda: (element, tf.zeros([], tf.float64))  # noqa: E731
        element, seconds = tf.cond(taken + 1 < num_elements, lambda: _fetch(iterator), nothing)
        return taken + 1, waited + seconds, element

    element, waited = _fetch(iterator)
    return tf.while_loop(more, body, (tf.constant(0, tf.int64), waited, element))[:2]


def take_batches(iterator, num_batches, evaluate):
    """Calls `evaluate(element)` until `num_batches` are taken or the data ends; traced or eager, cross-replica.

    Returns:
        int64 scalar: the number of elements taken.
    """

    def body(more, taken):
        element = iterator.get_next_as_optional()

        def take():
            evaluate(element.get_value())
            return tf.constant(True), taken + 1

        return tf.cond(element.has_value(), take, lambda: (tf.constant(False), taken))

    start = tf.constant(True), tf.constant(0, tf.int64)
    return tf.while_loop(lambda more, taken: tf.logical_and(more, taken < num_batches), body, start)[1]


def evaluation_calls(most):
    """Yields how many batches each compiled call of an evaluation takes, up to `most`: 8, 16, 32, then 64.

    The host learns the progress between two calls. The numbers do not depend on time, and so neither do the sums.
    """
    size = 8
    while True:
        yield min(size, most)
        size = min(2 * size, 64)


def check_chunk(chunk):
    """Returns `chunk`; raises ValueError for None, because a default of 1 would be slower than any other mode."""
    if chunk is None:
        raise ValueError(
            "`chunk`, the batches of a compiled loop, must be given with compile='xla_loop', got None. Use "
            "distribute(data, chunk=100), then train(iterator, 100) or a multiple of it."
        )
    return chunk


def count_elements(num_steps, chunk):
    """Returns how many elements of `chunk` batches `num_steps` steps take; raises ValueError if it is not whole."""
    elements, rest = divmod(check_count("num_steps", num_steps, 1, "It counts batches."), chunk)
    if rest:
        raise ValueError(f"`num_steps` must be a multiple of the chunk ({chunk}), got {num_steps}.")
    return elements


def _fetch(iterator):
    """Returns (tf.experimental.Optional of the next element, float64 seconds that it took)."""
    began = _now()
    with tf.control_dependencies([began]):
        element = iterator.get_next_as_optional()
    with tf.control_dependencies([element.has_value()]):
        return element, _now() - began


def _now():
    """Returns float64 seconds; NaN if `run.deterministic` is true, which forbids TensorFlow to read the clock."""
    try:
        with tf.init_scope():
            tf.timestamp()
    except tf.errors.FailedPreconditionError:
        return tf.constant(np.nan, tf.float64)
    return tf.timestamp()
