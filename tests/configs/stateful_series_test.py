"""configs/stateful_series: the state of the network is carried from batch to batch, over replicas and checkpoints."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.configs.plain_loops import assert_like_the_plain_loop, gradients, load_config, run
from tests.runs import read_last_rows, run_config

stateful = load_config("stateful_series")


def plain(trainer, batches):
    """The loop by hand: a variable holds the state."""
    model, state = trainer.model, trainer.state
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)

    def step(batch):
        begin = tf.where(batch["start"][:, None], tf.zeros_like(state), state)
        with tf.GradientTape() as tape:
            predictions, end = model(batch["values"], begin)
            loss = tf.reduce_mean(tf.square(predictions - batch["next"]))
        optimizer.apply_gradients(gradients(tape, loss, model.trainable_variables))
        state.assign(end)
        return {"losses/error": loss}

    return run(step, batches)


def test_it_is_the_plain_loop_on_one_and_two_replicas_and_resumes():
    lanes = stateful.series(lanes=5, length=13)  # four pieces of three, then from the beginning

    def make():
        return stateful.StatefulTrainer(stateful.Recurrent(4), 5, optimizers=keras.optimizers.SGD(0.1))

    assert_like_the_plain_loop(make, stateful.Pieces(lanes, 3), plain)


def test_pieces_continue_each_other_and_start_again():
    lanes = stateful.series(lanes=2, length=13)
    batches = list(stateful.Pieces(lanes, 3).batches(1).take(4))
    np.testing.assert_array_equal(np.concatenate([b["values"] for b in batches[:3]], 1), lanes[:, 3:12])
    np.testing.assert_array_equal(batches[0]["next"][:, -1:], batches[1]["values"][:, :1])
    np.testing.assert_array_equal(batches[3]["values"], lanes[:, :3])
    assert [bool(b["start"][0]) for b in batches] == [False, False, False, True]


@pytest.mark.slow
def test_a_carried_state_predicts_better(tmp_path):
    with_state, without = (
        read_last_rows(
            run_config("stateful_series", tmp_path / str(carry), f"stateful_series.StatefulTrainer.carry = {carry}")
        )
        for carry in (True, False)
    )
    assert with_state["validation"]["losses/error"] < 0.8 * without["validation"]["losses/error"]
