"""`python -m trainer.check replicas`: compares one training step on 1 and on 2 replicas, for the user's model and data.

Both trainers start from the same state. Dropout rates are set to 0, because
random numbers differ between replicas by design. Any other difference beyond
rounding is an error; the report names its cause and the fix.
"""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from optimizers.transforms import unique_rows
from trainer.outer_loop.reporting import TIMED
from trainer.replicas.distribution import distribute, make_strategy, replica_values
from trainer.saving.state import state_of
from trainer.step.variables import name_layers

REPLICAS = 2


@dataclasses.dataclass
class ReplicaComparison:
    """The result of a comparison.

    Attributes:
        rows: list of (kind, name, value on one replica, value on two, whether they agree).
        reasons: list of sentences, each with a cause of a difference and its fix.
        notes: list of sentences about expected differences.
    """

    rows: list
    reasons: list
    notes: list

    @property
    def ok(self):
        return not self.reasons and all(row[4] for row in self.rows)

    def __str__(self):
        lines = []
        for kind in dict.fromkeys(row[0] for row in self.rows):
            rows = [row for row in self.rows if row[0] == kind]
            bad = [row for row in rows if not row[4]]
            lines.append(f"{kind:<18}{len(rows) - len(bad)} of {len(rows)} agree")
            lines += [f"  {name}: {one} on one replica, {two} on {REPLICAS}" for _, name, one, two, _ in bad[:10]]
            lines += [f"  ... and {len(bad) - 10} more"] if len(bad) > 10 else []
        lines += self.notes + [f"cause: {reason}" for reason in self.reasons]
        return "\n".join([*lines, "One and two replicas agree." if self.ok else "One and two replicas do NOT agree."])


def compare(make, source):
    """Returns a ReplicaComparison; eager.

    Args:
        make: function of a strategy that returns a trainer built for `source` in its scope.
        source: a source; its first batch is used.
    """
    try:
        two = make(make_strategy("mirrored"))
    except RuntimeError as error:
        if "Mixing different" not in str(error):
            raise
        return ReplicaComparison([], [_made_outside(error)], [])
    one = make(make_strategy("default"))
    notes = _silence(one)
    _silence(two)
    start = {name: variable.numpy() for name, variable in state_of(one).items()}
    for name, variable in state_of(two).items():
        if "seed" not in name:
            variable.assign(start[name])
    batch = source.batches(0).take(1).apply(tf.data.experimental.assert_cardinality(1))
    gradients = [_gradients(trainer, batch) for trainer in (one, two)]
    reports = [trainer.train(iter(trainer.distribute(batch, chunk=1)), 1) for trainer in (one, two)]
    comparison = ReplicaComparison([], [], notes)
    scale = 2e-2 if keras.config.dtype_policy().compute_dtype in ("float16", "bfloat16") else 1e-4
    _compare_numbers(comparison, reports, scale)
    _compare_gradients(comparison, gradients, scale)
    _compare_state(comparison, one, two, gradients[0], scale)
    _explain(comparison, two)
    return comparison


def _made_outside(error):
    """Returns the reason for an object created outside the strategy's scope, from TensorFlow's traceback."""
    kinds, culprit, trace = (
        (keras.optimizers.Optimizer, keras.metrics.Metric, keras.layers.Layer),
        None,
        error.__traceback__,
    )
    while trace is not None:
        at = trace.tb_frame.f_locals.get("self")
        culprit, trace = at if isinstance(at, kinds) else culprit, trace.tb_next
    what = "An optimizer, a metric or a model" if culprit is None else f"{type(culprit).__name__} {culprit.name!r}"
    return (
        f"{what} was created outside the strategy's scope, so its variables are not mirrored to the replicas. Create "
        "it together with the trainer: `@Adam()` in gin, or inside the function that returns the Trainer; not while a "
        "module is imported."
    )


def _layers(trainer):
    """Returns [(name, layer)] for all layers of the trainer, in order."""
    return [(name, layer) for layer, name in name_layers(trainer.held()).items()]


def _silence(trainer):
    """Sets the rate of Dropout layers to 0; returns a sentence for each layer that still draws random numbers."""
    notes = []
    for name, layer in _layers(trainer):
        if getattr(layer, "seed_generator", None) is None:
            continue
        if hasattr(layer, "rate"):
            layer.rate = 0.0
        else:
            notes.append(
                f"note: {name} ({type(layer).__name__}) draws random numbers, which differ between replicas by design."
            )
    return notes


def _gradients(trainer, batch):
    """Returns {variable name: array or None}, the reduced gradients before transforms. Changes no state."""

    def replica(element):
        with keras.StatelessScope(), trainer.replica_pass(element) as p:
            _, gradients, _ = trainer.compute_gradients(p.batch)
        return [
            None if g is None else tf.convert_to_tensor(unique_rows(g, True))
            for group in trainer.groups
            for g in gradients[group.name]
        ]

    run = tf.function(lambda element: trainer.strategy.run(replica, args=(element,)), autograph=False)
    (element,) = iter(distribute(trainer.strategy, batch))
    values = [None if g is None else replica_values(trainer.strategy, g)[0].numpy() for g in run(element)]
    return dict(zip(trainer.trainable_variables, values))


