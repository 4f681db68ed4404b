"""Regression losses that Keras lacks: smooth, quantile, clipped, and with a predicted variance."""

import numbers
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from losses.base import FunctionLoss, check_positive, check_range, mean_last, pair, to_float

_LOG_VARIANCE = 20.0  # bound of |log variance|: e^20 leaves room for a squared error in float32


def pseudo_huber(targets: tf.Tensor, predictions: tf.Tensor, delta: float = 1.0) -> tf.Tensor:
    """Returns delta^2 (sqrt(1 + (e / delta)^2) - 1) (Charbonnier et al. 1997).

    It is smooth, quadratic near 0, and has slope delta far away.
    Args:
        targets, predictions: float [B] or [B, ..., D], whose mean over D is taken; [B] matches [B, 1].
        delta: number > 0, error at which the two regimes meet.

    Returns:
        float [B, ...].
    """
    check_positive("delta", delta)
    targets, predictions = pair(targets, predictions)
    return mean_last(delta**2 * _rise((predictions - targets) / delta))


@tf.custom_gradient
def _rise(x):
    """sqrt(1 + x^2) - 1 without cancellation near 0; it has a custom gradient, which is faster."""
    square = tf.square(x)
    return square / (tf.sqrt(1 + square) + 1), lambda dy: dy * x * tf.math.rsqrt(1 + tf.square(x))


@keras.saving.register_keras_serializable(package="gradloom")
class PseudoHuber(FunctionLoss):
    """`pseudo_huber` as a Keras loss."""

    def __init__(self, delta: float = 1.0, reduction="sum_over_batch_size", name="pseudo_huber", dtype=None):
        check_positive("delta", delta)
        super().__init__(pseudo_huber, {"delta": delta}, name, reduction, dtype)


def pinball(targets: tf.Tensor, predictions: tf.Tensor, tau: float | Sequence[float] = 0.5) -> tf.Tensor:
    """Returns max(tau e, (tau - 1) e) with e = target - prediction: quantile regression (Koenker & Bassett 1978).

    The minimizer is the tau-quantile. Several quantiles are learned separately
    and may cross; sort them.

    Args:
        targets: float [B] or [B, ..., D]; with a list for `tau`, [B, ...] or [B, ..., 1].
        predictions: float of the shape of `targets`; with a list of Q for `tau`, [B, ..., Q], one quantile each.
        tau: in (0, 1), or a list of Q of them.

    Returns:
        float [B, ...], the mean over the last axis. .5 gives half the absolute error.
    """
    tau = _check_tau(tau)
    if tau.ndim == 0:
        targets, predictions = pair(targets, predictions)
    else:
        targets, predictions = _beside(targets, predictions, tau.size)
    error = targets - predictions
    tau = tf.constant(tau, error.dtype)
    return mean_last(tf.maximum(tau * error, (tau - 1) * error))


def _beside(targets, predictions, quantiles):
    """Returns targets [B, ..., 1] for predictions [B, ..., Q]."""
    predictions = to_float(predictions)
    if predictions.shape.rank is None or predictions.shape.rank < 2 or predictions.shape[-1] != quantiles:
        raise ValueError(
            f"`predictions` of shape {predictions.shape} do not fit {quantiles} quantiles in `tau`. "
            f"Give the last layer {quantiles} units."
        )
    targets = tf.cast(tf.convert_to_tensor(targets), predictions.dtype)
    if targets.shape.rank == predictions.shape.rank and targets.shape[-1] == 1:
        targets = tf.squeeze(targets, -1)
    targets, _ = pair(targets, predictions[..., 0])
    return targets[..., tf.newaxis], predictions


def _check_tau(tau):
    quantiles = np.asarray(tau, np.float64)
    if quantiles.ndim > 1 or not quantiles.size or not ((quantiles > 0) & (quantiles < 1)).all():
        raise ValueError(f"`tau` must be in (0, 1), or a list of such numbers, got {tau!r:.80}. .5 is the median.")
    return quantiles


