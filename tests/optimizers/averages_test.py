"""Weight averages: the papers' formulas against NumPy, and what is evaluated, saved and put back."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from optimizers import EMA, SWA, Lookahead, OptimizerGroup, ScheduleFreeSGD
from tests.runs import arrays_of, assert_same, random_arrays, slow, train
from trainer import Trainer, data
from trainer.replicas.distribution import make_strategy
from trainer.saving.state import state_of

L, SGD = keras.layers, keras.optimizers.SGD


def _data(batch_size=8, repeat=True):
    return data.from_arrays(random_arrays(96), batch_size, repeat=repeat)


def _linear():
    return keras.Sequential([keras.Input((3,)), L.Dense(1, name="out")])


def _make(averages, model=_linear, optimizer=None, strategy="default", **kwargs):
    with make_strategy(strategy).scope():
        keras.utils.set_random_seed(1)
        return Trainer(model(), "mse", optimizers=optimizer or SGD(0.1), averages=averages, **kwargs)


def _steps(trainer, num_steps, per_loop=1, source=None):
    """Trains and returns the weights before and after each loop: [{name: array}]."""
    iterator = iter(trainer.distribute(source or _data()))
    weights = [_weights(trainer)]
    for _ in range(num_steps // per_loop):
        trainer.train(iterator, per_loop)
        weights.append(_weights(trainer))
    return weights


def _weights(trainer):
    return arrays_of(trainer.trainable_variables)


def _values(trainer):
    return {name: variable.numpy() for name, variable in state_of(trainer).items()}


def _evaluated(trainer):
    with trainer.averaged():
        return _weights(trainer)


def test_ema_is_its_formula():
    trainer = _make(EMA(decay=0.8))
    weights = _steps(trainer, 12)
    average = weights[1]
    for w in weights[2:]:
        average = {name: 0.8 * average[name].astype("float64") + 0.2 * w[name] for name in w}
    assert_same(_evaluated(trainer), average, atol=1e-6)


def test_ema_is_that_of_keras():
    """Keras' own, in a loop of its own: it fails on several replicas, not on one."""
    trainer = _make(EMA(decay=0.9))
    _steps(trainer, 10, per_loop=5)
    keras.utils.set_random_seed(1)
    model, optimizer = _linear(), SGD(0.1, use_ema=True, ema_momentum=0.9)
    for x, y in _data().batches(0).take(10):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x) - y))
        optimizer.apply(tape.gradient(loss, [v.value for v in model.trainable_variables]), model.trainable_variables)
    averages = dict(zip(_weights(trainer), (v.numpy() for v in optimizer._model_variables_moving_average)))
    assert_same(_evaluated(trainer), averages, atol=1e-6)


@pytest.mark.parametrize("start, every, taken", [(1, 1, range(1, 13)), (5, 3, [5, 8, 11]), (12, 4, [12])])
def test_swa_is_the_mean_of_the_weights_that_count(start, every, taken):
    trainer = _make(SWA(start=start, every=every))
    weights = _steps(trainer, 12)
    mean = {name: np.mean([weights[s][name] for s in taken], 0, dtype="float64") for name in weights[0]}
    assert_same(_evaluated(trainer), mean, atol=1e-6)
    assert int(trainer.averages.updates.numpy()) == len(taken)


def test_before_the_start_the_weights_themselves_are_evaluated():
    trainer = _make(SWA(start=20))
    _steps(trainer, 12, per_loop=4)
    assert_same(_evaluated(trainer), _weights(trainer))


class _ConstantGradient(Trainer):
    def compute_losses(self, batch, training):
        return {"main": tf.reduce_sum(self.model.trainable_variables[0])}


def test_lookahead_with_a_constant_gradient():
    """k steps of -lr * g, then alpha of the way: after n rounds the weights have moved by -n * alpha * k * lr * g."""
    trainer = _ConstantGradient(
        _linear(), optimizers=SGD(0.1), frozen="out/bias", averages=Lookahead(every=4, alpha=0.5)
    )
    weights = _steps(trainer, 10)
    moved = [float(np.mean(w["out/kernel"] - weights[0]["out/kernel"])) for w in weights]
    np.testing.assert_allclose(moved, [0, -0.1, -0.2, -0.3, -0.2, -0.3, -0.4, -0.5, -0.4, -0.5, -0.6], atol=1e-6)
    np.testing.assert_allclose(_evaluated(trainer)["out/kernel"], weights[8]["out/kernel"], atol=0)