def _agree(one, two, scale, where=True):
    one, two = np.asarray(one, np.float64), np.asarray(two, np.float64)
    largest = np.max(np.abs(one), initial=0.0, where=np.isfinite(one))
    same = np.abs(one - two) <= scale * largest + 1e-7
    return bool(np.all(same | (one == two) | (np.isnan(one) & np.isnan(two)) | ~np.asarray(where)))


def _compare_numbers(comparison, reports, scale):
    for tag, value in reports[0].items():
        kind = "losses" if tag.startswith("loss") else "gradient norms" if tag.startswith("grad_norm") else "metrics"
        if tag not in TIMED:
            comparison.rows.append(
                (kind, tag, f"{value:.6g}", f"{reports[1][tag]:.6g}", _agree(value, reports[1][tag], scale))
            )


def _compare_gradients(comparison, gradients, scale):
    for name, one in gradients[0].items():
        two = gradients[1][name]
        if one is None or two is None:
            comparison.rows.append(("gradients", name, one is not None, two is not None, one is two))
        else:
            norms = (f"norm {np.linalg.norm(g):.6g}" for g in (one, two))
            comparison.rows.append(("gradients", name, *norms, _agree(one, two, scale)))


def _compare_state(comparison, one, two, gradients, scale):
    """Compares weights and other state.

    Weights are compared only where the gradient exceeds rounding errors: Adam turns a rounding error into a whole step.
    """
    states = state_of(one), state_of(two)
    for name, variable in states[0].items():
        gradient = gradients.get(name)
        kind = "optimizer state" if name.startswith("optimizers/") else "other state"
        kind = "updated weights" if name in one.trainable_variables else kind
        if "seed" in name:
            continue
        a, b = variable.numpy(), states[1][name].numpy()
        where = (
            True if gradient is None or not np.size(gradient) else np.abs(gradient) >= 1e-4 * np.max(np.abs(gradient))
        )
        shown = (
            f"{np.ravel(x)[0]:.6g}" if np.size(x) == 1 else f"norm {np.linalg.norm(np.asarray(x, np.float64)):.6g}"
            for x in (a, b)
        )
        comparison.rows.append(
            (kind, name, *shown, _agree(a, b, max(scale, 1e-3) if kind == "optimizer state" else scale, where))
        )


def _explain(comparison, trainer):
    """Adds the reasons for the differences, causes before consequences."""
    bad = {(kind, name): (one, two) for kind, name, one, two, same in comparison.rows if not same}
    reasons = comparison.reasons
    normalizing = [
        name
        for name, layer in _layers(trainer)
        if isinstance(layer, keras.layers.BatchNormalization) and not layer.synchronized
    ]
    losses = [
        (name.removeprefix("losses/"), *map(float, values))
        for (kind, name), values in bad.items()
        if name.startswith("losses/")
    ]
    if normalizing and bad:
        reasons.append(
            f"{', '.join(normalizing)} normalizes each replica's part of the batch by that part's own statistics. Use "
            "BatchNormalization(synchronized=True), or accept the difference: moving statistics are averaged over "
            "replicas."
        )
    for name, one, two in losses:
        if one and abs(two / one * REPLICAS - 1) < 1e-3:
            reasons.append(
                f"Loss {name!r} halves on {REPLICAS} replicas: it divides by the number of replicas or by the global "
                "batch size, or it is a sum over the batch. Remove the division and return one value per example; the "
                "trainer takes the mean."
            )
        elif not normalizing:
            reasons.append(
                f"Loss {name!r} depends on how the batch is split ({one:.6g} and {two:.6g}): it compares the examples "
                "of a batch with each other, or divides by its own count. Gather the examples of all replicas with "
                "`trainer.all_gather(x)` first, or return (values, weights)."
            )
    kinds = {kind for kind, _ in bad}
    own_state = [name for kind, name in bad if kind == "other state" and name in trainer.variables]
    if own_state and not normalizing:
        reasons.append(
            f"A layer assigns {', '.join(own_state)} on each replica separately, and combining them (the mean of "
            "floats, replica 0's integers) does not give the value of one replica. Assign it in "
            "`Trainer.after_update`, or reduce before assigning: `trainer.global_sum`."
        )
    if "gradients" in kinds and not reasons:
        reasons.append(
            "Losses agree, but gradients do not: `compute_gradients` or a custom gradient reduces them a second time, "
            "or never. Call `self.reduce(gradients)` once."
        )
    if kinds & {"updated weights", "optimizer state"} and not kinds & {"gradients"} and not reasons:
        reasons.append(
            "Gradients agree, but updates do not: a transform or an optimizer keeps a separate state on each replica. "
            "Create its variables with aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA."
        )
    if "metrics" in kinds and not reasons:
        names = ", ".join(name for kind, name in bad if kind == "metrics")
        reasons.append(
            f"{names}: the state is not a sum over examples, and the trainer could not detect it, so the states of "
            "replicas were added. Use `assign_add`, or `trainer.add_metric(value, name, reduce='max')` for an extreme."
        )
