"""configs/dqn_gridworld: environment and replay buffer in variables, stepped in the graph or in Python."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.configs.plain_loops import assert_like_the_plain_loop, gradients, load_config, run
from tests.runs import read_checkpoint, read_last_rows, run_config

dqn = load_config("dqn_gridworld")
PYTHON = "run.trainer = @dqn_gridworld.PythonDQNTrainer"


def plain(trainer, batches):
    """The loop by hand, on the networks and the buffer of `trainer`."""
    online, target, replay, walkers, written = (
        trainer.model, trainer.target, trainer.replay, trainer.walkers, trainer.written
    )  # fmt: skip
    optimizer, number = keras.optimizers.SGD(0.5), tf.Variable(0)
    optimizer.build(online.trainable_variables)
    capacity, lanes = replay.shape[0], walkers.shape[0]
    huber = keras.losses.Huber()

    def step(draws):
        filled = tf.cast(tf.minimum(written.value, capacity), tf.float32)
        rows = tf.gather(replay.value, tf.cast(draws * filled, tf.int32))
        best = tf.one_hot(tf.argmax(online(rows[:, 3:5]), 1), 4)
        future = tf.reduce_sum(best * target(rows[:, 3:5]), 1)
        wanted = tf.where(rows[:, 5] == 1, 0.99, 0.95 * future - 0.01)
        with tf.GradientTape() as tape:
            chosen = tf.reduce_sum(online(rows[:, :2]) * tf.one_hot(rows[:, 2], 4), 1)
            loss = huber(wanted[:, None], chosen[:, None])
        optimizer.apply_gradients(gradients(tape, loss, online.trainable_variables))

        seeds = tf.unstack(tf.random.split([0, written.value], 3))
        before = walkers.value
        anywhere = tf.random.stateless_uniform([lanes], seeds[1], maxval=4, dtype=tf.int32)
        explores = tf.random.stateless_uniform([lanes], seeds[0]) < 0.2
        actions = tf.where(explores, anywhere, tf.argmax(online(before[:, :2]), 1, tf.int32))
        after, at_goal, ends = dqn.move(before, actions)
        place, reached = written.value % capacity, tf.cast(at_goal, tf.int32)[:, None]
        rows = tf.concat([before[:, :2], actions[:, None], after[:, :2], reached], 1)
        replay.assign(tf.concat([replay[:place], rows, replay[place + lanes :]], 0))
        cells = tf.gather(
            dqn.FREE, tf.random.stateless_uniform([lanes], seeds[2], maxval=len(dqn.FREE), dtype=tf.int32)
        )
        walkers.assign(tf.where(ends[:, None], tf.concat([cells, tf.zeros([lanes, 1], tf.int32)], 1), after))
        written.assign(written.value + lanes)
        number.assign_add(1)
        for slow, fast in zip(target.weights, online.weights):
            slow.assign(fast if number % 4 == 0 else slow)
        return {"losses/td": loss}

    return run(step, batches)


def test_it_is_the_plain_loop_on_one_and_two_replicas_and_resumes():
    """The buffer of 40 is filled more than once, and episodes end."""

    def make():
        networks = [dqn.q_network((6,)) for _ in range(2)]
        return dqn.DQNTrainer(*networks, lanes=4, capacity=40, copy_every=4, optimizers=keras.optimizers.SGD(0.5))

    assert_like_the_plain_loop(make, dqn.train_data(batch_size=15), plain)


def test_the_two_forms_of_the_environment_agree():
    random = np.random.default_rng(0)
    states = np.append(dqn.FREE, random.integers(35, size=[len(dqn.FREE), 1]), 1).astype("int32")
    mazes, ended = [dqn.Maze(state) for state in states], []
    for _ in range(10):
        actions = random.integers(4, size=len(mazes))
        states, at_goal, ends = (x.numpy() for x in dqn.move(states, actions.astype("int32")))
        assert [maze.step(action) for maze, action in zip(mazes, actions)] == list(zip(at_goal, ends))
        assert [maze.state for maze in mazes] == states.tolist()
        ended.append(ends.any())
    assert any(ended)


def test_python_environments_resume_exactly(tmp_path):
    short = [PYTHON, "run.steps_per_loop = 5", "run.eval_data = None", "run.summary_interval = 5"]
    run_config("dqn_gridworld", tmp_path / "whole", *short, "run.train_steps = 20")
    for steps in (10, 20):
        run_config("dqn_gridworld", tmp_path / "parts", *short, f"run.train_steps = {steps}")
    whole, parts = read_checkpoint(tmp_path / "whole"), read_checkpoint(tmp_path / "parts")
    assert whole["written"] == 1024 + 4 * 10 * 16
    for name in ("walkers", "replay", "target/dense/kernel", "dense/kernel"):
        np.testing.assert_array_equal(parts[name], whole[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("params", [[], [PYTHON, "run.steps_per_loop = 10"]], ids=["graph", "python"])
def test_it_finds_the_goal(params, tmp_path):
    """The mean return of the shortest ways is .936."""
    row = read_last_rows(run_config("dqn_gridworld", tmp_path, *params))["validation"]
    assert row["metrics/return"] > 0.85
