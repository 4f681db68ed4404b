"""Walks a traced graph to find where gradients can flow from a loss to a variable, and where they are blocked.

Nothing is executed. Values flow through every operation, gradients only through
differentiable ones. An operation blocks a gradient if it depends on the variable
through differentiable operations and is not differentiable itself.
"""

import dataclasses
import functools
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import ops as tensorflow_ops

from trainer.config.statements import shown
from trainer.diagnosis import explain

# The result depends on the shape of the input, not on its values.
_SHAPE_ONLY = {"Shape", "ShapeN", "Size", "Rank", "ZerosLike", "OnesLike", "TensorListLength", "VariableShape"}
_READS = {"ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VarIsInitializedOp", "VariableShape", "Identity"}
_FUNCTIONS = ("f", "body", "then_branch", "else_branch", "branches")


@dataclasses.dataclass(frozen=True)
class Block:
    """An operation that blocks a gradient."""

    op: Any
    at: Any  # the operation of the graph walked: `op` itself, or the call, condition or loop that it is inside of
    why: str  # "write": a variable; "unregistered"; "none": its gradient is None; "dtype": no floating-point result


@dataclasses.dataclass
class Walk:
    """The result of a walk: sets of ids of tensors of one graph."""

    reached: set = dataclasses.field(default_factory=set)  # depend on the sources
    alive: set = dataclasses.field(default_factory=set)  # a gradient can flow from here to the sources
    blocks: list = dataclasses.field(default_factory=list)  # operations that block gradients of the targets, in order

    def all_alive(self, tensors):
        return [id(t) in self.alive for t in tensors]

    def all_reached(self, tensors):
        return [id(t) in self.reached for t in tensors]


def gradient_function(op):
    """Returns the registered gradient function of `op`, or None if it is registered as not differentiable.

    One of two places that touch TensorFlow's private parts (`function_graph`
    is the other); tests/trainer/diagnosis/graph_walk_test.py notices when they change.

    Raises:
        LookupError: no gradient is registered for this type of operation.
    """
    return tensorflow_ops.get_gradient_function(op)


def function_graph(op, name):
    """Returns the graph of the function `name` that `op` calls, with its Python lines, or None.

    A graph also knows the tensors that it captured and the graph around it; see `gradient_function`.
    """
    graph = op.graph
    while graph is not None:
        function = graph._get_function(name)
        if function is not None:
            return getattr(function, "graph", None)
        graph = getattr(graph, "outer_graph", None)
    return None


def bodies(op):
    """Returns the graphs of the functions that `op` calls: branches, a loop's body, a call; [] for plain operations."""
    graphs = []
    for attribute in _FUNCTIONS:
        if attribute in op.node_def.attr:
            value = op.get_attr(attribute)
            for function in value if isinstance(value, list) else [value]:
                graphs.append(function_graph(op, function.name) if hasattr(function, "name") else None)
    return [graph for graph in graphs if graph is not None]


def all_graphs(graph, seen=None):
    """Yields `graph` and the graphs of all functions that it calls, each once."""
    seen = set() if seen is None else seen
    if id(graph) not in seen:
        seen.add(id(graph))
        yield graph
        for op in graph.get_operations():
            for body in bodies(op):
                yield from all_graphs(body, seen)


def is_loop(op):
    return op.type in ("While", "StatelessWhile")


def handles_in(graph, handles):
    """Returns the tensors of `graph` for the eager `handles`, captured directly or by the graphs around it."""
    around = getattr(graph, "outer_graph", None)
    outer = list(handles) + (handles_in(around, handles) if hasattr(around, "captures") else [])
    found = [inner for external, inner in graph.captures if any(external is handle for handle in outer)]
    return found + [handle for handle in handles if getattr(handle, "graph", None) is graph]


def place_of(op):
    """Returns "file:line" of the user's own innermost frame that made `op`, or None: the line is in a library.

    Frames outside the framework's frames called the framework; they created no operation.
    """
    files = [frame.filename for frame in op.traceback]
    entry = next((i for i, file in enumerate(files) if _is_ours(file)), 0)
    for frame in reversed(list(op.traceback)[entry:]):
        if _is_users(frame.filename):
            return f"{frame.filename}:{frame.lineno}"
    return None


def shown_place(op):
    """Returns `place_of` relative to the working directory for messages; "" if the line is in a library."""
    file, _, line = (place_of(op) or "").rpartition(":")
    return f"{shown(file)}:{line}" if file else ""


@functools.cache
def _is_users(file):
    return explain._is_users(file)


@functools.cache
def _is_ours(file):
    return explain._is_ours(file)


def walk(graph, reached, alive, targets):
    """Follows values and gradients from the sources to `targets`.

    Args:
        graph: the graph of all these tensors, being traced or complete.
        reached: tensors whose values matter.
        alive: those of them whose gradients are requested.
        targets: tensors; only operations that they depend on are visited.

    Returns:
        A Walk.
    """
    found = Walk({id(t) for t in reached} | {id(t) for t in alive}, {id(t) for t in alive})
    ops, tensors = needed_by(graph, targets)
    for op in list(graph.get_operations()):  # in order of execution
        if op not in ops or op.type in _SHAPE_ONLY or not any(found.all_reached(op.inputs)):
            continue
        if bodies(op):
            _through(op, found)
        elif op.type not in _READS and any(t.dtype == tf.resource for t in op.inputs):
            _write(op, found)
        else:
            _pass(op, found, tensors)
    # A block whose result is combined with a differentiable tensor loses no gradient; only blocks of a target
    # without a gradient count.
    leading, _ = needed_by(graph, [t for t in targets if _is_dead(t, found)], lambda t: _is_dead(t, found))
    found.blocks = [block for block in found.blocks if block.at in leading]
    return found


