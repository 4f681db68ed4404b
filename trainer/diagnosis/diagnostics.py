"""Explains gradients that are None, zero or not finite: the operation, its line, and the fix."""

import contextlib
import dataclasses

import numpy as np
import tensorflow as tf

from trainer.diagnosis import gradient_probe, graph_walk, reasons
from trainer.diagnosis.missing_gradients import reason_for_none
from trainer.replicas.distribution import replica_values
from trainer.step import internals
from trainer.step.autograph import users_errors
from trainer.step.replica_state import tracing_context
from trainer.step.variables import raw


@dataclasses.dataclass(frozen=True)
class Row:
    """The result for one gradient.

    Attributes:
        name: the variable's name; `losses/<name>` for a loss.
        group: name of the group that trains it.
        norm: float, L2 norm; None if there is no gradient.
        zeros: float, fraction of zeros.
        status: "fine", "None", "zero" or "not finite".
        reason: a Reason, None if the gradient is fine.
    """

    name: str
    group: str | None
    norm: float | None
    zeros: float | None
    status: str
    reason: reasons.Reason | None = None

    @property
    def kind(self):
        return self.reason and self.reason.kind

    @property
    def place(self):
        return self.reason and self.reason.place

    @property
    def cure(self):
        return self.reason and self.reason.cure


class GradientReport(list):
    """Rows: one for each trainable variable, and in `losses` one for each non-finite loss. str() gives a table."""

    losses: list = ()

    @property
    def ok(self):
        """True if every gradient and every loss is fine."""
        return not self.wrong

    @property
    def wrong(self):
        """The rows that are not fine, losses first."""
        return [row for row in [*self.losses, *self] if row.status != "fine"]

    def __str__(self):
        rows = [*self.losses, *self]
        width = max([len(row.name) for row in rows] + [8])
        lines, by_reason = [f"{'variable':<{width}}  {'norm':>9}  {'zeros':>6}  gradient"], {}
        for row in rows:
            norm = "-" if row.norm is None else f"{row.norm:.3g}"
            zeros = "-" if row.zeros is None else f"{row.zeros:.0%}"
            lines.append(f"{row.name:<{width}}  {norm:>9}  {zeros:>6}  {row.status}")
            if row.reason is not None:
                by_reason.setdefault(row.reason, []).append(row.name)
        for reason, names in by_reason.items():
            lines += ["", f"{', '.join(names)}:", *("  " + line for line in str(reason).splitlines())]
        return "\n".join(lines)


def explain_gradients(trainer, batch):
    """Computes the gradients of one global batch and explains each that is None, zero or not finite; eager.

    The step runs on one replica, several times if something is wrong. All
    state (weights, slot variables, moving statistics, seeds) is restored.

    Args:
        trainer: Trainer; built for the batch if it is not built yet.
        batch: a global batch, as the training data yields it.

    Returns:
        A GradientReport.

    Raises:
        Any exception of the user's code.
    """
    batch = tf.nest.map_structure(lambda x: x if tf.is_tensor(x) else tf.convert_to_tensor(x), batch)
    if not trainer.is_built:
        trainer.build(tf.nest.map_structure(_spec, batch))
    with users_errors():
        step = _Step(trainer, batch)
        report = GradientReport(step.row(name, group) for group in trainer.groups for name in group.variable_names)
        report.losses = [step.loss_row(name) for name, loss in step.losses.items() if not np.isfinite(loss).all()]
    return report


def _spec(tensor):
    spec = tf.type_spec_from_value(tensor)
    return (
        tf.TensorSpec([None, *spec.shape[1:]], spec.dtype)
        if isinstance(spec, tf.TensorSpec) and spec.shape.rank
        else spec
    )


def _objectives(trainer, batch, scale):
    """Returns ({loss name: scalar}, {group name: scaled objective}), as in Trainer.micro_gradients; traced."""
    losses, _ = trainer.forward(batch, training=True)
    weighted = internals.weigh(losses, trainer.built.internals.weights, trainer.global_step)
    objectives = {group.name: group.objective(weighted, trainer.global_step) for group in trainer.groups}
    return losses, {name: objective * tf.cast(scale, objective.dtype) for name, objective in objectives.items()}


