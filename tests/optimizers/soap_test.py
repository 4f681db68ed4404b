"""SOAP against the paper's algorithm in NumPy (float64), Adam for vectors, and two replicas step by step."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from optimizers import OptimizerGroup
from optimizers.soap import SOAP
from trainer.replicas.distribution import make_strategy

RATE, B1, B2, EPS = 0.05, 0.9, 0.95, 1e-8


def _soap(w, gradients, interval, left=True, right=True):
    """2409.11321, algorithm 3 with the refresh of algorithm 4; sides without a basis keep the identity."""
    n, k = w.shape
    m, v = np.zeros_like(w), np.zeros_like(w)
    L, R = np.zeros([n, n]), np.zeros([k, k])
    QL, QR = np.eye(n), np.eye(k)

    def refresh(second, Q, axis, v):
        order = np.argsort(-np.diag(Q.T @ second @ Q), kind="stable")
        return np.linalg.qr((second @ Q)[:, order])[0], np.take(v, order, axis)

    for t, g in enumerate(gradients):
        L, R = B2 * L + (1 - B2) * g @ g.T, B2 * R + (1 - B2) * g.T @ g
        if t == 0:
            QL = np.linalg.eigh(L)[1][:, ::-1] if left else QL
            QR = np.linalg.eigh(R)[1][:, ::-1] if right else QR
            continue
        m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * (QL.T @ g @ QR) ** 2
        rate = RATE * np.sqrt(1 - B2**t) / (1 - B1**t)
        w = w - rate * QL @ (QL.T @ m @ QR / (np.sqrt(v) + EPS)) @ QR.T
        if t % interval == 0:
            if left:
                QL, v = refresh(L, QL, 0, v)
            if right:
                QR, v = refresh(R, QR, 1, v)
    return w


def _problem(shape=(4, 3), steps=12):
    random = np.random.default_rng(0)
    # Scales that differ keep eigenvalues apart; equal ones have no basis of their own.
    scale = np.linspace(0.5, 2, int(np.prod(shape))).reshape(shape)
    return random.normal(size=shape), [random.normal(size=shape) * scale for _ in range(steps)]


def _run(optimizer, start, gradients):
    v = keras.Variable(start.astype("float32"))
    optimizer.build([v])

    @tf.function
    def step(gradient):
        optimizer.apply([gradient])

    for gradient in gradients:
        step(tf.constant(gradient, tf.float32))
    return v.numpy()


def _make(**kwargs):
    return SOAP(RATE, B1, B2, EPS, **kwargs)


@pytest.mark.parametrize("interval", [1, 3, 100])
def test_is_the_papers_algorithm(interval):
    # A square matrix: a basis of full rank has no arbitrary directions, in which float32 and float64 would part.
    start, gradients = _problem((3, 3))
    wanted = _soap(start, gradients, interval)
    np.testing.assert_allclose(_run(_make(refresh_interval=interval), start, gradients), wanted, atol=2e-4)


@pytest.mark.parametrize("shape, left, right", [((6, 3), False, True), ((3, 6), True, False)])
def test_a_long_side_keeps_its_own_basis(shape, left, right):
    start, gradients = _problem(shape)
    wanted = _soap(start, gradients, 3, left, right)
    np.testing.assert_allclose(_run(_make(refresh_interval=3, max_dim=4), start, gradients), wanted, atol=2e-4)


@pytest.mark.parametrize("shape, max_dim", [((4, 3), 2), ((4, 3), 1), ((5,), 100), ((), 100), ((2, 2, 3), 2)])
def test_without_a_basis_it_is_adam(shape, max_dim):
    start, gradients = _problem(shape)
    v = keras.Variable(np.float32(start))
    adam = keras.optimizers.Adam(RATE, B1, B2, EPS)
    for gradient in gradients:
        adam.apply([tf.constant(gradient, tf.float32)], [v])
    np.testing.assert_allclose(
        _run(_make(max_dim=max_dim), np.asarray(start), gradients), v.numpy(), rtol=1e-5, atol=1e-6
    )


def test_a_kernel_of_rank_4_is_the_matrix_of_its_last_axis():
    start, gradients = _problem((2, 2, 2, 3))
    folded = [g.reshape(8, 3) for g in gradients]
    wanted = _run(_make(refresh_interval=2, max_dim=3), start.reshape(8, 3), folded)
    found = _run(_make(refresh_interval=2, max_dim=3), start, gradients)
    np.testing.assert_array_equal(found.reshape(8, 3), wanted)


def test_a_gradient_of_zeros_moves_nothing_and_makes_no_basis():
    start, gradients = _problem((3, 3), 4)
    zeros = [np.zeros([3, 3])] * 2
    np.testing.assert_array_equal(_run(_make(), start, zeros), start.astype("float32"))
    # The first gradient that is not zero makes the basis; only Adam's bias correction counts the updates before.
    assert np.isfinite(_run(_make(refresh_interval=1), start, zeros + gradients)).all()


def test_a_direction_without_gradient_does_not_move_by_rounding():
    """A softmax's kernel: the columns of its gradient add up to 0, so in exact maths the sums of its rows stay."""
    start, gradients = _problem((8, 6), 30)
    gradients = [g - g.mean(1, keepdims=True) for g in gradients]
    moved = _run(_make(refresh_interval=2), start, gradients) - start
    assert np.abs(moved).mean() > 0.1
    np.testing.assert_allclose(moved.sum(1), np.zeros(8), atol=1e-4)


