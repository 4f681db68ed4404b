"""Uncertainty weighting: the optimum in closed form, replicas, groups, reports and the clip."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from optimizers import OptimizerGroup
from tests.runs import train
from trainer import Trainer
from trainer.data import from_arrays
from trainer.methods import SAM, UncertaintyWeighting
from trainer.replicas.distribution import make_strategy
from trainer.saving.checkpoints import Checkpoints
from trainer.saving.state import copy_state, restore

SGD, L = keras.optimizers.SGD, keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 3)).astype(np.float32)
Y = RNG.normal(size=(48, 1)).astype(np.float32)
WEIGHTS = RNG.uniform(0, 2, 48).astype(np.float32)
KINDS = {"value": "regression", "kind": "classification"}


class Fixed(Trainer):
    """Losses whose values come with the batch, and one more."""

    def compute_losses(self, batch, training):
        value, kind = batch
        still = 0.0 * tf.reduce_sum(self.model(value[:, None], training=training))
        return {"value": value, "kind": (kind, tf.ones_like(kind)), "other": still + 7.0}


class Both(UncertaintyWeighting, Fixed):
    """A method on top of a Trainer of one's own."""


def fixed(steps, value, kind, strategy="default", **arguments):
    with make_strategy(strategy).scope():
        model = keras.Sequential([keras.Input((1,)), L.Dense(1)])
        trainer = Both(tasks=KINDS, model=model, optimizers=SGD(0.5), **arguments)
    arrays = tuple(np.array(losses, np.float32) for losses in (value, kind))
    iterator = iter(trainer.distribute(from_arrays(arrays, len(value), shuffle=False)))
    return trainer.train(iterator, steps), trainer, iterator


def test_the_optimum_is_the_log_of_the_loss():
    """s = log L and (1 + log L) / 2 for regression; s = log 2L and (1 + log 2L) / 2 for classification."""
    _, trainer, iterator = fixed(200, [1.0, 5.0], [0.1, 0.3])
    np.testing.assert_allclose(trainer.variables["log_variances/value"].numpy(), np.log(3.0), atol=1e-5)
    np.testing.assert_allclose(trainer.variables["log_variances/kind"].numpy(), np.log(0.4), atol=1e-5)
    metrics = trainer.train(iterator, 1)
    assert metrics["losses/value"] == pytest.approx((1 + np.log(3.0)) / 2, rel=1e-5)
    assert metrics["losses/kind"] == pytest.approx((1 + np.log(0.4)) / 2, rel=1e-5)
    assert metrics["losses/other"] == 7.0


def test_the_first_step_and_what_is_reported():
    """At s = 0 the weights are 1/2 and 1; ds = 1/2 - L/2 and 1/2 - L."""
    metrics, trainer, iterator = fixed(1, [1.0, 5.0], [0.1, 0.3])
    expected = {
        "losses/value": 1.5, "losses/kind": 0.2, "losses/other": 7.0, "loss": 8.7, "metrics/unweighted/value": 3.0,
        "metrics/unweighted/kind": 0.2, "metrics/log_variance/value": 0.0, "metrics/log_variance/kind": 0.0,
    }  # fmt: skip
    for tag, value in expected.items():
        assert metrics[tag] == pytest.approx(value, abs=1e-6), tag
    np.testing.assert_allclose(trainer.variables["log_variances/value"].numpy(), -0.5 * (0.5 - 1.5), rtol=1e-6)
    np.testing.assert_allclose(trainer.variables["log_variances/kind"].numpy(), -0.5 * (0.5 - 0.2), rtol=1e-6)
    metrics = trainer.train(iterator, 1)
    assert metrics["metrics/log_variance/value"] == pytest.approx(0.5) and metrics["metrics/unweighted/value"] == 3.0


def test_the_clip_holds_and_lets_go():
    """A loss of 0 pushes s down for ever; once it is large again, s comes back."""
    _, trainer, _ = fixed(20, [0.0, 0.0], [50.0, 50.0], "mirrored", limit=2.0)
    assert trainer.variables["log_variances/value"].numpy() == -2.0
    assert trainer.variables["log_variances/kind"].numpy() == 2.0
    arrays = (np.full(2, 1.0, np.float32), np.full(2, 0.01, np.float32))
    train(trainer, from_arrays(arrays, 2), 3)
    assert (
        trainer.variables["log_variances/value"].numpy() > -1.0
        and trainer.variables["log_variances/kind"].numpy() < 1.5
    )


