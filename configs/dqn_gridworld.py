"""Deep Q-learning in a maze: the policy makes its own data; environments and replay buffer are variables."""

import keras
import numpy as np
import tensorflow as tf

from trainer import Trainer, configurable, data

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


class Maze:
    """The same environment in Python, for one walker: any simulator has such a `step`."""

    def __init__(self, state):
        self.state = [int(number) for number in state]

    def reset(self, random):
        """Puts the walker on a free cell that the numpy.random.Generator `random` draws."""
        self.state = [*FREE[random.integers(len(FREE))].tolist(), 0]

    def step(self, action):
        """Moves the walker; returns (whether it is at the goal, whether the episode ends)."""
        row, column, moves = self.state
        down, right = MOVES[action].tolist()
        wished = min(max(row + down, 0), 6), min(max(column + right, 0), 6)
        if MAZE[wished[0]][wished[1]] != "#":
            row, column = wished
        self.state = [row, column, moves + 1]
        at_goal = (row, column) == tuple(GOAL)
        return at_goal, at_goal or moves + 1 >= LIMIT


class Draws(data.Source):
    """Batches of random numbers in [0, 1), float32 [B], from (seed, step): places in the replay buffer."""

    def __init__(self, batch_size, seed, steps=None):
        self.batch_size, self.infinite, self.cardinality, self._seed = batch_size, steps is None, steps, seed

    def batches(self, start=0, chunk=None):
        """See `Source.batches`."""
        steps = tf.data.Dataset.range(start, np.iinfo(np.int64).max if self.infinite else self.cardinality)
        draws = steps.map(
            lambda step: tf.random.stateless_uniform([self.batch_size], tf.random.fold_in([self._seed, 0], step))
        )
        return draws.batch(chunk) if chunk else draws


@configurable
def train_data(batch_size=64, seed=0):
    """Endless draws."""
    return Draws(batch_size, seed)


@configurable
def eval_data(batch_size=256, seed=1):
    """One batch of draws."""
    return Draws(batch_size, seed, steps=1)


@configurable
def q_network(units=(64, 64)):
    """Returns a model of cells, int32 [n, 2], to the values of the four moves, [n, 4]."""
    cells = keras.Input((2,), dtype="int32")
    x = keras.layers.Flatten()(keras.ops.one_hot(cells, 7))
    for width in units:
        x = keras.layers.Dense(width, activation="relu")(x)
    return keras.Model(cells, keras.layers.Dense(len(MOVES))(x))


