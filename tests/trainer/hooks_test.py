"""Hooks of our own against closed forms."""

import math
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.runs import arrays_of, slow
from trainer import Trainer
from trainer.hooks import STOP, EarlyStopping, LossGradients, ReduceOnPlateau, SpikeRecovery, TimeLimit
from trainer.replicas.distribution import make_strategy

X = np.array([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5]], np.float32)  # uneven on two replicas


class Three(Trainer):
    """Losses of a linear model with known gradients, one on an embedding of what the others do not reach."""

    def compute_losses(self, batch, training):
        out = self.model(batch, training=training)[:, 0]
        return {"up": out, "down": -2.0 * out, "square": 0.5 * tf.square(out)}


def _trainer(name):
    keras.utils.set_random_seed(0)
    with make_strategy(name).scope():
        layers = [keras.layers.Dropout(0.0), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")]
        trainer = Three(keras.Sequential([keras.Input((2,)), *layers]), optimizers=keras.optimizers.SGD(0.0))
    trainer.build(tf.TensorSpec([3, 2]))
    written = []
    trainer.summaries = types.SimpleNamespace(scalars=lambda split, step, tags: written.append((split, step, tags)))
    return trainer, written


@pytest.mark.parametrize("name", [slow("default"), "mirrored"])
def test_norms_and_cosines_of_the_losses(name):
    trainer, written = _trainer(name)
    hook = LossGradients(lambda: tf.data.Dataset.from_tensors(X).repeat(), every=2)
    for step in (1, 2, 3, 4):
        hook(trainer, step, {})
    assert [(split, step) for split, step, _ in written] == [("train", 2), ("train", 4)]
    up, square = X.mean(0), (X.sum(1)[:, None] * X).mean(0)
    norm = np.linalg.norm
    wanted = {
        "gradients/up": norm(up), "gradients/down": 2 * norm(up), "gradients/square": norm(square),
        "cosines/up/down": -1.0, "cosines/up/square": up @ square / norm(up) / norm(square),
        "cosines/down/square": -up @ square / norm(up) / norm(square),
    }  # fmt: skip
    assert written[0][2] == pytest.approx({tag: float(value) for tag, value in wanted.items()}, rel=1e-5)


def test_it_changes_no_state():
    class Noisy(Three):
        def compute_losses(self, batch, training):
            return {"l": self.model(batch, training=training)}

    layers = [keras.layers.BatchNormalization(), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
    trainer = Noisy(keras.Sequential([keras.Input((2,)), *layers]))
    trainer.build(tf.TensorSpec([3, 2]))
    trainer.summaries = types.SimpleNamespace(scalars=lambda *_: None)
    before = arrays_of(trainer.variables)
    LossGradients(lambda: tf.data.Dataset.from_tensors(X).repeat(), every=1)(trainer, 1, {})
    for name, value in before.items():
        np.testing.assert_array_equal(trainer.variables[name].numpy(), value, err_msg=name)


# ---- what steers a run: sequences of measurements ------------------------------------------------------------------


def _verdicts(hook, losses, tag="validation/loss", trainer=None):
    return [
        hook(trainer, step, {"loss": 1.0, **({} if loss is None else {tag: loss})})
        for step, loss in enumerate(losses, 1)
    ]


def test_early_stopping_counts_measurements_without_a_better_one():
    hook = EarlyStopping(patience=3)
    assert _verdicts(hook, [3.0, None, 2.0, 2.5, None, 1.9, 2.0, 2.0, math.nan]) == [None] * 8 + [STOP]
    assert hook.ended and float(hook.state["best"].numpy()) == 1.9


def test_early_stopping_by_a_share_that_has_to_be_gained():
    hook = EarlyStopping("validation/metrics/auc", mode="max", patience=2, min_delta=0.1)
    assert _verdicts(hook, [0.5, 0.55, 0.61, 0.65, 0.70], "validation/metrics/auc") == [None] * 4 + [STOP]


def test_early_stopping_goes_on_from_its_state():
    first, second = EarlyStopping(patience=3), EarlyStopping(patience=3)
    _verdicts(first, [1.0, 2.0, 2.0])
    for name, variable in second.state.items():
        variable.assign(first.state[name])
    assert not second.ended and _verdicts(second, [2.0]) == [STOP]


@pytest.mark.parametrize("total, stops_at", [(False, 4), (True, 2)])
def test_a_time_limit_of_this_start_or_of_the_run(total, stops_at):
    now = iter(range(0, 10_000, 1_000))
    hook = TimeLimit(hours=1, total=total, clock=lambda: next(now))
    hook.state["seconds"].assign(2_000)  # of an earlier start
    assert _verdicts(hook, [None] * 4).index(STOP) + 1 == stops_at


def _adam(*rates):
    groups = [
        types.SimpleNamespace(name=f"group_{i}", optimizer=keras.optimizers.Adam(rate), learning_rate=rate)
        for i, rate in enumerate(rates)
    ]
    return types.SimpleNamespace(groups=groups), lambda: [float(g.optimizer.learning_rate.numpy()) for g in groups]


def test_a_plateau_lowers_the_rate_down_to_its_floor():
    trainer, rates = _adam(1e-1, 1e-2)
    hook = ReduceOnPlateau(patience=2, factor=0.1, min_learning_rate=2e-3, groups=["group_0"])
    seen = []
    for loss in [1.0, 1.0, 1.0, 0.5, 0.6, 0.6, 0.6, 0.6]:
        hook(trainer, 1, {"validation/loss": loss})
        seen.append(rates())
    np.testing.assert_allclose(
        [first for first, _ in seen], [0.1, 0.1, 0.01, 0.01, 0.01, 0.002, 0.002, 0.002], rtol=1e-6
    )
    assert all(second == pytest.approx(1e-2) for _, second in seen)


def test_a_plateau_refuses_schedules_and_unknown_groups():
    trainer, _ = _adam(0.1)
    with pytest.raises(ValueError, match="`groups` names 'main'; the groups are group_0"):
        ReduceOnPlateau(groups=["main"])(trainer, 1, {})
    trainer.groups[0].learning_rate = None
    with pytest.raises(ValueError, match="`learning_rate` of group 'group_0' is a schedule"):
        ReduceOnPlateau()(trainer, 1, {})


def test_a_spike_is_several_times_the_median_or_not_a_number():
    hook = SpikeRecovery(threshold=3.0, window=3, max_times=2)
    losses = [9.0, 1.0, 2.0, 5.9, 6.1, math.nan, 1.0, math.inf]
    verdicts = [hook(None, step, {"loss": loss}) for step, loss in enumerate(losses)]
    assert [bool(v) for v in verdicts] == [False, False, False, False, True, True, False, True]
    assert [v.stop for v in verdicts if v] == [False, False, True]
    np.testing.assert_array_equal(hook.state["losses"].numpy(), [2.0, 5.9, 1.0])


@pytest.mark.parametrize("make, message", [
    (lambda: EarlyStopping("validation/metrics/auc"), "`mode` must be 'min' or 'max' for `monitor` 'valid"),
    (lambda: EarlyStopping(patience=0), "`patience` must be a whole number >= 1, got 0"),
    (lambda: EarlyStopping(patience="x"), "`patience` must be a whole number >= 1, got 'x'"),
    (lambda: EarlyStopping(min_delta=-1), "`min_delta` must be a number >= 0, got -1"),
    (lambda: TimeLimit(0), "`hours` must be a number > 0, got 0"),
    (lambda: TimeLimit("1h"), "`hours` must be a number > 0, got '1h'"),
    (lambda: TimeLimit(1, total="no"), "`total` must be True or False"),
    (lambda: ReduceOnPlateau(factor=1.0), r"`factor` must be a number in \(0, 1\), got 1.0"),
    (lambda: ReduceOnPlateau(min_learning_rate=-1), "`min_learning_rate` must be a number >= 0"),
    (lambda: SpikeRecovery(threshold=1), "`threshold` must be a number > 1, got 1"),
    (lambda: SpikeRecovery(window=1), "`window` must be a whole number >= 2, got 1"),
    (lambda: SpikeRecovery(monitor=None), "`monitor` must be a tag of the training loop"),
    (lambda: LossGradients(None, every=0), "`every` must be a whole number >= 1, got 0"),
    (lambda: EarlyStopping()(None, 1, {"validation/metrics/auc": 1.0}), "`monitor` 'validation/loss' is not reported"),
    (lambda: SpikeRecovery("losses/a")(None, 1, {"loss": 1.0}), "'losses/a' is not reported. There are: loss"),
])  # fmt: skip
def test_invalid_arguments_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
