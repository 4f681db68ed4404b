"""Contract of every optimizer: 2 replicas equal one, half precision, configs, `fit`, exact resume."""

import gin
import keras
import numpy as np
import pytest
import tensorflow as tf

import optimizers
from optimizers import OptimizerGroup
from optimizers.base import Optimizer
from optimizers.large_batch import LAMB, LARS
from optimizers.lazy_adam import LazyAdam
from optimizers.momentum import MomentumSGD
from optimizers.multipliers import LearningRateMultipliers
from optimizers.schedule_free import ScheduleFreeAdamW, ScheduleFreeSGD
from optimizers.soap import SOAP
from tests.runs import arrays_of, train
from trainer import Trainer
from trainer.config import registry
from trainer.replicas.distribution import make_strategy
from trainer.saving.checkpoints import Checkpoints
from trainer.saving.state import copy_state, learning_rates, restore, state_of

# name: (how it is made, the slots of each variable)
OPTIMIZERS = {
    "MomentumSGD": (lambda: MomentumSGD(0.05, 0.8, nesterov=True), ["momentum"]),
    "LARS": (lambda: LARS(0.5, 0.8, 0.01, 0.02, ".*bias"), ["momentum"]),
    "LAMB": (lambda: LAMB(0.02, weight_decay=0.01, exclude_from_decay=[".*bias"]), ["momentum", "velocity"]),
    "ScheduleFreeSGD": (lambda: ScheduleFreeSGD(0.3, weight_decay=0.01, warmup_steps=4), ["z", "x"]),
    "ScheduleFreeAdamW": (lambda: ScheduleFreeAdamW(0.02, weight_decay=0.01, warmup_steps=4), ["z", "x", "velocity"]),
    "LazyAdam": (lambda: LazyAdam(0.02), ["momentum", "velocity"]),
    "SOAP": (lambda: SOAP(0.02, refresh_interval=3), ["momentum", "velocity"]),
    "LearningRateMultipliers": (
        lambda: LearningRateMultipliers(LAMB(0.02), {".*kernel": 0.5}),
        ["momentum", "velocity"],
    ),
}
SIDES = ["left", "left_basis", "right", "right_basis"]  # what SOAP keeps for a matrix beside that
EVERY = pytest.mark.parametrize("name", OPTIMIZERS)


class Towers(Trainer):
    """A small model, a loss and a group for each optimizer: one run for all of them.

    The kernels are square: of 5 x 3 SOAP's left side has directions without a gradient, whose basis is rounding alone,
    another one on each machine and each number of replicas.
    """

    def compute_losses(self, batch, training):
        x, y = batch
        return {name: tf.reduce_mean(tf.square(tower(x) - y), -1) for name, tower in self.towers.items()}


def _make(strategy="default", **kwargs):
    keras.utils.set_random_seed(3)
    with make_strategy(strategy).scope():
        towers, groups = {}, []
        for name, (optimizer, _) in OPTIMIZERS.items():
            towers[name] = keras.Sequential([keras.Input((5,)), keras.layers.Dense(5, "tanh", bias_initializer="ones")])
            groups.append(OptimizerGroup(f"towers/{name}/.*", losses=[name], optimizer=optimizer(), name=name))
        trainer = Towers(optimizers=groups, **kwargs)
        trainer.towers = towers
    return trainer


def _arrays():
    random = np.random.default_rng(7)
    x = random.normal(size=(24, 5)).astype("float32")
    return x, np.tanh(x + x[:, ::-1]).astype("float32")


def _batches():
    return tf.data.Dataset.from_tensor_slices(_arrays()).batch(6).repeat()


def test_every_optimizer_is_here():
    exported = {
        n
        for n in optimizers.__all__
        if isinstance(getattr(optimizers, n), type) and issubclass(getattr(optimizers, n), Optimizer)
    }
    assert exported == set(OPTIMIZERS)


def test_gin_builds_them_from_what_it_writes():
    registry.register()
    gin.parse_config("""
        optimizer/OptimizerGroup.optimizer = @LearningRateMultipliers()
        LearningRateMultipliers.optimizer = @optimizers.ScheduleFreeAdamW()
        LearningRateMultipliers.multipliers = @layer_wise_decay()
        layer_wise_decay.decay = 0.5
        layer_wise_decay.layers = ['low/.*', 'high/.*']
        optimizers.ScheduleFreeAdamW.learning_rate = @LinearWarmup()
        optimizers.ScheduleFreeAdamW.weight_decay = @WarmupStableDecay()
        LinearWarmup.schedule = 1
        LinearWarmup.warmup_steps = 1e2
        WarmupStableDecay.peak = 1
        WarmupStableDecay.warmup_steps = 0
        WarmupStableDecay.stable_steps = 10
        WarmupStableDecay.decay_steps = 5
    """)
    with gin.config_scope("optimizer"):
        group = gin.get_configurable("OptimizerGroup")()
    made = group.optimizer
    assert type(made) is LearningRateMultipliers and type(made.inner) is ScheduleFreeAdamW
    assert made.get_config()["multipliers"] == {"low/.*": 0.5, "high/.*": 1.0}
    assert float(made.learning_rate) == 0.0 and group.name == "optimizer"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """20 steps on one replica, a checkpoint after 10: (trainer, weights before, state after, checkpoint)."""
    trainer = _make()
    iterator = iter(trainer.distribute(_batches()))
    before = arrays_of(trainer.variables)
    trainer.train(iterator, 10)
    checkpoints = Checkpoints().open(tmp_path_factory.mktemp("run"))
    checkpoints.save(
        10, copy_state(trainer), {"element_spec": None, "learning_rates": learning_rates(trainer)}, wait=True
    )
    trainer.train(iterator, 10)
    return trainer, before, copy_state(trainer), checkpoints.latest()


