"""configs/ppo_gridworld: walks of the policy in variables, made in the graph or in Python."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.configs.plain_loops import assert_like_the_plain_loop, gradients, load_config, run
from tests.runs import read_checkpoint, read_last_rows, run_config
from trainer import OptimizerGroup

ppo = load_config("ppo_gridworld")
LOSSES = {"policy": 1.0, "value": 0.5, "negative_entropy": 0.01}
PYTHON = ["ppo_gridworld.PPOTrainer.in_python = True", "run.steps_per_loop = 16", "run.summary_interval = 16"]


def plain(trainer, batches):
    """The loop by hand: walks unrolled, advantages from the last move to the first."""
    model, every, horizon, lanes = trainer.model, trainer.every, trainer.horizon, trainer.walkers.shape[0]
    optimizer, number = keras.optimizers.SGD(0.5), 0
    optimizer.build(model.trainable_variables)

    def walk():
        state, moves = trainer.walkers.value, []
        for move in range(horizon):
            seeds = tf.unstack(tf.random.split([trainer.walks.value, move], 2))
            logits, value = model(state[:, :2])
            action = tf.random.stateless_categorical(logits, 1, seeds[0], tf.int32)[:, 0]
            log = tf.reduce_sum(tf.one_hot(action, 4) * tf.math.log(tf.nn.softmax(logits)), 1)
            moved = tf.concat([state[:, :2], action[:, None]], 1)
            state, at_goal, end = ppo.move(state, action)
            moves.append((moved, log, value, tf.where(at_goal, 0.99, -0.01), tf.where(end, 0.0, 1.0)))
            draw = tf.random.stateless_uniform([lanes], seeds[1], maxval=len(ppo.FREE), dtype=tf.int32)
            fresh = tf.concat([tf.gather(ppo.FREE, draw), tf.zeros([lanes, 1], tf.int32)], 1)
            state = tf.where(end[:, None], fresh, state)
        following, gain, estimated = model(state[:, :2])[1], 0.0, []
        for _, log, value, reward, goes_on in reversed(moves):
            gain = reward + 0.95 * goes_on * following - value + 0.95 * 0.9 * goes_on * gain
            estimated.insert(0, tf.stack([log, gain, gain + value], 1))
            following = value
        trainer.walkers.assign(state)
        trainer.walks.assign_add(1)
        trainer.moved.assign(tf.concat([move[0] for move in moves], 0))
        trainer.estimated.assign(tf.concat(estimated, 0))
        ended = sum(tf.reduce_sum(1 - move[4]) for move in moves)
        trainer.returned.assign([sum(tf.reduce_sum(move[3]) for move in moves), ended])

    def update(rows):
        old, gain, returned = tf.unstack(tf.gather(trainer.estimated.value, rows), axis=1)
        gain = (gain - tf.reduce_mean(gain)) / (tf.math.reduce_std(gain) + 1e-6)
        moved = tf.gather(trainer.moved.value, rows)
        with tf.GradientTape() as tape:
            logits, values = model(moved[:, :2])
            chances = tf.nn.softmax(logits)
            ratio = tf.reduce_sum(tf.one_hot(moved[:, 2], 4) * chances, 1) / tf.exp(old)
            policy = -tf.reduce_mean(tf.minimum(ratio * gain, tf.clip_by_value(ratio, 0.8, 1.2) * gain))
            value = tf.reduce_mean(tf.square(values - returned))
            entropy = -tf.reduce_mean(tf.reduce_sum(chances * tf.math.log(chances), 1))
            loss = policy + 0.5 * value - 0.01 * entropy
        optimizer.apply_gradients(gradients(tape, loss, model.trainable_variables))
        return {"losses/policy": policy, "losses/value": value, "losses/negative_entropy": -entropy, "loss": loss}

    walk, update = tf.function(walk), tf.function(update)

    def step(rows):
        nonlocal number
        number, values = number + 1, update(rows)
        if number % every == 0:
            walk()
        return values

    return run(step, batches, compiled=False)


def test_it_is_the_plain_loop_on_one_and_two_replicas_and_resumes():
    def make():
        group = OptimizerGroup(losses=LOSSES, optimizer=keras.optimizers.SGD(0.5))
        return ppo.PPOTrainer(ppo.actor_critic((6,)), lanes=4, horizon=7, every=6, optimizers=group)

    assert_like_the_plain_loop(make, ppo.train_data(lanes=4, horizon=7, batch_size=9), plain)


def test_the_two_forms_of_the_environment_agree():
    random = np.random.default_rng(0)
    state = tf.constant(np.append(ppo.FREE, random.integers(35, size=[len(ppo.FREE), 1]), 1), tf.int32)
    for _ in range(10):
        actions = tf.constant(random.integers(4, size=len(state)), tf.int32)
        one, two = ppo.move(state, actions), ppo.move_in_python(state, actions)
        for a, b in zip(one, two):
            np.testing.assert_array_equal(a, b)
        state = one[0]


def test_python_environments_make_the_same_run_and_resume(tmp_path):
    """The walks of both forms are the same, bit for bit, since both draw from the number of walks."""
    short = ["run.eval_data = None", "ppo_gridworld.PPOTrainer.horizon = 8", "ppo_gridworld.train_data.horizon = 8"]
    for name, steps, params in ("graph", 32, []), ("python", 16, PYTHON), ("python", 32, PYTHON):
        run_config("ppo_gridworld", tmp_path / name, *short, *params, f"run.train_steps = {steps}")
    graph, python = read_checkpoint(tmp_path / "graph"), read_checkpoint(tmp_path / "python")
    assert graph["walks"] == 3 and python["walks"] == 2  # the graph has walked for the next step already
    for name in ("dense/kernel", "dense_1/kernel", "dense_2/kernel"):
        np.testing.assert_allclose(python[name], graph[name], atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("params", [[], PYTHON], ids=["graph", "python"])
def test_it_finds_the_goal(params, tmp_path):
    """The mean return of the shortest ways is .936."""
    assert read_last_rows(run_config("ppo_gridworld", tmp_path, *params))["validation"]["metrics/return"] > 0.85
