"""LARS and LAMB: scale each layer's step by the norm of its weights, for batches of thousands."""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from optimizers.base import (
    Optimizer,
    as_list,
    check_decay_rate,
    check_positive,
    check_weight_decay,
    config_of,
    widen,
)


class _TrustRatio(Optimizer):
    """Base class of LARS and LAMB: weight decay inside the ratio, and variables excluded from decay or ratio."""

    def __init__(self, learning_rate, weight_decay, exclude_from_decay, exclude_from_adaptation, **kwargs):
        super().__init__(learning_rate, **kwargs)
        # Not Keras' `weight_decay`, which is applied outside the ratio.
        self._decay = check_weight_decay(weight_decay)
        self.exclude_from_decay = as_list(exclude_from_decay)
        self.exclude_from_adaptation = None if exclude_from_adaptation is None else as_list(exclude_from_adaptation)

    def build(self, variables):
        super().build(variables)
        self._decays = self._left_in("exclude_from_decay", self.exclude_from_decay, variables)
        self._adapts = self._decays
        if self.exclude_from_adaptation is not None:
            self._adapts = self._left_in("exclude_from_adaptation", self.exclude_from_adaptation, variables)

    def _left_in(self, argument, patterns, variables):
        return tuple(not numbers for numbers in self.find(argument, patterns, variables))

    def _decay_of(self, index, dtype):
        return self.at_step(self._decay if self._decays[index] else 0.0, dtype)

    def get_config(self):
        unadapted = self.exclude_from_adaptation
        return {
            **super().get_config(),
            "weight_decay": config_of(self._decay),
            "exclude_from_decay": list(self.exclude_from_decay),
            "exclude_from_adaptation": None if unadapted is None else list(unadapted),
        }


@keras.saving.register_keras_serializable(package="gradloom")
class LARS(_TrustRatio):
    """Layer-wise adaptive rate scaling (You, Gitman, Ginsburg 2017, 1708.03888, algorithm 1).

        r = trust_coefficient * |w| / (|g| + weight_decay * |w|)       1 where either norm is 0
        m <- momentum * m + learning_rate * r * (g + weight_decay * w)
        w <- w - m

    The norms are those of a whole variable, the gradient's the reduced one.

    Args:
        learning_rate: number, schedule, or callable without arguments.
        momentum: float in [0, 1).
        weight_decay: float >= 0, or a schedule.
        trust_coefficient: float > 0, how far a step may take a layer; the paper's eta.
        exclude_from_decay: patterns of whole variable names, e.g. ['.*bias', '.*gamma', '.*beta'].
        exclude_from_adaptation: patterns of variables of ratio 1, as in plain momentum; None: `exclude_from_decay`.
        **kwargs: those of `keras.optimizers.Optimizer`.

    Raises:
        ValueError: an argument out of its range, or (when built) a pattern that matches no variable.
    """

    def __init__(
        self,
        learning_rate: float | Callable = 1.0,
        momentum: float = 0.9,
        weight_decay: float | Callable = 0.0,
        trust_coefficient: float = 0.001,
        exclude_from_decay: str | Sequence[str] = (),
        exclude_from_adaptation: str | Sequence[str] | None = None,
        **kwargs,
    ):
        super().__init__(learning_rate, weight_decay, exclude_from_decay, exclude_from_adaptation, **kwargs)
        self.momentum = check_decay_rate("momentum", momentum)
        self.trust_coefficient = check_positive("trust_coefficient", trust_coefficient, "The paper uses 0.001.")

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._momentums = self.add_optimizer_variables(variables, "momentum")

    def update_step(self, gradient, variable, learning_rate):
        i = self.index(variable)
        g, w = widen(gradient), widen(variable)
        rate, decay = tf.cast(learning_rate, g.dtype), self._decay_of(i, g.dtype)
        if self._adapts[i]:
            w_norm, g_norm = tf.norm(w), tf.norm(g)
            rate *= _ratio(self.trust_coefficient * w_norm, g_norm + decay * w_norm, (w_norm > 0) & (g_norm > 0))
        m = self.momentum * widen(self._momentums[i]) + rate * (g + decay * w)
        self.assign(self._momentums[i], m)
        self.assign(variable, w - m)

    def get_config(self):
        return {**super().get_config(), "momentum": self.momentum, "trust_coefficient": self.trust_coefficient}


@keras.saving.register_keras_serializable(package="gradloom")
class LAMB(_TrustRatio):
    """Adam with the step of each layer in proportion to its weights (You et al. 2020, 1904.00962, algorithm 2).

        m <- beta_1 * m + (1 - beta_1) * g,       v <- beta_2 * v + (1 - beta_2) * g^2
        u = m / (1 - beta_1^t) / (sqrt(v / (1 - beta_2^t)) + epsilon) + weight_decay * w
        w <- w - learning_rate * |w| / |u| * u                         ratio 1 where either norm is 0

    `keras.optimizers.Lamb` applies weight decay outside the ratio and adapts every variable.

    Args:
        learning_rate: number, schedule, or callable without arguments.
        beta_1, beta_2: floats in [0, 1).
        epsilon: float > 0; the paper's 1e-6.
        weight_decay: float >= 0, or a schedule; 0.01 in the paper's BERT.
        exclude_from_decay: patterns of whole variable names, e.g. ['.*bias', '.*gamma', '.*beta'].
        exclude_from_adaptation: patterns of variables of ratio 1, as in plain Adam; None: `exclude_from_decay`.
        **kwargs: those of `keras.optimizers.Optimizer`.

    Raises:
        ValueError: an argument out of its range, or (when built) a pattern that matches no variable.
    """

    def __init__(
        self,
        learning_rate: float | Callable = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-6,
        weight_decay: float | Callable = 0.0,
        exclude_from_decay: str | Sequence[str] = (),
        exclude_from_adaptation: str | Sequence[str] | None = None,
        **kwargs,
    ):
        super().__init__(learning_rate, weight_decay, exclude_from_decay, exclude_from_adaptation, **kwargs)
        self.beta_1, self.beta_2 = check_decay_rate("beta_1", beta_1), check_decay_rate("beta_2", beta_2)
        self.epsilon = check_positive("epsilon", epsilon, "The paper uses 1e-6.")

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._momentums, self._velocities = self.add_optimizer_variables(variables, ["momentum", "velocity"])

    def update_step(self, gradient, variable, learning_rate):
        i = self.index(variable)
        g, w = widen(gradient), widen(variable)
        t = tf.cast(self.iterations + 1, g.dtype)
        m = self.beta_1 * widen(self._momentums[i]) + (1 - self.beta_1) * g
        v = self.beta_2 * widen(self._velocities[i]) + (1 - self.beta_2) * tf.square(g)
        u = m / (1 - self.beta_1**t) / (tf.sqrt(v / (1 - self.beta_2**t)) + self.epsilon)
        u += self._decay_of(i, g.dtype) * w
        rate = tf.cast(learning_rate, g.dtype)
        if self._adapts[i]:
            w_norm, u_norm = tf.norm(w), tf.norm(u)
            rate *= _ratio(w_norm, u_norm, (w_norm > 0) & (u_norm > 0))
        self.assign(self._momentums[i], m)
        self.assign(self._velocities[i], v)
        self.assign(variable, w - rate * u)

    def get_config(self):
        return {**super().get_config(), "beta_1": self.beta_1, "beta_2": self.beta_2, "epsilon": self.epsilon}


def _ratio(over, under, defined):
    """Returns over / under, or 1 if it is undefined, so that a layer of zeros can be trained."""
    return tf.where(defined, tf.math.divide_no_nan(over, under), tf.ones_like(over))