@contextlib.contextmanager
def _unchanged(trainer, variables):
    """A context that restores the variables of the trainer, and others, on each replica."""
    every = [raw(v) for v in [*trainer.variables.values(), *variables]]
    kept = {id(one): (one, one.read_value()) for v in every for one in replica_values(trainer.strategy, v)}
    try:
        yield
    finally:
        for variable, value in kept.values():
            variable.assign(value)


class _Step:
    """Computes and explains the gradients of one batch.

    Attributes:
        losses: {name: array}.
    """

    def __init__(self, trainer, batch):
        self.trainer, self.batch = trainer, batch
        self._losses, self._looks, self._reasons, self._functions = {}, {}, {}, []
        guard = trainer.built.guard
        self._scale = 1.0 if guard.loss_scale is None else float(guard.loss_scale.value.numpy())
        function = self._trace(self._gradients)
        self._functions.append(function)
        self.losses, self.gradients = self._arrays(function)
        while self._scale > 1.0 and not all(np.isfinite(g).all() for g in self.gradients.values() if g is not None):
            self._scale /= 2.0  # as the trainer does in the first steps
            self.losses, self.gradients = self._arrays(function)

    def row(self, name, group):
        """Returns the Row of a variable."""
        gradient = self.gradients[name]
        if gradient is None:
            return Row(name, group.name, None, None, "None", self._reason_for_none(name, group))
        gradient = gradient.astype(np.float64) / self._scale
        norm, zeros = float(np.linalg.norm(gradient.ravel())), float(np.mean(gradient == 0.0)) if gradient.size else 1.0
        if not np.isfinite(gradient).all():
            return Row(
                name,
                group.name,
                norm,
                zeros,
                "not finite",
                self._reason_for_bad(name, group, gradient_probe.is_not_finite),
            )
        if zeros == 1.0:
            reason = self._reason_for_none(name, group)  # a loop gives zeros instead of None
            if reason.kind == "unknown":
                reason = self._reason_for_bad(name, group, gradient_probe.is_zero)
            return Row(name, group.name, norm, zeros, "zero", reason)
        return Row(name, group.name, norm, zeros, "fine")

    def loss_row(self, name):
        """Returns the Row of a non-finite loss."""
        group = next(g for g in self.trainer.groups if name in g.loss_weights(self.losses))
        measured = self._look(group)
        reason = (
            self._forward_reason(group, measured, self._losses[name].name) if measured else reasons.reason("unknown")
        )
        return Row(f"losses/{name}", None, None, None, "not finite", reason)

    def _reason_for_none(self, name, group):
        variable = self.trainer.trainable_variables[name]
        return reason_for_none(self.trainer.strategy, variable, self._traced_losses, group)

    def _reason_for_bad(self, name, group, is_bad):
        measured = self._look(group)
        if measured is None:
            return reasons.reason("unknown")
        objective = self._objective.name
        if is_bad is gradient_probe.is_not_finite and not measured.values[objective].finite:
            return self._forward_reason(group, measured, objective)
        variable = raw(self.trainer.trainable_variables[name])
        handles = [v.handle for v in replica_values(self.trainer.strategy, variable)]
        blamed, unclear = gradient_probe.turning_points(
            measured, graph_walk.handles_in(measured.graph, handles), is_bad
        )
        if unclear:
            measured = self._look(group, shares=unclear)
            blamed, _ = gradient_probe.turning_points(measured, graph_walk.handles_in(measured.graph, handles), is_bad)
        if not blamed:
            return reasons.reason("unknown")
        return self._reason(group, gradient_probe.Culprit(blamed[0], measured, True), is_bad)

    def _forward_reason(self, group, measured, name):
        return self._reason(group, gradient_probe.first_not_finite(measured, name), gradient_probe.is_not_finite)

    def _reason(self, group, culprit, is_bad):
        """Returns the Reason for a Culprit, searching the functions that it calls first."""
        key = group.name, culprit.op.name, culprit.backward
        if key not in self._reasons:
            self._reasons[key] = self._tell(group, culprit, is_bad)
        return self._reasons[key]

    def _tell(self, group, culprit, is_bad):
        if graph_walk.bodies(culprit.op):
            found = self._look(group, around=culprit.op.name, whole=True)
            number = len(culprit.op.inputs)
            culprit = gradient_probe.inside(culprit, found[1][:number], found[2][number:], is_bad) if found else culprit
        op = culprit.op
        if graph_walk.bodies(op):
            return reasons.reason("inside", f" ({op.type} {op.name})", graph_walk.place_of(op))
        kind = (_kind_of_zero if is_bad is gradient_probe.is_zero else _kind_of_not_finite)(culprit)
        return reasons.reason(kind, f" ({op.type} {op.name})", graph_walk.place_of(op))

    # ---- Tracing and running -------------------------------------------------------------------------------------

    def _trace(self, function):
        with self.trainer.strategy.scope():
            return tf.function(function, autograph=False).get_concrete_function(self.batch, tf.TensorSpec([]))

    def _run(self, function):
        """Runs a traced function on the batch and restores all state."""
        with _unchanged(self.trainer, function.variables):
            return function(self.batch, tf.constant(self._scale))

    def _arrays(self, function):
        losses, gradients = self._run(function)
        return [{name: None if x is None else np.array(x) for name, x in part.items()} for part in (losses, gradients)]

    def _gradients(self, batch, scale):
        """Returns losses and gradients like Trainer.micro_gradients; traced."""
        with self._replica(batch):
            with tf.GradientTape(persistent=True) as tape:
                losses, objectives = _objectives(self.trainer, batch, scale)
            gradients = {}
            for group in self.trainer.groups:
                taken = _taken(tape, objectives[group.name], [variable.value for variable in group.variables])
                gradients.update(zip(group.variable_names, taken))
        self._traced_losses = losses
        return losses, gradients

    def _look(self, group, shares=(), around=None, whole=False):
        """Runs the step and measures every tensor.

        Returns a Measured (with `whole`, all results of Look.measured) or None.
        """
        if group.name in self._looks and not shares and not whole:
            return self._looks[group.name]
        look = gradient_probe.Look(around, shares=shares)

        def probe(batch, scale):
            with self._replica(batch):
                self._losses, objectives = _objectives(self.trainer, batch, scale)
                self._objective = objectives[group.name]
                traced = tf.autograph.experimental.do_not_convert(look.traced)
                return traced(tf.compat.v1.get_default_graph(), self._objective)

        try:
            with users_errors():
                function = self._trace(probe)
            found = look.measured(function.graph, self._run(function))
        except (LookupError, tf.errors.OpError):
            # An operation has no gradient, or cannot be differentiated twice.
            return None
        self._functions.append(function)  # keeps its graph alive
        self._looks.setdefault(group.name, found[0])
        return found if whole else found[0]

    @contextlib.contextmanager
    def _replica(self, batch):
        """The context of the single replica; traced."""
        with tracing_context(self.trainer.strategy), self.trainer.replica_pass(batch):
            yield


