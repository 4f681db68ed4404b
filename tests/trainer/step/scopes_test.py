"""Objects made outside of the strategy's scope, and iterators of another kind, are named, with the cure."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.runs import train
from trainer import Trainer, data, weighted
from trainer.replicas.distribution import make_strategy

X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
L = keras.layers


def _net():
    return keras.Sequential([keras.Input((4,)), L.Dense(1)])


def _first_step(trainer):
    train(trainer, data.from_arrays((X, X[:, :1]), 8), 1)


class WithCritic(Trainer):
    def __init__(self, critic):
        super().__init__(_net(), "mse", (), "sgd")
        self.critic = critic


MODEL = r"`model` \(its variable dense/kernel\) was created outside of the strategy's scope .*with strategy.scope\(\)"


@pytest.mark.parametrize("strategy", ["one_device", "mirrored"])
@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: (lambda model: lambda: Trainer(model, "mse", (), keras.optimizers.SGD()))(_net()), MODEL),
        (lambda: (lambda model: lambda: Trainer(model, "mse", (), keras.optimizers.Adam()))(_net()), MODEL),
        (
            lambda: (lambda optimizer: lambda: Trainer(_net(), "mse", (), optimizer))(keras.optimizers.Adam()),
            "`optimizer` Adam of group 'main' was created outside",
        ),
        (
            lambda: (lambda metric: lambda: Trainer(_net(), "mse", {"dense": [metric]}, "sgd"))(
                weighted(keras.metrics.MeanAbsoluteError(name="error"))
            ),
            "Metric 'error' was created outside",
        ),
        (
            lambda: (lambda critic: lambda: WithCritic(critic))(_net()),
            "critic/dense/kernel, which the Trainer holds, was created outside",
        ),
    ],
    ids=["model, SGD", "model, Adam", "optimizer", "metric", "attribute"],
)
def test_an_object_made_outside_the_scope_is_named(make, message, strategy):
    inside = make()
    with make_strategy(strategy).scope():
        trainer = inside()
    with pytest.raises(ValueError, match=message):
        _first_step(trainer)


def test_a_trainer_outside_of_the_scope_of_its_model():
    with make_strategy("mirrored").scope():
        model, optimizer = _net(), keras.optimizers.Adam()
    with pytest.raises(
        ValueError, match="`model` .* was created outside of the strategy's scope in which the Trainer was created"
    ):
        _first_step(Trainer(model, "mse"))
    with pytest.raises(ValueError, match="`optimizer` Adam of group 'main' was created outside"):
        _first_step(Trainer(_net(), "mse", (), optimizer))


def test_a_model_that_has_no_variables_yet_may_be_made_anywhere():
    model = keras.Sequential([L.Dense(1)])
    with make_strategy("mirrored").scope():
        trainer = Trainer(model, "mse", (), "sgd")
    _first_step(trainer)


def test_an_iterator_that_does_not_come_from_distribute():
    dataset = tf.data.Dataset.from_tensor_slices((X, X[:, :1])).batch(8)
    for wrong in (dataset, [(X, X)], X):
        with pytest.raises(ValueError, match=r"`iterator` must be iter\(trainer.distribute\(data\)\), got"):
            Trainer(_net(), "mse").train(wrong, 1)
    with pytest.raises(RuntimeError, match=r"iter\(trainer.distribute\(data\)\)"):
        Trainer(_net(), "mse").train(iter(dataset), 1)
    with make_strategy("mirrored").scope():
        trainer = Trainer(_net(), "mse")
    trainer.build(dataset.element_spec)
    with pytest.raises(ValueError, match="on several replicas"):  # each replica would train on all of the batch
        trainer.train(iter(dataset), 1)


def test_prediction_without_a_model():
    class Own(Trainer):
        def __init__(self):
            super().__init__(optimizers="sgd")
            self.scale = keras.Variable(1.0, name="scale")

        def compute_losses(self, batch, training):
            return {"main": tf.square(self.scale * batch[0] - 1.0)}

    trainer = Own()
    trainer.build((tf.TensorSpec([8, 4]), tf.TensorSpec([8, 1])))
    with pytest.raises(ValueError, match="`model` is None: override `predict_step`"):
        trainer.predict(data.from_arrays((X, X[:, :1]), 8, repeat=False))
