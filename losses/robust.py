"""Losses that are robust to wrong labels: generalized, symmetric and bi-tempered cross-entropy."""

import keras
import tensorflow as tf

from losses.base import ClassLoss, check_range, check_scores, expect, is_distribution, log_softmax, to_float

_NEWTON_STEPS = (
    12  # after the paper's fixed point; the sum is 1 to 2e-5 in float32 for 1,000 classes and t up to 4 (tested)
)


def generalized_crossentropy(labels: tf.Tensor, logits: tf.Tensor, q: float = 0.7) -> tf.Tensor:
    """Returns (1 - p_y^q) / q (GCE, Zhang & Sabuncu 2018, 1805.07836, eq. 6).

    Args:
        labels: class ids [B, ...] or [B, ..., 1], or class probabilities [B, ..., C].
        logits: float [B, ..., C].
        q: in [0, 1]; 0 (the limit) gives the cross-entropy, 1 gives 1 - p_y; .7 in the paper.

    Returns:
        float [B, ...].
    """
    check_range("q", q, 0.0, 1.0)
    if q == 0:
        return expect(labels, tf.negative, log_softmax(logits))
    return expect(labels, lambda log_p: -tf.math.expm1(q * log_p) / q, log_softmax(logits))


@keras.saving.register_keras_serializable(package="gradloom")
class GeneralizedCrossentropy(ClassLoss):
    """`generalized_crossentropy` as a Keras loss."""

    def __init__(self, q: float = 0.7, reduction="sum_over_batch_size", name="generalized_crossentropy", dtype=None):
        check_range("q", q, 0.0, 1.0)
        super().__init__(generalized_crossentropy, {"q": q}, name, reduction, dtype)


def symmetric_crossentropy(
    labels: tf.Tensor, logits: tf.Tensor, alpha: float = 0.1, beta: float = 1.0, log_zero: float = -4.0
) -> tf.Tensor:
    """Returns alpha CE(y, p) + beta CE(p, y) (SCE, Wang et al. 2019, 1908.06112, eq. 5, 7).

    `log_zero` replaces log 0: for a class id the second term is -log_zero (1 - p_y).

    Args:
        labels: class ids [B, ...] or [B, ..., 1], or class probabilities [B, ..., C].
        logits: float [B, ..., C].
        alpha, beta: numbers >= 0; .1 and 1 in the paper for CIFAR-10, 6 and .1 for CIFAR-100.
        log_zero: number < 0, the paper's A, which suggests -4 or -6.

    Returns:
        float [B, ...].
    """
    _check_symmetric(alpha, beta, log_zero)
    log_p = log_softmax(logits)
    forward = expect(labels, tf.negative, log_p)
    if not is_distribution(labels, log_p):
        return alpha * forward + beta * expect(labels, lambda log_p: log_zero * tf.math.expm1(log_p), log_p)
    labels = tf.cast(labels, log_p.dtype)
    log_y = tf.maximum(tf.math.log(tf.maximum(labels, tf.exp(tf.constant(log_zero, log_p.dtype)))), log_zero)
    return alpha * forward - beta * tf.reduce_sum(tf.exp(log_p) * log_y, -1)


def _check_symmetric(alpha, beta, log_zero):
    check_range("alpha", alpha, 0.0)
    check_range("beta", beta, 0.0)
    if not log_zero < 0:
        raise ValueError(f"`log_zero` must be < 0, got {log_zero}. It replaces the logarithm of 0; the paper uses -4.")


@keras.saving.register_keras_serializable(package="gradloom")
class SymmetricCrossentropy(ClassLoss):
    """`symmetric_crossentropy` as a Keras loss."""

    def __init__(
        self,
        alpha: float = 0.1,
        beta: float = 1.0,
        log_zero: float = -4.0,
        reduction="sum_over_batch_size",
        name="symmetric_crossentropy",
        dtype=None,
    ):
        _check_symmetric(alpha, beta, log_zero)
        super().__init__(
            symmetric_crossentropy, {"alpha": alpha, "beta": beta, "log_zero": log_zero}, name, reduction, dtype
        )


