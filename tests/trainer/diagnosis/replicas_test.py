"""`check replicas`: right models agree; each contract, broken on purpose, is named with its cause."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from losses.global_batch import all_gather
from optimizers import OptimizerGroup, clip_by_global_norm
from trainer import Trainer
from trainer.data import from_arrays
from trainer.diagnosis.replicas import compare

L = keras.layers
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(8, 3)).astype(np.float32), RNG.normal(size=(8, 1)).astype(np.float32)


def _compare(trainer, batch_size=7):
    source = from_arrays((X, Y), batch_size, shuffle=False)

    def make(strategy):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            built = trainer()
        built.build(source.element_spec)
        return built

    return compare(make, source)


def _model(*layers):
    return keras.Sequential([keras.Input((3,)), L.Dense(4, "tanh"), *layers, L.Dense(1)])


class Custom(Trainer):
    """A Trainer whose losses are `function(model, batch)`."""

    def __init__(self, function, *layers):
        super().__init__(_model(*layers), optimizers=keras.optimizers.SGD(0.1))
        self.function = function

    def compute_losses(self, batch, training):
        x, y = batch
        return {"main": self.function(self.model(x, training=training), y)}


def test_a_right_model_agrees_in_everything():
    def trainer():
        group = OptimizerGroup(
            optimizer=keras.optimizers.Adam(0.01), transforms=[clip_by_global_norm(0.1)], name="main"
        )
        return Trainer(_model(L.BatchNormalization(synchronized=True), L.Dropout(0.5)), "mse", ["mae"], group)

    found = _compare(trainer)
    assert found.ok, str(found)
    assert {row[0] for row in found.rows} == {
        "losses",
        "metrics",
        "gradient norms",
        "gradients",
        "updated weights",
        "other state",
        "optimizer state",
    }
    assert "gradients         6 of 6 agree" in str(found) and str(found).endswith("One and two replicas agree.")


def _by_hand(predictions, y):
    return tf.reduce_sum(tf.square(predictions - y)) / 8


def _divided(predictions, y):
    return tf.square(predictions - y) / tf.distribute.get_strategy().num_replicas_in_sync


@pytest.mark.parametrize("loss", [_by_hand, _divided])
def test_a_loss_that_divides_by_hand(loss):
    found = _compare(lambda: Custom(loss), batch_size=8)
    assert not found.ok and len(found.reasons) == 1
    assert "Loss 'main' halves on 2 replicas: it divides by the number of replicas" in str(found)


def _coupled(predictions, y):
    return tf.reduce_mean(tf.square(predictions - tf.transpose(predictions)), 1)


def _gathered(predictions, y):
    return tf.reduce_mean(tf.square(predictions - tf.transpose(all_gather(predictions))), 1)


def test_a_loss_coupled_across_the_batch_is_explained_with_its_cure():
    found = _compare(lambda: Custom(_coupled))
    assert (
        not found.ok
        and "Loss 'main' depends on how the batch is split" in found.reasons[0]
        and "gather" in found.reasons[0]
    )
    assert _compare(lambda: Custom(_gathered)).ok


def test_batch_normalization_of_each_replica():
    found = _compare(lambda: Trainer(_model(L.BatchNormalization()), "mse", optimizers=keras.optimizers.SGD(0.1)))
    assert not found.ok and found.reasons[0].startswith("batch_normalization normalizes") and len(found.reasons) == 1


class Counts(L.Layer):
    """Remembers the largest sum of a batch that it saw, which no mean over replicas gives back."""

    def build(self, shape):
        self.largest = self.add_weight(name="largest", shape=(), initializer="zeros", trainable=False)

    def call(self, x, training=False):
        if training:
            self.largest.assign(tf.maximum(self.largest.value, tf.reduce_sum(tf.abs(x))))
        return x


def test_a_layer_with_a_state_of_each_replica():
    found = _compare(lambda: Trainer(_model(Counts()), "mse", optimizers=keras.optimizers.SGD(0.1)))
    assert not found.ok and found.reasons == [
        reason for reason in found.reasons if reason.startswith("A layer assigns counts/largest on each replica")
    ]


def test_an_optimizer_made_out_of_scope():
    outside = keras.optimizers.Adam(0.01)
    with pytest.raises(
        ValueError, match="`optimizer` Adam of group 'main' was created outside of the strategy's scope"
    ):
        _compare(lambda: Trainer(_model(), "mse", optimizers=outside))


class Largest(keras.metrics.Metric):
    """The largest error, whose state is no sum."""

    def __init__(self):
        super().__init__(name="largest")
        self.value = self.add_variable((), "zeros", name="value")

    def update_state(self, y, predictions, sample_weight=None):
        self.value.assign(tf.maximum(self.value.value, tf.reduce_max(tf.abs(y - predictions))))

    def result(self):
        return tf.convert_to_tensor(self.value)  # its value, not the variable


def test_a_metric_whose_state_is_no_sum_agrees():
    found = _compare(lambda: Trainer(_model(), "mse", [Largest()], keras.optimizers.SGD(0.1)))
    assert found.ok, found


class Doubles(Trainer):
    """Adds a gradient that no other replica knows of."""

    def reduce(self, gradients):
        context = tf.distribute.get_replica_context()
        extra = tf.cast(context.replica_id_in_sync_group + 1, tf.float32)
        return super().reduce({name: [g * extra for g in listed] for name, listed in gradients.items()})


def test_gradients_that_are_not_those_of_the_loss():
    found = _compare(lambda: Doubles(_model(), "mse", optimizers=keras.optimizers.SGD(0.1)))
    assert not found.ok and any(reason.startswith("Losses agree, but gradients do not") for reason in found.reasons)
