"""Runs a traced step once and measures every tensor, to find where a gradient becomes zero, NaN or infinite.

Tensors are identified by name, which is the same in each trace of a step. For
each tensor, and for the loss's gradient with respect to it, there are three
flags: has NaN, has infinities, is all zero. An operation is the culprit if the
gradient is fine at its outputs and bad at its input.
"""

import dataclasses
from typing import NamedTuple

import tensorflow as tf

from trainer.diagnosis import graph_walk


class Flags(NamedTuple):
    """Properties of a tensor's values."""

    nan: bool
    inf: bool
    zero: bool

    @property
    def finite(self):
        return not (self.nan or self.inf)


GOOD, BAD = Flags(False, False, False), Flags(True, True, False)


@dataclasses.dataclass
class Measured:
    """Flags of one run of one graph, by name of tensor.

    Attributes:
        graph: the graph in which the names are looked up, with its Python lines.
        values: of tensors.
        gradients: of the objective's gradients with respect to them, where there are any.
        lists: names of lists of tensors (in loops) that have a gradient; their values are not measured.
        shares: {(operation, number of the input): Flags} of the contribution of one of several users of a tensor to its
            gradient.
    """

    graph: tf.Graph
    values: dict
    gradients: dict
    shares: dict = dataclasses.field(default_factory=dict)
    lists: frozenset = frozenset()


class Culprit(NamedTuple):
    """The operation at fault.

    Attributes:
        op: tf.Operation.
        measured: the Measured that holds its tensors.
        backward: whether its gradient is at fault, not its result.
    """

    op: tf.Operation
    measured: Measured
    backward: bool


_FULL_HEALTH = 4  # DebugNumericSummaryV2: id, device, dtype, rank, elements, -inf, +inf, nan, negative, zero, positive


def flags_of(tensors):
    """Returns bool [n, 3], the Flags of each tensor; traced.

    One operation each, because there are thousands of tensors.
    """
    rows = []
    for tensor in tensors:
        tensor = tensor.values if isinstance(tensor, tf.IndexedSlices) else tensor
        tensor = tf.abs(tensor) if tensor.dtype.is_complex else tensor
        summary = tf.raw_ops.DebugNumericSummaryV2(
            input=tensor, tensor_debug_mode=_FULL_HEALTH, output_dtype=tf.float64
        )
        rows.append(tf.ensure_shape(summary, [11]))
    counts = tf.stack(rows) if rows else tf.zeros([0, 11], tf.float64)
    return tf.stack([counts[:, 7] > 0, counts[:, 5] + counts[:, 6] > 0, tf.equal(counts[:, 9], counts[:, 4])], 1)


class Look:
    """Selects the values to read from a graph: call `traced` at the end of its trace and `measured` after its run.

    Args:
        around: name of an operation; the values of its inputs and outputs, and of their gradients, are returned too.
        inputs: names of further tensors that are returned like these.
        shares: [(operation's name, number of its input)] whose contributions to a gradient are returned.

    Attributes:
        given: {name: tensor}, arguments that replace tensors of the graph.
    """

    def __init__(self, around=None, inputs=(), shares=()):
        self.around, self.inputs, self.asked, self.given = around, list(inputs), list(shares), {}

    def traced(self, graph, objective, incoming=None):
        """Adds the gradients of `objective` (one tensor or several, with `incoming` gradients).

        Returns the function's outputs.
        """
        ops = [op for op in graph.get_operations() if op.outputs]
        tensors = {t.name: t for op in ops for t in op.outputs if _has_values(t) and f"{op.name}:0" not in self.given}
        tensors.update({name: t for name, t in self.given.items() if _has_values(t)})
        asked = {t.name: t for op in ops for t in op.outputs if t.dtype == tf.resource and op.type == "Placeholder"}
        asked.update({name: t for name, t in self.given.items() if t.dtype in (tf.resource, tf.variant)})
        asked.update(
            {t.name: t for op in ops for t in op.outputs if t.dtype == tf.variant and t.name not in self.given}
        )
        asked.update(tensors)
        taken = tf.gradients(objective, list(asked.values()), incoming)
        taken = {name: g for name, g in zip(asked, taken) if g is not None}
        gradients = {name: g for name, g in taken.items() if _has_values(g)}
        shares = {key: self._share(graph, *key, gradients) for key in self.asked}
        shares = {key: g for key, g in shares.items() if g is not None}
        self.names, self.lists = (list(tensors), list(gradients), list(shares)), frozenset(set(taken) - set(gradients))
        every = {
            t.name: t for op in graph.get_operations() for t in op.outputs
        }  # a gradient adds inputs and outputs to a loop
        every.update(self.given)
        # By place, not by name: the names of captured tensors differ from trace to trace.
        op = self.around and graph.get_operation_by_name(self.around)
        wanted = [*self.inputs, *(t.name for t in ([*op.inputs, *op.outputs] if op else ()))]
        values, known = [every[name] for name in wanted], [taken.get(name) for name in wanted]
        self.known = [g is not None for g in known]
        flags = [flags_of(part) for part in (tensors.values(), gradients.values(), shares.values())]
        return flags, values, [tf.convert_to_tensor(g) for g in known if g is not None]

    def measured(self, graph, returned):
        """Returns (Measured, requested values, requested gradients or None)."""
        flags, values, gradients = returned
        parts = [
            dict(zip(names, (Flags(*map(bool, row)) for row in part.numpy()))) for names, part in zip(self.names, flags)
        ]
        rest = iter(gradients)
        return Measured(graph, *parts, self.lists), values, [next(rest) if known else None for known in self.known]

    def _share(self, graph, operation, number, gradients):
        op = graph.get_operation_by_name(operation)
        tensor = op.inputs[number]
        outputs = [t for t in op.outputs if t.name in gradients]
        taken = tf.gradients(outputs, [tensor], [gradients[t.name] for t in outputs], stop_gradients=list(op.inputs))
        return taken[0]


