"""Time of every layer of ours, forward and backward, against its plainest correct formulation in TensorFlow.

    python -m tests.benchmarks.layer_time [--only=Maxout,WeightNorm] [--steps=50] [--rounds=9]

As loss_time. Random numbers come from the layer's own generator on both
sides, so that both could be resumed. AddLoss, AddMetric, ActivationMonitor and
the loss of GaussianSampling do nothing outside of a trainer's step.
"""

import keras
import tensorflow as tf

import layers as L
from tests.benchmarks.loss_time import BATCH, CLASSES, LOGITS, RANDOM, main, normal

IMAGES = normal(32, 16, 16, 32)
WORDS = tf.RaggedTensor.from_row_lengths(normal(1280, 64), [20] * 64)


def wrapped(make, kernel_of):
    """A wrapper around Dense, and the dense layer with its kernel computed by hand."""
    ours = make(keras.layers.Dense(256))
    ours.build(LOGITS.shape)
    bias = ours.layer.bias
    return ours, lambda x: tf.linalg.matmul(x, kernel_of(ours)) + bias, LOGITS


def spectral(layer):
    w = tf.convert_to_tensor(layer.layer.kernel)
    fixed = tf.stop_gradient(w)
    v = tf.math.l2_normalize(tf.linalg.matvec(fixed, layer.u.value))
    u = tf.math.l2_normalize(tf.linalg.matvec(fixed, v, transpose_a=True))
    layer.u.assign(u)
    return w / tf.tensordot(v, tf.linalg.matvec(w, u), 1)


def standardized(layer):
    mean, variance = tf.nn.moments(tf.convert_to_tensor(layer.layer.kernel), 0)
    return (layer.layer.kernel - mean) / tf.sqrt(variance + 1e-5)


def own(layer, plain, start=LOGITS):
    layer.build(start.shape)
    return layer, lambda x: plain(layer, x), start


def noise(size, seed):
    draw = keras.random.normal([size], seed=seed)
    return tf.sign(draw) * tf.sqrt(tf.abs(draw))


def noisy(layer, x):
    first, second = noise(CLASSES, layer.seed_generator), noise(256, layer.seed_generator)
    kernel = layer.kernel + layer.kernel_sigma * (first[:, None] * second)
    return tf.linalg.matmul(x, kernel) + layer.bias + layer.bias_sigma * second


def custom(gradient, forward=tf.identity):
    return tf.custom_gradient(lambda x: (forward(x), gradient))


def gumbel(layer, z):
    u = keras.random.uniform(tf.shape(z), minval=1e-37, seed=layer.seed_generator)
    return tf.nn.softmax((z - tf.math.log(-tf.math.log(u))) / layer.temperature)


def gaussian(layer, x):
    mean, log_variance = tf.split(x, 2, -1)
    log_variance = tf.clip_by_value(log_variance, -20, 20)
    return mean + tf.exp(log_variance / 2) * keras.random.normal(tf.shape(mean), seed=layer.seed_generator)


def drop_path(layer, x):
    return tf.where(keras.random.uniform([BATCH, 1], seed=layer.seed_generator) < 0.2, 0.0, x / 0.8)


def ragged(layer, plain):
    def of(function):
        return lambda flat: function(WORDS.with_flat_values(flat))

    return of(layer), of(plain), WORDS.flat_values


def sequences(x):
    return tf.reshape(x, [64, 16, CLASSES])


PRESENT = tf.constant(RANDOM.integers(2, size=(64, 16)), tf.bool)


def masked_mean(x):
    present = tf.cast(PRESENT, tf.float32)[:, :, None]
    return tf.reduce_sum(tf.where(PRESENT[:, :, None], sequences(x), 0), 1) / tf.maximum(tf.reduce_sum(present, 1), 1)


def masked():
    layer = L.MaskedMean()
    return lambda x: layer(sequences(x), mask=PRESENT), masked_mean, LOGITS


def branch():
    return [keras.layers.Dense(256, "relu"), keras.layers.Dense(CLASSES)]


LAYERS = {
    "ScaledDense": lambda: own(L.ScaledDense(256), lambda s, x: s.scale * s.dense(x)),
    "PolynomialTransform": lambda: own(
        L.PolynomialTransform(3),
        lambda s, x: s.coefficients[0] + x * (s.coefficients[1] + x * (s.coefficients[2] + x * s.coefficients[3])),
    ),
    "CrossLayer": lambda: own(L.CrossLayer(), lambda s, x: x * (tf.linalg.matmul(x, s.kernel) + s.bias) + x),
    "Maxout": lambda: own(L.Maxout(25), lambda s, x: tf.reduce_max(tf.reshape(x, [-1, 4, 25]), 1)),
    "NoisyDense": lambda: own(L.NoisyDense(256), noisy),
    "WeightNorm": lambda: wrapped(
        L.WeightNorm, lambda s: s.gain * tf.math.l2_normalize(tf.convert_to_tensor(s.layer.kernel), 0)
    ),
    "SpectralNorm": lambda: wrapped(L.SpectralNorm, spectral),
    "WeightStandardization": lambda: wrapped(L.WeightStandardization, standardized),
    "FilterResponseNorm": lambda: own(
        L.FilterResponseNorm(),
        lambda s, x: s.gamma * x / tf.sqrt(tf.reduce_mean(x**2, [1, 2], keepdims=True) + 1e-6) + s.beta,
        IMAGES,
    ),
    "TLU": lambda: own(L.TLU(), lambda s, x: tf.maximum(x, s.tau), IMAGES),
    "DropPath": lambda: own(L.DropPath(0.2), drop_path),
    "RaggedToDense": lambda: ragged(L.RaggedToDense(), lambda x: x.to_tensor()),
    **{
        f"RaggedPool, {mode}": (lambda m=mode: ragged(L.RaggedPool(m), lambda x: getattr(tf, f"reduce_{m}")(x, 1)))
        for mode in ("mean", "max", "sum")
    },
    "MaskedMean": masked,
    "ResidualBlock": lambda: own(L.ResidualBlock(branch()), lambda s, x: x + s.branch[1](s.branch[0](x))),
    "SelfNormalizingBlock": lambda: own(L.SelfNormalizingBlock(256), lambda s, x: s.dense(x)),
    "ScaleGradient": lambda: own(L.ScaleGradient(0.5), lambda s, x: custom(lambda dy: 0.5 * dy)(x)),
    "GradientReversal": lambda: own(L.GradientReversal(), lambda s, x: custom(lambda dy: -s.strength * dy)(x)),
    "ClipGradient": lambda: own(
        L.ClipGradient(0.1), lambda s, x: custom(lambda dy: tf.clip_by_value(dy, -0.1, 0.1))(x)
    ),
    "StraightThrough": lambda: own(L.StraightThrough("round"), lambda s, x: custom(lambda dy: dy, tf.round)(x)),
    "GumbelSoftmax": lambda: own(L.GumbelSoftmax(), gumbel),
    "GaussianSampling": lambda: own(L.GaussianSampling(), gaussian),
}
DRAWS = (
    "NoisyDense",
    "DropPath",
    "GumbelSoftmax",
    "GaussianSampling",
    "SpectralNorm",
)  # their values differ from call to call


if __name__ == "__main__":
    main(LAYERS, DRAWS)
