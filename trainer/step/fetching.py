"""Fetches the next element and measures the waiting time."""

import numpy as np
import tensorflow as tf


def fetch(iterator):
    """Returns (tf.experimental.Optional of the next element, float64 seconds waited); traced, cross-replica."""
    began = _now()
    with tf.control_dependencies([began]):
        element = iterator.get_next_as_optional()
    with tf.control_dependencies([element.has_value()]):
        return element, _now() - began


def fetch_if(wanted, iterator, element):
    """Returns `fetch(iterator)` if `wanted` (bool scalar), else (`element`, 0); traced, cross-replica."""
    return tf.cond(wanted, lambda: fetch(iterator), lambda: (element, tf.zeros([], tf.float64)))


def _now():
    """Returns float64 seconds; NaN with `run.deterministic`, because TensorFlow then refuses tf.timestamp."""
    try:
        with tf.init_scope():
            tf.timestamp()
    except tf.errors.FailedPreconditionError:
        return tf.constant(np.nan, tf.float64)
    return tf.timestamp()
