"""Multipliers scale the update of any Keras optimizer, decay included; layer-wise decay against its powers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from optimizers import OptimizerGroup
from optimizers.multipliers import LearningRateMultipliers, layer_wise_decay
from optimizers.schedule_free import ScheduleFreeSGD
from optimizers.soap import SOAP
from trainer.replicas.distribution import make_strategy

# Keras' optimizers whose update is proportional to the learning rate: all but Adafactor and Ftrl.
LINEAR = {
    "SGD": {"momentum": 0.9}, "Adam": {}, "AdamW": {"weight_decay": 0.1},
    "Adagrad": {}, "Adadelta": {}, "Adamax": {}, "Nadam": {},
    "RMSprop": {}, "Lion": {}, "Muon": {"weight_decay": None, "adam_weight_decay": None},
}  # fmt: skip
START = np.random.default_rng(0).normal(size=(3, 2)).astype("float32")


def _variables(count=2):
    names = ["low", "high", "third"][:count]
    return [keras.Variable(START, name=name) for name in names]


def _keras(name, rate=0.01):
    return getattr(keras.optimizers, name)(rate, **LINEAR[name])


@pytest.mark.parametrize("name", LINEAR)
def test_a_variable_is_trained_as_by_an_optimizer_with_its_own_rate(name):
    gradients = np.random.default_rng(1).normal(size=(5, 3, 2)).astype("float32")
    low, high = _variables()
    optimizer = LearningRateMultipliers(_keras(name), {"low": 0.25})
    optimizer.build([low, high])
    alone = [(keras.Variable(START), _keras(name, 0.01 * factor)) for factor in (0.25, 1.0)]
    for gradient in gradients:
        optimizer.apply([tf.constant(gradient)] * 2)
        for v, reference in alone:
            reference.apply([tf.constant(gradient)], [v])
    for v, (wanted, _) in zip((low, high), alone):
        np.testing.assert_allclose(v.numpy(), wanted.numpy(), rtol=2e-6, atol=1e-7)
    assert np.abs(low.numpy() - START).max() > 1e-5
    assert int(optimizer.iterations.numpy()) == 5 and float(optimizer.learning_rate) == pytest.approx(0.01)


def test_the_update_is_scaled_and_scaling_the_gradient_does_nothing_in_adam():
    step = []
    for factor, scale in ((1.0, 1.0), (0.1, 1.0), (1.0, 0.1)):
        (v,) = _variables(1)
        adam = keras.optimizers.Adam(0.01, epsilon=1e-12)
        LearningRateMultipliers(adam, {"low": factor}).apply([tf.constant(START * scale)], [v])
        step.append(v.numpy() - START)
    np.testing.assert_allclose(step[1], 0.1 * step[0], atol=1e-7)
    np.testing.assert_allclose(step[2], step[0], atol=1e-7)


def test_multiplier_0_keeps_every_bit_decay_or_not():
    low, high = _variables()
    optimizer = LearningRateMultipliers(keras.optimizers.AdamW(0.1, weight_decay=0.5), {"low": 0})
    for _ in range(3):
        optimizer.apply([tf.constant(START)] * 2, [low, high])
    np.testing.assert_array_equal(low.numpy(), START)
    assert np.abs(high.numpy() - START).min() > 0.1


def test_decay_has_the_multiplied_rate_and_keras_exclusions_hold():
    low, high, third = _variables(3)
    inner = keras.optimizers.SGD(0.5, weight_decay=0.1)
    inner.exclude_from_weight_decay(var_names=["third"])
    optimizer = LearningRateMultipliers(inner, {"low": 0.25})
    optimizer.build([low, high, third])
    optimizer.apply([tf.zeros([3, 2])] * 3)
    for v, factor in ((low, 1 - 0.5 * 0.25 * 0.1), (high, 1 - 0.5 * 0.1), (third, 1.0)):
        np.testing.assert_allclose(v.numpy(), factor * START, rtol=1e-6)


def test_a_schedule_is_multiplied_and_a_constant_can_be_set():
    (v,) = _variables(1)
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0], [1.0, 10.0])
    optimizer = LearningRateMultipliers(keras.optimizers.SGD(schedule), {"low": 0.5})
    for _ in range(2):
        optimizer.apply([tf.ones([3, 2])], [v])
    np.testing.assert_allclose(v.numpy(), START - 0.5 - 5.0, rtol=1e-6)
    constant = LearningRateMultipliers("sgd", {"low": 0.5})
    constant.learning_rate = 2.0
    v.assign(START)
    constant.apply([tf.ones([3, 2])], [v])
    np.testing.assert_allclose(v.numpy(), START - 1.0, rtol=1e-6)


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Nadam"])  # SGD would show a gradient that is summed twice
def test_two_replicas_equal_one_on_reduced_gradients(name):
    strategy, gradient = make_strategy("mirrored"), tf.constant(START)

    def make():
        variables = _variables()
        group = OptimizerGroup(optimizer=LearningRateMultipliers(_keras(name), {".*low": 0.25}))
        group.build(dict(zip(("a/low", "a/high"), variables)))
        return variables, group

    with strategy.scope():
        mirrored, group = make()
    alone, reference = make()

    @tf.function
    def step():
        def replica():
            context = tf.distribute.get_replica_context()
            share = 0.25 + 0.5 * tf.cast(context.replica_id_in_sync_group, tf.float32)
            group.apply([context.all_reduce("SUM", share * gradient)] * 2, {})

        strategy.run(replica)

    for _ in range(3):
        step()
        reference.apply([gradient] * 2, {})
    for a, b in zip(alone, mirrored):
        for copy in strategy.experimental_local_results(b.value):
            np.testing.assert_allclose(copy.numpy(), a.numpy(), atol=1e-6)
    assert int(group.optimizer.iterations.numpy()) == 3


@pytest.mark.parametrize(
    "make", [lambda: keras.optimizers.Adam(0.01), lambda: SOAP(0.01), lambda: ScheduleFreeSGD(0.1)]
)
def test_slots_have_the_names_of_the_inner_optimizer(make):
    def slots(optimizer):
        group = OptimizerGroup(optimizer=optimizer)
        group.build(dict(zip(("a/low", "a/high"), _variables())))
        held = {id(v) for v in group.optimizer.variables}
        assert {id(v) for v in group.slots.values()} == held
        return {name for name in group.slots if name.endswith(("momentum", "velocity", "/z", "/x")) or "/" not in name}

    named = {name for name in slots(make()) if not name.startswith(("left", "right"))}
    assert named and named <= slots(LearningRateMultipliers(make(), {".*low": 0.5}))


def test_a_saved_model_brings_multipliers_decay_and_slots_along(tmp_path):
    model = keras.Sequential([keras.Input((3,), name="in"), keras.layers.Dense(2, name="head")])
    inner = keras.optimizers.AdamW(0.05, weight_decay=0.1)
    model.compile(LearningRateMultipliers(inner, {".*/bias": 0.5, ".*/kernel": 2}), "mse")
    x, y = START @ np.ones([2, 3], np.float32), START
    losses = model.fit(x, y, epochs=20, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.optimizer.get_config() == model.optimizer.get_config()
    assert again.optimizer.get_config()["multipliers"] == {".*/bias": 0.5, ".*/kernel": 2.0}
    assert again.optimizer.get_config()["optimizer"]["config"]["weight_decay"] == 0.1
    for a, b in zip(model.optimizer.variables, again.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    for trained in (model, again):
        trained.fit(x, y, epochs=2, verbose=0)
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_tf_checkpoint_holds_the_inner_slots(tmp_path):
    results = []
    for path in (None, str(tmp_path / "ckpt-1")):
        (v,) = _variables(1)
        optimizer = LearningRateMultipliers(keras.optimizers.Adam(0.1), {"low": 0.5})
        optimizer.build([v])
        checkpoint = tf.train.Checkpoint(v=v, optimizer=optimizer)
        if path is None:
            for _ in range(3):
                optimizer.apply([tf.constant(START)])
            checkpoint.write(str(tmp_path / "ckpt-1"))
        else:
            checkpoint.read(path)
        results.append([x.numpy() for x in (v, *optimizer.variables)])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype):
    v = keras.Variable(np.ones([2, 2]), dtype=dtype, name="low")
    optimizer = LearningRateMultipliers(ScheduleFreeSGD(0.01), {"low": 0.5})
    for _ in range(3):
        optimizer.apply([tf.constant([[100.0, 1e-5]] * 2, dtype)], [v])
    values = v.numpy().astype("float32")
    assert np.isfinite(values).all() and (values[:, 0] < 1).all()


def test_layer_wise_decay_is_the_powers_of_decay_from_the_top():
    layers = [f"blocks/{i}/.*" for i in range(4)]
    assert layer_wise_decay(0.5, layers) == dict(zip(layers, [0.125, 0.25, 0.5, 1.0]))
    assert layer_wise_decay(1, ["a"]) == {"a": 1.0}


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: LearningRateMultipliers("adam", {}), "`multipliers` must be a dict"),
        (lambda: LearningRateMultipliers("adam", {"a": -1}), r"`multipliers\['a'\]` must be a number >= 0, got -1"),
        (lambda: LearningRateMultipliers("adam", {"a": "x"}), "got 'x'"),
        (
            lambda: LearningRateMultipliers(keras.optimizers.Muon(), {"a": 1}),
            "`adam_weight_decay`, which multipliers would not reach",
        ),
        (
            lambda: LearningRateMultipliers(keras.optimizers.SGD(gradient_accumulation_steps=2), {"a": 1}),
            "micro_batches",
        ),
        (lambda: LearningRateMultipliers(keras.optimizers.SGD(use_ema=True), {"a": 1}), "`use_ema`"),
        (
            lambda: LearningRateMultipliers("sgd", {"lwo": 1}).build(_variables()),
            "matches no variable. Did you mean 'low'",
        ),
        (
            lambda: LearningRateMultipliers("sgd", {"l.*": 1, "low": 2}).build(_variables()),
            "'low' is matched by 'l.*' and 'low'",
        ),
        (lambda: layer_wise_decay(0.0, ["a"]), r"`decay` must be a number in \(0, 1\], got 0.0"),
        (lambda: layer_wise_decay(0.5, []), "`layers` must be a list"),
        (lambda: layer_wise_decay(0.5, ["a", "a"]), "`layers` must be a list of different"),
        (lambda: layer_wise_decay(0.5, "a"), "got 'a'"),
    ],
)
def test_mistakes_are_reported(make, match):
    with pytest.raises(ValueError, match=match):
        make()