class DQNTrainer(Trainer):
    """Learns from a replay buffer (Mnih et al. 2015), with double Q-learning (van Hasselt et al. 2016, 1509.06461).

    Args:
      model, target: two networks; the second follows the first.
      lanes: int, walkers; each makes one move a step.
      capacity: int, transitions in the buffer, a multiple of `lanes`; random walks fill a quarter at the start.
      copy_every: int, steps between two copies into the target network.
      discount, epsilon: numbers; epsilon is the share of random moves.
    """

    def __init__(self, model, target, lanes=16, capacity=4096, copy_every=100, discount=0.95, epsilon=0.2, **kwargs):
        super().__init__(model, **kwargs)
        self.copy_every, self.discount, self.epsilon = copy_every, discount, epsilon
        self.target = target
        self.target.trainable = False
        self.target.set_weights(self.model.get_weights())

        def variable(name, value):
            return keras.Variable(value, trainable=False, dtype=value.dtype, name=name)

        start = np.append(FREE[np.arange(lanes) % len(FREE)], np.zeros([lanes, 1], "int32"), 1)
        self.walkers = variable("walkers", start)
        self.replay = variable("replay", np.zeros([capacity, 6], "int32"))  # cell, move, next cell, at the goal
        self.written = variable("written", np.array(0, "int32"))  # transitions so far
        for _ in range(capacity // lanes // 4):
            self.walk(epsilon=1.0)

    def compute_losses(self, batch, training):
        """Returns the Huber loss of each drawn transition, [B]; traced, per replica."""
        filled = tf.minimum(self.written.value, self.replay.shape[0])
        rows = tf.gather(self.replay.value, tf.cast(batch * tf.cast(filled, tf.float32), tf.int32))
        best = tf.argmax(self.model(rows[:, 3:5]), 1)
        following = tf.gather(self.target(rows[:, 3:5]), best, batch_dims=1)
        at_goal = tf.cast(rows[:, 5], tf.float32)
        wanted = at_goal - PRICE + self.discount * (1 - at_goal) * following
        error = tf.gather(self.model(rows[:, :2]), rows[:, 2], batch_dims=1) - tf.stop_gradient(wanted)
        return {"td": tf.where(tf.abs(error) < 1, tf.square(error) / 2, tf.abs(error) - 0.5)}

    def after_update(self, batch, outputs):
        """Walks a move, and copies the network if that is due; traced, per replica, the same on all."""
        self.walk(self.epsilon)
        self.copy()

    def copy(self):
        """Copies the network into the target network after each `copy_every` steps."""
        due = (self.global_step + 1) % self.copy_every == 0
        for slow, fast in zip(self.target.weights, self.model.weights, strict=True):
            slow.assign(tf.where(due, fast, slow))

    def walk(self, epsilon):
        """Takes a move with each walker and writes it into the buffer; its random numbers depend on `written` alone."""
        before, lanes = self.walkers.value, self.walkers.shape[0]
        seeds = tf.unstack(tf.random.split(tf.stack([0, self.written.value]), 3))
        at_random = tf.random.stateless_uniform([lanes], seeds[0]) < epsilon
        anywhere = tf.random.stateless_uniform([lanes], seeds[1], maxval=len(MOVES), dtype=tf.int32)
        actions = tf.where(at_random, anywhere, tf.argmax(self.model(before[:, :2]), 1, tf.int32))
        after, at_goal, ends = move(before, actions)
        self.record(tf.concat([before[:, :2], actions[:, None], after[:, :2], tf.cast(at_goal, tf.int32)[:, None]], 1))
        cells = tf.gather(FREE, tf.random.stateless_uniform([lanes], seeds[2], maxval=len(FREE), dtype=tf.int32))
        self.walkers.assign(tf.where(ends[:, None], tf.pad(cells, [[0, 0], [0, 1]]), after))

    def record(self, transitions):
        """Overwrites the oldest rows of the buffer with `transitions`, int32 [n, 6]."""
        count = len(transitions)
        rows = (self.written.value + tf.range(count)) % self.replay.shape[0]
        self.replay.assign(tf.tensor_scatter_nd_update(self.replay.value, rows[:, None], transitions))
        self.written.assign(self.written.value + count)

    def eval_end(self, metrics):
        """Adds the mean return of walks without random moves from all free cells; eager."""
        state, returns = tf.pad(FREE, [[0, 0], [0, 1]]), np.zeros(len(FREE))
        walking = np.ones(len(FREE), bool)
        for _ in range(LIMIT):
            state, at_goal, _ = move(state, tf.argmax(self.model(state[:, :2]), 1, tf.int32))
            returns += walking * (at_goal.numpy() - PRICE)
            walking &= ~at_goal.numpy()
        return {**metrics, "metrics/return": float(returns.mean())}


class PythonDQNTrainer(DQNTrainer):
    """The second form: Python environments, which `train_begin` steps before each loop; set `run.steps_per_loop` low.

    Args:
      moves: int, moves of each walker before a loop.
    """

    def __init__(self, model, target, moves=10, **kwargs):
        super().__init__(model, target, **kwargs)
        self.moves = moves

    def after_update(self, batch, outputs):
        """Copies the network if that is due; traced, per replica, the same on all."""
        self.copy()

    def train_begin(self):
        """Walks; eager. The walkers' places are put back into variables, so that a resumed run continues with them."""
        mazes = [Maze(state) for state in self.walkers.numpy()]
        random = np.random.default_rng(int(self.written.numpy()))
        for _ in range(self.moves):
            before = np.array([maze.state[:2] for maze in mazes], "int32")
            greedy = np.argmax(self.model(before), 1)
            at_random, anywhere = random.random(len(mazes)) < self.epsilon, random.integers(len(MOVES), size=len(mazes))
            transitions = []
            for maze, cell, action in zip(mazes, before, np.where(at_random, anywhere, greedy)):
                at_goal, ends = maze.step(action)
                transitions.append([*cell, action, *maze.state[:2], at_goal])
                if ends:
                    maze.reset(random)
            self.record(tf.constant(np.array(transitions, "int32")))
        self.walkers.assign(np.array([maze.state for maze in mazes], "int32"))
