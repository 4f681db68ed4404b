"""Weight averages, used for evaluation and export instead of the trained weights."""

import functools
from collections.abc import Callable

import tensorflow as tf

from optimizers.base import check_callable, check_count, check_decay_rate, check_number, widen


class WeightAverage:
    """Base class of the averages: one slot variable per weight, in float32 or wider, and the number of updates.

    A subclass defines the update, `move`, and its steps, `due`. All trained
    weights of a Trainer are averaged, over all of its groups.

    Args:
        data: a function that returns a source or dataset of training batches
            for computing BatchNormalization's statistics of the averaged
            weights; None: the statistics of the run are used.
        batches: int >= 1, number of these batches.
    """

    def __init__(self, data: Callable | None = None, batches: int = 100):
        self.data = check_callable("data", data, "a function that returns a source or dataset of training batches")
        self.batches = check_count(
            "batches", batches, 1, "It is the number of batches for BatchNormalization's statistics."
        )
        self.updates, self._pairs, self._strategy = None, [], None

    def build(self, named_variables):
        """Creates the slot variables for {name: keras.Variable}; eager, in the strategy's scope."""
        only_first = tf.VariableAggregation.ONLY_FIRST_REPLICA  # equal on all replicas, so no reduction is needed
        make = functools.partial(tf.Variable, trainable=False, aggregation=only_first)
        self._strategy = tf.distribute.get_strategy()
        self.updates = make(tf.zeros([], tf.int64), name="updates")
        self._pairs = [(v, make(widen(v.value), name=f"{name}/average")) for name, v in named_variables.items()]
        self.state = {name: slot for name, (_, slot) in zip(named_variables, self._pairs)} | {"updates": self.updates}

    def begin(self):
        """Initializes the average to the weights before the first update; eager, before a loop."""
        if int(self.updates.numpy()) == 0:
            for variable, slot in self._pairs:
                slot.assign(widen(variable.value))

    def update(self, step):
        """Updates the average if `step` (int64, steps done) is due; traced, cross-replica."""
        due = self.due(step)
        if due is True:
            self._take()
        else:
            tf.cond(due, self._take, functools.partial(tf.constant, True))

    def _take(self):
        n = self.updates.read_value()
        for variable, slot in self._pairs:  # on each device with its local values
            self._strategy.extended.update(slot, self.move, args=(variable.value, n))
        self.updates.assign_add(1)
        return tf.constant(True)

    def due(self, step):
        """Returns whether to include the weights after `step` steps: True, or a bool scalar; traced, cross-replica."""
        return True

    def move(self, average, weight, n):
        """Moves one tf.Variable `average` by the `weight`, after `n` (int64) updates; traced, on each device."""
        raise NotImplementedError

    def averaged(self) -> list[tuple]:
        """Returns [(keras.Variable, its averaged value in its own dtype)]; eager. Empty before the first update."""
        if int(self.updates.numpy()) == 0:
            return []
        return [(variable, tf.cast(slot.read_value(), variable.dtype)) for variable, slot in self._pairs]


class EMA(WeightAverage):
    """Exponential moving average (Polyak & Juditsky 1992; Tarvainen & Valpola 2017, 1703.01780).

        average <- decay * average + (1 - decay) * weight        after each step; the first step sets it

    Args:
        decay: float in [0, 1); .999 looks back over about 1,000 steps.
        data, batches: those of WeightAverage.
    """

    def __init__(self, decay: float = 0.999, data: Callable | None = None, batches: int = 100):
        super().__init__(data, batches)
        self.decay = check_decay_rate(
            "decay", decay, "It is the fraction of the average that a step keeps; .99 to .9999 are usual."
        )

    def move(self, average, weight, n):
        share = tf.where(tf.equal(n, 0), 1.0, 1 - self.decay)
        average.assign_add((widen(weight) - average) * tf.cast(share, average.dtype))


class SWA(WeightAverage):
    """Stochastic weight averaging (Izmailov et al. 2018, 1803.05407, algorithm 1).

        average <- average + (weight - average) / (n + 1)        at steps start, start + every, ...

    Train with a high or cyclical learning rate from `start` on. Before `start`,
    the weights themselves are evaluated.

    Args:
        start: int >= 1, the first step in the average.
        every: int >= 1, steps between updates.
        data: training batches, as in WeightAverage; a model with
            BatchNormalization needs them, because statistics cannot be averaged.
        batches: int >= 1.
    """

    def __init__(self, start: int, every: int = 1, data: Callable | None = None, batches: int = 100):
        super().__init__(data, batches)
        self.start = check_count("start", start, 1, "About three quarters of the training steps are usual.")
        self.every = check_count("every", every, 1, "The paper updates the average once per epoch or cycle.")

    def due(self, step):
        return tf.logical_and(step >= self.start, tf.equal(tf.math.floormod(step - self.start, self.every), 0))

    def move(self, average, weight, n):
        average.assign_add((widen(weight) - average) / tf.cast(n + 1, average.dtype))


class Lookahead(WeightAverage):
    """Slow weights that follow the fast ones and pull them back (Zhang et al. 2019, 1907.08610, algorithm 1).

        slow <- slow + alpha * (fast - slow);  fast <- slow      every `every` steps

    The state of the optimizers is kept, as in the paper's experiments.
    The slow weights are evaluated.

    Args:
        every: int >= 1, steps of the fast weights (the paper's k).
        alpha: float in (0, 1], the slow weights' step.
        data, batches: those of WeightAverage.
    """

    def __init__(self, every: int = 5, alpha: float = 0.5, data: Callable | None = None, batches: int = 100):
        super().__init__(data, batches)
        self.every = check_count("every", every, 1, "The paper uses 5 to 10.")
        self.alpha = check_number(
            "alpha", alpha, "a number in (0, 1]", lambda x: 0 < x <= 1, "The paper uses 0.5 to 0.8."
        )

    def due(self, step):
        return tf.equal(tf.math.floormod(step, self.every), 0)

    def move(self, average, weight, n):
        average.assign_add((widen(weight) - average) * self.alpha)

    def _take(self):
        super()._take()
        for variable, slot in self._pairs:
            self._strategy.extended.update(
                variable.value, lambda fast, slow: fast.assign(tf.cast(slow, fast.dtype)), args=(slot,)
            )
        return tf.constant(True)
