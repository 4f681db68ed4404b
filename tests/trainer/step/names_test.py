"""Every loss and every tag has one owner; evaluation has names of its own; what a model has for `fit` is named."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from optimizers.groups import OptimizerGroup
from tests.runs import train
from trainer import Trainer, add_loss, add_metric, data

X = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
SOURCE = data.from_arrays((X, X[:, :1]), 8, repeat=False)
SGD = keras.optimizers.SGD


def _net(**arguments):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, **arguments)])


class Named(Trainer):
    """Returns the losses that a function of (error, training) makes."""

    def __init__(self, make, model=None, **arguments):
        super().__init__(model or _net(), optimizers=arguments.pop("optimizers", None) or SGD(0.0), **arguments)
        self.make = make

    def compute_losses(self, batch, training):
        x, y = batch
        return self.make((self.model(x, training=training) - y) ** 2, training)


def _refuses(match, trainer):
    with pytest.raises(ValueError, match=match):
        trainer.build(SOURCE.element_spec)


def test_one_name_has_one_owner():
    _refuses(
        "Two losses are named 'regularization'",
        Named(lambda e, training: {"regularization": e}, _net(kernel_regularizer="l2")),
    )
    _refuses("name losses by strings without '#', got 'a#1'", Named(lambda e, training: {"a": e, "a#1": e}))
    _refuses("name losses by strings without '#', got 3", Named(lambda e, training: {3: e}))

    class Adds(keras.layers.Layer):
        def call(self, x):
            add_metric(tf.reduce_mean(x), "mae")
            return x

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1), Adds()])
    _refuses("Two metrics are named mae", Trainer(model, "mse", [keras.metrics.MeanAbsoluteError("mae")], "sgd"))
    with pytest.raises(ValueError, match="a group named 'all'"):
        Trainer(_net(), "mse", optimizers=[OptimizerGroup(name="all")])

    class Reports:
        def __call__(self, gradients, variables, norms):
            return gradients

        def report(self):
            return {"grad_norm": tf.zeros([])}

    _refuses(
        "reports grad_norm, which the trainer reports itself",
        Trainer(_net(), "mse", optimizers=OptimizerGroup(transforms=[Reports()])),
    )


class Both(keras.metrics.Metric):
    """Results under keys that another one has too."""

    def __init__(self, name, factor):
        super().__init__(name=name)
        self.factor, self.total = factor, self.add_variable((), "zeros", name="total")

    def update_state(self, y, p, sample_weight=None):
        self.total.assign_add(self.factor * tf.reduce_sum(y))

    def result(self):
        return {"sum": self.total, self.name + "_own": self.total}


def test_metrics_that_share_a_key_have_their_names_in_front():
    found = Trainer(_net(), "mse", [Both("one", 1.0), Both("two", 2.0)], "sgd").evaluate(SOURCE)
    total = X[:, 0].sum()
    right = {"one/sum": total, "two/sum": 2 * total, "one_own": total, "two_own": 2 * total}
    assert {k: v for k, v in found.items() if k.startswith("metrics/")} == pytest.approx(
        {f"metrics/{name}": value for name, value in right.items()}, rel=1e-4
    )


class SaysInEvaluation(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.mean = keras.metrics.Mean(name="held")

    def call(self, x, training=False):
        if not training:
            add_metric(x, "seen", "max")
            add_loss(x**2, "inner")
            self.mean.update_state(x)
        return x


def test_evaluation_has_names_of_its_own(strategy):
    """Losses, internal losses and metrics, and held metrics that only evaluation has; some that only training has."""
    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1), SaysInEvaluation()])
        trainer = Named(lambda e, training: {"a": e, "train" if training else "eval": 3.0 * e}, model)
    found = trainer.evaluate(SOURCE)
    p = model.layers[0](X).numpy()
    a = float(np.mean((p - X[:, :1]) ** 2))
    right = {"loss": a, "losses/a": a, "losses/eval": 3 * a, "losses/inner": np.mean(p**2)}
    right.update({"metrics/seen": p.max(), "metrics/held": p.mean()})
    assert found == pytest.approx(right, rel=1e-4, abs=1e-6)
    trained = train(trainer, SOURCE, 2)
    assert {tag for tag in trained if tag.startswith(("loss", "metrics/"))} == {"loss", "losses/a", "losses/train"}
    assert trainer.evaluate(SOURCE) == found


def test_a_model_without_anything_to_train_is_evaluated():
    a = float(np.mean(X[:, :1] ** 2))
    model = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x[:, :1] * 0.0)])
    for trainer, right, why in (
        (Trainer(model, "mse", ["mae"], "sgd"), a, "no trainable variables"),
        (
            Trainer(_net(kernel_initializer="zeros"), "mse", ["mae"], "sgd", frozen=[".*"]),
            a,
            "Nothing is left to train",
        ),
    ):
        assert trainer.evaluate(SOURCE)["loss"] == pytest.approx(right, rel=1e-5)
        with pytest.raises(ValueError, match=why):
            trainer.distribute(SOURCE)


class Contrastive(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        return {}

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return 0.0


def test_what_a_model_has_for_fit_is_named_once(capsys):
    def said(trainer):
        trainer.build(SOURCE.element_spec)
        return " ".join(capsys.readouterr().err.split())

    text = said(Trainer(Contrastive(), "mse", (), "sgd"))
    assert "train_step, compute_loss of Contrastive" in text and "Override `Trainer.compute_losses`" in text
    compiled = _net()
    compiled.compile("adam", "mae")
    text = said(Trainer(compiled, "mse", (), "sgd"))
    assert "compiled with loss='mae' and optimizer=Adam" in text and "`loss`, `metrics` and `optimizers`" in text
    assert not said(Trainer(_net(), "mse", (), "sgd"))
    assert not said(Named(lambda e, training: {"a": e}, Contrastive()))
    assert not said(Trainer(compiled, compiled.loss, (), compiled.optimizer)) or compiled.loss == "mae"
