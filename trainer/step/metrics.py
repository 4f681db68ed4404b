"""Metrics of the default Trainer: Keras metrics by output, from names, functions and objects."""

import dataclasses
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from losses.global_batch import all_gather
from optimizers.base import keras_object
from trainer.inputs.batches import static_batch_size
from trainer.step.autograph import convert, convert_at_call
from trainer.step.metric_states import MetricStates, examine
from trainer.step.outputs import keras_masks, match, set_keras_mask
from trainer.step.replica_state import tracing_context, unchanged
from trainer.step.variables import stable_names

_ACCURACY = ("accuracy", "acc")  # which accuracy depends on the shapes


@dataclasses.dataclass(frozen=True)
class Weighted:
    """A metric that gets the batch's sample weights."""

    metric: Any


def weighted(metric: keras.metrics.Metric | str) -> Weighted:
    """Makes the trainer pass the batch's sample weights to `metric`, a Keras metric or its name."""
    return Weighted(metric)


class OutputMetric(NamedTuple):
    """A built metric, the name of its output, and whether it gets sample weights."""

    metric: keras.metrics.Metric
    output: str
    weighted: bool


def make_metrics(metrics, targets, outputs):
    """Returns {name: OutputMetric} for `metrics`, a list (one output, or the same for each) or a dict by output."""
    found, there = {}, [name for name, output in outputs.items() if output is not None]
    for output, listed in _metric_lists(metrics, outputs).items():
        weighs = [isinstance(metric, Weighted) for metric in listed]
        made = [
            _make_metric(metric.metric if weigh else metric, targets.get(output), outputs[output])
            for metric, weigh in zip(listed, weighs)
        ]
        for metric, name, weigh in zip(made, stable_names(made), weighs):
            name = name if len(there) == 1 else f"{output}_{name}"
            if name in found:
                raise ValueError(f"`metrics` has two metrics named {name!r}; give each a different name.")
            found[name] = OutputMetric(metric, output, weigh)
    return found


def check_metrics(metrics):
    """Returns `metrics`; raises ValueError if it holds anything but metrics."""
    for metric in tf.nest.flatten(metrics):
        metric = metric.metric if isinstance(metric, Weighted) else metric
        if isinstance(metric, str) and metric not in _ACCURACY:
            keras_object("metrics", "metrics", metric)
        elif not callable(metric) and not isinstance(metric, (str, type(None))):
            raise ValueError(f"`metrics` must hold Keras metrics, functions or names, got {metric!r:.80}.")
    return metrics


def _metric_lists(metrics, outputs):
    if isinstance(metrics, dict):
        lists = match("metrics", {key: _Listed(value) for key, value in metrics.items()}, outputs)
        return {output: listed.metrics for output, listed in lists.items()}
    if not isinstance(metrics, (list, tuple)):
        metrics = [metrics]
    if len(outputs) > 1 and any(isinstance(metric, (list, tuple)) for metric in metrics):
        lists = match("metrics", [_Listed(value) for value in metrics], outputs)
        return {output: listed.metrics for output, listed in lists.items()}
    there = [name for name, output in outputs.items() if output is not None]
    if len(there) > 1 and any(isinstance(getattr(m, "metric", m), keras.metrics.Metric) for m in metrics):
        raise ValueError(
            f"`metrics` is one list for {len(there)} outputs; a metric object can measure only one of them. "
            f"Give a dict by output: {', '.join(there)}."
        )
    return {output: list(metrics) for output in there}


class _Listed:
    """A list of metrics that `match` treats as one value."""

    def __init__(self, metrics):
        self.metrics = list(metrics) if isinstance(metrics, (list, tuple)) else [metrics]


def _make_metric(metric, targets, predictions):
    if isinstance(metric, keras.metrics.Metric):
        return metric
    if metric in _ACCURACY:
        return _accuracy(targets, predictions)
    if isinstance(metric, str):
        metric = keras_object("metrics", "metrics", metric)
    if isinstance(metric, type):
        metric = metric()
    if isinstance(metric, keras.metrics.Metric):
        return metric
    return keras.metrics.MeanMetricWrapper(convert_at_call(metric), name=getattr(metric, "__name__", None))


def _accuracy(targets, predictions):
    """Returns the accuracy metric for the shapes, chosen like in Keras' `compile`."""
    if predictions.shape.rank is not None and (predictions.shape.rank < 2 or predictions.shape[-1] == 1):
        return keras.metrics.BinaryAccuracy(name="accuracy")
    if targets is None or targets.shape.rank < predictions.shape.rank or targets.shape[-1] == 1:
        return keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    return keras.metrics.CategoricalAccuracy(name="accuracy")


