"""Schedule-free learning (Defazio et al. 2024, 2405.15682): an average of the iterates replaces a decaying rate."""

from collections.abc import Callable

import keras
import tensorflow as tf

from optimizers.base import (
    Optimizer,
    check_count,
    check_decay_rate,
    check_number,
    check_positive,
    check_weight_decay,
    config_of,
    widen,
)


class _ScheduleFree(Optimizer):
    """The three sequences of the paper: z takes the steps, x is their average, and gradients are taken at y in between.

        z <- z - gamma * (direction + weight_decay * y)
        c  = gamma^2 / (sum of gamma^2 up to now)
        x <- (1 - c) * x + c * z
        y  = (1 - beta) * z + beta * x

    x and z are slot variables and y is computed from them, so that the values of
    the weights between two updates (x after a swap, a rounded y in half precision)
    do not change the sequences. This takes one more slot variable than computing
    x from y and z.
    """

    def __init__(self, learning_rate, beta, weight_decay, warmup_steps, **kwargs):
        super().__init__(learning_rate, **kwargs)
        self._beta = beta
        self._decay = check_weight_decay(weight_decay)
        self.warmup_steps = check_count("warmup_steps", warmup_steps, 0, "0 starts at the full rate.")
        self._put_back = None  # the values before the last swap, and its update

    def build(self, variables):
        super().build(variables)
        for variable in variables:
            if getattr(variable, "constraint", None) is not None:
                raise ValueError(
                    f"`{type(self).__name__}` cannot train {variable.path!r}, which has a constraint: it would hold "
                    "for y, but not for the average x that is evaluated. Remove the constraint, or use another "
                    "optimizer."
                )
        self._z, self._x = self.add_optimizer_variables(variables, ["z", "x"])
        self._weight_sum = self.add_variable((), aggregation="only_first_replica", name="weight_sum")

    def apply(self, grads, trainable_variables=None):
        """Takes one step; traced, per replica. The sum of weights is shared by all variables."""
        if len(grads) == 0:
            return
        if not self.built and trainable_variables is not None:
            self.build(list(trainable_variables))
        self._weight_sum.assign_add(tf.square(self._scaled(self.learning_rate)))
        super().apply(grads, trainable_variables)

    def update_step(self, gradient, variable, learning_rate):
        i = self.index(variable)
        g, y = widen(gradient), widen(variable)
        gamma = self._scaled(learning_rate, g.dtype)
        weight = tf.square(self._scaled(self.learning_rate, g.dtype))
        c = tf.math.divide_no_nan(weight, tf.cast(self._weight_sum, g.dtype))
        # Weights may be loaded after `build`, so the sequences start from the weights at the first update.
        starts = tf.equal(self.iterations, 0)
        z, x = (tf.where(starts, y, widen(slot)) for slot in (self._z[i], self._x[i]))
        z -= gamma * (self.direction(g, i) + self.at_step(self._decay, g.dtype) * y)
        x = (1 - c) * x + c * z
        self.assign(self._z[i], z)
        self.assign(self._x[i], x)
        self.assign(variable, self._between(z, x))

    def direction(self, gradient, index):
        """Returns the direction of z's step."""
        return gradient

    def _scaled(self, learning_rate, dtype=tf.float32):
        """Returns gamma: the learning rate with its warm-up."""
        t = tf.cast(self.iterations + 1, dtype)
        return tf.cast(learning_rate, dtype) * tf.minimum(t / max(self.warmup_steps, 1), 1.0)

    def _between(self, z, x):
        return (1 - self._beta) * z + self._beta * x

    def swap_to_eval(self, variables: list) -> None:
        """Assigns the average x to `variables`, for evaluation and export; eager. A second swap has no effect."""
        now = int(self.iterations.numpy())
        if now == 0 or (self._put_back is not None and self._put_back[0] == now):
            return
        kept = [tf.identity(variable.value) for variable in variables]
        # Held by a function: Keras would treat a list of tensors as state, and try to save it.
        self._put_back = (now, lambda: [variable.assign(value) for variable, value in zip(variables, kept)])
        for variable in variables:
            variable.assign(tf.cast(widen(self._x[self.index(variable)]), variable.dtype))

    def swap_to_train(self, variables: list) -> None:
        """Restores y in `variables`, bit for bit as before `swap_to_eval`; eager.

        Without a swap in this process (a checkpoint was written at x), y is
        computed from the slot variables. Without swapping back, training takes
        only one gradient at x instead of y.
        """
        now, put_back = int(self.iterations.numpy()), self._put_back
        self._put_back = None
        if put_back is not None and put_back[0] == now:
            put_back[1]()
        elif now > 0:
            for variable in variables:
                i = self.index(variable)
                variable.assign(tf.cast(self._between(widen(self._z[i]), widen(self._x[i])), variable.dtype))

    def finalize_variable_values(self, var_list):
        """`fit` calls this at its end: the variables of the trained model hold x."""
        self.swap_to_eval(var_list)

    def get_config(self):
        return {**super().get_config(), "weight_decay": config_of(self._decay), "warmup_steps": self.warmup_steps}


