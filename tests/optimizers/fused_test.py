"""Fused updates against Keras' own: every class, dense and sparse, on 1 and 2 replicas; who is never fused."""

import hashlib
import inspect

import gin
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from optimizers import LearningRateMultipliers, OptimizerGroup
from trainer import Trainer
from trainer.config import registry
from trainer.data import from_arrays
from trainer.replicas.distribution import make_strategy

NAMES = ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Ftrl", "Adamax", "Adadelta"]
STEPS = 4
_share = st.sampled_from([0.5, 0.9, 0.99, 0.999])
_PENALTIES = [f"{kind}_regularization_strength" for kind in ("l1", "l2", "l2_shrinkage")]
_arguments = {
    "SGD": st.fixed_dictionaries({"momentum": st.sampled_from([0.0, 0.9]), "nesterov": st.booleans()}),
    "Adam": st.fixed_dictionaries({"beta_1": _share, "beta_2": _share, "amsgrad": st.booleans()}),
    "AdamW": st.fixed_dictionaries(
        {"weight_decay": st.sampled_from([0.01, 0.5]), "epsilon": st.sampled_from([1e-7, 1e-3])}
    ),
    "RMSprop": st.fixed_dictionaries(
        {"rho": st.sampled_from([0.5, 0.9, 0.95]), "momentum": st.sampled_from([0.0, 0.7]), "centered": st.booleans()}
    ),
    "Adagrad": st.fixed_dictionaries({"initial_accumulator_value": st.sampled_from([0.01, 0.1])}),
    "Ftrl": st.fixed_dictionaries(
        {
            "learning_rate_power": st.sampled_from([-0.5, -0.7]),
            "beta": st.sampled_from([0.0, 0.2]),
            **dict.fromkeys(_PENALTIES, st.sampled_from([0.0, 0.05])),
        }
    ),
    "Adamax": st.fixed_dictionaries({"beta_1": _share, "beta_2": _share}),
    "Adadelta": st.fixed_dictionaries({"rho": st.sampled_from([0.5, 0.95])}),
}  # fmt: skip
_common = st.fixed_dictionaries({}, optional={"weight_decay": st.just(0.1), "clipnorm": st.just(0.5)})
_schedule = keras.optimizers.schedules.PiecewiseConstantDecay


def _group(name, arguments, value, rate, fused, multiplier=None):
    optimizer = getattr(keras.optimizers, name)(rate, **arguments)
    if multiplier is not None:
        optimizer = LearningRateMultipliers(optimizer, {"v": multiplier})
    group = OptimizerGroup(optimizer=optimizer, fused=fused)
    group.build(
        {
            "v": (v := keras.Variable(value, dtype=value.dtype.name)),
            "b": (b := keras.Variable(value[0], dtype=value.dtype.name)),
        }
    )
    return group, v, b


def _gradients(shape, dtype, sparse, seed):
    random = np.random.default_rng(seed)
    for _ in range(STEPS):
        g = tf.cast(random.normal(size=shape) * 10 ** random.uniform(-2, 0), dtype)
        rows = random.integers(0, shape[0], 1 + shape[0] // 2)  # some twice
        yield tf.IndexedSlices(g[: len(rows)], tf.constant(rows), tf.constant(shape, tf.int64)) if sparse else g


def _close(actual, wanted, tolerance):
    actual, wanted = np.asarray(actual), np.asarray(wanted)
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=tolerance * max(np.abs(wanted).max(), 1e-30))