def _has_values(tensor):
    return tensor.dtype.is_floating or tensor.dtype.is_complex


# ---- The culprit in one graph -------------------------------------------------------------------------------------


def first_not_finite(measured, name):
    """Returns the Culprit of a non-finite tensor: the operation that computed it from finite inputs."""
    op, seen = measured.graph.get_tensor_by_name(name).op, set()
    while op not in seen:
        seen.add(op)
        bad = [t for t in op.inputs if not measured.values.get(t.name, GOOD).finite]
        with_nan = [t for t in bad if measured.values[t.name].nan]
        # A constant infinity (a mask) is intended; the operation that turns it into NaN is the culprit.
        bad = with_nan or [t for t in bad if t.op.type not in ("Const", "Fill")]
        if not bad:
            break
        op = bad[0].op
    return Culprit(op, measured, backward=False)


def turning_points(measured, starts, is_bad):
    """Follows bad gradients forward from the tensors `starts`, to the operations whose gradient makes them bad.

    Returns:
        (operations, [(operation's name, number of its input)]): those to
        blame, in the order of the graph; and the users of a tensor one of which
        is to blame, if only their contributions tell which.
    """
    blamed, unclear, seen, queue = [], [], set(), list(starts)
    while queue:
        tensor = queue.pop(0)
        if tensor.name in seen:
            continue
        seen.add(tensor.name)
        worse, turning = [], []
        for op in tensor.consumers():
            outputs = [t for t in op.outputs if t.name in measured.gradients]
            bad = [t for t in outputs if is_bad(measured.gradients[t.name])]
            lists = [t for t in op.outputs if t.name in measured.lists]
            inside = lists and graph_walk.bodies(op)
            worse += bad + (lists if not inside else [])
            if len(bad) < len(outputs) or inside:
                turning.append(op)
        queue += worse
        if is_bad is is_not_finite:
            turning = [] if worse else turning  # NaN originates later in the graph
            keys = {op: (op.name, [t.name for t in op.inputs].index(tensor.name)) for op in turning}
            if len(turning) > 1 and not any(key in measured.shares for key in keys.values()):
                unclear += keys.values()
                continue
            turning = [op for op in turning if not measured.shares.get(keys[op], BAD).finite]
        blamed += [op for op in turning if op not in blamed]
    order = {op: i for i, op in enumerate(measured.graph.get_operations())}
    return sorted(blamed, key=lambda op: order.get(op, len(order))), unclear


def is_not_finite(flags):
    return not flags.finite


def is_zero(flags):
    return flags.zero


# ---- Inside the functions that an operation calls -----------------------------------------------------------------


