"""Hooks of our own against closed forms."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import Trainer
from trainer.distribution import make_strategy
from trainer.hooks import LossGradients

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


@pytest.mark.parametrize("name", ["default", "mirrored"])
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
    before = {name: v.numpy() for name, v in trainer.variables.items()}
    LossGradients(lambda: tf.data.Dataset.from_tensors(X).repeat(), every=1)(trainer, 1, {})
    for name, value in before.items():
        np.testing.assert_array_equal(trainer.variables[name].numpy(), value, err_msg=name)


def test_every_must_be_positive():
    with pytest.raises(ValueError, match="`every` must be >= 1"):
        LossGradients(None, every=0)
