"""Runs a traced step once with every tensor looked at: where a gradient becomes zero, and where NaN and infinities begin.

A tensor goes by its name, which is the same in each trace of the same step.
Of each, and of the loss's gradient with respect to each, three flags come
back: has NaN, has infinities, is all zero. An operation is to blame for a
gradient that is fine at its outputs and bad at its input.
"""

import dataclasses
from typing import NamedTuple

import tensorflow as tf

from trainer.diagnosis import graph_walk


class Flags(NamedTuple):
    """What is known of a tensor's values."""

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
        lists: names of lists of tensors (in loops) that have a gradient; their values are not looked at.
        shares: {(operation, number of the input): Flags} of what one of several users of a tensor adds to its gradient.
    """

    graph: tf.Graph
    values: dict
    gradients: dict
    shares: dict = dataclasses.field(default_factory=dict)
    lists: frozenset = frozenset()


class Culprit(NamedTuple):
    """The operation that is to blame.

    Attributes:
        op: tf.Operation.
        measured: the Measured that holds its tensors.
        backward: whether its gradient is to blame, not its result.
    """

    op: tf.Operation
    measured: Measured
    backward: bool


_FULL_HEALTH = 4  # DebugNumericSummaryV2: id, device, dtype, rank, elements, -inf, +inf, nan, negative, zero, positive


def flags_of(tensors):
    """Returns bool [n, 3]: the Flags of each tensor; traced. One operation each: there are thousands."""
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
    """What is read out of a graph at the end of its trace; `traced` inside the function, `measured` after its run.

    Args:
        around: name of an operation of whose inputs and outputs the values, and the gradients' values, are returned too.
        inputs: names of further tensors that are returned like these.
        shares: [(operation's name, number of its input)] of which the share in a gradient is wanted.

    Attributes:
        given: {name: tensor} of arguments that stand for tensors of the graph.
    """

    def __init__(self, around=None, inputs=(), shares=()):
        self.around, self.inputs, self.asked, self.given = around, list(inputs), list(shares), {}

    def traced(self, graph, objective, incoming=None):
        """Adds the gradients of `objective` (a tensor or several, with `incoming` gradients); returns what the function has to."""
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
        """Returns (Measured, values wanted, gradients wanted or None)."""
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


# ---- Who is to blame, in one graph --------------------------------------------------------------------------------


def first_not_finite(measured, name):
    """Returns the Culprit of a tensor that is not finite: the operation that made it so out of finite inputs."""
    op, seen = measured.graph.get_tensor_by_name(name).op, set()
    while op not in seen:
        seen.add(op)
        bad = [t for t in op.inputs if not measured.values.get(t.name, GOOD).finite]
        with_nan = [t for t in bad if measured.values[t.name].nan]
        # An infinity that somebody wrote down (a mask) is meant; what makes NaN of it is to blame.
        bad = with_nan or [t for t in bad if t.op.type not in ("Const", "Fill")]
        if not bad:
            break
        op = bad[0].op
    return Culprit(op, measured, backward=False)


def turning_points(measured, starts, is_bad):
    """Follows bad gradients from the tensors `starts` forward, to where they turn bad on their way back.

    Returns:
        (operations, [(operation's name, number of its input)]): those to
        blame, in order of the graph; and the users of a tensor among which one
        is to blame, where only their shares can tell.
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
            turning = [] if worse else turning  # NaN comes from further on
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
    """Finds what made an output of the function not finite, in the first round where one is."""
    for arguments in rounds:
        measured, _, _ = function.look(arguments)
        bad = [t for t in function.graph.outputs if not measured.values.get(t.name, GOOD).finite]
        if bad:
            return _deeper(function, first_not_finite(measured, bad[0].name), arguments, None, is_bad)
    return None


def _backward(function, rounds, gradients, is_bad):
    """Finds what made the gradient of an input bad, from the last round to the first."""
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
    """Goes on into a function that `found` calls in its turn."""
    if not graph_walk.bodies(found.op):
        return found
    _, values, taken = function.look(arguments, gradients, around=found.op.name)
    number = len(found.op.inputs)
    return inside(found, values[:number], taken[number:], is_bad)


def _rounds(op, body, values, limit=1000):
    """Runs a loop; returns the arguments of its body, round by round."""
    condition, rounds = _Function(graph_walk.function_graph(op, op.get_attr("cond").name)), []
    while len(rounds) < limit and bool(condition.call(values)[0]):
        rounds.append(values)
        values = body.call(values)
    return rounds


class _Function:
    """The graph of a function, copied so that it can be run on any arguments and looked into; names stay."""

    def __init__(self, graph):
        self.graph, self._looks = graph, {}
        self.call = tf.function(lambda arguments: self._copy(arguments)[1], autograph=False)

    def look(self, arguments, gradients=None, shares=(), around=None):
        """Runs it on `arguments`; returns as Look.measured, by default with the gradients of its inputs.

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
        """Copies the graph into the present one; returns ({its input's name: argument}, outputs)."""
        given = {t.name: a for t, a in zip(self.graph.inputs, arguments)}
        outputs = [t.name for t in self.graph.outputs]
        found = tf.graph_util.import_graph_def(
            self.graph.as_graph_def(), input_map=given, return_elements=outputs, name=""
        )
        return given, [given.get(name, tensor) for name, tensor in zip(outputs, found)]