def test_two_replicas_equal_one(run):
    one, before, after, _ = run
    two = _make("mirrored")
    train(two, _batches(), 20)
    for name in one.variables:
        assert np.abs(after[name] - before[name]).max() > 1e-3, f"{name} stands still"
        np.testing.assert_allclose(two.variables[name].numpy(), after[name], atol=2e-6, err_msg=name)
    for name, variable in state_of(two).items():
        copies = two.strategy.experimental_local_results(
            variable.value if isinstance(variable, keras.Variable) else variable
        )
        np.testing.assert_array_equal(copies[0].numpy(), copies[-1].numpy(), err_msg=name)


def test_a_resumed_run_equals_one_that_never_stopped(run):
    _, _, after, checkpoint = run
    again = _make()
    iterator = iter(again.distribute(_batches(), start=10))  # this builds it
    restore(again, checkpoint)
    again.train(iterator, 10)
    for name, value in copy_state(again).items():
        np.testing.assert_array_equal(value, after[name], err_msg=name)


def test_every_slot_is_in_the_checkpoint_under_a_name_of_its_own(run):
    for group in run[0].groups:
        held = {id(v) for v in group.optimizer.variables}
        assert {id(v) for v in group.slots.values()} == held, f"{group.name} has slots that no checkpoint would hold"
        wanted = {f"{name}/{slot}" for name in group.variable_names for slot in OPTIMIZERS[group.name][1]}
        if group.name == "SOAP":
            wanted |= {f"{name}/{slot}" for name in group.variable_names if name.endswith("kernel") for slot in SIDES}
        assert {slot for slot in group.slots if "/" in slot} == wanted


def _build(optimizer, *variables):
    # The names of `Towers`, which the patterns above are written for.
    if hasattr(optimizer, "name_variables"):
        optimizer.name_variables(["kernel", "bias"][: len(variables)])
    optimizer.build(list(variables))
    return optimizer


@EVERY
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_stays_finite_and_its_slots_are_float32(name, dtype):
    kernel, bias = (keras.Variable(tf.ones(shape), dtype=dtype) for shape in ([3, 3], [3]))
    optimizer = _build(OPTIMIZERS[name][0](), kernel, bias)
    gradient = [300.0, 1e-5, 0.0]  # in float16 the squares of the first two are inf and 0
    for _ in range(4):
        optimizer.apply([tf.constant([gradient] * 3, dtype), tf.constant(gradient, dtype)])
    for variable in (kernel, bias):
        assert keras.backend.standardize_dtype(variable.dtype) == dtype
        values = variable.numpy().astype("float32")
        assert np.isfinite(values).all() and (values != 1.0).any()
    state = [v for v in optimizer.variables if v.name != "iteration"]
    assert {keras.backend.standardize_dtype(v.dtype) for v in state} == {"float32"}
    assert all(np.isfinite(v.numpy()).all() for v in state)


@EVERY
def test_xla_takes_the_same_steps(name):
    gradients, results = np.random.default_rng(0).normal(size=(6, 4, 3)).astype("float32"), []
    for compiled in (False, True):
        kernel, bias = keras.Variable(np.eye(3, dtype="float32")), keras.Variable([1.0, 2.0, 3.0])
        optimizer = _build(OPTIMIZERS[name][0](), kernel, bias)

        @tf.function(jit_compile=compiled)
        def step(gradient):
            optimizer.apply([gradient[:3], gradient[3]])  # noqa: B023

        for gradient in gradients:
            step(tf.constant(gradient))
        results.append(np.concatenate([kernel.numpy().ravel(), bias.numpy()]))
    np.testing.assert_allclose(*results, atol=2e-6)


@EVERY
def test_an_optimizer_that_went_through_its_config_makes_the_same_steps(name):
    first = OPTIMIZERS[name][0]()
    again = keras.optimizers.deserialize(keras.optimizers.serialize(first))
    assert type(again) is type(first)
    assert again.get_config() == first.get_config()
    results = []
    for optimizer in (first, again):
        kernel, bias = keras.Variable(np.linspace(-1, 1, 6, dtype="float32").reshape(2, 3)), keras.Variable([1.0, 2.0])
        _build(optimizer, kernel, bias)
        for _ in range(3):
            optimizer.apply([kernel.value * 0.5 + 0.1, bias.value - 3.0])
        results.append(np.concatenate([kernel.numpy().ravel(), bias.numpy()]))
    np.testing.assert_array_equal(*results)


@EVERY
def test_fit_lowers_the_loss_and_a_saved_model_brings_its_optimizer_along(name, tmp_path):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    model.compile(OPTIMIZERS[name][0](), "mse", run_eagerly=True)  # tracing would take longer than all the rest
    x, _ = _arrays()
    y = np.tanh(x[:, :3] + x[:, 2:])
    losses = model.fit(x, y, batch_size=2, epochs=2, verbose=0).history["loss"]
    assert losses[1] < 0.9 * losses[0]
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert type(again.optimizer) is type(model.optimizer)
    for a, b in zip(
        [*model.optimizer.variables, *model.weights], [*again.optimizer.variables, *again.weights], strict=True
    ):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