@pytest.mark.parametrize("name", NAMES)
@settings(
    max_examples=6, deadline=None, derandomize=True, phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(data=st.data())
def test_an_update_is_that_of_keras(name, data):
    """From equal states; Keras gets the dense gradient, in which repeated rows are summed."""
    arguments = {**data.draw(_common), **data.draw(_arguments[name])}
    shape = data.draw(st.sampled_from([(1, 1), (7, 3), (130, 130), (5000, 4)]))
    dtype = data.draw(st.sampled_from(["float32", "float32", "float64", "float16", "bfloat16"]))
    sparse, multiplier = data.draw(st.booleans()), data.draw(st.sampled_from([None, None, 0.3]))
    rate = data.draw(st.sampled_from([1e-3, 0.01, 0.1, _schedule([1], [0.01, 0.1])]))
    value = tf.cast(np.random.default_rng(3).normal(size=shape), dtype).numpy()
    ours, v, b = _group(name, arguments, value, rate, True, multiplier)
    keras_own, wanted, wanted_b = _group(name, arguments, value, rate, False, multiplier)
    assert ours.fused_update is not None and keras_own.fused_update is None
    assert list(ours.slots) == list(keras_own.slots)
    exact = {"float32": 2e-7, "float64": 2e-15}.get(dtype, 0.0)
    for g in _gradients(shape, dtype, sparse, 5):
        dense = tf.convert_to_tensor(g)
        ours.apply([dense if "clipnorm" in arguments else g, dense[0]], {})  # clipping gets no repeated rows
        keras_own.apply([dense, dense[0]], {})
        for mine, own in ((v, wanted), (b, wanted_b)):
            _close(mine, own, exact)
        for key, slot in keras_own.slots.items():
            # The kernels round 1 - beta to float32 differently, up to 1.3e-5 for .999.
            _close(ours.slots[key], slot, 2e-5 if dtype == "float32" else max(exact, 5e-15))
            ours.slots[key].assign(slot)
        v.assign(wanted)
        b.assign(wanted_b)


@pytest.mark.parametrize("name", NAMES)
def test_on_two_replicas_it_is_what_it_is_on_one(name):
    value = np.random.default_rng(3).normal(size=(5000, 4)).astype("float32")
    arguments = {"weight_decay": 0.01, **({"momentum": 0.9} if name in ("SGD", "RMSprop") else {})}
    strategy = make_strategy("mirrored")
    with strategy.scope():
        mirrored, *copies = _group(name, arguments, value, 0.01, True)
    alone, *wanted = _group(name, arguments, value, 0.01, False)

    @tf.function
    def step(g):
        strategy.run(lambda g: mirrored.apply([g, g[0]], {}) and None, args=(g,))

    for g in _gradients(value.shape, "float32", False, 7):
        step(g)
        alone.apply([g, g[0]], {})
    for v, own in zip(copies, wanted):
        first, second = strategy.experimental_local_results(v.value)
        np.testing.assert_array_equal(first, second)
        _close(first, own, STEPS * 2e-7)
    assert int(mirrored.optimizer.iterations.numpy()) == STEPS


@pytest.mark.parametrize("dtype, rounding", [("float32", 2e-7), ("float64", 2e-15)])
@pytest.mark.parametrize("name", NAMES)
def test_many_steps_in_a_graph_do_not_drift(name, dtype, rounding):
    """The kernels' rounding of 1 - beta must not add up: after 300 steps there are at most 300 roundings."""
    value = np.random.default_rng(3).normal(size=(130, 130)).astype(dtype)
    arguments = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
    (ours, v, b), (own, wanted, wanted_b) = (_group(name, arguments, value, 0.01, fused) for fused in (True, False))
    g = tf.constant(np.random.default_rng(4).normal(size=value.shape), dtype)

    @tf.function
    def run():
        for t in tf.range(300):
            noisy = g * (1 + tf.sin(tf.cast(t, dtype)))
            for group in (ours, own):
                group.apply([noisy, noisy[0]], {})

    run()
    _close(v, wanted, 300 * rounding)
    _close(b, wanted_b, 300 * rounding)


def test_subclasses_and_updates_of_ones_own_are_never_fused():
    class Mine(keras.optimizers.Adam):
        pass

    class Applies(keras.optimizers.Adam):
        def apply_gradients(self, grads_and_vars):
            return super().apply_gradients([(2 * g, v) for g, v in grads_and_vars])

    instance = keras.optimizers.SGD(0.1)
    instance.update_step = lambda gradient, variable, learning_rate: variable.assign_sub(gradient)
    for optimizer in (Mine(), Applies(), instance, keras.optimizers.Nadam(), LearningRateMultipliers(Mine(), {"v": 2})):
        group = OptimizerGroup(optimizer=optimizer)
        group.build({"v": (v := keras.Variable([1.0]))})
        assert group.fused_update is None and not group.takes_dense_gradients
    built = keras.optimizers.Adam(0.1)
    built.build([v := keras.Variable([1.0])])  # its slots are not known by name
    group = OptimizerGroup(optimizer=built)
    group.build({"v": v})
    group.apply([tf.constant([3.0])], {})
    assert group.fused_update is None and v.numpy() == pytest.approx(0.9)
    group = OptimizerGroup(optimizer=(instance := keras.optimizers.SGD(0.1)))
    instance.update_step = lambda gradient, variable, learning_rate: variable.assign_sub(gradient)
    group.build({"v": (v := keras.Variable([1.0]))})
    group.apply([tf.constant([3.0])], {})
    assert v.numpy() == [-2.0]


def test_gin_switches_it_off():
    registry.register()
    gin.parse_config("OptimizerGroup.fused = False")
    group = gin.get_configurable("OptimizerGroup")(optimizer="adam")
    group.build({"v": keras.Variable([1.0])})
    assert group.fused_update is None
    with pytest.raises(ValueError, match="`fused` must be True or False, got 1"):
        OptimizerGroup(fused=1)


# sha256 of the source of `update_step`, Keras 3.15.1
FORMULAS = {
    "SGD": "62b94b8170566ccf",
    "Adam": "05a229bf362b7227",
    "AdamW": "05a229bf362b7227",
    "RMSprop": "ca5e65788697e6c8",
    "Adagrad": "4c2b46cf41b77f7a",
    "Ftrl": "9866d713fa160bd2",
    "Adamax": "0a2f4272a6fe7af9",
    "Adadelta": "da3827ecb3bcf3cc",
}


@pytest.mark.parametrize("name", NAMES)
def test_keras_has_not_changed_a_formula(name):
    """When this fails, compare Keras' `update_step` with optimizers/fused.py, then put in the new digest."""
    source = inspect.getsource(getattr(keras.optimizers, name).update_step)
    assert hashlib.sha256(source.encode()).hexdigest()[:16] == FORMULAS[name]


@pytest.mark.parametrize("mode", ["graph", "eager", "xla_loop"])
def test_each_compile_mode_trains_as_without(mode):
    """Two groups, one not always due, an embedding with repeated rows, 40,000 elements in a kernel of Adam."""
    random = np.random.default_rng(0)
    data = from_arrays((random.integers(0, 50, (64, 6)), random.normal(size=(64, 1)).astype("float32")), 16)
    weights = []
    for is_fused in (True, False):
        keras.utils.set_random_seed(1)
        layers = [keras.Input((6,), dtype="int32"), keras.layers.Embedding(400, 50), keras.layers.Flatten()]
        model = keras.Sequential([*layers, keras.layers.Dense(70, "tanh"), keras.layers.Dense(1)])
        groups = [
            OptimizerGroup("embedding/.*", optimizer="adam", every=2, fused=is_fused, name="table"),
            OptimizerGroup("dense.*", optimizer=keras.optimizers.SGD(0.1, momentum=0.9), fused=is_fused, name="rest"),
        ]
        trainer = Trainer(model, "mse", (), groups, compile=mode)
        trainer.train(iter(trainer.distribute(data, chunk=6)), 6)
        weights.append(model.get_weights())
    for ours, wanted in zip(*weights):
        _close(ours, wanted, 6e-6)
