"""Prepares Keras optimizers for a group: validation, clipping after the all-reduce, no second reduction."""

import contextlib
import numbers

import keras
import numpy as np
import tensorflow as tf

from optimizers.base import keras_object
from optimizers.transforms import clip_by_global_norm, clip_by_norm, clip_by_value


def one_optimizer(optimizer, notes):
    """Returns the Keras optimizer for `optimizer`, an object or a name; adds changes of it to `notes`.

    Raises:
        ValueError: for a class, another object, or an optimizer that cannot train on several replicas.
    """
    if isinstance(optimizer, str):
        optimizer = keras_object("optimizer", "optimizers", optimizer)
    if isinstance(optimizer, type):
        raise ValueError(
            f"`optimizer` must be an optimizer, got the class {optimizer.__name__}. In gin: @{optimizer.__name__}()."
        )
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise ValueError(f"`optimizer` must be a Keras optimizer or its name, got {optimizer!r:.80}.")
    if isinstance(optimizer, keras.optimizers.MultiOptimizer):
        raise ValueError(
            "`optimizer` is a MultiOptimizer, whose inner slot variables are not saved in checkpoints. Use one "
            "OptimizerGroup for each of its optimizers: OptimizerGroup(variables='encoder/.*', optimizer=...)."
        )
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
        notes.append(
            "LossScaleOptimizer is unwrapped: it checks the gradients of one replica only. The trainer scales float16 "
            "losses."
        )
    if getattr(optimizer, "gradient_accumulation_steps", None):
        raise ValueError(
            "`gradient_accumulation_steps` of a Keras optimizer fails on several replicas. Use Trainer.micro_batches, "
            "which accumulates inside the step."
        )
    if getattr(optimizer, "use_ema", False):
        raise ValueError("`use_ema` of a Keras optimizer is not supported: it fails on several replicas.")
    _check_learning_rate(optimizer)
    return optimizer


def _check_learning_rate(optimizer):
    """Validates a callable learning rate: Keras takes one without arguments that returns a number."""
    rate = getattr(optimizer, "_learning_rate", None)
    if not callable(rate) or isinstance(rate, (keras.Variable, keras.optimizers.schedules.LearningRateSchedule)):
        return
    name = getattr(rate, "__name__", type(rate).__name__)
    try:
        value = rate()
    except TypeError as error:
        value = error
    if not isinstance(value, (numbers.Real, np.ndarray, tf.Tensor, tf.Variable, keras.Variable)):
        got = f"fails when it is called without arguments ({str(value).splitlines()[0]})"
        got = got if isinstance(value, TypeError) else f"returns a {type(value).__name__} when it is called"
        raise ValueError(
            f"`learning_rate` of {type(optimizer).__name__} must be a number, a schedule, or a callable without "
            f"arguments that returns a number; {name} {got}. Call it where the optimizer is created: in gin "
            f"`{type(optimizer).__name__}.learning_rate = @{name}()`."
        )


def has_own_update(optimizer):
    """True if the optimizer's class overrides `apply_gradients` or `apply`, not only `update_step`."""
    base, kind = keras.optimizers.Optimizer, type(optimizer)
    return kind.apply_gradients is not base.apply_gradients or kind.apply is not base.apply


def move_clipping(optimizer, notes):
    """Replaces Keras' clipping by transforms, which report the clipping; returns them.

    An optimizer with its own update keeps its clipping, which then acts where its author placed it, on reduced
    gradients as well.
    """
    clips = []
    for attribute, transform in (
        ("clipvalue", clip_by_value),
        ("clipnorm", clip_by_norm),
        ("global_clipnorm", clip_by_global_norm),
    ):
        limit = getattr(optimizer, attribute, None)
        if limit and not has_own_update(optimizer):
            clips.append(transform(limit))
            setattr(optimizer, attribute, None)
            notes.append(
                f"{attribute}={limit} of {type(optimizer).__name__} became the transform {transform.__name__}: it acts "
                "on the gradient of all replicas, where Keras clips each replica's part."
            )
    return clips


def update(optimizer, gradients_and_variables):
    """Calls `apply_gradients`, like `fit`, with gradients that are already reduced; traced, per replica."""
    with _reduced_once():
        optimizer.apply_gradients(gradients_and_variables)


@contextlib.contextmanager
def _reduced_once():
    """A context in which the optimizer's own all-reduce returns its input, because gradients are already reduced."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        yield
        return
    context.all_reduce = lambda reduce_op, value, options=None: value
    try:
        yield
    finally:
        del context.all_reduce


def skip_gradient_reduction(optimizer):
    """Makes a Keras optimizer skip its all-reduce, because gradients are already summed over replicas.

    Keras 3 has no public switch, and `apply` would sum again. This replaces one
    private method of the instance; tests/optimizers/groups_test.py notices when
    Keras changes it.
    """
    if not hasattr(optimizer, "_all_reduce_sum_gradients"):
        raise RuntimeError(
            f"This version of Keras ({keras.__version__}) has no Optimizer._all_reduce_sum_gradients; "
            "several replicas would sum gradients twice. Use a Keras version that setup.py allows."
        )
    optimizer._all_reduce_sum_gradients = lambda grads_and_vars: grads_and_vars