def bi_tempered(labels: tf.Tensor, logits: tf.Tensor, t1: float = 0.8, t2: float = 1.2) -> tf.Tensor:
    """Returns the bi-tempered logistic loss (Amid et al. 2019, 1906.03361, eq. 4 and algorithm 1).

    With log_t(x) = (x^(1-t) - 1) / (1 - t) and p the softmax made of exp_t2:

        sum_c y_c (log_t1 y_c - log_t1 p_c) - (y_c^(2-t1) - p_c^(2-t1)) / (2 - t1)

    A smaller t1 bounds the loss of an outlier, a larger t2 gives the softmax a heavier tail.

    Args:
        labels: class ids [B, ...] or [B, ..., 1], or class probabilities [B, ..., C].
        logits: float [B, ..., C].
        t1: in [0, 1]; t1 = t2 = 1 is the cross-entropy.
        t2: in [1, 4].

    Returns:
        float [B, ...].
    """
    _check_temperatures(t1, t2)
    log_p = log_tempered_softmax(logits, t2)

    def log_t1(log_x):
        return log_x if t1 == 1 else tf.math.expm1((1 - t1) * log_x) / (1 - t1)

    spread = tf.reduce_sum(tf.exp((2 - t1) * log_p), -1) / (2 - t1)
    fit = expect(labels, lambda log_p: -log_t1(log_p), log_p)
    if not is_distribution(labels, log_p):
        return fit + spread - 1 / (2 - t1)
    labels = tf.cast(labels, log_p.dtype)
    log_y = tf.math.log(tf.where(labels > 0, labels, tf.ones_like(labels)))
    own = tf.reduce_sum(labels * (log_t1(log_y) - tf.exp((1 - t1) * log_y) / (2 - t1)), -1)
    return fit + spread + own


def log_tempered_softmax(logits, t):
    """Returns log exp_t(a - lambda) for logits a, with exp_t(x) = [1 + (1 - t) x]^(1/(1-t)).

    lambda is such that exp_t(a - lambda) sums to 1 over classes.

    Args:
        logits: float [B, ..., C].
        t: in [1, 4]; 1 is the softmax.

    Returns:
        float [B, ..., C].
    """
    if t == 1:
        return log_softmax(logits)
    logits = to_float(logits)
    check_scores("logits", logits)
    a = logits - tf.stop_gradient(tf.reduce_max(logits, -1, keepdims=True))
    normalizer = _normalizer(tf.stop_gradient(a), t)
    # One more Newton step under the tape keeps the value and gives the derivative of the implicit function.
    log_p = _log_exp_t(a - normalizer, t)
    slope = tf.reduce_sum(tf.exp(t * log_p), -1, keepdims=True)
    normalizer += (tf.reduce_sum(tf.exp(log_p), -1, keepdims=True) - 1) / tf.stop_gradient(slope)
    return _log_exp_t(a - normalizer, t)


def _normalizer(a, t):
    """Solves sum exp_t(a - x) = 1 for x >= 0, [..., 1], given max(a) = 0.

    The sum is convex and falls with x, so that Newton's steps from the left
    never pass the solution; one from the right lands on the left.
    """
    shrunk = a
    for _ in range(5):  # the paper's fixed point, algorithm 1: near the solution for t near 1
        z = tf.reduce_sum(tf.exp(_log_exp_t(shrunk, t)), -1, keepdims=True)
        shrunk = a * tf.pow(z, 1 - t)
    x = (tf.pow(z, t - 1) - 1) / (t - 1)
    for _ in range(_NEWTON_STEPS):
        log_p = _log_exp_t(a - x, t)
        excess = tf.reduce_sum(tf.exp(log_p), -1, keepdims=True) - 1
        x = tf.maximum(x + excess / tf.reduce_sum(tf.exp(t * log_p), -1, keepdims=True), 0)
    return x


def _log_exp_t(x, t):
    return -tf.math.log1p((t - 1) * -x) / (t - 1)


def _check_temperatures(t1, t2):
    check_range("t1", t1, 0.0, 1.0)
    check_range("t2", t2, 1.0, 4.0, " Below 1 the softmax has exact zeros, and the loss is not robust to wrong labels.")


@keras.saving.register_keras_serializable(package="gradloom")
class BiTempered(ClassLoss):
    """`bi_tempered` as a Keras loss."""

    def __init__(
        self, t1: float = 0.8, t2: float = 1.2, reduction="sum_over_batch_size", name="bi_tempered", dtype=None
    ):
        _check_temperatures(t1, t2)
        super().__init__(bi_tempered, {"t1": t1, "t2": t2}, name, reduction, dtype)
