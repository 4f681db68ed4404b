"""A pass is there while the step runs, the same before, between and after loops, and gone afterwards."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import Trainer, data
from trainer.replicas.distribution import distribute, make_strategy, replica_values

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(8, 3)).astype("float32"), RANDOM.normal(size=(8, 1)).astype("float32")


def _trainer(**arguments):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, kernel_initializer="ones")])
    return Trainer(model, "mse", ["mae"], keras.optimizers.SGD(0.0), **arguments)


def _by_hand(trainer):
    with trainer.replica_pass((X, Y)) as p:
        losses, gradients, outputs = trainer.compute_gradients(p.batch)
    assert outputs.shape == (8, 1)
    return float(losses["main"]), [g.numpy() for g in gradients["main"]]


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_gradients_by_hand_are_the_same_before_between_and_after_loops(micro_batches):
    trainer = _trainer(micro_batches=micro_batches)
    iterator = iter(trainer.distribute(data.from_arrays((X, Y), 4)))
    error = X.sum(1, keepdims=True) - Y
    for _ in range(3):
        loss, (kernel, bias) = _by_hand(trainer)
        assert loss == pytest.approx(np.mean(error**2), rel=1e-5)
        np.testing.assert_allclose(kernel, 2 * np.mean(error * X, 0)[:, None], rtol=1e-4)
        np.testing.assert_allclose(bias, [2 * np.mean(error)], rtol=1e-4)
        trainer.train(iterator, 2)


def test_two_replicas_by_hand_share_the_global_gradient():
    strategy = make_strategy("mirrored")
    with strategy.scope():
        trainer = _trainer()
    trainer.build(data.from_arrays((X, Y), 8).element_spec)

    @tf.function(autograph=False)
    def gradients(element):
        def replica(element):
            with trainer.replica_pass(element) as p:
                return trainer.compute_gradients(p.batch)[1]["main"][0]

        return strategy.run(replica, args=(element,))

    (element,) = iter(distribute(strategy, tf.data.Dataset.from_tensors((X, Y))))
    kernels = replica_values(strategy, gradients(element))
    error = X.sum(1, keepdims=True) - Y
    for kernel in kernels:
        np.testing.assert_allclose(kernel, 2 * np.mean(error * X, 0)[:, None], rtol=1e-4)


def test_outside_of_a_pass_and_before_building_one_sentence_says_what_to_do():
    trainer = _trainer()
    batches = tf.data.Dataset.from_tensors((X, Y))
    assert int(trainer.global_step) == 0  # there from the start
    for early in (lambda: trainer.train(iter(batches), 1), lambda: trainer.built):
        with pytest.raises(RuntimeError, match="not built yet.*trainer.distribute"):
            early()
    trainer.build(data.from_arrays((X, Y), 4).element_spec)
    assert int(trainer.global_step) == 0
    for method in (trainer.compute_gradients, trainer.micro_gradients):
        with pytest.raises(RuntimeError, match="trainer.replica_pass"):
            method((X, Y))
    with trainer.replica_pass((X, Y)):
        pass
    with pytest.raises(RuntimeError, match="trainer.replica_pass"):
        trainer.forward((X, Y), training=True)


class Doubled(Trainer):
    def compute_losses(self, batch, training):
        losses, outputs = super().compute_losses(batch, training)
        return {name: 2.0 * values for name, values in losses.items()}, outputs


def test_class_ids_are_checked_where_the_default_losses_run_also_through_super():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    trainer = Doubled(model, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="targets hold 7"):
        trainer.distribute(data.from_arrays((X, np.full([8], 7)), 4))
