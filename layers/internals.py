"""Collects losses, metrics and taps that layers add during the forward pass.

`add_loss`, `add_metric` and `tap` work at any depth below `Trainer.compute_losses`.
Each forward pass of each replica has its own Collector, one per thread:
MirroredStrategy traces replicas in threads that switch at every collective.
Without a collector (inference, export, plain `fit`) the three do nothing.
"""

import contextlib
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import gin
import keras
import tensorflow as tf

REDUCES = ("mean", "sum", "min", "max", "last")
_CALLS = {"losses": "add_loss", "metrics": "add_metric", "taps": "tap"}
_thread = threading.local()


class Entry(NamedTuple):
    """A value that one call of `add_loss`, `add_metric` or `tap` added.

    `owner` is the calling layer, None outside of layers. `detail` is the weight
    of a loss, the `reduce` of a metric, or the interval of a tap.
    """

    owner: Any
    value: Any
    detail: Any


class Collector:
    """The losses, metrics and taps of one forward pass of one replica.

    Attributes:
        losses, metrics, taps: dict name -> list of Entry, one for each call. The
            key of a Keras `add_loss`, which has no name, is the layer.
    """

    def __init__(self):
        self.losses, self.metrics, self.taps = {}, {}, {}
        self._graph = _graph()

    def add(self, kind, name, entry):
        """Adds an Entry; raises ValueError if its name is taken or its value belongs to an inner graph."""
        what = f"`{_CALLS[kind]}` {name!r}" if isinstance(name, str) else f"`add_loss` of {_describe(name)}"
        if _graph() is not self._graph:
            raise ValueError(
                f"{what} was called inside tf.cond, tf.while_loop or an inner tf.function; its value cannot be used "
                "outside of it. Return the value from the function and make the call outside."
            )
        before = getattr(self, kind).setdefault(name, [])
        if before and before[0].owner is not entry.owner:
            raise ValueError(
                f"{what} was called by {_describe(before[0].owner)} and by {_describe(entry.owner)}. Names must be "
                "unique: include the layer's name, such as f'{self.name}/...'."
            )
        if before and before[0].detail != entry.detail:
            raise ValueError(
                f"{what} was called with {before[0].detail!r} and with {entry.detail!r} in one step. Use one of them."
            )
        before.append(entry)


@contextlib.contextmanager
def collecting():
    """A context whose Collector receives what layers add in this thread; yields it."""
    outer, _thread.collector = _collector(), Collector()
    try:
        yield _thread.collector
    finally:
        _thread.collector = outer


def add_loss(value: tf.Tensor | tuple, name: str, weight: float | Callable = 1.0) -> None:
    """Adds a loss to the step from inside a model; traced, per replica.

    Args:
        value: a floating tensor of any rank, or (values, weights), reduced
            like a loss of `compute_losses`: a mean over the global batch.
        name: str; the tag is `losses/<name>`, without the weight. Values of
            several calls of one layer are added.
        weight: number, or a callable of the step (int64 scalar) such as a
            Keras schedule: the factor in the total loss. 0 only reports the loss.

    Raises:
        ValueError: if another layer uses the name, or the call is inside
            tf.cond, tf.while_loop or an inner tf.function.
    """
    _collect("losses", value, name, weight)


def add_metric(value: tf.Tensor | tuple, name: str, reduce: str = "mean") -> None:
    """Reports a value from inside a model as `metrics/<name>`, in training and evaluation; traced, per replica.

    Args:
        value: a tensor of any rank, or (values, weights) for "mean" and "last".
        name: str. Several calls of one layer are reduced together.
        reduce: "mean", "sum", "min" or "max" over all elements, replicas and
            steps of a report, or "last": the mean over the last step.

    Raises:
        ValueError: as `add_loss`, or if `reduce` is unknown.
    """
    if reduce not in REDUCES:
        raise ValueError(f"`reduce` must be one of {', '.join(REDUCES)}, got {reduce!r}.")
    if isinstance(value, tuple) and reduce not in ("mean", "last"):
        raise ValueError(f"`reduce` {reduce!r} takes no weights. Give values alone, or 'mean'.")
    _collect("metrics", value, name, reduce)


@gin.configurable(module="layers")
def tap(value: tf.Tensor, name: str, every: int | None = None) -> tf.Tensor:
    """Reports statistics of an activation and of its gradient; returns `value` unchanged; traced, per replica.

    The tags are `taps/<name>/mean`, `std`, `largest` (magnitude) and `zeros`
    (fraction), and the same below `taps/<name>/gradient/` for the gradient of
    the total loss. A tap that is off adds no operation to the graph.

    Args:
        value: a floating tensor that the loss depends on.
        name: str, unique.
        every: int, steps between measurements; None: off. `tap.every = 100` in gin turns all taps on.
    """
    if every is not None:
        if every < 1:
            raise ValueError(f"`every` must be >= 1 or None (off), got {every}.")
        _collect("taps", value, name, every)
    return value


def monitor(value, name):
    """Reports mean, standard deviation and fraction of dead units (see `ActivationMonitor`); traced, per replica."""
    _collect("metrics", value, f"{name}/mean", "mean")
    _collect("metrics", value, f"{name}/std", "std")
    _collect("metrics", value, f"{name}/dead", "dead")


def _collect(kind, value, name, detail):
    if isinstance(value, keras.KerasTensor):
        raise ValueError(
            f"The value of {name!r} is a KerasTensor, a symbolic tensor of a Functional model. Use the layers AddLoss, "
            "AddMetric or ActivationMonitor there."
        )
    if _collector() is not None:
        if not isinstance(name, str) or not name or "#" in name:
            raise ValueError(f"`name` must be a string without '#', got {name!r}.")
        _collector().add(kind, name, Entry(_calling_layer(), value, detail))


def _collector():
    return getattr(_thread, "collector", None)


def _graph():
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def _calling_layer():
    """Returns the innermost layer on Python's stack, or None. Keras 3 gives only the outermost one."""
    frame = sys._getframe(2)
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), keras.layers.Layer):
            return frame.f_locals["self"]
        frame = frame.f_back
    return None


def _describe(owner):
    return "the step itself" if owner is None else f"layer {getattr(owner, 'name', owner)!r}"


def intercept_keras_add_loss():
    """Makes `keras.layers.Layer.add_loss`, activity regularizers included, add to the current Collector; idempotent.

    `model.losses` is not enough: it keeps only the last call of a model, and
    with a synchronized BatchNormalization it mixes the losses of replicas.
    This replaces the public method of the base class. Without a collector the
    original method runs.
    """
    original = keras.layers.Layer.add_loss
    if getattr(original, "intercepted", False):
        return

    def add_loss(self, loss):
        if _collector() is None:
            original(self, loss)
            return
        for value in tf.nest.flatten(loss):
            _collector().add("losses", self, Entry(self, value, 1.0))

    add_loss.intercepted = True
    add_loss.__doc__ = original.__doc__
    keras.layers.Layer.add_loss = add_loss


intercept_keras_add_loss()
