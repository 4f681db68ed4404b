"""Gradient descent with momentum: the shortest whole optimizer, to be copied when you write your own."""

import keras
import tensorflow as tf

from optimizers.base import Optimizer, check_number, widen


@keras.saving.register_keras_serializable(package="gradloom")
class MomentumSGD(Optimizer):
    """Gradient descent with momentum (Polyak 1964; nesterov: Sutskever et al. 2013).

        m <- momentum * m - learning_rate * gradient
        v <- v + m                                              nesterov=False
        v <- v + momentum * m - learning_rate * gradient        nesterov=True

    Args:
        learning_rate: number, schedule, or callable without arguments.
        momentum: float in [0, 1]. 0 is plain gradient descent, 1 never forgets.
        nesterov: whether the gradient counts as taken where the momentum leads.
        **kwargs: those of `keras.optimizers.Optimizer`: `name`, `weight_decay` (decoupled), clipping, ...

    Raises:
        ValueError: `momentum` is outside [0, 1].

    Example:
        >>> v = keras.Variable(0.0)
        >>> optimizer = MomentumSGD(0.1, momentum=0.5)
        >>> optimizer.apply([tf.constant(1.0)], [v])  # m = -0.1
        >>> optimizer.apply([tf.constant(1.0)], [v])  # m = -0.15
        >>> round(float(v.numpy()), 6)
        -0.25
    """

    def __init__(self, learning_rate=0.01, momentum=0.9, nesterov=False, **kwargs):
        super().__init__(learning_rate, **kwargs)
        fix = "It is the share of the last step that is taken again; 0.9 is usual."
        self.momentum = check_number("momentum", momentum, "a number in [0, 1]", lambda x: 0 <= x <= 1, fix)
        self.nesterov = nesterov

    def build(self, variables):
        """Creates the slots, one per variable; eager, in the strategy's scope, before the first trace."""
        if self.built:
            return
        super().build(variables)
        # Made this way a slot gets its variable's shape, device and name, and the checkpoint finds it by that name.
        self._momentums = self.add_optimizer_variables(variables, "momentum")

    def update_step(self, gradient, variable, learning_rate):
        """Updates one variable; traced. `gradient` is the same on all replicas, so that no replica may add anything of its own."""
        slot = self._momentums[self.index(variable)]
        gradient = widen(gradient)  # float32 maths, also for half precision
        step = tf.cast(learning_rate, gradient.dtype) * gradient
        m = self.momentum * widen(slot) - step
        # `self.assign` casts to the variable's dtype and works on every replica; a value computed before an
        # assignment stays what it was, one read from the variable after it does not.
        self.assign(slot, m)
        self.assign(variable, widen(variable) + (self.momentum * m - step if self.nesterov else m))

    def get_config(self):
        """Returns the constructor's arguments, so that a saved model brings its optimizer along."""
        return {**super().get_config(), "momentum": self.momentum, "nesterov": self.nesterov}
