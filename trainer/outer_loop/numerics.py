"""Checks the result of every operation for NaN and infinity (`run.debug_nans`)."""

import contextlib

import tensorflow as tf


@contextlib.contextmanager
def numerics_checked(on):
    """A context in which the first NaN or infinity is a tf.errors.InvalidArgumentError that shows its line, if `on`.

    Exact for an eager step only: inside a graph the checks run asynchronously, and a later one may fail first.
    """
    if not on:
        yield
        return
    tf.debugging.enable_check_numerics()
    try:
        yield
    finally:
        tf.debugging.disable_check_numerics()