def update_by_output(metrics, outputs, targets, sample_weight):
    """Updates `metrics`, {name: OutputMetric}, from {output name: tensor} and nests like the outputs; traced."""
    targets = match("targets", targets, outputs)
    weights = match("sample_weight", sample_weight, outputs)
    for metric, output, is_weighted in metrics.values():
        convert(metric.update_state)(
            targets.get(output), outputs[output], sample_weight=weights.get(output) if is_weighted else None
        )


def find_metrics(trainer):
    """Returns ({name: metric}: those of `metrics` and those of a subclass and its models, list of the latter)."""
    metrics = {name: found.metric for name, found in trainer.output_metrics.items()}
    seen, held = {id(metric) for metric in metrics.values()}, []
    for value in trainer.held().values():
        for item in tf.nest.flatten(value) if isinstance(value, (list, tuple, dict)) else [value]:
            for metric in _metrics_of(item):
                if id(metric) not in seen:
                    seen.add(id(metric))
                    held.append(metric)
    for name, metric in zip(stable_names(held), held):
        if name in metrics:
            raise ValueError(f"Two metrics are named {name!r}; give each a different name.")
        metrics[name] = metric
    return metrics, held


def _metrics_of(item):
    """Returns the metrics that an attribute holds; for a compiled model without those of `compile`.

    `keras.Model.metrics` mixes the two, hence the private names (tests/trainer/step/metrics_test.py notices a change).
    """
    if isinstance(item, keras.metrics.Metric):
        return [item]
    if isinstance(item, keras.layers.Layer):
        return [metric for layer in item._flatten_layers() for metric in layer._metrics]
    listed = getattr(item, "metrics", ())
    return [m for m in listed if isinstance(m, keras.metrics.Metric)] if isinstance(listed, (list, tuple)) else []


def make_states(trainer, traced, metrics):
    """Returns the MetricStates of the `metrics` that a training step updates.

    Args:
        traced: results of the build trace: `assigned` and `in_forward`, ids of
            the variables assigned in the step and in its forward pass; specs of the `batch` and the `outputs`.
        metrics: {name: metric}.

    Raises:
        ValueError: on several replicas, for a metric that the model updates and whose state is not a sum.
    """
    assigned = lambda metric, where: any(id(v) in traced[where] for v in metric.variables)  # noqa: E731
    metrics = {name: metric for name, metric in metrics.items() if assigned(metric, "assigned")}
    inside = {name: metric for name, metric in metrics.items() if assigned(metric, "in_forward")}
    outside = {name: metric for name, metric in metrics.items() if name not in inside}
    replicas, size = trainer.strategy.num_replicas_in_sync, static_batch_size(traced["batch"])

    def update(batch, outputs):
        with tracing_context(trainer.strategy):
            trainer.update_metrics(batch, outputs)

    def forward(batch, outputs):
        with tracing_context(trainer.strategy), trainer.replica_pass(batch, ()) as p:
            trainer.compute_losses(p.batch, training=True)

    # A StatelessScope intercepts assignments of keras.Variables, but not those of tf.Variables.
    with unchanged(trainer.strategy, list(trainer.variables.values())):
        known, no_sum, coupled = examine(outside, update, traced["batch"], traced["outputs"], size)
        if not known:
            no_sum, coupled = set(outside), set(outside)
        known, within, _ = examine(inside, forward, traced["batch"], None, size)
    if within and replicas > 1:
        raise ValueError(
            f"Metric {', '.join(sorted(within))} is updated inside the model, and its state is not a sum over "
            "examples, so the states of replicas cannot be combined. Update it in `update_metrics`, from what "
            "`compute_losses` returns as "
            "outputs, or use `add_metric` with reduce='max', 'min' or 'last'."
        )
    if not known and replicas == 1:
        within = set(inside)
    return MetricStates(metrics, no_sum | within, outside if replicas > 1 and no_sum | coupled else ())


def gather_with_masks(batch, outputs):
    """Returns (batch, outputs) with the examples of all replicas and Keras' masks; traced, per replica, in a pass."""
    batch, outputs, masks = all_gather((batch, outputs, keras_masks(outputs)))
    for output, mask in zip(tf.nest.flatten(outputs), masks):
        set_keras_mask(output, mask)
    return batch, outputs