def network():
    inputs = keras.Input((3,))
    hidden = L.Dense(4, "tanh", name="hidden")(inputs)
    return keras.Model(inputs, {"value": L.Dense(1, name="value")(hidden), "kind": L.Dense(3, name="kind")(hidden)})


def fit(strategy, steps=6, **arguments):
    keras.utils.set_random_seed(0)
    losses = {"value": "mse", "kind": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
    with make_strategy(strategy).scope():
        groups = [
            OptimizerGroup(
                "(hidden|value|kind)/.*", optimizer=keras.optimizers.AdamW(0.02, weight_decay=0.1), name="model"
            ),
            OptimizerGroup("log_variances/.*", optimizer=SGD(0.2), name="weights"),
        ]
        trainer = UncertaintyWeighting(tasks=KINDS, model=network(), loss=losses, optimizers=groups, **arguments)
    targets = {"value": Y, "kind": (np.abs(Y[:, 0]) * 2).astype(np.int32) % 3}
    source = from_arrays((X, targets, {"value": WEIGHTS, "kind": WEIGHTS}), 7, shuffle=False)
    metrics = train(trainer, source, steps)
    evaluated = trainer.evaluate(from_arrays((X, targets, {"value": WEIGHTS, "kind": WEIGHTS}), 7, repeat=False))
    return {**metrics, **{f"evaluated/{tag}": value for tag, value in evaluated.items()}}, trainer


def test_replicas_and_micro_batches_change_nothing():
    """With a group of their own, sample weights, and batches of 7."""
    (metrics, one), (other_metrics, trainer) = fit("default"), fit("mirrored", micro_batches=3)
    assert np.abs(one.variables["log_variances/kind"].numpy()) > 0.05
    assert metrics["updates/weights"] == 6
    assert other_metrics == pytest.approx(metrics, rel=2e-5, abs=2e-6)
    for name, v in one.variables.items():
        np.testing.assert_allclose(trainer.variables[name].numpy(), v.numpy(), atol=2e-6, err_msg=name)


def test_the_numbers_are_in_the_checkpoint(tmp_path):
    _, trainer = fit("default", compile="eager")
    saved = Checkpoints().open(tmp_path)
    saved.save(6, copy_state(trainer), {}, wait=True)
    _, fresh = fit("default", steps=1, compile="eager")
    restore(fresh, saved.latest())
    for name in ("log_variances/value", "log_variances/kind"):
        assert fresh.variables[name].numpy() == trainer.variables[name].numpy() != 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"tasks": {}}, "`tasks` must be a dict"),
        ({"tasks": {"value": "ranking"}}, "`tasks` must be a dict loss name -> 'regression' or 'classification', got"),
        ({"tasks": KINDS, "limit": 0.0}, "`limit` must be > 0, got 0.0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        UncertaintyWeighting(**arguments)


def test_a_task_that_is_no_loss_is_named():
    trainer = UncertaintyWeighting(tasks={"valeu": "regression"}, model=network(), loss="mse")
    with pytest.raises(ValueError, match="`tasks` names valeu, but the step has the losses kind, value|value, kind"):
        trainer.distribute(from_arrays((X, {"value": Y, "kind": np.repeat(Y, 3, 1)}), 8))


def test_two_methods_combine():
    """SAM on top of learned weights: with a radius of 0 they are what they were."""

    class Combined(SAM, Both):
        pass

    ends = []
    for method, arguments in ((Both, {}), (Combined, {"rho": 0}), (Combined, {"rho": 0.3})):
        model = keras.Sequential([keras.Input((1,)), L.Dense(1)])
        trainer = method(tasks=KINDS, model=model, optimizers=SGD(0.5), compile="eager", **arguments)
        arrays = (np.array([1.0, 5.0], np.float32), np.array([0.1, 0.3], np.float32))
        train(trainer, from_arrays(arrays, 2, shuffle=False), 2)
        ends.append(trainer.variables["log_variances/value"].numpy())
    assert ends[0] == pytest.approx(ends[1], rel=1e-6) and abs(ends[2] - ends[0]) > 1e-3
