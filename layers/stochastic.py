"""Parts of a network that are left out at random."""

import keras
import tensorflow as tf

from layers.base import check_rate


@keras.saving.register_keras_serializable(package="gradloom")
class DropPath(keras.layers.Layer):
    """Leaves out a residual branch for whole examples: stochastic depth (Huang et al. 2016, 1603.09382).

    x mask / (1 - rate) with one draw for each example, so that the expectation
    is x and evaluation does nothing. (The paper draws once for a batch, and
    multiplies by 1 - rate in evaluation; the expectations are the same.)
    Use it at the end of the branch, before the addition: `x + drop(branch(x))`.

    Args:
        rate: float in [0, 1], probability of leaving an example's branch out; 1 gives zeros.
        seed: int or None.

    Shapes: float [B, ...] -> the same. The mask is passed on.

    Raises:
        ValueError: for a `rate` outside [0, 1].
    """

    def __init__(self, rate, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.rate, self.seed = check_rate(rate, " 0 keeps every branch."), seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.supports_masking = True

    def call(self, inputs, training=False):
        if not training or self.rate == 0:
            return inputs
        if self.rate == 1:
            return tf.zeros_like(inputs)
        shape = tf.concat([tf.shape(inputs)[:1], tf.ones([tf.rank(inputs) - 1], tf.int32)], 0)
        # Half precision has too few numbers between 0 and 1 to hit a rate; u < rate has probability `rate` in float32.
        dropped = keras.random.uniform(shape, dtype="float32", seed=self.seed_generator) < self.rate
        # A where, not a product: an inf in a branch that is left out is left out.
        return tf.where(dropped, tf.zeros_like(inputs), inputs / tf.constant(1 - self.rate, inputs.dtype))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}