@keras.saving.register_keras_serializable(package="gradloom")
class ScheduleFreeSGD(_ScheduleFree):
    """Gradient descent that needs no decaying learning rate (Defazio et al. 2024, 2405.15682, eq. 3-5).

        y  = (1 - beta) * z + beta * x                         the model's weights in training
        z <- z - gamma * (gradient at y + weight_decay * y)    gamma = learning_rate * min(1, t / warmup_steps)
        x <- (1 - c) * x + c * z                               c = gamma^2 / sum of gamma^2; evaluated

    Call `swap_to_eval(variables)` before an evaluation or export and
    `swap_to_train(variables)` after it; `fit` ends at x. BatchNormalization's
    moving statistics are those of y: run some batches in training mode at x before an evaluation.

    Args:
        learning_rate: number, schedule, or callable; larger than for plain gradient descent.
        beta: float in [0, 1], where between z (0) and x (1) the gradient is taken.
        weight_decay: float >= 0, or a schedule.
        warmup_steps: int >= 0, updates over which the rate rises.
        **kwargs: those of `keras.optimizers.Optimizer`.

    Raises:
        ValueError: an argument out of its range, or (when built) a variable with a constraint.
    """

    def __init__(
        self,
        learning_rate: float | Callable = 1.0,
        beta: float = 0.9,
        weight_decay: float | Callable = 0.0,
        warmup_steps: int = 0,
        **kwargs,
    ):
        super().__init__(learning_rate, _check_beta("beta", beta), weight_decay, warmup_steps, **kwargs)
        self.beta = self._beta

    def build(self, variables):
        if not self.built:
            super().build(variables)

    def get_config(self):
        return {**super().get_config(), "beta": self.beta}


@keras.saving.register_keras_serializable(package="gradloom")
class ScheduleFreeAdamW(_ScheduleFree):
    """AdamW that needs no decaying learning rate (Defazio et al. 2024, 2405.15682, algorithm 1).

        y  = (1 - beta_1) * z + beta_1 * x                     the model's weights in training
        v <- beta_2 * v + (1 - beta_2) * g^2                   g the gradient at y
        gamma = learning_rate * sqrt(1 - beta_2^t) * min(1, t / warmup_steps)
        z <- z - gamma * (g / (sqrt(v) + epsilon) + weight_decay * y)
        x <- (1 - c) * x + c * z                               c = gamma^2 / sum of gamma^2; evaluated

    In `keras.optimizers.ScheduleFreeAdamW` of Keras 3.15 on TensorFlow beta_1
    has no effect. In gin name this one in full: `@optimizers.ScheduleFreeAdamW()`.

    Call `swap_to_eval(variables)` before an evaluation or export and
    `swap_to_train(variables)` after it; `fit` ends at x. BatchNormalization's
    moving statistics are those of y: run some batches in training mode at x before an evaluation.

    Args:
        learning_rate: number, schedule, or callable; 1 to 10 times that of AdamW.
        beta_1: float in [0, 1], where between z (0) and x (1) the gradient is taken.
        beta_2: float in [0, 1).
        epsilon: float > 0.
        weight_decay: float >= 0, or a schedule.
        warmup_steps: int >= 0, updates over which the rate rises.
        **kwargs: those of `keras.optimizers.Optimizer`.

    Raises:
        ValueError: an argument out of its range, or (when built) a variable with a constraint.
    """

    def __init__(
        self,
        learning_rate: float | Callable = 0.0025,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float | Callable = 0.0,
        warmup_steps: int = 0,
        **kwargs,
    ):
        super().__init__(learning_rate, _check_beta("beta_1", beta_1), weight_decay, warmup_steps, **kwargs)
        self.beta_1, self.beta_2 = self._beta, check_decay_rate("beta_2", beta_2)
        self.epsilon = check_positive("epsilon", epsilon, "The authors use 1e-8.")

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._velocities = self.add_optimizer_variables(variables, "velocity")

    def direction(self, gradient, index):
        v = self.beta_2 * widen(self._velocities[index]) + (1 - self.beta_2) * tf.square(gradient)
        self.assign(self._velocities[index], v)
        return gradient / (tf.sqrt(v) + self.epsilon)

    def _scaled(self, learning_rate, dtype=tf.float32):
        t = tf.cast(self.iterations + 1, dtype)
        return super()._scaled(learning_rate, dtype) * tf.sqrt(1 - self.beta_2**t)

    def get_config(self):
        return {**super().get_config(), "beta_1": self.beta_1, "beta_2": self.beta_2, "epsilon": self.epsilon}


def _check_beta(name, value):
    return check_number(
        name, value, "a number in [0, 1]", lambda x: 0 <= x <= 1, "The paper uses 0.9, and 0.95 to 0.98 on long runs."
    )
