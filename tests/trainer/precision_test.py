"""Mixed precision: bfloat16, float16 with our loss scale, and the decision that all replicas share."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from optimizers import OptimizerGroup, clip_by_global_norm, loss_scale
from optimizers.loss_scale import LossScale
from tests.runs import arrays_of, slow, train
from trainer import Trainer
from trainer.data import from_arrays
from trainer.replicas.distribution import make_strategy, replica_values
from trainer.saving.checkpoints import Checkpoints
from trainer.saving.state import copy_state, restore
from trainer.step.guard import NonFiniteError

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(64, 6)).astype(np.float32), RNG.normal(size=(64, 1)).astype(np.float32)


def _trainer(strategy, policy, optimizers=None, **arguments):
    keras.utils.set_random_seed(0)
    keras.mixed_precision.set_dtype_policy(policy)
    with make_strategy(strategy).scope():
        model = keras.Sequential(
            [keras.Input((6,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1, dtype="float32")]
        )
        optimizers = optimizers or OptimizerGroup(
            optimizer=keras.optimizers.Adam(0.01), transforms=[clip_by_global_norm(1.0)]
        )
        return Trainer(model, "mse", ["mae"], optimizers, **arguments)


def _train(trainer, steps=20, arrays=(X, Y)):
    return train(trainer, from_arrays(arrays, 16, shuffle=False), steps)


@pytest.mark.parametrize(
    "policy, parts",
    [("mixed_bfloat16", 1), ("mixed_float16", 3), slow("mixed_bfloat16", 3), slow("mixed_float16", 1)],
)
def test_two_replicas_equal_one_to_a_hundredth(policy, parts):
    one, two = (_trainer(name, policy, micro_batches=parts) for name in ("default", "mirrored"))
    reports = _train(one), _train(two)
    for name, weight in arrays_of(one.variables).items():
        assert weight.dtype == np.float32
        np.testing.assert_allclose(two.variables[name].numpy(), weight, atol=1e-2)
    assert reports[0]["loss"] == pytest.approx(reports[1]["loss"], rel=1e-2)
    assert reports[0]["skipped_steps"] == reports[1]["skipped_steps"] == 0
    reference = _trainer("default", "float32")
    assert _train(reference)["loss"] == pytest.approx(reports[0]["loss"], rel=2e-2)


def test_the_loss_scale_changes_neither_reports_nor_updates():
    """float16 with a scale of 2^15 moves as float32 does: the scale is divided out before norms and transforms."""
    half, full = (_trainer("default", policy, keras.optimizers.SGD(0.1)) for policy in ("mixed_float16", "float32"))
    a, b = _train(half, 5), _train(full, 5)
    assert a["loss_scale"] == 2.0**15 and "loss_scale" not in b
    assert a["grad_norm/main"] == pytest.approx(b["grad_norm/main"], rel=1e-2)
    for name, weight in arrays_of(full.variables).items():
        np.testing.assert_allclose(half.variables[name].numpy(), weight, atol=5e-3)


@pytest.mark.parametrize("policy, scaled", [("float32", False), ("mixed_bfloat16", False), ("mixed_float16", True)])
def test_only_float16_is_scaled(policy, scaled):
    trainer = _trainer("default", policy)
    trainer.build(from_arrays((X, Y), 16).element_spec)
    assert (trainer.built.guard.loss_scale is not None) == scaled


@pytest.mark.parametrize("guard, row", [("skip", 0), ("off", 15), slow("stop", 0), slow("skip", 15), slow("off", 0)])
def test_an_overflow_on_either_replica_lowers_the_scale_and_changes_no_weight(guard, row):
    """An input of 60,000 overflows float16 in the backward pass; the row lies on one replica or on the other."""
    x = X.copy()
    x[row] = 6e4
    trainer = _trainer("mirrored", "mixed_float16", guard=guard)
    trainer.build(from_arrays((x, Y), 16).element_spec)
    before = {
        name: [np.array(c) for c in replica_values(trainer.strategy, v.value)] for name, v in trainer.variables.items()
    }
    metrics = _train(trainer, 1, (x, Y))
    assert metrics["loss_scale"] == 2.0**14 and metrics["skipped_steps"] == 0 and metrics["updates/group_0"] == 0
    for name, variable in trainer.variables.items():
        for copy, old in zip(replica_values(trainer.strategy, variable.value), before[name]):
            np.testing.assert_array_equal(np.array(copy), old)
    scales = replica_values(trainer.strategy, trainer.built.guard.loss_scale.value)
    assert len({float(value) for value in scales}) == 1


def test_an_overflow_at_the_smallest_scale_counts_as_bad():
    trainer = _trainer("default", "mixed_float16", max_skipped=3)
    x = np.full_like(X, np.inf)
    trainer.build(from_arrays((x, Y), 16).element_spec)
    trainer.built.guard.loss_scale.value.assign(2.0)
    with pytest.raises(NonFiniteError, match="3 steps in a row"):
        _train(trainer, 4, (x, Y))  # the first one lowers the scale to 1, three are bad
    assert int(trainer.built.guard.skipped.numpy()) == 3


def test_the_scale_doubles_after_enough_finite_steps(monkeypatch):
    monkeypatch.setattr(loss_scale, "_GROWTH_INTERVAL", 3)
    scale = LossScale(initial=4.0)
    seen = []
    for finite in (1, 1, 1, 1, 1, 0, 1, 1, 1):
        scale.count_finite() if finite else scale.lower()
        seen.append(float(scale.value.numpy()))
    assert seen == [4, 4, 8, 8, 8, 4, 4, 4, 8]


def test_the_scale_stays_within_its_bounds(monkeypatch):
    monkeypatch.setattr(loss_scale, "_GROWTH_INTERVAL", 1)
    scale = LossScale(initial=2.0**23)
    for _ in range(3):
        scale.count_finite()
    assert float(scale.value.numpy()) == 2.0**24
    for _ in range(30):
        scale.lower()
    assert float(scale.value.numpy()) == 1.0 and bool(scale.at_smallest())


def test_the_scale_is_in_the_checkpoint(tmp_path):
    trainer = _trainer("default", "mixed_float16")
    _train(trainer, 3)
    trainer.built.guard.loss_scale.value.assign(64.0)
    saved = Checkpoints().open(tmp_path)
    saved.save(3, copy_state(trainer), {}, wait=True)
    fresh = _trainer("default", "mixed_float16")
    fresh.build(trainer.element_spec)
    restore(fresh, saved.latest())
    assert float(fresh.built.guard.loss_scale.value.numpy()) == 64.0
    assert int(fresh.built.guard.loss_scale.finite_steps.numpy()) == 3


@pytest.mark.parametrize("name", ["default", "mirrored"])
def test_loss_scaling_checks_all_replicas_where_keras_checks_one(name):
    """An infinite gradient on replica 1 reaches the weights of Keras' LossScaleOptimizer."""
    strategy = make_strategy("mirrored")
    with strategy.scope():
        w, optimizer = keras.Variable(1.0), keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
        optimizer.build([w])

    @tf.function
    def step():
        def replica():
            index = tf.distribute.get_replica_context().replica_id_in_sync_group
            optimizer.apply([tf.gather(tf.constant([1.0, np.inf]), index)], [w])

        strategy.run(replica)

    step()
    assert not np.isfinite(w.numpy())
    x = X.copy()
    x[12] = np.inf  # on replica 1
    with make_strategy(name).scope():
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
    trainer = _trainer(name, "mixed_float16", optimizer)
    _train(trainer, 4, (x, Y))
    assert all(np.isfinite(weight).all() for weight in arrays_of(trainer.variables).values())
