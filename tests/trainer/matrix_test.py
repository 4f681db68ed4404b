"""R1 for every Keras optimizer x transform x scenario: two replicas end with the weights of one.

A trainer here has one tower, loss and group per optimizer, so that one pair
of runs (1 and 2 replicas) fills a cell for each optimizer. `shift` moves the
transforms against the optimizers. CI runs each optimizer, transform and
scenario; `-m slow` runs all pairs of two factors (eight shifts) and the whole
matrix (eight shifts in each scenario). Optimizers that amplify rounding are compared a step at a time
from equal state.
"""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import optimizers as transforms_lib
from optimizers import OptimizerGroup
from tests.runs import arrays_of
from trainer import Trainer
from trainer.config.files import ROOT
from trainer.replicas.distribution import make_strategy
from trainer.saving.state import state_of

STEPS, TOLERANCE = 20, 2e-6

OPTIMIZERS = {
    "SGD": lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
    "Adam": lambda: keras.optimizers.Adam(1e-3),
    "AdamW": lambda: keras.optimizers.AdamW(1e-3, weight_decay=0.01),
    "Adagrad": lambda: keras.optimizers.Adagrad(0.05),
    "Adadelta": lambda: keras.optimizers.Adadelta(0.5),
    "Adamax": lambda: keras.optimizers.Adamax(1e-3),
    "Nadam": lambda: keras.optimizers.Nadam(1e-3),
    "RMSprop": lambda: keras.optimizers.RMSprop(1e-3),
    "Ftrl": lambda: keras.optimizers.Ftrl(0.05),
    "Lion": lambda: keras.optimizers.Lion(1e-4),
    "Lamb": lambda: keras.optimizers.Lamb(1e-3),
    "ScheduleFreeAdamW": lambda: keras.optimizers.ScheduleFreeAdamW(1e-3),
}
AMPLIFYING = {
    "Adafactor": lambda: keras.optimizers.Adafactor(1e-2),
    "Muon": lambda: keras.optimizers.Muon(1e-3),
}
LEFT_OUT = {
    "MultiOptimizer": "groups take its place",
    "LossScaleOptimizer": "unwrapped; loss scaling is the trainer's own",
}
TRANSFORMS = {
    "none": lambda: [],
    "clip_by_value": lambda: [transforms_lib.clip_by_value(0.02)],
    "clip_by_norm": lambda: [transforms_lib.clip_by_norm(0.1)],
    "clip_by_global_norm": lambda: [transforms_lib.clip_by_global_norm(0.2)],
    "over all groups": lambda: [transforms_lib.clip_by_global_norm(0.5, over="all")],
    "adaptive_clip": lambda: [transforms_lib.adaptive_clip(0.05)],
    "centralize, add_noise": lambda: [transforms_lib.centralize(), transforms_lib.add_noise(1e-3)],
    "zclip": lambda: [transforms_lib.zclip(warmup=4, z_threshold=0.5)],
}
SCENARIOS = ("plain", "accumulation", "every and offset", "sequential", "uneven last batch", "sample weights")


class Towers(Trainer):
    """One loss per tower, weighted by the batch's weights where it has some."""

    def compute_losses(self, batch, training):
        x, y = batch[:2]
        errors = {name: tf.square(tower(x, training=training)[:, 0] - y) for name, tower in self.towers.items()}
        return {name: (error, batch[2]) for name, error in errors.items()} if len(batch) > 2 else errors


def _make(strategy, optimizers, scenario, shift):
    keras.utils.set_random_seed(3)
    with make_strategy(strategy).scope():
        towers, groups = {}, []
        for i, (name, optimizer) in enumerate(optimizers.items()):
            layers = [keras.layers.Dense(4, activation="tanh", kernel_regularizer="l2"), keras.layers.Dense(1)]
            towers[name] = keras.Sequential([keras.Input((3,)), *layers])
            groups.append(
                OptimizerGroup(
                    f"towers/{name}/.*",
                    losses=[name, "regularization"],
                    optimizer=optimizer(),
                    transforms=TRANSFORMS[_transform(i, shift)](),
                    every=3 if scenario == "every and offset" and i % 2 else 1,
                    offset=1 if scenario == "every and offset" and i % 2 else 0,
                    sequential=scenario == "sequential" and i % 4 == 3,
                    name=name,
                )
            )
        guard = "stop" if shift % 2 else "skip"  # with and without a condition in the step
        trainer = Towers(optimizers=groups, micro_batches=3 if scenario == "accumulation" else 1, guard=guard)
        trainer.towers = towers
    return trainer


def _transform(index, shift):
    return list(TRANSFORMS)[(index + shift) % len(TRANSFORMS)]


def _batches(scenario):
    random = np.random.default_rng(7)
    x = random.normal(size=(20, 3)).astype("float32")
    arrays = [x, np.tanh(x.sum(1)).astype("float32")]
    if scenario == "sample weights":
        arrays.append(random.uniform(0, 2, 20).astype("float32"))
    # 20 examples in batches of 6 end with one of 2; in batches of 5 they come out even, but not over two replicas.
    return tf.data.Dataset.from_tensor_slices(tuple(arrays)).batch(6 if scenario == "uneven last batch" else 5).repeat()


def _copy_state(source, target):
    for (_, a), (_, b) in zip(state_of(source).items(), state_of(target).items()):
        b.assign(a.numpy())


def _differences(one, two, optimizers):
    """Returns {optimizer: largest difference of a weight of its tower}."""
    found = dict.fromkeys(optimizers, 0.0)
    for name, variable in one.variables.items():
        tower = name.split("/")[1]
        found[tower] = max(found[tower], float(np.abs(variable.numpy() - two.variables[name].numpy()).max()))
    return found


