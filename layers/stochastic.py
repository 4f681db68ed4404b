"""Stochastic layers: residual branches dropped at random, and latent variables sampled from a learned distribution."""

from collections.abc import Callable

import keras
import tensorflow as tf

from layers.base import check_number, check_rate, to_config, to_narrow, to_object, to_wide
from layers.internals import add_loss

_LOG_VARIANCE = 20.0  # variances are clipped to [e^-20, e^20]


@keras.saving.register_keras_serializable(package="gradloom")
class DropPath(keras.layers.Layer):
    """Drops a residual branch for whole examples: stochastic depth (Huang et al. 2016, 1603.09382).

    x mask / (1 - rate) with one sample per example, so that the expectation is x
    and evaluation is the identity. (The paper draws one sample per batch, and
    multiplies by 1 - rate in evaluation; the expectations are equal.) Use it at
    the end of the branch, before the addition: `x + drop(branch(x))`.

    Args:
        rate: float in [0, 1], probability of dropping an example's branch; 1 gives zeros.
        seed: int or None.

    Shapes: float [B, ...] -> the same. The mask is passed on.

    Raises:
        ValueError: for a `rate` outside [0, 1].
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.rate, self.seed = check_rate(rate, " 0 keeps every branch."), seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.supports_masking = True

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        if not training or self.rate == 0:
            return inputs
        if self.rate == 1:
            return tf.zeros_like(inputs)
        shape = tf.concat([tf.shape(inputs)[:1], tf.ones([tf.rank(inputs) - 1], tf.int32)], 0)
        # float32, because half precision has too few numbers between 0 and 1 for an exact rate.
        dropped = keras.random.uniform(shape, dtype="float32", seed=self.seed_generator) < self.rate
        # A where, not a product, so that an inf in a dropped branch is dropped.
        return tf.where(dropped, tf.zeros_like(inputs), inputs / tf.constant(1 - self.rate, inputs.dtype))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


def gaussian_kl(inputs: tf.Tensor) -> tf.Tensor:
    """Returns the divergence of N(mean, variance) from N(0, 1) in nats (Kingma & Welling 2014, 1312.6114, appendix B).

    -(1 + s - mean^2 - e^s) / 2, summed over D. s is clipped to [-20, 20], with the
    gradient at the bound, so that training can move it back.

    Args:
        inputs: float [B, ..., 2 D]: D means, then D log variances s.

    Returns:
        float32 (float64 where `inputs` is) [B, ...].

    Raises:
        ValueError: for an odd number of inputs.

    Example:
        >>> gaussian_kl([[1.0, 1.0, 0.0, 0.0]]).numpy()  # mean 1 and variance 1: 1 / 2 for each dimension
        array([1.], dtype=float32)
    """
    return _divergence(*_split(inputs))


def _divergence(mean, log_variance):
    return tf.reduce_sum(tf.square(mean) + tf.exp(log_variance) - log_variance - 1, -1) / 2


def _split(inputs):
    """Returns means and clipped log variances, float [B, ..., D], of [B, ..., 2 D]."""
    inputs = to_wide(inputs)
    if not inputs.shape.rank or inputs.shape[-1] is None or inputs.shape[-1] % 2:
        raise ValueError(
            f"`inputs` must be [B, ..., 2 D], D means and then D log variances, got the shape {inputs.shape}. "
            "Give the layer before it twice as many units as there are latents."
        )
    mean, log_variance = tf.split(inputs, 2, -1)
    clipped = tf.clip_by_value(log_variance, -_LOG_VARIANCE, _LOG_VARIANCE)
    return mean, log_variance + tf.stop_gradient(clipped - log_variance)


@keras.saving.register_keras_serializable(package="gradloom")
class GaussianSampling(keras.layers.Layer):
    """Samples latents of a variational autoencoder and adds their KL divergence as a loss (Kingma & Welling 2014,
    1312.6114).

    Returns mean + e^(s / 2) noise in training, which is differentiable, and the
    mean otherwise. The divergence from N(0, 1) (`gaussian_kl`) is a loss with the
    layer's name, in nats, in training and evaluation; masked positions do not count.
    The generator's state is a variable: resume is exact, and replicas draw different noise.

    Args:
        beta: number >= 0, or a schedule of the step: the weight of the divergence in the total
            loss (Higgins et al. 2017). 0 only reports the divergence.
        seed: int or None.
        name: str, the layer's name and the loss's.

    Shapes: float [B, ..., 2 D], D means and then D log variances -> [B, ..., D]. The mask is passed on.

    Raises:
        ValueError: for an odd number of inputs, or a negative `beta`.
    """

    def __init__(self, beta: float | Callable = 1.0, seed: int | None = None, name: str = "kl", **kwargs):
        super().__init__(name=name, **kwargs)
        hint = " Give a number, or a schedule of the step; 0 only reports."
        self.beta = beta if callable(beta) else check_number("beta", beta, 0.0, hint=hint)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.supports_masking = True

    def call(self, inputs: tf.Tensor, training: bool = False, mask: tf.Tensor | None = None) -> tf.Tensor:
        mean, log_variance = _split(inputs)
        divergence = _divergence(mean, log_variance)
        add_loss(divergence if mask is None else (divergence, mask), self.name, self.beta)
        if training:
            noise = keras.random.normal(tf.shape(mean), dtype=mean.dtype, seed=self.seed_generator)
            mean += tf.exp(log_variance / 2) * noise
        return to_narrow(mean, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], input_shape[-1] // 2)

    def get_config(self):
        return {**super().get_config(), "beta": to_config(self.beta), "seed": self.seed}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "beta": to_object(config["beta"])})