def _is_dead(tensor, found):
    return id(tensor) in found.reached and id(tensor) not in found.alive


def needed_by(graph, targets, through=lambda tensor: True):
    """Returns (operations, ids of tensors) that `targets` depend on through tensors for which `through` is true.

    A variable that is written and then read counts as a connection.
    """
    order, writers = {}, {}
    for position, op in enumerate(graph.get_operations()):
        order[op] = position
        for tensor in op.inputs:
            if tensor.dtype == tf.resource and op.type not in _READS:
                writers.setdefault(id(tensor), []).append(op)
    needed, tensors, queue = set(), {id(t) for t in targets}, [t.op for t in targets]
    while queue:
        op = queue.pop()
        if op not in needed:
            needed.add(op)
            inputs = [t for t in op.inputs if through(t)]
            tensors.update(id(t) for t in inputs)
            queue += [t.op for t in inputs]
            queue += [w for t in inputs for w in writers.get(id(t), ()) if order[w] < order[op]]
    return needed, tensors


def _pass(op, found, needed):
    """A plain operation: values reach all outputs, gradients reach the differentiable ones."""
    found.reached.update(id(t) for t in op.outputs)
    alive = found.all_alive(op.inputs)
    if not any(alive):
        return
    why = "dtype"
    if any(_may_have_gradient(t) for t in op.outputs):
        why = _differentiable(op, alive)
        found.alive.update(id(t) for t in op.outputs if not why and _may_have_gradient(t))
    if any(id(t) in needed and id(t) not in found.alive for t in op.outputs):
        found.blocks.append(Block(op, op, why or "dtype"))


def _write(op, found):
    """An operation that writes a variable: later reads get the value, but no gradient."""
    values = [id(t) in found.reached for t in op.inputs if t.dtype != tf.resource]
    if any(values):
        found.reached.update(id(t) for t in op.inputs if t.dtype == tf.resource)
        found.reached.update(id(t) for t in op.outputs)
    if any(id(t) in found.alive for t in op.inputs if t.dtype != tf.resource):
        found.blocks.append(Block(op, op, "write"))


def _through(op, found):
    """A call, a condition or a loop: walks its functions."""
    loop, arguments = is_loop(op), list(op.inputs)
    if op.type in ("If", "StatelessIf", "Case", "StatelessCase"):
        if id(arguments[0]) in found.reached:  # all results depend on the condition
            found.reached.update(id(t) for t in op.outputs)
        arguments = arguments[1:]
    if loop:
        _condition_of_loop(op, found)
    for body in bodies(op):
        while True:
            inside = walk(
                body,
                [i for i, t in zip(body.inputs, arguments) if id(t) in found.reached],
                [i for i, t in zip(body.inputs, arguments) if id(t) in found.alive],
                body.outputs,
            )
            before = len(found.reached), len(found.alive)
            _to_outside(body, inside, arguments, op.outputs, found)
            if loop:  # results of one iteration are inputs of the next
                _to_outside(body, inside, arguments, arguments, found)
            if not loop or before == (len(found.reached), len(found.alive)):
                break
        found.blocks += [Block(block.op, op, block.why) for block in inside.blocks]


def _to_outside(body, inside, arguments, outputs, found):
    for inner, outer in zip(body.outputs, outputs):
        if id(inner) in inside.reached:
            found.reached.add(id(outer))
        if id(inner) in inside.alive:
            found.alive.add(id(outer))
    for inner, outer in zip(body.inputs, arguments):  # written inside
        if inner.dtype == tf.resource and id(inner) in inside.reached:
            found.reached.add(id(outer))


def _condition_of_loop(op, found):
    """If the condition depends on the sources, every result does."""
    condition = function_graph(op, op.get_attr("cond").name)
    if condition is None:
        return
    reached = [i for i, t in zip(condition.inputs, op.inputs) if id(t) in found.reached]
    alive = [i for i, t in zip(condition.inputs, op.inputs) if id(t) in found.alive]
    inside = walk(condition, reached, alive, condition.outputs)
    if any(inside.all_reached(condition.outputs)):
        found.reached.update(id(t) for t in op.outputs)
        found.blocks += [Block(block.op, op, block.why) for block in inside.blocks]


def _may_have_gradient(tensor):
    dtype = tensor.dtype
    return dtype.is_floating or dtype.is_complex or dtype in (tf.resource, tf.variant)


def _differentiable(op, alive):
    """Returns "" if a gradient flows from an output of `op` to an input in `alive`, else the kind of block.

    Calls the registered gradient function with placeholders for the gradients
    of the outputs, since it alone knows for which inputs it returns None.
    """
    try:
        function = gradient_function(op)
    except LookupError:
        return "unregistered"
    if function is None:
        return "none"
    try:
        with op.graph.as_default(), tf.name_scope("graph_walk"):
            incoming = [tf.compat.v1.placeholder(t.dtype, t.shape) for t in op.outputs]
            returned = function(op, *incoming)
    except Exception:  # it needs more than a placeholder, so there is a gradient
        return ""
    returned = list(returned) if isinstance(returned, (list, tuple)) else [returned]
    return "" if any(g is not None for g, asked in zip(returned, alive) if asked) else "none"
