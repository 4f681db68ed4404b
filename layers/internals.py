"""Losses, metrics and taps from inside a model: what layers say in the middle of a step.

`add_loss`, `add_metric` and `tap` work at any depth below `Trainer.compute_losses`.
A trainer listens with a Collector of its own for each replica: replicas are
traced in threads that switch at every collective, so that nothing here may be
shared between them. Where nobody listens (building, inference, export, plain
`fit`) the three do nothing.
"""

import contextlib
import sys
import threading
from typing import Any, NamedTuple

import gin
import keras
import tensorflow as tf

REDUCES = ("mean", "sum", "min", "max", "last")
_CALLS = {"losses": "add_loss", "metrics": "add_metric", "taps": "tap"}
_listening = threading.local()


class Said(NamedTuple):
    """One loss or metric, as a layer said it.

    `owner` is the layer, None outside of layers. `detail` is the weight of a
    loss, the `reduce` of a metric, the interval of a tap.
    """

    owner: Any
    value: Any
    detail: Any


class Collector:
    """What was said in one forward pass of one replica.

    Attributes:
        losses, metrics, taps: dict name -> list of Said, one for each call. A
            Keras `add_loss`, which has no name, is filed under its layer.
    """

    def __init__(self):
        self.losses, self.metrics, self.taps = {}, {}, {}
        self._graph = _graph()

    def add(self, kind, name, said):
        """Files `said`; raises ValueError where it could not be told apart or could not leave its graph."""
        what = f"`{_CALLS[kind]}` {name!r}" if isinstance(name, str) else f"`add_loss` of {_describe(name)}"
        if _graph() is not self._graph:
            raise ValueError(
                f"{what} was called inside tf.cond, tf.while_loop or a tf.function of its own, which its value cannot leave. "
                "Return the value from there and call it outside."
            )
        before = getattr(self, kind).setdefault(name, [])
        if before and before[0].owner is not said.owner:
            raise ValueError(
                f"{what} comes from two places, {_describe(before[0].owner)} and {_describe(said.owner)}; they could not be "
                "told apart. Put something of the layer's own, such as self.name, into the name."
            )
        if before and before[0].detail != said.detail:
            raise ValueError(
                f"{what} was called with {before[0].detail!r} and then with {said.detail!r} in one step. Use one."
            )
        before.append(said)


@contextlib.contextmanager
def listening():
    """Listens to the layers that this thread calls; yields the Collector."""
    outer, _listening.collector = _collector(), Collector()
    try:
        yield _listening.collector
    finally:
        _listening.collector = outer


def add_loss(value, name, weight=1.0):
    """Adds a loss to the step from inside a model; traced, per replica.

    Args:
        value: a floating tensor of any rank, or (values, weights), reduced
            like a loss of `compute_losses`: a mean over the global batch.
        name: str; reported as `losses/<name>`, unweighted. A further call of
            the same layer adds up.
        weight: number, or a callable of the step (int64 scalar) such as a
            Keras schedule: how much of it enters the total. 0 only reports.

    Raises:
        ValueError: the name is used by another layer, or the value was made
            inside tf.cond, tf.while_loop or a tf.function of its own.
    """
    _say("losses", value, name, weight)


def add_metric(value, name, reduce="mean"):
    """Reports a value from inside a model as `metrics/<name>`, in training and evaluation; traced, per replica.

    Args:
        value: a tensor of any rank, or (values, weights) for "mean" and "last".
        name: str. A further call of the same layer folds in.
        reduce: over all elements, replicas and steps of a report: "mean",
            "sum", "min", "max"; or "last": the mean over the last step.

    Raises:
        ValueError: as `add_loss`, or `reduce` is unknown.
    """
    if reduce not in REDUCES:
        raise ValueError(f"`reduce` must be one of {', '.join(REDUCES)}, got {reduce!r}.")
    if isinstance(value, tuple) and reduce not in ("mean", "last"):
        raise ValueError(f"`reduce` {reduce!r} takes no weights. Give values alone, or 'mean'.")
    _say("metrics", value, name, reduce)


@gin.configurable(module="layers")
def tap(value, name, every=None):
    """Reports a hidden activation and its gradient; returns `value` as it is; traced, per replica.

    Off, it adds not one operation. On, `taps/<name>/` has mean, std, largest
    (magnitude) and zeros (share) of the activation, and the same of the
    gradient of the total loss below `taps/<name>/gradient/`.

    Args:
        value: a floating tensor on the way to the loss.
        name: str, unique.
        every: int, steps between two looks; None: off. In gin `tap.every = 100` turns all taps on.
    """
    if every is not None:
        if every < 1:
            raise ValueError(f"`every` must be >= 1 or None (off), got {every}.")
        _say("taps", value, name, every)
    return value


def monitor(value, name):
    """Reports mean, standard deviation and share of dead units (`ActivationMonitor`); traced, per replica."""
    _say("metrics", value, f"{name}/mean", "mean")
    _say("metrics", value, f"{name}/std", "std")
    _say("metrics", value, f"{name}/dead", "dead")


def _say(kind, value, name, detail):
    if isinstance(value, keras.KerasTensor):
        raise ValueError(
            f"{name!r} is of a KerasTensor, the input or output of a Functional model that is being built. Use the layers "
            "AddLoss, AddMetric or ActivationMonitor there."
        )
    if _collector() is not None:
        if not isinstance(name, str) or not name or "#" in name:
            raise ValueError(f"`name` must be a string without '#', got {name!r}.")
        _collector().add(kind, name, Said(_calling_layer(), value, detail))


def _collector():
    return getattr(_listening, "collector", None)


def _graph():
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def _calling_layer():
    """Returns the innermost layer on Python's stack, or None. Keras 3 tells only the outermost."""
    frame = sys._getframe(2)
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), keras.layers.Layer):
            return frame.f_locals["self"]
        frame = frame.f_back
    return None


def _describe(owner):
    return "the step itself" if owner is None else f"layer {getattr(owner, 'name', owner)!r}"


def hear_keras():
    """Lets collectors hear what layers say with Keras' own `add_loss`, activity regularizers included; idempotent.

    `model.losses` cannot serve: it forgets all but the last call of a model, and
    with a synchronized BatchNormalization inside it mixes the replicas' threads.
    This replaces the public method of the base class once; where nobody listens it does what it did.
    """
    original = keras.layers.Layer.add_loss
    if getattr(original, "heard", False):
        return

    def add_loss(self, loss):
        if _collector() is None:
            original(self, loss)
            return
        for value in tf.nest.flatten(loss):
            _collector().add("losses", self, Said(self, value, 1.0))

    add_loss.heard = True
    add_loss.__doc__ = original.__doc__
    keras.layers.Layer.add_loss = add_loss


hear_keras()
