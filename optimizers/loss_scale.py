"""Dynamic loss scaling for float16 (Micikevicius et al. 2018, 1710.03740, section 3.2).

Keras' LossScaleOptimizer checks the gradients of replica 0 only. This one uses
the reduced gradient; powers of two make scaling exact.
"""

import tensorflow as tf

_LARGEST, _SMALLEST = 2.0**24, 1.0
_GROWTH_INTERVAL = 2000  # finite steps after which the scale doubles; the paper's value


class LossScale:
    """A factor that avoids underflow of float16 gradients, and its adaptation.

    Created in the strategy's scope. `lower` and `count_finite` are traced, cross-replica.
    """

    def __init__(self, initial=2.0**15):
        only_first = tf.VariableAggregation.ONLY_FIRST_REPLICA
        self.value = tf.Variable(initial, trainable=False, name="loss_scale", aggregation=only_first)
        self.finite_steps = tf.Variable(0, trainable=False, name="finite_steps", dtype=tf.int64, aggregation=only_first)

    def at_smallest(self):
        """True if the scale cannot be lowered further."""
        return self.value <= _SMALLEST

    def lower(self):
        """Halves the scale after non-finite gradients."""
        self.value.assign(tf.maximum(self.value * 0.5, _SMALLEST))
        self.finite_steps.assign(0)

    def count_finite(self):
        """Counts a finite step, and doubles the scale after enough of them."""
        steps = self.finite_steps + 1
        grow = steps >= _GROWTH_INTERVAL
        self.value.assign(tf.where(grow, tf.minimum(self.value * 2.0, _LARGEST), self.value))
        self.finite_steps.assign(tf.where(grow, tf.zeros_like(steps), steps))