def inside(culprit, values, gradients, is_bad):
    """Returns the Culprit inside the function that `culprit.op` calls, or `culprit` itself; eager, runs the function.

    Args:
        culprit: Culprit whose op calls a function, a branch or a loop.
        values: the op's inputs.
        gradients: the gradients at its outputs, None where there is none.
        is_bad: is_zero or is_not_finite.
    """
    op = culprit.op
    graphs = graph_walk.bodies(op)
    if op.type in ("If", "StatelessIf"):
        graphs, values = [graphs[0 if bool(values[0]) else 1]], values[1:]
    if len(graphs) != 1:
        return culprit
    function = _Function(graphs[0])
    rounds = _rounds(op, function, values) if graph_walk.is_loop(op) else [values]
    search = _backward if culprit.backward else _forward
    return search(function, rounds, gradients, is_bad) or culprit


def _forward(function, rounds, _, is_bad):
    """Finds the culprit of a non-finite output of the function, in the first iteration with one."""
    for arguments in rounds:
        measured, _, _ = function.look(arguments)
        bad = [t for t in function.graph.outputs if not measured.values.get(t.name, GOOD).finite]
        if bad:
            return _deeper(function, first_not_finite(measured, bad[0].name), arguments, None, is_bad)
    return None


def _backward(function, rounds, gradients, is_bad):
    """Finds the culprit of a bad gradient of an input, from the last iteration to the first."""
    for arguments in reversed(rounds):
        measured, _, taken = function.look(arguments, gradients)
        bad = [
            t for t in function.graph.inputs if t.name in measured.lists or is_bad(measured.gradients.get(t.name, GOOD))
        ]
        blamed, unclear = turning_points(measured, bad, is_bad)
        if unclear:
            measured, _, taken = function.look(arguments, gradients, shares=unclear)
            blamed, _ = turning_points(measured, bad, is_bad)
        if blamed:
            return _deeper(function, Culprit(blamed[0], measured, True), arguments, gradients, is_bad)
        gradients = taken
    return None


def _deeper(function, found, arguments, gradients, is_bad):
    """Continues inside a function that `found` calls."""
    if not graph_walk.bodies(found.op):
        return found
    _, values, taken = function.look(arguments, gradients, around=found.op.name)
    number = len(found.op.inputs)
    return inside(found, values[:number], taken[number:], is_bad)


def _rounds(op, body, values, limit=1000):
    """Runs a loop; returns the arguments of its body for each iteration."""
    condition, rounds = _Function(graph_walk.function_graph(op, op.get_attr("cond").name)), []
    while len(rounds) < limit and bool(condition.call(values)[0]):
        rounds.append(values)
        values = body.call(values)
    return rounds


class _Function:
    """A copy of a function's graph that runs on any arguments and can be measured; names are kept."""

    def __init__(self, graph):
        self.graph, self._looks = graph, {}
        self.call = tf.function(lambda arguments: self._copy(arguments)[1], autograph=False)

    def look(self, arguments, gradients=None, shares=(), around=None):
        """Runs it on `arguments`; returns the results of Look.measured, by default with the gradients of its inputs.

        Args:
            gradients: those at its outputs, some None; None: those of the sum of its outputs.
            shares, around: as of Look.
        """
        known = None if gradients is None else tuple(g is not None for g in gradients)
        key = known, tuple(shares), around
        if key not in self._looks:
            inputs = [] if around else [t.name for t in self.graph.inputs]
            self._looks[key] = self._make(Look(around, inputs, shares), known)
        look, function = self._looks[key]
        return look.measured(self.graph, function(arguments, [g for g in gradients or () if g is not None]))

    def _make(self, look, known):
        def run(arguments, gradients):
            look.given, outputs = self._copy(arguments)
            objective = [t for t, k in zip(outputs, known or [_has_values(t) for t in outputs]) if k]
            return look.traced(tf.compat.v1.get_default_graph(), objective, gradients if known else None)

        return look, tf.function(run, autograph=False)

    def _copy(self, arguments):
        """Copies the graph into the current one; returns ({name of its input: argument}, outputs)."""
        given = {t.name: a for t, a in zip(self.graph.inputs, arguments)}
        outputs = [t.name for t in self.graph.outputs]
        found = tf.graph_util.import_graph_def(
            self.graph.as_graph_def(), input_map=given, return_elements=outputs, name=""
        )
        return given, [given.get(name, tensor) for name, tensor in zip(outputs, found)]