def test_lookahead_keeps_the_inner_momentum():
    """NumPy on a quadratic: the slow weights pull, the velocity goes on."""
    trainer = _make(Lookahead(every=3, alpha=0.8), optimizer=SGD(0.05, momentum=0.9))
    iterator = iter(trainer.distribute(_data()))
    w, b = (v.numpy().astype("float64") for v in trainer.trainable_variables.values())
    fast, slow, velocity = np.vstack([w, b]), np.vstack([w, b]), 0
    for step, (x, y) in enumerate(_data().batches(0).take(9), start=1):
        trainer.train(iterator, 1)
        features = np.hstack([x.numpy(), np.ones((8, 1))])
        velocity = 0.9 * velocity - 0.05 * 2 * features.T @ (features @ fast - y.numpy()) / 8
        fast = fast + velocity
        if step % 3 == 0:
            slow = slow + 0.8 * (fast - slow)
            fast = slow
    trained = np.vstack(list(_weights(trainer).values()))
    np.testing.assert_allclose(trained, fast, atol=1e-6)


AVERAGES = {"ema": lambda: EMA(0.9), "swa": lambda: SWA(3, 2), "lookahead": lambda: Lookahead(4)}


@pytest.mark.parametrize("name", AVERAGES)
def test_one_and_two_replicas_agree(name):
    results = []
    for strategy in ("default", "mirrored"):
        trainer = _make(AVERAGES[name](), strategy=strategy, guard="skip" if name == "ema" else "off")
        _steps(trainer, 20, per_loop=10)
        results.append((_weights(trainer), _evaluated(trainer), trainer.evaluate(_data(repeat=False))["loss"]))
    for one, two in zip(*results):
        assert_same(one, two, atol=1e-6) if isinstance(one, dict) else np.testing.assert_allclose(one, two, atol=1e-6)


@pytest.mark.parametrize("compile", ["eager", "xla_step", "xla_loop"])
def test_the_compile_modes_agree(compile):
    results = []
    for mode in ("graph", compile):
        trainer = _make(Lookahead(every=3), compile=mode)
        iterator = iter(trainer.distribute(_data(), chunk=4))
        trainer.train(iterator, 8)
        results.append({**_weights(trainer), "average": _evaluated(trainer)["out/kernel"]})
    assert_same(*results, atol=1e-6)


@pytest.mark.parametrize("strategy", [slow("default"), "mirrored"])
def test_the_average_is_evaluated_and_predicted_with_and_the_weights_come_back(strategy):
    trainer = _make(EMA(0.5), strategy=strategy)
    _steps(trainer, 5, per_loop=5)
    before, average = _values(trainer), _evaluated(trainer)
    x, y = random_arrays(96)
    expected = x @ average["out/kernel"] + average["out/bias"]
    np.testing.assert_allclose(trainer.predict(_data(repeat=False)), expected, atol=1e-5)
    assert trainer.evaluate(_data(repeat=False))["loss"] == pytest.approx(np.mean((expected - y) ** 2), rel=1e-5)
    plain = x @ before["out/kernel"] + before["out/bias"]
    assert np.abs(plain - expected).max() > 1e-3
    after = _values(trainer)
    assert all((before[name] == after[name]).all() for name in before)


def test_the_weights_come_back_when_an_evaluation_fails():
    trainer = _make(EMA(0.5))
    _steps(trainer, 5, per_loop=5)
    before = _weights(trainer)
    with pytest.raises(ZeroDivisionError), trainer.averaged(), trainer.averaged():
        raise ZeroDivisionError
    assert_same(_weights(trainer), before)
    assert np.abs(_evaluated(trainer)["out/kernel"] - before["out/kernel"]).max() > 1e-4


def test_a_skipped_step_leaves_the_average_alone():
    trainer = _make(EMA(0.5), guard="skip")
    x, y = random_arrays(8)
    good, bad = (x, y), (x, np.full_like(y, np.inf))
    batches = [tf.nest.map_structure(tf.constant, b) for b in (good, bad)]
    source = tf.data.Dataset.from_tensors(batches[0]).concatenate(tf.data.Dataset.from_tensors(batches[1])).repeat(2)
    iterator = iter(trainer.distribute(source))
    trainer.train(iterator, 1)
    before = _values(trainer)
    trainer.train(iterator, 1)
    after = _values(trainer)
    assert after["guard/skipped"] == 1 and after["averages/updates"] == 1
    assert all((before[n] == after[n]).all() for n in before if n.startswith(("averages/", "out/", "optimizers/")))


