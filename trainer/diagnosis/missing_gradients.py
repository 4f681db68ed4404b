"""Explains gradients that are None: unused variables, or non-differentiable operations on all paths to the loss."""

import tensorflow as tf

from trainer.diagnosis import graph_walk, reasons
from trainer.replicas.distribution import replica_values
from trainer.step.variables import raw


def reasons_for_none(trainer, group, batch, losses, missing):
    """Explains gradients that are None while a step is traced; traced, per replica.

    Args:
        trainer: Trainer.
        group: the OptimizerGroup.
        batch: the batch of the losses.
        losses: {name: scalar tensor} of the step.
        missing: names of the group's variables without a gradient.

    Returns:
        {variable name: Reason}; empty if nothing is known.
    """
    variables = dict(zip(group.variable_names, group.variables))
    try:
        if tf.executing_eagerly():  # compile="eager" has no graph, so one is traced
            losses = _retrace(trainer, batch)
        return {name: reason_for_none(trainer.strategy, variables[name], losses, group) for name in missing}
    except Exception:  # the caller is about to raise an error, which this one must not hide
        return {}


def place_of_read(variable, graph=None):
    """Returns "file:line" of the user's code that reads `variable` in `graph` (default: the current one), or ""."""
    if graph is None and tf.executing_eagerly():
        return ""
    handles = [one.handle for one in getattr(variable, "values", [variable])]  # of the replicas
    reads = (
        op for handle in graph_walk.handles_in(graph or tf.identity(0).graph, handles) for op in handle.consumers()
    )
    return next(filter(None, map(graph_walk.shown_place, reads)), "")


def reason_for_none(strategy, variable, losses, group):
    """Returns the Reason why `losses` give `variable` no gradient, or only zeros because they do not depend on it.

    Args:
        strategy: tf.distribute.Strategy of the variable.
        variable: keras.Variable.
        losses: {name: scalar tensor} of one graph.
        group: the OptimizerGroup that trains it.
    """
    if not (variable.value.dtype.is_floating or variable.value.dtype.is_complex):
        return reasons.reason("integer variable")
    own = [losses[name] for name in group.loss_weights(losses)]
    graph = next(iter(losses.values())).graph
    handles = graph_walk.handles_in(graph, [v.handle for v in replica_values(strategy, raw(variable))])
    found = graph_walk.walk(graph, handles, handles, own)
    if any(found.all_alive(own)):
        return reasons.reason("unknown")
    if not any(found.all_reached(own)):
        elsewhere = graph_walk.walk(graph, handles, handles, list(losses.values()))
        users = [name for name, loss in losses.items() if id(loss) in elsewhere.reached]
        if users:
            return reasons.reason(
                "other losses",
                f": {', '.join(users)}; group {group.name!r} minimizes {', '.join(group.loss_weights(losses))}",
            )
        return reasons.reason("unused")
    if not found.blocks:
        return reasons.reason("unknown")
    block = found.blocks[0]
    return reasons.reason(_kind_of_block(block), f" ({block.op.type} {block.op.name})", graph_walk.place_of(block.op))


def _kind_of_block(block):
    op = block.op
    if block.why == "write":
        return "assignment"
    if block.why == "unregistered":
        return "no gradient"
    if "_gradient_op_type" in op.node_def.attr:
        return "custom_gradient"
    if any(t.dtype == tf.string for t in op.outputs):
        return "string"
    return reasons.kind_of("none", op.type, "integer" if block.why == "dtype" else "no gradient")


def _retrace(trainer, batch):
    """Returns {loss name: scalar}, traced in a new graph."""
    losses = {}

    def forward(batch):
        losses.update(trainer.forward(batch, training=True)[0])

    tf.function(forward, autograph=False).get_concrete_function(batch)
    return losses
