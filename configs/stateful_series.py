"""A long series in short pieces: truncated backpropagation, with a state carried from batch to batch."""

import keras
import numpy as np
import tensorflow as tf

from trainer import Trainer, all_gather, configurable, data

NOISE = 0.1


@configurable
def series(lanes=32, length=4_097, seed=0):
    """Returns float32 [lanes, length]: in each lane two waves of their own periods, and noise of deviation NOISE."""
    rng = np.random.default_rng(seed)
    periods, phases = rng.uniform(8, 40, [2, lanes, 1]), rng.uniform(0, 2 * np.pi, [2, lanes, 1])
    waves = np.sin(2 * np.pi * np.arange(length) / periods + phases).sum(0) / 2
    return (waves + NOISE * rng.normal(size=waves.shape)).astype("float32")


class Pieces(data.Source):
    """Piece k of each lane in batch k, over and over.

    A batch is {"values", "next": [lanes, steps], "lane", "start": [lanes]}. A lane continues that of the batch before,
    except where `start` is True.
    """

    def __init__(self, lanes, steps, repeat=True):
        self._count = (lanes.shape[1] - 1) // steps
        self._lanes, self._steps = lanes, steps
        self.batch_size, self.infinite = len(lanes), repeat
        self.cardinality = None if repeat else self._count

    def batches(self, start=0, chunk=None):
        """See `Source.batches`."""
        lanes, size = tf.constant(self._lanes), self.batch_size

        def piece(number):
            place = number % self._count
            part = tf.slice(lanes, [0, place * self._steps], [size, self._steps + 1])
            return {
                "values": part[:, :-1],
                "next": part[:, 1:],
                "lane": tf.range(size),
                "start": tf.fill([size], place == 0),
            }

        pieces = tf.data.Dataset.range(start, np.iinfo(np.int64).max if self.infinite else self._count).map(piece)
        return pieces.batch(chunk) if chunk else pieces


@configurable
def train_data(steps=8):
    """Endless pieces of `steps` values."""
    return Pieces(series(), steps)


@configurable
def eval_data(length=513, seed=1):
    """Other lanes, each in one piece."""
    return Pieces(series(length=length, seed=seed), length - 1, repeat=False)


@configurable
class Recurrent(keras.Model):
    """Values [B, T] and a state [B, units] to predictions of the next values, [B, T], and the state at the end."""

    def __init__(self, units=64, **kwargs):
        super().__init__(**kwargs)
        self.gru = keras.layers.GRU(units, return_sequences=True, return_state=True)
        self.change = keras.layers.Dense(1)

    def call(self, values, state):
        """Returns (predictions, state)."""
        outputs, state = self.gru(values[..., None], initial_state=state)
        return values + self.change(outputs)[..., 0], state


class StatefulTrainer(Trainer):
    """A batch begins with the state at the end of the one before, which gets no gradient.

    Args:
      model: Recurrent.
      lanes: int, rows of a batch.
      carry: bool; False begins each batch with zeros.
    """

    def __init__(self, model, lanes=32, carry=True, **kwargs):
        super().__init__(model, **kwargs)
        self.carry = carry
        self.state = keras.Variable(tf.zeros([lanes, model.gru.units]), trainable=False, name="state")

    def compute_losses(self, batch, training):
        """Returns the squared error, [B, T], and the state at the end; traced, per replica."""
        state = tf.gather(self.state.value, batch["lane"]) * tf.cast(~batch["start"], tf.float32)[:, None]
        predictions, state = self.model(batch["values"], state if self.carry and training else tf.zeros_like(state))
        return {"error": tf.square(predictions - batch["next"])}, state

    def after_update(self, batch, outputs):
        """Keeps the state of all lanes; traced, per replica, the same on all."""
        self.state.assign(all_gather(outputs))
