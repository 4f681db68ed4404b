"""Looks for operations in a traced step that XLA cannot compile."""

import functools

import tensorflow as tf
from tensorflow.python.framework import kernels

from trainer.diagnosis.graph_walk import bodies, function_graph, is_loop, shown_place

_SHOWN = 4
CURES = {
    "string": "Strings belong in the input pipeline: convert them to numbers there (StringLookup in dataset.map), or "
    "leave them out of the batch.",
    "loop": "A gradient through a loop needs a bound: while_loop(..., maximum_iterations=N).",
    "ragged": "Pad to one length in the input pipeline (ragged.to_tensor(shape=[None, N])).",
    "image": "Augment in the input pipeline: from_arrays(augment=...), or dataset.map.",
    "other": "Move it into the input pipeline, or use another operation.",
}


def sentence(mode, found):
    """Returns one sentence on the result of `refused` for a step of `compile` mode, and the fix."""
    what = list(found)[:_SHOWN] + ([f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else [])
    cures = " ".join(CURES[kind] for kind in dict.fromkeys(found.values()))
    return f"`compile` {mode!r} cannot compile this step: {'; '.join(what)}. Use compile='graph'. Or: {cures}"


def refused(graph):
    """Returns {operation that XLA cannot compile, with file and line: kind of CURES} in the XLA parts of `graph`."""
    if not _kernels("AddV2"):  # this TensorFlow does not list XLA's kernels
        return {}
    found = {}
    for called in _nested(graph):
        for op in called.get_operations():
            if op.type.endswith("PartitionedCall") and _flag(op, "_XlaMustCompile"):
                for what, kind, culprit in (entry for body in bodies(op) for entry in refused_within(body)):
                    place = shown_place(culprit) or f"in a library ({culprit.name})"
                    found[f"{what}, {place}"] = kind
    return found


def refused_within(graph):
    """Yields (what XLA cannot compile, kind of CURES, operation with the line) of `graph` and its functions."""
    for called in _nested(graph):
        yield from _refused_in(called)


def _refused_in(graph):
    constant = set()  # operations that grappler folds to constants
    for op in graph.get_operations():
        plain = not op.op_def.is_stateful and not bodies(op) and not op.control_inputs
        if op.type == "Const" or (plain and op.inputs and all(id(t) in constant for t in op.inputs)):
            constant.update(id(t) for t in op.outputs)
    for op in _needed(graph):
        if any(id(t) in constant for t in op.outputs) and op.type != "EmptyTensorList":
            continue
        if op.type == "EmptyTensorList" and tf.get_static_value(op.inputs[1]) == -1 and op.outputs[0].consumers():
            yield "a gradient through a loop without a bound", "loop", _of_loop(op)
        elif op.type != "Placeholder" and not _takes(op.type, _types(op)):
            strings = any(t.dtype == tf.string for t in [*op.inputs, *op.outputs])
            kind = "string" if strings or "Lookup" in op.type else "ragged" if "Ragged" in op.type else "other"
            yield f"XLA has no {op.type}", "image" if "Image" in op.type else kind, op


def _of_loop(accumulator):
    """Returns an operation in the body of the loop that `accumulator` belongs to, which has the user's line."""
    for loop in filter(is_loop, accumulator.outputs[0].consumers()):
        for op in [op for body in bodies(loop) for op in body.get_operations()]:
            if shown_place(op):
                return op
    return accumulator


def _needed(graph):
    """Returns the operations that results and effects of a function's graph depend on; TensorFlow drops the others."""
    roots = [t.op for t in graph.outputs] + [op for op in graph.get_operations() if op.op_def.is_stateful]
    needed, queue = {}, roots + list(getattr(graph, "control_outputs", ()))
    while queue:
        op = queue.pop()
        if op not in needed:
            needed[op] = None
            queue += [t.op for t in op.inputs] + list(op.control_inputs)
    return [op for op in graph.get_operations() if op in needed]


def _nested(graph, seen=None):
    """Yields `graph` and all graphs that it calls, the conditions of loops included."""
    seen = set() if seen is None else seen
    if graph is None or id(graph) in seen:
        return
    seen.add(id(graph))
    yield graph
    for op in graph.get_operations():
        conditions = [function_graph(op, op.get_attr("cond").name)] if is_loop(op) else []
        for body in [*bodies(op), *conditions]:
            yield from _nested(body, seen)


def _flag(op, name):
    return name in op.node_def.attr and op.get_attr(name)


def _types(op):
    return {
        name: op.get_attr(name)
        for name, value in op.node_def.attr.items()
        if not name.startswith("_") and (value.HasField("type") or value.list.type)
    }


def _takes(kind, types):
    """True if XLA has a kernel for operations of this kind with these {attribute: dtype or list of them}."""
    for constraints in _kernels(kind):
        given = {
            name: types[name] if isinstance(types[name], list) else [types[name]]
            for name in constraints
            if name in types
        }
        if all(dtype.base_dtype.as_datatype_enum in constraints[name] for name in given for dtype in given[name]):
            return True
    return False


@functools.cache
def _kernels(kind):
    """Returns [{attribute: set of dtype numbers}] of XLA's kernels for a kind of operation.

    The only use of TensorFlow's private list of kernels, which has those of XLA once something was compiled.
    tests/trainer/diagnosis/xla_test.py notices when it changes.
    """
    _compile_something()
    device = "XLA_GPU_JIT" if tf.config.list_logical_devices("GPU") else "XLA_CPU_JIT"
    return [
        {constraint.name: set(constraint.allowed_values.list.type) for constraint in kernel.constraint}
        for kernel in kernels.get_registered_kernels_for_op(kind).kernel
        if kernel.device_type == device
    ]


@functools.cache
def _compile_something():
    with tf.init_scope():
        tf.function(lambda x: x + 1.0, jit_compile=True)(tf.constant(1.0))
