"""Metrics of the default Trainer: Keras metrics by output, from names, functions and objects."""

import dataclasses
from typing import Any, NamedTuple

import keras

from trainer.step.autograph import convert_at_call
from trainer.step.outputs import match
from trainer.step.variables import stable_names


@dataclasses.dataclass(frozen=True)
class Weighted:
    """A metric that wants the batch's sample weights."""

    metric: Any


def weighted(metric):
    """Declares that `metric` (a Keras metric or its name) is to be given the sample weights of the batch."""
    return Weighted(metric)


class OutputMetric(NamedTuple):
    """A built metric, the output that it watches, and whether it takes sample weights."""

    metric: keras.metrics.Metric
    output: str
    weighted: bool


def make_metrics(metrics, targets, outputs):
    """Returns {name: OutputMetric} for `metrics`, a list (one output, or the same for each) or a dict by output."""
    found = {}
    for output, listed in _metric_lists(metrics, outputs).items():
        weighs = [isinstance(metric, Weighted) for metric in listed]
        made = [
            _make_metric(metric.metric if weigh else metric, targets.get(output), outputs[output])
            for metric, weigh in zip(listed, weighs)
        ]
        for metric, name, weigh in zip(made, stable_names(made), weighs):
            name = name if len(outputs) == 1 else f"{output}_{name}"
            if name in found:
                raise ValueError(f"`metrics` has two metrics named {name!r}; give each a name of its own.")
            found[name] = OutputMetric(metric, output, weigh)
    return found


def _metric_lists(metrics, outputs):
    if isinstance(metrics, dict):
        lists = match("metrics", {key: _Listed(value) for key, value in metrics.items()}, outputs)
        return {output: listed.metrics for output, listed in lists.items()}
    if not isinstance(metrics, (list, tuple)):
        metrics = [metrics]
    if len(outputs) > 1 and any(isinstance(metric, (list, tuple)) for metric in metrics):
        lists = match("metrics", [_Listed(value) for value in metrics], outputs)
        return {output: listed.metrics for output, listed in lists.items()}
    if len(outputs) > 1 and any(isinstance(metric, keras.metrics.Metric) for metric in metrics):
        raise ValueError(
            f"`metrics` is one list for {len(outputs)} outputs; a metric object can watch only one of them. "
            f"Give a dict by output: {', '.join(outputs)}."
        )
    return {output: list(metrics) for output in outputs}


class _Listed:
    """A list of metrics that `match` takes as one value."""

    def __init__(self, metrics):
        self.metrics = metrics if isinstance(metrics, list) else [metrics]


def _make_metric(metric, targets, predictions):
    if isinstance(metric, keras.metrics.Metric):
        return metric
    if metric in ("accuracy", "acc"):
        return _accuracy(targets, predictions)
    if isinstance(metric, str):
        try:
            metric = keras.metrics.get(metric)
        except ValueError:
            raise ValueError(
                f"`metrics` must hold metrics or names that keras.metrics.get knows, got {metric!r}."
            ) from None
    if isinstance(metric, type):
        metric = metric()
    if isinstance(metric, keras.metrics.Metric):
        return metric
    if callable(metric):
        return keras.metrics.MeanMetricWrapper(convert_at_call(metric), name=getattr(metric, "__name__", None))
    raise ValueError(f"`metrics` must hold Keras metrics, functions or names, got {metric!r}.")


def _accuracy(targets, predictions):
    """Returns the accuracy that fits the shapes, as Keras' `compile` chooses it."""
    if predictions.shape.rank is not None and (predictions.shape.rank < 2 or predictions.shape[-1] == 1):
        return keras.metrics.BinaryAccuracy(name="accuracy")
    if targets is None or targets.shape.rank < predictions.shape.rank or targets.shape[-1] == 1:
        return keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    return keras.metrics.CategoricalAccuracy(name="accuracy")