def test_half_precision_weights_have_a_float32_average():
    keras.mixed_precision.set_dtype_policy("bfloat16")
    trainer = _make(EMA(0.99))
    _steps(trainer, 20, per_loop=20)
    assert {slot.dtype for name, slot in trainer.averages.state.items() if name != "updates"} == {tf.float32}
    assert np.isfinite(_evaluated(trainer)["out/kernel"].astype("float32")).all()


def _normalized():
    return keras.Sequential([keras.Input((3,)), L.Dense(4), L.BatchNormalization(), L.Dropout(0.3), L.Dense(1)])


@pytest.mark.parametrize("strategy", ["default", "mirrored"])
def test_swa_takes_the_statistics_of_batch_normalization_anew(strategy):
    """Statistics are means over 6 batches at the averaged weights (on 2 replicas: over the halves of each)."""
    trainer = _make(SWA(2, data=_data, batches=6), model=_normalized, strategy=strategy)
    _steps(trainer, 4, per_loop=4)
    before = _values(trainer)
    with trainer.averaged():
        now = arrays_of(trainer.variables)
    parts = 2 if strategy == "mirrored" else 1
    hidden = [
        part @ now["dense/kernel"] + now["dense/bias"]
        for x, _ in _data().batches(0).take(6)
        for part in np.split(x.numpy(), parts)
    ]
    np.testing.assert_allclose(
        now["batch_normalization/moving_mean"], np.mean([h.mean(0) for h in hidden], 0), atol=1e-6
    )
    np.testing.assert_allclose(
        now["batch_normalization/moving_variance"], np.mean([h.var(0) for h in hidden], 0), atol=1e-6
    )
    after = _values(trainer)
    assert all((before[name] == after[name]).all() for name in before)
    assert trainer.model.layers[1].momentum == 0.99


def test_statistics_are_those_of_the_weights_also_at_a_step_that_comes_again():
    """A rollback brings a run to the same step with other weights."""
    trainer = _make(SWA(1, data=_data, batches=2), model=_normalized)
    _steps(trainer, 2, per_loop=2)
    means = []
    for scale in (1.0, 3.0):
        trainer.global_step.assign(2)
        train(trainer, _data(), 1, start=int(scale))
        with trainer.averaged():
            means.append(trainer.variables["batch_normalization/moving_mean"].numpy())
    assert np.abs(means[0] - means[1]).max() > 1e-6


def test_swa_without_data_for_batch_normalization_is_refused():
    with pytest.raises(ValueError, match="`SWA.data` must be given: the model has BatchNormalization"):
        _make(SWA(2), model=_normalized).build(_data().element_spec)


def test_two_averages_of_the_same_weights_are_refused():
    with pytest.raises(ValueError, match="`averages` must be None with ScheduleFreeSGD"):
        _make(EMA(), optimizer=ScheduleFreeSGD(0.1)).build(_data().element_spec)


def test_what_is_no_average_is_refused():
    with pytest.raises(ValueError, match="`averages` must be None or a weight average"):
        _make("ema").build(_data().element_spec)


def test_a_schedule_free_optimizer_is_evaluated_at_its_average():
    trainer = _make(None, optimizer=OptimizerGroup(optimizer=ScheduleFreeSGD(0.1), name="main"))
    _steps(trainer, 6, per_loop=3)
    before, x = _values(trainer), random_arrays(96)[0]
    average = {name: before[f"optimizers/main/{name}/x"] for name in ("out/kernel", "out/bias")}
    np.testing.assert_allclose(
        trainer.predict(_data(repeat=False)), x @ average["out/kernel"] + average["out/bias"], atol=1e-5
    )
    after = _values(trainer)
    assert all((before[name] == after[name]).all() for name in before)


@pytest.mark.parametrize("make, message", [
    (lambda: EMA(1.0), r"`decay` must be a number in \[0, 1\), got 1.0"),
    (lambda: SWA(0), "`start` must be a whole number >= 1, got 0"),
    (lambda: Lookahead(alpha=0), r"`alpha` must be a number in \(0, 1\], got 0"),
    (lambda: EMA(batches=0), "`batches` must be a whole number >= 1"),
])  # fmt: skip
def test_arguments_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
