"""The walk over a traced graph, and the two private parts of TensorFlow that it needs."""

import pytest
import tensorflow as tf

from trainer.diagnosis import graph_walk


def _graph(function, *specs):
    return tf.function(function, autograph=False).get_concrete_function(*specs).graph


def _find(graph, kind):
    return next(op for op in graph.get_operations() if op.type == kind)


def _walk(function):
    """Walks from the one input of `function` to its one output."""
    graph = _graph(function, tf.TensorSpec([None]))
    source, target = graph.inputs[0], graph.outputs[0]
    found = graph_walk.walk(graph, [source], [source], [target])
    return id(target) in found.reached, id(target) in found.alive, [block.op.type for block in found.blocks]


def test_registered_gradients_are_found():
    """Private: tensorflow.python.framework.ops.get_gradient_function."""
    graph = _graph(
        lambda x: tf.stop_gradient(tf.exp(x)) + tf.cast(tf.raw_ops.Bucketize(input=x, boundaries=[0.0]), tf.float32),
        tf.TensorSpec([4]),
    )
    assert callable(graph_walk.gradient_function(_find(graph, "Exp")))
    assert graph_walk.gradient_function(_find(graph, "StopGradient")) is None
    with pytest.raises(LookupError):
        graph_walk.gradient_function(_find(graph, "Bucketize"))


def test_graphs_of_functions_are_found_with_python_lines_and_captures():
    """Private: Graph._get_function; and FuncGraph.captures, FuncGraph.outer_graph."""
    weight = tf.Variable([1.0])

    @tf.function
    def inner(x):
        return x * weight

    def outer(x):
        return tf.cond(tf.reduce_sum(x) > 0.0, lambda: inner(x), lambda: x)

    graph = _graph(outer, tf.TensorSpec([1]))
    branches = graph_walk.bodies(next(op for op in graph.get_operations() if op.type in ("If", "StatelessIf")))
    assert len(branches) == 2
    call = next(op for op in branches[0].get_operations() if op.type.endswith("PartitionedCall"))
    (body,) = graph_walk.bodies(call)
    (handle,) = graph_walk.handles_in(graph, [weight.handle])
    assert handle.graph is graph and handle.dtype == tf.resource
    assert graph_walk.place_of(_find(body, "Mul")).startswith(__file__)
    assert graph_walk.handles_in(graph, [tf.Variable(0.0).handle]) == []


@pytest.mark.parametrize(
    "function, expected",
    [
        (lambda x: tf.exp(x), (True, True, [])),
        (lambda x: tf.zeros(tf.shape(x)), (False, False, [])),
        (lambda x: tf.cast(tf.argmax(x), tf.float32), (True, False, ["ArgMax"])),
        (lambda x: tf.round(x) + x, (True, True, [])),
        (lambda x: tf.stop_gradient(tf.where(x > 0.0, x, 0.0)), (True, False, ["StopGradient"])),
        (lambda x: tf.gather(tf.range(4.0), tf.cast(x, tf.int32)), (True, False, ["Cast"])),
        (lambda x: tf.gather(x, tf.argsort(x)), (True, True, [])),
        (lambda x: tf.where(x > 0.0, 1.0, 2.0), (True, False, ["Greater"])),
        (
            lambda x: tf.while_loop(lambda i, s: i < 3, lambda i, s: (i + 1, tf.floor(s)), (0, x))[1],
            (True, False, ["Floor"]),
        ),
        (
            lambda x: tf.while_loop(lambda i, s: i < 3, lambda i, s: (i + 1, s * x), (0, tf.ones_like(x)))[1],
            (True, True, []),
        ),
        (
            lambda x: tf.while_loop(lambda s: tf.reduce_sum(s * x) < 9.0, lambda s: s + 1.0, (tf.ones([4]),))[0],
            (True, False, ["Less"]),
        ),
        (lambda x: tf.map_fn(tf.exp, x), (True, True, [])),
    ],
    ids=[
        "exp",
        "shape",
        "argmax",
        "beside",
        "mixed",
        "indices",
        "sort",
        "where",
        "loop",
        "loop_alive",
        "loop_condition",
        "map",
    ],
)
def test_walks(function, expected):
    reached, alive, blocks = _walk(function)
    # In a loop one block may be met once a round.
    assert (reached, alive, list(dict.fromkeys(blocks))) == expected


def test_what_was_written_before_the_read_counts_and_what_comes_later_does_not():
    store = tf.Variable([0.0] * 4)

    def before(x):
        store.assign(x)
        return store.read_value()

    def after(x):
        value = store.read_value()
        store.assign(x)
        return value

    assert _walk(before) == (True, False, ["AssignVariableOp"])
    assert _walk(after) == (False, False, [])