def compare(optimizers, scenario, shift, step_by_step):
    """Fills the cells of one pair of runs: {(optimizer, transform, scenario): difference}."""
    one, two = (_make(strategy, optimizers, scenario, shift) for strategy in ("default", "mirrored"))
    iterators = [iter(trainer.distribute(_batches(scenario))) for trainer in (one, two)]
    start = arrays_of(one.variables)
    worst = dict.fromkeys(optimizers, 0.0)
    for _ in range(STEPS if step_by_step else 1):
        if step_by_step:
            _copy_state(one, two)
        metrics = [t.train(it, 1 if step_by_step else STEPS) for t, it in zip((one, two), iterators)]
        for tag in metrics[0]:
            if tag.startswith(("loss", "grad_norm", "clipped")):
                np.testing.assert_allclose(metrics[0][tag], metrics[1][tag], rtol=2e-5, atol=2e-6, err_msg=tag)
        for name, difference in _differences(one, two, optimizers).items():
            worst[name] = max(worst[name], difference)
    # A weight that stands still would agree with anything. Kernels: Lion's bias, a sum of signs, may come back to 0.
    moved = {name: np.abs(one.variables[name].numpy() - start[name]).max() for name in start if name.endswith("kernel")}
    assert all(by > 10 * TOLERANCE for by in moved.values()), moved
    return {(name, _transform(i, shift), scenario): worst[name] for i, name in enumerate(optimizers)}


def report(cells, capsys):
    """Prints what ran, and fails with the cells that differ."""
    bad = {cell: difference for cell, difference in cells.items() if not difference <= TOLERANCE}
    with capsys.disabled():
        print(f"\n  matrix: {len(cells)} cells run, {len(bad)} differ; worst {max(cells.values()):.1e}", end="")
        print("; left out: " + ", ".join(f"{name} ({why})" for name, why in LEFT_OUT.items()))
    assert not bad, bad


def test_every_keras_optimizer_is_in_the_matrix_or_left_out_with_a_reason():
    classes = {
        name
        for name, value in vars(keras.optimizers).items()
        if isinstance(value, type) and issubclass(value, keras.optimizers.Optimizer) and name != "Optimizer"
    }
    assert classes == {*OPTIMIZERS, *AMPLIFYING, *LEFT_OUT}


def test_each_optimizer_transform_and_scenario_on_two_replicas(capsys):
    """Each optimizer in two scenarios, each transform in two or more: a quarter of the pairs."""
    cells, names = {}, list(OPTIMIZERS)
    for i, (scenario, shift) in enumerate(zip(SCENARIOS, (0, 3, 2, 5, 4, 1))):
        few = {name: OPTIMIZERS[name] for name in (names[2 * i :] + names)[:4]}
        cells.update(compare(few, scenario, shift, step_by_step=False))
    found = [{cell[i] for cell in cells} for i in range(3)]
    assert found == [set(OPTIMIZERS), set(TRANSFORMS), set(SCENARIOS)]
    report(cells, capsys)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_replicas_equal_one_pairwise(capsys):
    cells = {}
    for shift in range(len(TRANSFORMS)):
        cells.update(compare(OPTIMIZERS, SCENARIOS[shift % len(SCENARIOS)], shift, step_by_step=False))
    pairs = {(cell[0], cell[1]) for cell in cells}, {(cell[0], cell[2]) for cell in cells}, {cell[1:] for cell in cells}
    sizes = len(OPTIMIZERS), len(TRANSFORMS), len(SCENARIOS)
    assert [len(found) for found in pairs] == [sizes[0] * sizes[1], sizes[0] * sizes[2], sizes[1] * sizes[2]]
    report(cells, capsys)


def test_amplifying_optimizers_agree_step_by_step(capsys):
    cells = {}
    cells = compare(AMPLIFYING, SCENARIOS[3], 3, step_by_step=True)
    report(cells, capsys)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_replicas_equal_one_in_the_whole_matrix(capsys):
    cells = {}
    for scenario in SCENARIOS:
        for shift in range(len(TRANSFORMS)):
            cells.update(compare(OPTIMIZERS, scenario, shift, step_by_step=False))
            cells.update(compare(AMPLIFYING, scenario, shift, step_by_step=True))
    report(cells, capsys)


FOUR = """
import sys
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4)
from tests.trainer import matrix_test as m
assert m.make_strategy("mirrored").num_replicas_in_sync == 4
optimizers = {name: m.OPTIMIZERS[name] for name in sys.argv[2:] or m.OPTIMIZERS}
cells = {}
for shift in range(int(sys.argv[1])):
    cells.update(m.compare(optimizers, m.SCENARIOS[(shift - 2) % len(m.SCENARIOS)], shift, step_by_step=False))
bad = {cell: difference for cell, difference in cells.items() if not difference <= m.TOLERANCE}
assert not bad, bad
print(len(cells), "cells agree")
"""


@pytest.mark.parametrize(
    "shifts, optimizers",
    [(1, ["SGD", "Adam"]), pytest.param(len(TRANSFORMS), [], marks=[pytest.mark.slow, pytest.mark.timeout(3600)])],
)
def test_four_replicas_equal_one(shifts, optimizers):
    """Batches of 6 and a last one of 2, over 4 devices: some have no example. In a process with 4 devices."""
    command = [sys.executable, "-c", FOUR, str(shifts), *optimizers]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0 and f"{shifts * (len(optimizers) or len(OPTIMIZERS))} cells agree" in ran.stdout, (
        ran.stderr[-4000:]
    )