@keras.saving.register_keras_serializable(package="gradloom")
class Pinball(FunctionLoss):
    """`pinball` as a Keras loss."""

    def __init__(self, tau: float | Sequence[float] = 0.5, reduction="sum_over_batch_size", name="pinball", dtype=None):
        super().__init__(pinball, {"tau": _check_tau(tau).tolist()}, name, reduction, dtype)


def winsorised(targets: tf.Tensor, predictions: tf.Tensor, limit: float) -> tf.Tensor:
    """Returns min(|e|, limit)^2: the squared error of a residual clipped to +-limit (Talwar 1975; Huber 1981, section
    4.8).

    An error beyond the limit has no gradient until other examples move its
    prediction nearer. Choose a limit above most initial errors.

    Args:
        targets, predictions: float [B] or [B, ..., D], whose mean over D is taken; [B] matches [B, 1].
        limit: number > 0; about 2.8 standard deviations of clean errors keep 95 % of the efficiency.

    Returns:
        float [B, ...].
    """
    check_positive("limit", limit)
    targets, predictions = pair(targets, predictions)
    return mean_last(tf.square(tf.minimum(tf.abs(predictions - targets), limit)))


@keras.saving.register_keras_serializable(package="gradloom")
class Winsorised(FunctionLoss):
    """`winsorised` as a Keras loss."""

    def __init__(self, limit: float, reduction="sum_over_batch_size", name="winsorised", dtype=None):
        check_positive("limit", limit)
        super().__init__(winsorised, {"limit": limit}, name, reduction, dtype)


def heteroscedastic_nll(targets: tf.Tensor, predictions: tf.Tensor, beta: float = 0.0) -> tf.Tensor:
    """Returns (s + (y - mu)^2 e^-s) / 2: a normal likelihood whose mean mu and log variance s are both predicted.

    Nix & Weigend 1994; Kendall & Gal 2017, 1703.04977, eq. 8. The constant
    log(2 pi) / 2 is omitted. s is clipped to [-20, 20], with the gradient at the
    bound, so that training can move it back. Gradients grow like e^2 e^-s: use a
    float32 last layer with mixed precision.

    Args:
        targets: float [B] (or [B, 1]) or [B, ..., D].
        predictions: float [B, ..., 2 D]: D means, then D log variances.
        beta: in [0, 1]; above 0 each element is multiplied by its variance^beta, without gradient,
            so that large variances do not hide large errors (Seitzer et al. 2022, 2203.09168, eq. 5; they suggest .5).

    Returns:
        float [B, ...], the mean over D.
    """
    check_range("beta", beta, 0.0, 1.0)
    predictions = to_float(predictions)
    size = predictions.shape[-1] if predictions.shape.rank else None
    if size is None or predictions.shape.rank < 2 or size % 2:
        raise ValueError(
            "`predictions` must be [B, ..., 2 D], D means and then D log variances, got the shape "
            f"{predictions.shape}. Give the last layer twice as many units as there are targets."
        )
    mean, log_variance = tf.split(predictions, 2, -1)
    targets = tf.cast(tf.convert_to_tensor(targets), predictions.dtype)
    if targets.shape.rank == mean.shape.rank - 1 and size == 2:
        targets = targets[..., tf.newaxis]
    targets, mean = pair(targets, mean)
    clipped = tf.clip_by_value(log_variance, -_LOG_VARIANCE, _LOG_VARIANCE)
    log_variance += tf.stop_gradient(clipped - log_variance)
    values = 0.5 * (log_variance + tf.square(targets - mean) * tf.exp(-log_variance))
    if isinstance(beta, numbers.Number) and beta == 0:
        return mean_last(values)
    return mean_last(values * tf.stop_gradient(tf.exp(beta * log_variance)))


@keras.saving.register_keras_serializable(package="gradloom")
class HeteroscedasticNLL(FunctionLoss):
    """`heteroscedastic_nll` as a Keras loss."""

    def __init__(self, beta: float = 0.0, reduction="sum_over_batch_size", name="heteroscedastic_nll", dtype=None):
        check_range("beta", beta, 0.0, 1.0)
        super().__init__(heteroscedastic_nll, {"beta": beta}, name, reduction, dtype)
