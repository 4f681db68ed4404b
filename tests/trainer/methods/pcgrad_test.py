"""PCGrad: the paper's worked case, algorithm 1 in NumPy, and what replicas and micro-batches may not change."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from optimizers import OptimizerGroup, clip_by_global_norm
from tests.runs import arrays_of, train
from trainer import Trainer
from trainer.data import from_arrays
from trainer.methods import PCGrad
from trainer.methods.pcgrad import project, random_orders
from trainer.replicas.distribution import make_strategy

SGD, L = keras.optimizers.SGD, keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 3)).astype(np.float32)
TARGETS = {name: RNG.normal(size=(48, 1)).astype(np.float32) for name in ("a", "b", "c")}
TARGETS["b"] = (-TARGETS["a"] + 0.3 * TARGETS["b"]).astype(np.float32)  # a conflict


def algorithm_1(reached, gradients, order):
    """The paper's loop over gradients: each meets the original others, over the variables that both losses reach."""
    projected = [[None if g is None else g.astype(np.float64) for g in own] for own in gradients]
    for i, mine in enumerate(projected):
        for j in order[i]:
            both = [v for v in range(len(mine)) if reached[i][v] and reached[j][v]]
            product = sum(np.sum(mine[v] * gradients[j][v]) for v in both)
            if i != j and product < 0:
                length = sum(np.sum(gradients[j][v].astype(np.float64) ** 2) for v in both)
                for v in both:
                    mine[v] = mine[v] - product / length * gradients[j][v]
    return [sum(own[v] for own, r in zip(projected, reached) if r[v]) for v in range(len(reached[0]))]


def test_the_papers_two_vectors():
    """(1, 0) and (-1, 1) become (.5, .5) and (0, 1)."""
    gradients = [[tf.constant([1.0, 0.0])], [tf.constant([-1.0, 1.0])]]
    for order in ([[0, 1], [0, 1]], [[1, 0], [1, 0]]):
        (summed,) = project([[True], [True]], gradients, tf.constant(order))
        np.testing.assert_allclose(summed, [0.5, 1.5], atol=1e-7)


def test_gradients_that_agree_are_added_up():
    (summed,) = project(
        [[True]] * 2, [[tf.constant([1.0, 0.0])], [tf.constant([1.0, 1.0])]], tf.constant([[0, 1], [1, 0]])
    )
    np.testing.assert_array_equal(summed, [2.0, 1.0])


def test_a_gradient_of_0_conflicts_with_nothing():
    (summed,) = project(
        [[True]] * 2, [[tf.constant([1.0, -2.0])], [tf.constant([0.0, 0.0])]], tf.constant([[0, 1], [1, 0]])
    )
    np.testing.assert_array_equal(summed, [1.0, -2.0])


@pytest.mark.parametrize("seed", range(4))
def test_it_equals_algorithm_1(seed):
    """Four losses, five variables: shared by all, by three, by two, of one loss alone, and a sparse gradient."""
    rng = np.random.default_rng(seed)
    reached = [[1, 1, 0, 0, 1], [1, 1, 1, 0, 1], [1, 0, 1, 0, 1], [1, 1, 0, 1, 1]]
    shapes = [(3, 4), (5,), (2, 2), (3,), (4, 2)]
    gradients = [[rng.normal(size=s).astype(np.float32) if r else None for s, r in zip(shapes, own)] for own in reached]
    order = np.stack([rng.permutation(4) for _ in range(4)])
    tensors = [[None if g is None else tf.constant(g) for g in own] for own in gradients]
    rows = tf.constant([2, 0, 1, 3])  # sparse: its rows in another order
    tensors[1][4] = tf.IndexedSlices(tf.gather(tensors[1][4], rows), rows, tf.constant([4, 2]))
    ours = tf.function(lambda: project(reached, tensors, tf.constant(order, tf.int32)))()
    expected = algorithm_1(reached, gradients, order)
    assert max(np.abs(e - sum(g[v] for g in gradients if g[v] is not None)).max() for v, e in enumerate(expected)) > 0.1
    for our, their in zip(ours, expected, strict=True):
        np.testing.assert_allclose(our, their, atol=2e-6)
    np.testing.assert_array_equal(ours[3], gradients[3][3])  # a head keeps its gradient as it is


def test_a_loss_is_not_projected_on_itself():
    """Turned around by two others, the first gradient has a negative product with what it was."""
    gradients = [[np.array(g, np.float32)] for g in ([1.0, 0.0], [-1.0, 0.1], [-0.5, -1.0])]
    order, reached = [[1, 2, 0], [0, 2, 1], [0, 1, 2]], [[True]] * 3
    (summed,) = project(reached, [[tf.constant(g)] for (g,) in gradients], tf.constant(order))
    np.testing.assert_allclose(summed, algorithm_1(reached, gradients, order)[0], atol=1e-6)


def test_orders_are_permutations_drawn_from_the_seed_alone():
    drawn = [random_orders(5, tf.constant([0, step])).numpy() for step in (0, 1, 1)]
    assert all((np.sort(orders, 1) == np.arange(5)).all() for orders in drawn)
    np.testing.assert_array_equal(drawn[1], drawn[2])
    assert (drawn[0] != drawn[1]).any() and (drawn[0][0] != drawn[0][1]).any()
    first = np.array([random_orders(3, tf.constant([0, step])).numpy()[:, 0] for step in range(300)])
    assert (np.abs(np.apply_along_axis(np.bincount, 0, first, minlength=3) / 300 - 1 / 3) < 0.1).all()


