"""Finds state that a step changes but no checkpoint holds, so that a resumed run would differ.

It examines the traced step, which shows every variable, table and random
operation, whatever Python object holds it.
"""

import functools
import re

import keras
import tensorflow as tf

from trainer import console
from trainer.diagnosis.graph_walk import all_graphs, bodies, handles_in, shown_place
from trainer.inputs.pipelines import traced_functions
from trainer.replicas.distribution import replica_values
from trainer.saving.state import state_of
from trainer.step.variables import is_variable, raw

_WRITTEN = re.compile(
    r"Assign|Resource(Apply|SparseApply|Scatter|StridedSliceAssign)|Rng|LookupTable(Insert|Remove)|Queue|Stack|Barrier"
)
_DRAWN = re.compile(
    r"Random|TruncatedNormal|ParameterizedTruncatedNormal|Multinomial|SampleDistorted|\w+CandidateSampler"
)


def unsaved_state(trainer, graph, source=None):
    """Returns a sentence for each piece of state that `graph` uses and checkpoints of `trainer` do not hold; eager.

    Args:
        trainer: a built Trainer.
        graph: tf.Graph of its traced loop.
        source: the training data, whose pipeline is examined as well.
    """
    found = [
        *_resources(trainer, graph),
        *_random_operations(graph),
        *([] if source is None else _of_pipeline(source.batches(0))),
    ]
    return list(dict.fromkeys(found))


def warn(unsaved):
    """Prints a warning with the sentences of `unsaved_state`, if any."""
    if unsaved:
        console.warning(
            "No checkpoint holds this state; a resumed run will differ from one that never stopped:\n  "
            + "\n  ".join(unsaved)
        )


def _resources(trainer, graph):
    graphs = list(all_graphs(graph))
    variables = {id(v.handle): v for g in graphs for v in g.variables}
    known = {id(own.handle) for v in _known(trainer) for own in replica_values(trainer.strategy, raw(v))}
    for handle in (
        external for external, _ in graph.captures if external.dtype == tf.resource and id(external) not in known
    ):
        uses = [op for g in graphs for tensor in handles_in(g, [handle]) for op in tensor.consumers() if not bodies(op)]
        written, variable = [op for op in uses if _WRITTEN.match(op.type)], variables.get(id(handle))
        if written:
            what = f"{_named(variable, written[0])} is changed in each step ({written[0].type})"
            yield f"{what}, {_at(written[0])}. {_cure(written[0])}"


def _known(trainer):
    """Returns all variables that a checkpoint holds, or that each report resets."""
    yield from state_of(trainer).values()
    for group in trainer.groups:
        yield from group.optimizer.variables
    yield from _within([trainer.built, trainer.averages], set())


def _within(value, seen):
    """Returns the variables inside our own objects."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if is_variable(value):
        yield value
    elif isinstance(value, keras.metrics.Metric):
        yield from value.variables
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _within(item, seen)
    elif isinstance(value, functools.partial):
        yield from _within(value.args, seen)
    elif type(value).__module__.startswith(("trainer.", "optimizers.")):
        yield from _within(vars(value), seen)


def _named(variable, op):
    if op.type.startswith("Rng"):
        return "A tf.random.Generator"
    if op.type.startswith("LookupTable"):
        return "A table"
    if op.type.startswith(("Queue", "Stack", "Barrier")):
        return "A queue"
    if variable is None:
        return f"A variable ({op.inputs[1].dtype.name} {op.inputs[1].shape})"
    return f"Variable {variable.name.split(':')[0]!r} ({variable.dtype.name} {variable.shape})"


def _cure(op):
    if op.type.startswith("Rng"):
        return "Draw with keras.random and a keras.random.SeedGenerator that the layer holds."
    return (
        "Hold it in an attribute of the model or of the Trainer (self.count = self.add_weight(...)), where checkpoints "
        "find it."
    )


def _random_operations(graph):
    for op in (op for g in all_graphs(graph) for op in g.get_operations()):
        if op.op_def.is_stateful and _DRAWN.match(op.type):
            yield (
                f"{op.type} draws from its own generator, which restarts with the process, {_at(op)}. Draw with "
                "keras.random "
                "and a keras.random.SeedGenerator that the layer holds."
            )


def _of_pipeline(dataset):
    for op in (
        op for function in traced_functions(dataset) for g in all_graphs(function.graph) for op in g.get_operations()
    ):
        if (op.op_def.is_stateful and _DRAWN.match(op.type)) or _WRITTEN.match(op.type):
            yield (
                f"The input pipeline has its own state ({op.type}), {_at(op)}. Use "
                "trainer.data.from_arrays(augment=...), or "
                "tf.random.stateless_* with a seed computed from the element's index."
            )


def _at(op):
    return shown_place(op) or "in a library"
