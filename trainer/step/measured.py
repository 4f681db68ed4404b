"""The names of the losses and metrics of a training step and of an evaluation, and their Reports."""

import dataclasses
import functools

import keras
import tensorflow as tf

from trainer.step.autograph import convert
from trainer.step.internals import Internals
from trainer.step.losses import loss_kinds
from trainer.step.metrics import find_metrics, make_states
from trainer.step.reduction import LossKey
from trainer.step.reports import Reports


@dataclasses.dataclass(frozen=True)
class Measured:
    """The measurements of a pass: `counted`, `internals` and `reports` as in Built."""

    counted: set
    internals: Internals
    reports: Reports


def check_names(trainer, internals, metrics):
    """Raises ValueError if a name has two owners, or a loss no group."""
    if trainer.loss_names.count("regularization") > 1:
        raise ValueError(
            "Two losses are named 'regularization': one that you return or add, and the sum of the regularizers of "
            "Keras variables, which has this name. Rename yours."
        )
    both = [name for name in metrics if f"metrics/{name}" in internals.kinds]
    if both:
        raise ValueError(
            f"Two metrics are named {', '.join(both)}: a Keras metric of the trainer or its models, and an "
            "`add_metric` inside the model. Rename one of them."
        )
    taken = {name for group in trainer.groups for name in group.loss_weights(trainer.loss_names)}
    left = [name for name in trainer.loss_names if name not in taken]
    if left:
        raise ValueError(
            f"No group minimizes {', '.join(left)}. Name them in the `losses` of a group, give them weight 0, or "
            "remove them."
        )


def make_reports(trainer, internals, guard, metrics):
    """Returns the Reports of training; `metrics` are MetricStates."""
    kinds = loss_kinds(trainer.loss, trainer.loss_names)
    names = {"loss": str(kinds), **{LossKey(name).tag: kind for name, kind in kinds.items()}}
    names.update({key.tag: "" for key in internals.loss_keys if key.call})
    scalars = dict(guard.scalars)
    for group in trainer.groups:
        names[f"grad_norm/{group.name}"] = ""
        names.update({f"{key}/{group.name}": "" for key in _report_names(group)})
        scalars[f"learning_rate/{group.name}"] = functools.partial(getattr, group.optimizer, "learning_rate")
        scalars[f"updates/{group.name}"] = functools.partial(getattr, group.optimizer, "iterations")
    return Reports(scalars, names, metrics, internals)


def _report_names(group):
    """Traces the group's transforms on gradients of its variables' shapes; returns the names that they report."""
    names = []

    def trace():
        with keras.StatelessScope():
            gradients = [tf.zeros(v.shape, v.dtype) for v in group.variables]
            norms = {group.name: tf.zeros([]), "all": tf.zeros([])}
            for transform in group.transforms:
                gradients = convert(transform)(gradients, group.variables, norms)
                names.extend(transform.report() if hasattr(transform, "report") else ())
            taken = {"grad_norm", "learning_rate", "updates", "losses", "metrics"} & set(names)
            if taken:
                raise ValueError(
                    f"A transform of group {group.name!r} reports {', '.join(sorted(taken))}, which the trainer "
                    "reports itself. Use another name in its `report`."
                )

    if group.transforms:
        tf.function(trace, autograph=False).get_concrete_function()
    return dict.fromkeys(names)


def make_evaluation(trainer, trace, layer_names):
    """Returns the Measured of an evaluation, whose losses and metrics may differ from those of training; eager.

    `trace` is a function that traces a pass for evaluation.
    """
    with trainer.strategy.scope():
        traced = trace()
        internals = Internals(traced["collected"], layer_names, traced["names"])
        penalties = [name for name in trainer.loss_names if name == "regularization"]
        keys = [*map(LossKey, traced["names"]), *internals.loss_keys, *map(LossKey, penalties)]
        losses = {key.tag: "" for key in keys}
        states = make_states(trainer, traced, find_metrics(trainer)[0])
        return Measured(traced["counted"], internals, Reports({}, losses, states, internals))
