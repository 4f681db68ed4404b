"""Converts the losses, metrics and taps that layers add (layers/internals.py) to losses and values of the report.

On each replica they become a nest of tensors, which is reduced in the same way
over micro-batches, replicas, steps and loops:

    {"sums": {column: (value, weight)},  "largest": {column: vector},  "last": {column: (value, weight)}}

A minimum is the largest of the negated values. A standard deviation is computed from two sums.
"""

import keras
import numpy as np
import tensorflow as tf

from layers.internals import collecting
from trainer.step.autograph import convert
from trainer.step.reduction import LossKey, make_term
from trainer.step.variables import name_layers

_EXTREMES = ("min", "max", "dead")
_TAP = {"mean": "mean", "std": "std", "largest": "max", "zeros": "mean"}


def collect(trainer, batch, training):
    """Calls `compute_losses`; returns (losses, outputs, Collector of what layers added); traced, per replica."""
    _reset_dropout_masks(trainer)
    with collecting() as collected:
        returned = convert(trainer.compute_losses)(batch, training)
    losses, outputs = returned if isinstance(returned, tuple) else (returned, None)
    if not isinstance(losses, dict) or not losses:
        raise ValueError(f"`compute_losses` must return a dict of losses, or (losses, outputs), got {returned!r:.80}.")
    for name in losses:
        if not isinstance(name, str) or not name or "#" in name:
            raise ValueError(f"`compute_losses` must name losses by strings without '#', got {name!r}.")
    return losses, outputs, collected


def _reset_dropout_masks(trainer):
    """Resets the dropout masks of recurrent cells, which are kept for a sequence and belong to the last trace."""
    for layer in name_layers(trainer.held()):
        for reset in ("reset_dropout_mask", "reset_recurrent_dropout_mask"):
            if hasattr(layer, reset):  # Keras' RNN resets its own cell; a user's loop does not
                getattr(layer, reset)()


class Internals:
    """Names, weights and kinds of a trainer's internal losses and metrics, taken from the build trace.

    Args:
        collected: Collector of the build trace.
        layer_names: {layer: name}, for Keras' `add_loss`.
        taken: names of the step's other losses.
    """

    def __init__(self, collected, layer_names, taken):
        self._layer_names = layer_names
        self.weights, self.counted = {}, set()
        for name, calls in self._named(collected.losses).items():
            if name in taken:
                raise ValueError(f"Two losses are named {name!r}, one of them inside the model. Give one another name.")
            self.weights[name] = calls[0].detail
            self.counted |= {LossKey(name, k) for k, call in enumerate(calls) if varies(call.value)}
        self.loss_keys = [
            LossKey(name, k) for name, calls in self._named(collected.losses).items() for k in range(len(calls))
        ]
        self.kinds = {f"metrics/{name}": calls[0].detail for name, calls in collected.metrics.items()}
        for name in collected.taps:
            for part in (f"taps/{name}", f"taps/{name}/gradient"):
                self.kinds.update({f"{part}/{statistic}": kind for statistic, kind in _TAP.items()})
        units = {
            f"metrics/{name}": int(calls[0].value.shape[-1])
            for name, calls in collected.metrics.items()
            if calls[0].detail == "dead"
        }
        self.sizes = {column: units.get(column, 1) for column, kind in self.kinds.items() if kind in _EXTREMES}

    @property
    def columns(self):
        """Names of the sums in a Tally."""
        of_kind = {"mean": ("",), "sum": ("",), "std": ("", "^2")}
        return [column + suffix for column, kind in self.kinds.items() for suffix in of_kind.get(kind, ())]

    @property
    def last(self):
        """Names of the metrics with reduce="last"."""
        return [column for column, kind in self.kinds.items() if kind == "last"]

    def _named(self, losses):
        return {
            key if isinstance(key, str) else self._layer_names.get(key) or key.name: calls
            for key, calls in losses.items()
        }

    def terms(self, collected, examples):
        """Returns {key: reduction.Term}, with one key for each call of a layer; traced, per replica."""
        terms = {}
        for name, calls in self._named(collected.losses).items():
            for k, call in enumerate(calls):
                key = LossKey(name, k)
                if key not in self.loss_keys:
                    raise ValueError(
                        f"`add_loss` {name!r} was not called when the model was built. Call it in every training step."
                    )
                terms[key] = make_term(name, call.value, examples, key in self.counted)
        return terms

    def measure(self, collected, examples, step):
        """Returns the nest of the values of metrics and taps; traced, per replica."""
        measured = self.empty()
        for name, calls in collected.metrics.items():
            for call in calls:
                if self.kinds.get(f"metrics/{name}") != call.detail:
                    raise ValueError(
                        f"`add_metric` {name!r} was not called when the model was built. Call it in training as well."
                    )
                measured = merge(measured, _measure(f"metrics/{name}", call.detail, call.value, examples))
        taps = {f"taps/{name}": (call.value, call.detail) for name, calls in collected.taps.items() for call in calls}
        return self._add_statistics(measured, taps, step, examples) if taps else measured

    def measure_gradients(self, p, gradients, step):
        """Adds to `p.measured` the statistics of the gradients at taps; traced, per replica.

        Args:
            p: ReplicaPass.
            gradients: one list per group, in the order of `tapped`; their sum is the gradient of the total loss.
        """
        names = [(name, call.detail) for name, calls in p.collected.taps.items() for call in calls]
        taps = {}
        for (name, every), *parts in zip(names, *gradients):
            parts = [tf.convert_to_tensor(g) for g in parts if g is not None]
            if parts:
                taps[f"taps/{name}/gradient"] = (tf.add_n(parts), every)
        p.measured = self._add_statistics(p.measured, taps, step, p.examples)

    def _add_statistics(self, measured, taps, step, examples):
        for prefix, (value, every) in taps.items():

            def measure(prefix=prefix, value=value):
                value = tf.cast(value, tf.float32)
                found = self.empty()
                shown = {
                    "mean": value,
                    "std": value,
                    "largest": tf.abs(value),
                    "zeros": tf.cast(value == 0, tf.float32),
                }
                for statistic, x in shown.items():
                    found = merge(found, _measure(f"{prefix}/{statistic}", _TAP[statistic], x, examples))
                return found

            measured = merge(measured, tf.cond(step % every == 0, measure, self.empty))
        return measured

    def empty(self):
        """Returns the neutral element of `merge`."""
        zeros = lambda names: {name: (tf.zeros([]), tf.zeros([])) for name in names}  # noqa: E731
        largest = {column: tf.fill([size], -np.inf) for column, size in self.sizes.items()}
        return {"sums": zeros(self.columns), "largest": largest, "last": zeros(self.last)}

    def results(self, sums, largest, last):
        """Returns {tag: float} of values that were reduced over replicas, steps and loops; eager.

        Args:
            sums, last: {column: (value, weight)}.
            largest: {column: array}.
        """
        tags = {}
        for column, kind in self.kinds.items():
            if kind in _EXTREMES and not np.isfinite(largest[column]).all():
                continue  # nothing was collected
            if kind == "min":
                tags[column] = -float(largest[column][0])
            elif kind == "max":
                tags[column] = float(largest[column][0])
            elif kind == "dead":
                tags[column] = float(np.mean(largest[column] <= 0))
            elif (last if kind == "last" else sums)[column][1]:
                value, weight = (last if kind == "last" else sums)[column]
                if kind == "std":
                    tags[column] = float(np.sqrt(max(sums[column + "^2"][0] / weight - (value / weight) ** 2, 0.0)))
                else:
                    tags[column] = float(value if kind == "sum" else value / weight)
        return tags


