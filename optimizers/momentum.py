"""Gradient descent with momentum: the shortest complete optimizer. Copy it to write your own."""

from collections.abc import Callable

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
        momentum: float in [0, 1]. 0 is plain gradient descent, 1 never decays.
        nesterov: whether to use Nesterov momentum.
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

    def __init__(self, learning_rate: float | Callable = 0.01, momentum: float = 0.9, nesterov: bool = False, **kwargs):
        super().__init__(learning_rate, **kwargs)
        fix = "It is the fraction of the previous step that is repeated; 0.9 is usual."
        self.momentum = check_number("momentum", momentum, "a number in [0, 1]", lambda x: 0 <= x <= 1, fix)
        self.nesterov = nesterov

    def build(self, variables):
        """Creates the slots, one per variable; eager, in the strategy's scope, before the first trace."""
        if self.built:
            return
        super().build(variables)
        # This gives a slot variable its variable's shape, device and name; the checkpoint uses the name.
        self._momentums = self.add_optimizer_variables(variables, "momentum")

    def update_step(self, gradient, variable, learning_rate):
        """Updates one variable; traced. `gradient` is equal on all replicas, and the update must be as well."""
        slot = self._momentums[self.index(variable)]
        gradient = widen(gradient)  # float32 arithmetic, also for half precision
        step = tf.cast(learning_rate, gradient.dtype) * gradient
        m = self.momentum * widen(slot) - step
        # `self.assign` casts to the variable's dtype and works on every replica. A value read before an assignment
        # does not change; read the variable again for the new one.
        self.assign(slot, m)
        self.assign(variable, widen(variable) + (self.momentum * m - step if self.nesterov else m))

    def get_config(self):
        """Returns the constructor's arguments, for saving the optimizer with a model."""
        return {**super().get_config(), "momentum": self.momentum, "nesterov": self.nesterov}
