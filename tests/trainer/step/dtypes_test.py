"""Losses, regularizers and weights of several dtypes in one model; complex weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from optimizers.groups import OptimizerGroup
from optimizers.transforms import adaptive_clip, clip_by_global_norm, clip_by_norm, clip_by_value, l2_norm
from tests.runs import train
from trainer import Trainer, data

X = np.random.default_rng(0).normal(size=(8, 4))


@pytest.fixture
def float64():
    keras.config.set_floatx("float64")
    keras.mixed_precision.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.mixed_precision.set_dtype_policy("float32")


class Two(Trainer):
    """A float64 loss beside one of float32."""

    def compute_losses(self, batch, training):
        p = self.model(batch[0], training=training)
        return {"wide": (p - batch[1]) ** 2, "narrow": tf.cast(tf.abs(p), tf.float32)}


@pytest.mark.parametrize("parts", [1, 2])
def test_a_float64_model_with_a_regularizer_and_two_dtypes_of_losses(float64, parts):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, kernel_regularizer=keras.regularizers.L2(0.1))])
    trainer = Two(model, optimizers=keras.optimizers.SGD(0.0), micro_batches=parts)
    found = train(trainer, data.from_arrays((X, X[:, :1]), 8), 1)
    p, kernel = model(X).numpy(), model.layers[0].kernel.numpy()
    right = np.mean((p - X[:, :1]) ** 2) + np.mean(np.abs(p)) + 0.1 * np.sum(kernel**2)
    assert found["loss"] == pytest.approx(right, rel=1e-5)


class Phase(keras.Model):
    def __init__(self):
        super().__init__()
        self.w = self.add_weight(name="w", shape=(4, 1), dtype="complex64", initializer="ones")

    def call(self, x):
        return tf.abs(tf.cast(x, tf.complex64) @ self.w)


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_a_complex_weight_trains_as_in_a_loop_by_hand(strategy, clip_norm):
    x = X.astype("float32")
    y = np.abs(x[:, :1])
    with strategy.scope():
        transforms = [clip_by_global_norm(clip_norm)] if clip_norm else []
        group = OptimizerGroup(optimizer=keras.optimizers.SGD(0.1), transforms=transforms)
        trainer = Trainer(Phase(), "mse", optimizers=group)
    found = train(trainer, data.from_arrays((x, y), 8, shuffle=False), 1)
    w = tf.Variable(tf.ones([4, 1], tf.complex64))
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((tf.abs(tf.cast(x, tf.complex64) @ w) - y) ** 2)
    gradient = tape.gradient(loss, w).numpy()
    norm = np.sqrt(np.sum(np.abs(gradient) ** 2))
    assert found["grad_norm/group_0"] == pytest.approx(norm, rel=1e-4)
    gradient = gradient * min(1.0, (clip_norm or norm) / norm)
    np.testing.assert_allclose(trainer.model.w.numpy(), w.numpy() - 0.1 * gradient, rtol=1e-4, atol=1e-6)


def test_transforms_of_complex_gradients():
    g = tf.constant([[3.0 + 4.0j, 0.3j]], tf.complex64)
    variable = keras.Variable(tf.ones([1, 2], tf.complex64), dtype="complex64")
    assert float(l2_norm([g])) == pytest.approx(np.sqrt(25.09), rel=1e-6)
    for transform, right in (
        (clip_by_value(1.0), [[0.6 + 0.8j, 0.3j]]),
        (clip_by_norm(1.0), g.numpy() / np.sqrt(25.09)),
        (adaptive_clip(clipping=1.0), [[0.6 + 0.8j, 0.3j]]),
    ):
        np.testing.assert_allclose(transform([g], [variable], {})[0].numpy(), right, rtol=1e-5)