def tapped(collected):
    """Returns the tapped tensors."""
    return [call.value for calls in collected.taps.values() for call in calls]


def merge(first, second):
    """Reduces two measured nests of one step to one."""
    add = lambda kind: {c: (a + second[kind][c][0], b + second[kind][c][1]) if c in second[kind] else (a, b)  # noqa: E731
                        for c, (a, b) in first[kind].items()}  # fmt: skip
    largest = {
        c: tf.maximum(a, second["largest"][c]) if c in second["largest"] else a for c, a in first["largest"].items()
    }
    return {"sums": add("sums"), "largest": largest, "last": add("last")}


def varies(value):
    """True if the batch size does not determine the number of elements of a loss, so that they must be counted."""
    if isinstance(value, tuple):
        return False  # the sum of the weights is the denominator
    return isinstance(value, tf.RaggedTensor) or not tf.convert_to_tensor(value).shape.is_fully_defined()


def weigh(losses, weights, step):
    """Returns {name: loss * weight}; the internal `weights` are numbers or callables of the step; traced."""
    weighted = dict(losses)
    for name, weight in weights.items():
        if name in losses and (callable(weight) or weight != 1.0):
            factor = convert(weight)(step) if callable(weight) else weight
            weighted[name] = losses[name] * (
                tf.cast(factor, losses[name].dtype) if tf.is_tensor(losses[name]) else factor
            )
    return weighted


def _measure(column, kind, value, examples):
    """Returns the nest for one value of one metric. Elements have equal weight; a scalar has the number of examples."""
    real = tf.cast(examples > 0, tf.float32)  # 0 for the copy on a replica without examples
    value, weights = value if isinstance(value, tuple) else (value, None)
    value = tf.cast(keras.ops.convert_to_tensor(value), tf.float32)
    found = {"sums": {}, "largest": {}, "last": {}}
    if kind in ("min", "max"):
        extreme = (
            -tf.reduce_min(value) if kind == "min" else tf.reduce_max(value)
        )  # not max(-x): WORKSPACE.md, grappler
        found["largest"][column] = tf.reshape(tf.where(real > 0, extreme, -np.inf), [1])
        return found
    if kind == "dead":
        found["largest"][column] = tf.where(
            real > 0, tf.reduce_max(tf.reshape(value, [-1, value.shape[-1]]), 0), -np.inf
        )
        return found
    if weights is None:
        weights = tf.cast(examples, tf.float32) if value.shape.rank == 0 and kind != "sum" else tf.ones_like(value)
    weights = tf.cast(weights, tf.float32)
    while weights.shape.rank < value.shape.rank:
        weights = weights[..., tf.newaxis]
    weights = real * tf.broadcast_to(weights, tf.shape(value))
    total = tf.reduce_sum(weights)
    found["last" if kind == "last" else "sums"][column] = (tf.reduce_sum(value * weights), total)
    if kind == "std":
        found["sums"][column + "^2"] = (tf.reduce_sum(tf.square(value) * weights), total)
    return found
