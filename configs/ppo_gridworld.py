"""Proximal policy optimization in a maze: walks made by the policy are the data of the next epochs."""

import keras
import numpy as np
import tensorflow as tf

from trainer import Trainer, configurable, data, global_mean

MAZE = (".......", ".###.#.", ".#...#.", ".#.#.#.", "...#...", ".#####.", "......G")
FREE = np.array([(row, column) for row in range(7) for column in range(7) if MAZE[row][column] == "."], "int32")
MOVES = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)], "int32")
GOAL, LIMIT, PRICE = np.array([6, 6], "int32"), 40, 0.01  # an episode ends at the goal, or after 40 moves


def move(state, actions):
    """Moves walkers, who stay where a wall is: the environment as operations.

    Args:
      state: int32 [n, 3]: row, column, moves since the start.
      actions: int32 [n], into MOVES.

    Returns:
      (state, bool [n]: at the goal, bool [n]: the episode ends).
    """
    wished = tf.clip_by_value(state[:, :2] + tf.gather(MOVES, actions), 0, 6)
    wall = tf.constant([[cell == "#" for cell in row] for row in MAZE])
    place = tf.where(tf.gather_nd(wall, wished)[:, None], state[:, :2], wished)
    at_goal = tf.reduce_all(place == GOAL, 1)
    state = tf.concat([place, state[:, 2:] + 1], 1)
    return state, at_goal, at_goal | (state[:, 2] >= LIMIT)


def move_in_python(state, actions):
    """The same environment in Python, walker by walker: any simulator can stand here; eager."""
    states, at_goals = [], []
    for (row, column, moves), action in zip(state.numpy().tolist(), actions.numpy().tolist()):
        down, right = MOVES[action].tolist()
        wished = min(max(row + down, 0), 6), min(max(column + right, 0), 6)
        row, column = wished if MAZE[wished[0]][wished[1]] != "#" else (row, column)
        states.append([row, column, moves + 1])
        at_goals.append([row, column] == GOAL.tolist())
    states, at_goals = tf.constant(states, tf.int32), tf.constant(at_goals)
    return states, at_goals, at_goals | (states[:, 2] >= LIMIT)


@configurable
def train_data(lanes=32, horizon=32, batch_size=256, seed=0):
    """Endless shuffled batches of rows of the walks, int32 [B]: a pass over the source is an epoch over them."""
    return data.from_arrays(np.arange(lanes * horizon, dtype="int32"), batch_size, seed=seed)


@configurable
def eval_data(lanes=32, horizon=32):
    """All rows, in one batch."""
    rows = np.arange(lanes * horizon, dtype="int32")
    return data.from_arrays(rows, len(rows), repeat=False)


@configurable
def actor_critic(units=(64, 64)):
    """Returns a model of cells, int32 [n, 2], to (logits of the four moves [n, 4], value [n])."""
    cells = keras.Input((2,), dtype="int32")
    x = keras.layers.Flatten()(keras.ops.one_hot(cells, 7))
    for width in units:
        x = keras.layers.Dense(width, activation="tanh")(x)
    values = keras.layers.Reshape(())(keras.layers.Dense(1)(x))
    return keras.Model(cells, (keras.layers.Dense(len(MOVES))(x), values))


def advantages(rewards, values, ends, discount, trace):
    """Returns generalized advantage estimates, [T, n] (Schulman et al. 2016, 1506.02438, eq. 16).

    Args:
      rewards, ends: float32 [T, n]; `ends` is 1 where an episode ends with the move.
      values: float32 [T + 1, n], of the cells before each move and after the last.
      discount, trace: numbers, gamma and lambda.
    """
    errors = rewards + discount * (1 - ends) * values[1:] - values[:-1]

    def back(later, now):
        error, end = now
        return error + discount * trace * (1 - end) * later

    return tf.scan(back, (errors, ends), tf.zeros_like(errors[0]), reverse=True)


