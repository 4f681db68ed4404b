"""A recurrent cell with dropout in a loop of the user's own trains as in Keras' RNN, and in each loop anew."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import Trainer
from trainer.data import from_arrays
from trainer.replicas.distribution import make_strategy

L = keras.layers
X = np.random.default_rng(0).normal(size=(16, 5, 3)).astype("float32")


class ByHand(keras.Model):
    """A loop over the time steps, in Python."""

    def __init__(self, cell):
        super().__init__()
        self.cell, self.out = cell, L.Dense(1)

    def call(self, x, training=False):
        states = self.cell.get_initial_state(tf.shape(x)[0])
        for t in range(x.shape[1]):
            _, states = self.cell(x[:, t], states, training=training)
        return self.out(states[0])


CELLS = {
    "gru": lambda: L.GRUCell(4, dropout=0.4, seed=1),
    "lstm": lambda: L.LSTMCell(4, dropout=0.4, recurrent_dropout=0.2, seed=1),
}


def _losses(model, strategy="default"):
    with make_strategy(strategy).scope():
        keras.utils.set_random_seed(3)
        trainer = Trainer(model(), "mse", (), "sgd")
    iterator = iter(trainer.distribute(from_arrays((X, X[:, 0, :1]), 8)))
    return [trainer.train(iterator, 2)["loss"] for _ in range(2)]


@pytest.mark.parametrize("name", CELLS)
def test_a_loop_by_hand_equals_rnn(name):
    ours = _losses(lambda: ByHand(CELLS[name]()))
    keras_own = _losses(lambda: keras.Sequential([keras.Input((5, 3)), L.RNN(CELLS[name]()), L.Dense(1)]))
    np.testing.assert_allclose(ours, keras_own, rtol=1e-5)
    assert ours[0] != ours[1]


def test_it_trains_on_two_replicas():
    assert np.isfinite(_losses(lambda: ByHand(CELLS["gru"]()), "mirrored")).all()
