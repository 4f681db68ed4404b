"""Layers that Keras lacks.

All are imported here, so that `import layers` is enough to load a model file that holds one.
"""

from layers.dense import CrossLayer, Maxout, NoisyDense, PolynomialTransform, ScaledDense
from layers.gradients import (
    ClipGradient,
    GradientReversal,
    GumbelSoftmax,
    ScaleGradient,
    StraightThrough,
    clip_gradient,
    gradient_reversal,
    gumbel_softmax,
    scale_gradient,
    straight_through,
)
from layers.internals import add_loss, add_metric, tap
from layers.normalization import TLU, FilterResponseNorm, SpectralNorm, WeightNorm, WeightStandardization
from layers.passing import ActivationMonitor, AddLoss, AddMetric
from layers.ragged import MaskedMean, RaggedPool, RaggedToDense
from layers.residual import ResidualBlock, SelfNormalizingBlock
from layers.stochastic import DropPath, GaussianSampling, gaussian_kl

__all__ = [
    "TLU",
    "ActivationMonitor",
    "AddLoss",
    "AddMetric",
    "ClipGradient",
    "CrossLayer",
    "DropPath",
    "FilterResponseNorm",
    "GaussianSampling",
    "GradientReversal",
    "GumbelSoftmax",
    "MaskedMean",
    "Maxout",
    "NoisyDense",
    "PolynomialTransform",
    "RaggedPool",
    "RaggedToDense",
    "ResidualBlock",
    "ScaleGradient",
    "ScaledDense",
    "SelfNormalizingBlock",
    "SpectralNorm",
    "StraightThrough",
    "WeightNorm",
    "WeightStandardization",
    "add_loss",
    "add_metric",
    "clip_gradient",
    "gaussian_kl",
    "gradient_reversal",
    "gumbel_softmax",
    "scale_gradient",
    "straight_through",
    "tap",
]