def _taken(tape, objective, variables):
    """Returns dense gradients or None, also None where TensorFlow raises because no gradient is registered."""
    try:
        gradients = tape.gradient(objective, variables)
    except LookupError:  # the tape visits every operation, tf.gradients only those between loss and variable
        gradients = [_on_the_way(objective, variable) for variable in variables]
    return [None if gradient is None else tf.convert_to_tensor(gradient) for gradient in gradients]


def _on_the_way(objective, variable):
    try:
        return tf.gradients(objective, [variable])[0]
    except LookupError:
        return None


def _kind_of_zero(culprit):
    op, values = culprit.op, culprit.measured.values
    kind = reasons.kind_of("zero", op.type, "zero gradient")
    factors = [values[t.name].zero for t in op.inputs if t.name in values]
    half = any(t.dtype in (tf.float16, tf.bfloat16) for t in [*op.inputs, *op.outputs])
    if kind in ("zero factor", "zero gradient", "underflow"):
        return "zero factor" if any(factors) and kind == "zero factor" else "underflow" if half else "zero gradient"
    return kind


def _kind_of_not_finite(culprit):
    op, measured = culprit.op, culprit.measured
    results = [measured.values[t.name] for t in op.outputs if t.name in measured.values]
    kind = reasons.kind_of("not finite", op.type, None)
    if culprit.backward and any(not flags.finite for flags in results):
        return "where"  # the loss is finite anyway
    if kind is not None:
        return kind
    if culprit.backward:
        half = any(t.dtype in (tf.float16, tf.bfloat16) for t in [*op.inputs, *op.outputs])
        return "overflow" if half else "not finite"
    return "overflow" if any(flags.inf for flags in results) else "not finite"
