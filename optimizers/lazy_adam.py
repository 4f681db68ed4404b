"""Adam that updates only the rows of an embedding that the batch uses."""

from collections.abc import Callable

import keras
import tensorflow as tf

from optimizers.base import Optimizer, check_decay_rate, check_positive, widen
from optimizers.transforms import unique_rows


@keras.saving.register_keras_serializable(package="gradloom")
class LazyAdam(Optimizer):
    """Adam (Kingma, Ba 2015, 1412.6980) whose averages move only in the rows that a sparse gradient touches.

        m <- beta_1 * m + (1 - beta_1) * g,    v <- beta_2 * v + (1 - beta_2) * g^2             touched rows
        w <- w - learning_rate * sqrt(1 - beta_2^t) / (1 - beta_1^t) * m / (sqrt(v) + epsilon)   touched rows

    t counts the optimizer's updates, not the row's. Repeated rows are summed
    first. Dense Adam decays m and v of every row and moves all rows at each step,
    which is slow for a large table and moves rare rows.

    With a dense gradient this is Adam. Under XLA the gradients of embeddings are
    dense: for a variable named `embeddings`, rows that are not all zero count as touched.

    Args:
        learning_rate: number, schedule, or callable without arguments.
        beta_1, beta_2: floats in [0, 1).
        epsilon: float > 0.
        **kwargs: those of `keras.optimizers.Optimizer`. Its `weight_decay` decays every row at each step.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        learning_rate: float | Callable = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        **kwargs,
    ):
        super().__init__(learning_rate, **kwargs)
        self.beta_1, self.beta_2 = check_decay_rate("beta_1", beta_1), check_decay_rate("beta_2", beta_2)
        self.epsilon = check_positive("epsilon", epsilon, "1e-7 is Keras' default.")

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._momentums, self._velocities = self.add_optimizer_variables(variables, ["momentum", "velocity"])
        self._is_table = tuple(variable.name == "embeddings" for variable in variables)

    def update_step(self, gradient, variable, learning_rate):
        i = self.index(variable)
        held = (variable, self._momentums[i].value, self._velocities[i].value)
        if isinstance(gradient, tf.IndexedSlices):
            gradient = unique_rows(gradient)  # in `fit` a row may be repeated
            rows = gradient.indices
            moved = self._adam(widen(gradient.values), *(widen(tf.gather(x, rows)) for x in held), learning_rate)
            for target, values in zip(held, moved):
                self.assign(target, tf.IndexedSlices(values, rows))
            return
        g, old = widen(gradient), [widen(x) for x in held]
        moved = self._adam(g, *old, learning_rate)
        if self._is_table[i]:
            touched = tf.reduce_any(g != 0, axis=list(range(1, g.shape.rank)), keepdims=True)
            moved = [tf.where(touched, new, kept) for new, kept in zip(moved, old)]
        for target, values in zip(held, moved):
            self.assign(target, values)

    def _adam(self, g, w, m, v, learning_rate):
        """Returns the new (w, m, v)."""
        t = tf.cast(self.iterations + 1, g.dtype)
        m = self.beta_1 * m + (1 - self.beta_1) * g
        v = self.beta_2 * v + (1 - self.beta_2) * tf.square(g)
        rate = tf.cast(learning_rate, g.dtype) * tf.sqrt(1 - self.beta_2**t) / (1 - self.beta_1**t)
        return w - rate * m / (tf.sqrt(v) + self.epsilon), m, v

    def get_config(self):
        return {**super().get_config(), "beta_1": self.beta_1, "beta_2": self.beta_2, "epsilon": self.epsilon}