# ---- the step -----------------------------------------------------------------------------------------------------


def network():
    """Three heads: `a` and `b` share a second layer, `c` has none of it."""
    inputs = keras.Input((3,))
    trunk = L.Dense(4, "tanh", name="trunk")(inputs)
    second = L.Dense(4, "tanh", name="second")(trunk)
    outputs = {"a": L.Dense(1, name="a")(second), "b": L.Dense(1, name="b")(second), "c": L.Dense(1, name="c")(trunk)}
    return keras.Model(inputs, outputs)


def weighted_group():
    losses = {"a": 1.0, "b": 2.0, "c": 0.5}
    return OptimizerGroup(losses=losses, optimizer=SGD(0.1), transforms=[clip_by_global_norm(1.0)], name="main")


def fit(method, steps, strategy="default", size=8, group=weighted_group, **arguments):
    keras.utils.set_random_seed(0)
    with make_strategy(strategy).scope():
        trainer = method(model=network(), loss="mse", optimizers=group(), **arguments)
    source = from_arrays((X, TARGETS), size, shuffle=False)
    chunk = steps if trainer.compile == "xla_loop" else None
    metrics = train(trainer, source, steps, chunk=chunk)
    return metrics, arrays_of(trainer.variables), trainer


def by_hand(steps):
    """A tape for each loss, algorithm 1, a clip and SGD."""
    keras.utils.set_random_seed(0)
    model = network()
    variables = model.trainable_variables
    conflicts = 0
    for step in range(steps):
        rows, gradients = slice(8 * step, 8 * step + 8), []
        for name, weight in {"a": 1.0, "b": 2.0, "c": 0.5}.items():
            with tf.GradientTape() as tape:
                loss = weight * tf.reduce_mean(tf.square(model(X[rows])[name] - TARGETS[name][rows]))
            gradients.append(
                [None if g is None else g.numpy() for g in tape.gradient(loss, [v.value for v in variables])]
            )
        reached = [[g is not None for g in own] for own in gradients]
        order = random_orders(3, tf.constant([0, step])).numpy()
        summed = algorithm_1(reached, gradients, order)
        plain = [sum(g[v] for g in gradients if g[v] is not None) for v in range(len(variables))]
        conflicts += any(np.abs(s - p).max() > 1e-3 for s, p in zip(summed, plain))
        norm = np.sqrt(sum(np.sum(g**2) for g in summed))
        for v, g in zip(variables, summed):
            v.assign(v.numpy() - 0.1 * g / max(norm, 1.0))
    assert conflicts > steps / 2
    return [v.numpy() for v in variables], norm


@pytest.mark.parametrize("compile", ["eager", "graph", "xla_loop"])
def test_it_equals_a_plain_eager_implementation(compile):
    """XLA draws other orders on CPU; at the first step they do not matter."""
    metrics, _, trainer = fit(PCGrad, 1, compile=compile)
    weights, norm = by_hand(1)
    assert metrics["grad_norm/main"] == pytest.approx(norm, rel=1e-5)  # of the sum that is applied
    if compile == "graph":
        train(trainer, from_arrays((X, TARGETS), 8, shuffle=False), 4, start=1)
        weights, _ = by_hand(5)
    for ours, theirs in zip(trainer.model.trainable_variables, weights, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-6, err_msg=ours.path)


def test_replicas_and_micro_batches_change_nothing():
    """Batches of 7: projected is what all replicas and parts add up to."""
    metrics, whole, _ = fit(PCGrad, 6, size=7)
    other_metrics, parts, _ = fit(PCGrad, 6, "mirrored", size=7, micro_batches=3)
    assert other_metrics == pytest.approx(metrics, rel=2e-5, abs=2e-6)
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], atol=2e-6, err_msg=name)


def test_one_loss_is_the_plain_step():
    def groups():
        return [
            OptimizerGroup("(trunk|second|a|b)/.*", ["a", "b"], SGD(0.0), name="still"),
            OptimizerGroup("c/.*", ["c"], SGD(0.1), name="head"),
        ]

    (_, ours, _), (_, plain, _) = (fit(method, 3, group=groups, compile="eager") for method in (PCGrad, Trainer))
    for name in plain:
        np.testing.assert_array_equal(ours[name], plain[name], err_msg=name)


def test_a_variable_that_no_loss_reaches_is_named():
    def group():
        shared = OptimizerGroup("(trunk|second|a|b)/.*", optimizer=SGD(0.1), name="shared")
        return [shared, OptimizerGroup("c/.*", ["a", "b"], SGD(0.1), name="head")]

    with pytest.raises(ValueError, match="(?s)Group 'head' .*do not depend.*c/kernel"):
        fit(PCGrad, 1, group=group, micro_batches=2)


def test_a_gradient_that_is_not_finite_changes_nothing():
    _, before, trainer = fit(PCGrad, 1, compile="eager")
    bad = {**TARGETS, "c": TARGETS["c"] * np.inf}
    metrics = train(trainer, from_arrays((X, bad), 8, shuffle=False), 1)
    assert metrics["skipped_steps"] == 1
    for name, v in trainer.variables.items():
        np.testing.assert_array_equal(v.numpy(), before[name])