def test_rotated_coordinates_make_no_difference():
    """What Adam lacks: on a quadratic whose axes are turned, SOAP's path is the turned path."""
    random = np.random.default_rng(3)
    turn = np.linalg.qr(random.normal(size=(3, 3)))[0]
    start, gradients = _problem((3, 3), 10)
    plain = _run(_make(refresh_interval=1), start, gradients)
    turned = _run(_make(refresh_interval=1), turn @ start, [turn @ g for g in gradients])
    np.testing.assert_allclose(turn.T @ turned, plain, atol=2e-3)
    adam = [keras.Variable(w.astype("float32")) for w in (start, turn @ start)]
    for v, way in zip(adam, (np.eye(3), turn)):
        optimizer = keras.optimizers.Adam(RATE, B1, B2)
        for gradient in gradients:
            optimizer.apply([tf.constant(way @ gradient, tf.float32)], [v])
    assert np.abs(turn.T @ adam[1].numpy() - adam[0].numpy()).max() > 0.05


@pytest.mark.parametrize("merges", [True, False])
def test_two_replicas_equal_one_step_by_step_and_each_other(merges, monkeypatch):
    """From equal state: bases amplify rounding, as Muon does. The gradients on the replicas differ before their sum.

    Keras updates variables in a merge call on CPU, and per replica on several
    GPUs, where a condition is legal only around pure tensor maths: `merges`
    False is the way of GPUs, on CPU.
    """
    strategy, (start, gradients) = make_strategy("mirrored"), _problem((4, 4))
    if not merges:
        monkeypatch.setattr(strategy.extended, "_use_merge_call", lambda: False)
    alone, reference = keras.Variable(start.astype("float32")), _make(refresh_interval=2)
    reference.build([alone])
    with strategy.scope():
        v, group = keras.Variable(start.astype("float32")), OptimizerGroup(optimizer=_make(refresh_interval=2))
        group.build({"v": v})

    @tf.function
    def step(gradient):
        def replica():
            context = tf.distribute.get_replica_context()
            share = 0.25 + 0.5 * tf.cast(context.replica_id_in_sync_group, tf.float32)
            group.apply([context.all_reduce("SUM", share * gradient)], {})

        strategy.run(replica)

    for gradient in gradients:
        gradient = tf.constant(gradient, tf.float32)
        for a, b in zip([alone, *reference.variables], [v, *group.optimizer.variables], strict=True):
            b.assign(a.numpy())
        step(gradient)
        reference.apply([gradient])
        for a, b in zip([alone, *reference.variables], [v, *group.optimizer.variables], strict=True):
            copies = [x.numpy() for x in strategy.experimental_local_results(b.value)]
            np.testing.assert_array_equal(copies[0], copies[1])
            np.testing.assert_allclose(copies[0], a.numpy(), atol=1e-5, err_msg=a.path)


def test_a_gradient_that_is_not_finite_is_left_to_the_guard():
    assert np.isnan(_run(_make(), np.ones([2, 2]), [np.full([2, 2], np.nan)] * 2)).any()


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: SOAP(beta_1=1.0), "`beta_1` must be"),
        (lambda: SOAP(epsilon=-1), "`epsilon` must be a number > 0, got -1"),
        (lambda: SOAP(refresh_interval=0), "`refresh_interval` must be a whole number >= 1, got 0"),
        (lambda: SOAP(max_dim=2.5), "`max_dim` must be a whole number >= 1, got 2.5"),
    ],
)
def test_mistakes_are_reported(make, match):
    with pytest.raises(ValueError, match=match):
        make()
