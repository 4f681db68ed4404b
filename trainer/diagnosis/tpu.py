"""`python -m trainer.check tpu`: lists what a TPU would refuse in the user's step; no TPU is needed.

A TPU runs one XLA program per step, with static shapes and a few dtypes. The
step is traced for one batch of fixed size and each operation is checked. Then
XLA compiles it on the CPU; compile errors are reported as well.
"""

import dataclasses
import re

import tensorflow as tf

from trainer.diagnosis import xla_graph
from trainer.diagnosis.graph_walk import all_graphs, shown_place
from trainer.inputs.batches import leaves, spec_of, without_none
from trainer.replicas.distribution import make_strategy
from trainer.step.autograph import convert

_PYTHON = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}
_TYPES = {tf.float64, tf.complex128, tf.int16, tf.uint16, tf.float16}
_HANDLES = {tf.resource, tf.variant}
_SHAPELESS = {
    "Placeholder",
    "While",
    "StatelessWhile",
    "If",
    "StatelessIf",
    "Case",
    "PartitionedCall",
    "StatefulPartitionedCall",
}
_HOST_ONLY = {"Assert", "PrintV2", "Print", "CheckNumericsV2"}  # TensorFlow removes them from the program
_CURES = xla_graph.CURES | {
    "string": "Convert strings to numbers in the input pipeline, on the host (tf.keras.layers.StringLookup in a map).",
    "python": "Move it into the input pipeline, or write it with TensorFlow operations.",
    "shape": "Keep the size fixed: a mask instead of boolean_mask or where(condition), padding, unique with a size, "
    "drop_remainder.",
    "type": "Use float32 or bfloat16, int32 or int64.",
    "input": "Pad to one length (ragged.to_tensor(shape=...), sparse.to_dense) and use batches of one size "
    "(from_arrays, drop_remainder=True).",
    "xla": "Use another operation.",
}


@dataclasses.dataclass
class Findings:
    """A list of (kind of _CURES, sentence, place or "") of refused operations, in the order of the program."""

    found: list

    @property
    def ok(self):
        return not self.found

    def __str__(self):
        lines = []
        for kind in dict.fromkeys(kind for kind, *_ in self.found):
            for _, what, place in [entry for entry in self.found if entry[0] == kind]:
                lines += [f"{what}" + (f"\n  {place}" if place else "")]
            lines += [f"  {_CURES[kind]}"]
        verdict = "The step compiles with XLA, with static shapes and dtypes that a TPU supports. No TPU was used."
        return "\n".join(lines or [verdict])


def examine(make, source):
    """Returns Findings on the step of the trainer that `make(strategy)` builds for batches of `source`; eager."""
    trainer = make(make_strategy("default"))
    batch = next(iter(source.batches(0)))
    found = list(_inputs(source.element_spec))
    step = tf.function(lambda batch: convert(trainer.train_step)(batch), autograph=False)
    specs = without_none(spec_of(batch))
    graph = step.get_concrete_function(specs).graph
    found += _operations(graph)
    if not any(kind in ("string", "python") for kind, *_ in found):
        found += _compile(trainer, batch, graph, found)
    return Findings(list(dict.fromkeys(found)))


def _inputs(spec):
    for position, (_, leaf) in enumerate(leaves(spec)):
        name = f"component {position} of the batch ({leaf.dtype.name} {leaf.shape})"
        if leaf.dtype == tf.string:
            yield "string", f"{name} holds strings, which a TPU does not support", ""
        elif not isinstance(leaf, tf.TensorSpec):
            yield (
                "input",
                f"{name} is a {type(leaf).__name__.removesuffix('Spec')}, whose components change in size",
                "",
            )
        elif not leaf.shape.is_fully_defined():
            yield "input", f"{name} has no fixed shape, so each new size is compiled again", ""


def _operations(graph):
    """Yields the refused operations of a graph and of the functions that it calls."""
    for op in (op for each in all_graphs(graph) for op in each.get_operations()):
        entry = _refused(op)
        if entry is not None:
            yield (*entry, shown_place(op))


def _refused(op):
    """Returns (kind, sentence) or None."""
    tensors = [*op.inputs, *op.outputs]
    if op.type in _PYTHON:
        return "python", f"{op.type} calls Python within the step"
    if op.type in _HOST_ONLY or op.type in ("NoOp", "Const", "Placeholder"):
        return None
    if any(t.dtype == tf.string for t in tensors):
        return "string", f"{op.type} works on strings"
    for tensor in op.outputs:
        if tensor.dtype.base_dtype in _TYPES and op.type in ("Cast", "ReadVariableOp"):
            return (
                "type",
                f"{op.type} makes {tensor.dtype.base_dtype.name}, which a TPU does not support or only emulates",
            )
    new = [t for t in op.outputs if t.dtype not in _HANDLES and not t.shape.is_fully_defined()]
    if new and op.type not in _SHAPELESS and all(t.dtype in _HANDLES or t.shape.is_fully_defined() for t in op.inputs):
        if not any(t.dtype in _HANDLES for t in op.inputs):
            return "shape", f"{op.type} returns a result whose size depends on the values: {new[0].shape}"
    return None


def _compile(trainer, batch, graph, found):
    """Yields what XLA refuses: looks for it in the graph, and compiles the step if nothing is found."""
    refused = list(xla_graph.refused_within(graph))
    for what, kind, op in refused:
        yield "xla" if kind == "other" else kind, what, shown_place(op)
    if refused:  # compiling it could end the process
        return
    try:
        tf.function(lambda batch: convert(trainer.train_step)(batch), autograph=False, jit_compile=True)(batch)
    except (tf.errors.OpError, ValueError) as error:
        text = str(error)
        missing = dict.fromkeys(re.findall(r"(\w+) \(No registered '", text))
        for name in missing:
            ops = [op for each in all_graphs(graph) for op in each.get_operations() if op.type == name]
            yield "xla", f"XLA has no {name}", shown_place(ops[0]) if ops else ""
        if not missing and not found:
            yield "xla", f"XLA does not compile the step: {text.strip().splitlines()[0]}", ""
