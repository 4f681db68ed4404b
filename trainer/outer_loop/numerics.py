"""Checks the result of every operation for NaN and infinity (`run.debug_nans`)."""

import contextlib

import tensorflow as tf


@contextlib.contextmanager
def numerics_checked(on, trainer):
    """A context in which the first NaN or infinity is a tf.errors.InvalidArgumentError that shows its line, if `on`.

    Raises:
        ValueError: if the trainer is compiled with XLA, which has no such check.
    """
    if not on:
        yield
        return
    if trainer.compile.startswith("xla"):
        raise ValueError(
            f"`debug_nans` needs compile='graph' or 'eager', got {trainer.compile!r}: XLA has no such check."
        )
    tf.debugging.enable_check_numerics()
    try:
        yield
    finally:
        tf.debugging.disable_check_numerics()