class PPOTrainer(Trainer):
    """Maximizes the clipped objective over some epochs of each walk (Schulman et al. 2017, 1707.06347, algorithm 1).

    Args:
      model: actor and critic.
      lanes, horizon: int, walkers and moves of a walk; as in `train_data`.
      every: int, steps between walks: epochs times batches of an epoch.
      discount, trace: numbers, gamma and lambda.
      clip: number, the largest change of a probability that gains, as a ratio.
      in_python: bool, whether `train_begin` walks, with environments in Python: `every` is then `run.steps_per_loop`.
    """

    def __init__(
        self, model, lanes=32, horizon=32, every=16, discount=0.95, trace=0.9, clip=0.2, in_python=False, **kwargs
    ):
        super().__init__(model, **kwargs)
        self.horizon, self.every, self.in_python = horizon, every, in_python
        self.discount, self.trace, self.clip = discount, trace, clip
        start = np.append(FREE[np.arange(lanes) % len(FREE)], np.zeros([lanes, 1], "int32"), 1)

        def variable(name, value):
            return keras.Variable(value, trainable=False, dtype=value.dtype, name=name)

        self.walkers, self.walks = variable("walkers", start), variable("walks", np.array(0, "int32"))
        rows = horizon * lanes
        self.moved = variable("moved", np.zeros([rows, 3], "int32"))  # cell and move
        # Of each move: log probability, advantage, return.
        self.estimated = variable("estimated", np.zeros([rows, 3], "float32"))
        self.returned = variable("returned", np.zeros([2], "float32"))  # of the episodes that ended: sum and number
        if not in_python:
            self.write(self.walk())

    def compute_losses(self, batch, training):
        """Returns the losses per row, [B]; traced, per replica."""
        moved, estimated = tf.gather(self.moved.value, batch), tf.gather(self.estimated.value, batch)
        old, advantage, returned = tf.unstack(estimated, axis=1)
        mean = global_mean(advantage)
        advantage = (advantage - mean) / (tf.sqrt(global_mean(tf.square(advantage - mean))) + 1e-6)
        logits, values = self.model(moved[:, :2], training=training)
        logs = tf.nn.log_softmax(logits)
        ratio = tf.exp(tf.gather(logs, moved[:, 2], batch_dims=1) - old)
        clipped = tf.clip_by_value(ratio, 1 - self.clip, 1 + self.clip)
        return {
            "policy": -tf.minimum(ratio * advantage, clipped * advantage),
            "value": tf.square(values - returned),
            "negative_entropy": tf.reduce_sum(tf.exp(logs) * logs, 1),
        }

    def after_update(self, batch, outputs):
        """Walks after each `every` steps; traced, per replica, the same on all."""
        if not self.in_python:
            due = (self.global_step + 1) % self.every == 0
            self.write(tf.cond(due, self.walk, lambda: [tf.identity(v.value) for v in self.walked()]))

    def train_begin(self):
        """Walks with Python environments where the epochs over the last walk are done; eager."""
        if self.in_python and int(self.global_step) % self.every == 0:
            self.write(self.walk(move_in_python))

    def walked(self):
        """Returns the variables that `walk` computes."""
        return [self.walkers, self.walks, self.moved, self.estimated, self.returned]

    def write(self, values):
        """Assigns what `walk` returns."""
        for variable, value in zip(self.walked(), values, strict=True):
            variable.assign(value)

    def walk(self, environment=move):
        """Takes `horizon` moves with each walker; its random numbers depend on the number of walks alone.

        Returns:
          (walkers, walks, moved, estimated, returned), the new values of these variables.
        """
        lanes, rows = self.walkers.shape[0], self.moved.shape[0]

        def one_move(last, number):
            state, *_ = last
            seeds = tf.unstack(tf.random.split(tf.stack([self.walks.value, number]), 2))
            logits, value = self.model(state[:, :2])
            action = tf.random.stateless_categorical(logits, 1, seeds[0], tf.int32)[:, 0]
            moved = tf.concat([state[:, :2], action[:, None]], 1)
            log = tf.gather(tf.nn.log_softmax(logits), action, batch_dims=1)
            state, at_goal, end = environment(state, action)
            cells = tf.gather(FREE, tf.random.stateless_uniform([lanes], seeds[1], maxval=len(FREE), dtype=tf.int32))
            state = tf.where(end[:, None], tf.pad(cells, [[0, 0], [0, 1]]), state)
            return state, moved, log, value, tf.cast(at_goal, tf.float32) - PRICE, tf.cast(end, tf.float32)

        numbers, zeros = tf.zeros([lanes, 3], tf.int32), [tf.zeros([lanes])] * 4
        state, moved, logs, values, rewards, ends = tf.scan(
            one_move, tf.range(self.horizon), (self.walkers.value, numbers, *zeros)
        )  # [T, n, ...]
        values = tf.concat([values, self.model(state[-1, :, :2])[1][None]], 0)
        gains = advantages(rewards, values, ends, self.discount, self.trace)
        estimated = tf.reshape(tf.stack([logs, gains, gains + values[:-1]], 2), [rows, 3])
        returned = tf.stack([tf.reduce_sum(rewards), tf.reduce_sum(ends)])
        return [state[-1], self.walks.value + 1, tf.reshape(moved, [rows, 3]), estimated, returned]

    def train_end(self, metrics):
        """Adds the reward of the last walk for each episode that ended in it; eager."""
        total, episodes = self.returned.numpy()
        return {**metrics, "metrics/reward_per_episode": float(total / max(episodes, 1))}

    def eval_end(self, metrics):
        """Adds the mean return of walks with the likeliest moves from all free cells; eager."""
        state, returns = tf.pad(FREE, [[0, 0], [0, 1]]), np.zeros(len(FREE))
        walking = np.ones(len(FREE), bool)
        for _ in range(LIMIT):
            state, at_goal, _ = move(state, tf.argmax(self.model(state[:, :2])[0], 1, tf.int32))
            returns += walking * (at_goal.numpy() - PRICE)
            walking &= ~at_goal.numpy()
        return {**metrics, "metrics/return": float(returns.mean())}
