"""Cross-entropies with class weights, costs or margins, and Poly-1."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from losses.base import (
    ClassLoss,
    check_positive,
    check_range,
    check_scores,
    class_vector,
    expect,
    expect_odds,
    expect_row,
    log_softmax,
    to_float,
)

_SMALLEST = 1e-7  # smallest probability in a logarithm; Keras' value


def weighted_crossentropy(
    labels: tf.Tensor,
    logits: tf.Tensor,
    class_weights: Sequence[float],
    from_logits: bool = True,
    ignore_class: int | None = None,
) -> tf.Tensor:
    """Returns sum_c w_c y_c (-log p_c): cross-entropy with one weight per class.

    For class ids it is Keras' SparseCategoricalCrossentropy times
    `class_weights[label]`; the mean over a batch divides by the number of
    examples, not by the sum of weights. Label smoothing: pass smoothed probabilities as `labels`.

    Args:
        labels: class ids [B, ...] or [B, ..., 1], or class probabilities [B, ..., C].
        logits: float [B, ..., C]; probabilities where `from_logits` is False.
        class_weights: C numbers >= 0.
        from_logits: bool. With False, logits passed by mistake are clipped to [1e-7, 1].
        ignore_class: int or None, an id (e.g. -1, 255) whose elements give 0; the class below masks them.

    Returns:
        float32 (float64 for float64) [B, ...].

    Raises:
        ValueError: for shapes that do not fit, or a wrong number of weights.

    Example:
        >>> float(weighted_crossentropy([1], [[0.0, 0.0]], class_weights=[1.0, 2.0])[0])  # 2 ln 2
        1.3862943649291992
    """
    if from_logits:
        log_p = log_softmax(logits)
    else:
        probabilities = to_float(logits)
        check_scores("logits", probabilities)
        log_p = tf.nn.log_softmax(tf.math.log(tf.clip_by_value(probabilities, _SMALLEST, 1.0)))
    weights = tf.constant(class_vector("class_weights", class_weights, log_p.shape[-1]), log_p.dtype)
    if ignore_class is None:
        return expect(labels, lambda log_p, weight: -weight * log_p, log_p, weights)
    counts = _counts(labels, log_p, ignore_class)
    labels = tf.where(tf.reshape(counts, tf.shape(labels)), tf.cast(labels, tf.int32), 0)
    values = expect(labels, lambda log_p, weight: -weight * log_p, log_p, weights)
    return tf.where(counts, values, tf.zeros_like(values))


def _counts(labels, scores, ignore_class):
    """Returns bool [B, ...]: whether class ids differ from `ignore_class`."""
    labels = tf.convert_to_tensor(labels)
    if labels.shape.rank == scores.shape.rank and labels.shape[-1] == 1:
        labels = tf.squeeze(labels, -1)
    if labels.shape.rank == scores.shape.rank:
        raise ValueError(
            f"`ignore_class` needs class ids, got `labels` of shape {labels.shape}. "
            "Give probabilities of 0 for all classes to elements that do not count."
        )
    return tf.not_equal(tf.cast(labels, tf.int32), ignore_class)


@keras.saving.register_keras_serializable(package="gradloom")
class WeightedCrossentropy(ClassLoss):
    """`weighted_crossentropy` as a Keras loss; ignored elements are masked, in the sum and in the denominator."""

    def __init__(
        self,
        class_weights: Sequence[float],
        from_logits: bool = True,
        ignore_class: int | None = None,
        reduction="sum_over_batch_size",
        name="weighted_crossentropy",
        dtype=None,
    ):
        arguments = {
            "class_weights": class_vector("class_weights", class_weights).tolist(),
            "from_logits": from_logits,
            "ignore_class": ignore_class,
        }
        super().__init__(weighted_crossentropy, arguments, name, reduction, dtype)
        self.from_logits, self.ignore_class = from_logits, ignore_class

    def call(self, y_true, y_pred):
        values = super().call(y_true, y_pred)
        if self.ignore_class is not None:
            values._keras_mask = _counts(
                y_true, tf.convert_to_tensor(y_pred), self.ignore_class
            )  # as Keras' `ignore_class` does
        return values


def cost_sensitive(labels: tf.Tensor, logits: tf.Tensor, costs: Sequence[Sequence[float]]) -> tf.Tensor:
    """Returns the expected cost of a prediction, sum_j C[y, j] p_j (Elkan 2001, eq. 1, as a loss).

    It is bounded, so the gradient vanishes for confident wrong predictions: start with a cross-entropy if needed.

    Args:
        labels: class ids [B, ...] or [B, ..., 1], or class probabilities [B, ..., C].
        logits: float [B, ..., C].
        costs: [C, C], finite: row = true class, column = predicted class; the diagonal is usually 0.

    Returns:
        float [B, ...].
    """
    logits = to_float(logits)
    check_scores("logits", logits)
    return expect_row(labels, _square("costs", costs, logits.shape[-1]), tf.nn.softmax(logits))


def _square(name, values, classes=None):
    matrix = np.asarray(values, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not np.isfinite(matrix).all():
        raise ValueError(
            f"`{name}` must be a square matrix of finite numbers, got the shape {matrix.shape}: {values!r:.80}."
        )
    if classes is not None and len(matrix) != classes:
        raise ValueError(
            f"`{name}` is {matrix.shape[0]} x {matrix.shape[1]} for {classes} classes. Give one row and one column per "
            "class."
        )
    return matrix


@keras.saving.register_keras_serializable(package="gradloom")
class CostSensitive(ClassLoss):
    """`cost_sensitive` as a Keras loss."""

    def __init__(
        self, costs: Sequence[Sequence[float]], reduction="sum_over_batch_size", name="cost_sensitive", dtype=None
    ):
        super().__init__(cost_sensitive, {"costs": _square("costs", costs).tolist()}, name, reduction, dtype)


def poly1(labels: tf.Tensor, logits: tf.Tensor, epsilon: float = 1.0) -> tf.Tensor:
    """Returns CE + epsilon (1 - p_y) (Poly-1, Leng et al. 2022, 2204.12511, eq. 6).

    Args:
        labels: class ids [B, ...] or [B, ..., 1], or class probabilities [B, ..., C].
        logits: float [B, ..., C].
        epsilon: number >= -1: below, the leading coefficient of the expansion in 1 - p turns negative.

    Returns:
        float [B, ...].
    """
    check_range("epsilon", epsilon, -1.0, hint=" Below -1 the loss falls where the prediction gets worse.")
    return expect(labels, lambda log_p: -log_p - epsilon * tf.math.expm1(log_p), log_softmax(logits))


@keras.saving.register_keras_serializable(package="gradloom")
class Poly1(ClassLoss):
    """`poly1` as a Keras loss."""

    def __init__(self, epsilon: float = 1.0, reduction="sum_over_batch_size", name="poly1", dtype=None):
        check_range("epsilon", epsilon, -1.0, hint=" Below -1 the loss falls where the prediction gets worse.")
        super().__init__(poly1, {"epsilon": epsilon}, name, reduction, dtype)


def class_balanced_weights(counts: Sequence[int], beta: float = 0.9999) -> list[float]:
    """Returns weights (1 - beta) / (1 - beta^n) that sum to C (Cui et al. 2019, 1901.05555, eq. 3).

    Args:
        counts: C integers >= 1, examples per class in the training data.
        beta: in [0, 1]; 0 gives all classes equal weight, 1 (the limit) by 1 / n. The paper tries .9 to .9999.

    Returns:
        list of C floats, for `class_weights` or a focal loss's `alpha`.

    Raises:
        ValueError: for a class without examples, whose weight would be infinite.
    """
    check_range("beta", beta, 0.0, 1.0)
    n = _counts_per_class(counts)
    if beta == 1:
        weights = 1 / n
    else:  # expm1: for beta near 1 and few examples 1 - beta^n cancels
        weights = np.ones_like(n) if beta == 0 else (1 - beta) / -np.expm1(n * np.log(beta))
    return (weights * len(n) / weights.sum()).tolist()


def _counts_per_class(counts, classes=None):
    n = class_vector("counts", counts, classes)
    if (n < 1).any():
        raise ValueError(
            f"`counts` must be >= 1, got {n[n < 1][0]:g} for class {int(np.argmax(n < 1))}. "
            "Leave a class without examples out, or give it the count 1."
        )
    return n


def ldam(
    labels: tf.Tensor, logits: tf.Tensor, counts: Sequence[int], max_margin: float = 0.5, scale: float = 30.0
) -> tf.Tensor:
    """Returns CE(scale * (z - Delta_y)), a larger margin for a rarer class (LDAM, Cao et al. 2019, 1906.07413, eq. 13).

    Delta_j = C / n_j^(1/4), with C such that the largest margin is
    `max_margin`. As in the paper's code, `logits` should be cosines: a last
    layer without bias on normalized features and weights. The paper's
    deferred re-weighting is `class_weight` or sample weights from a later epoch on.

    Args:
        labels: class ids [B, ...] or [B, ..., 1], or class probabilities [B, ..., C].
        logits: float [B, ..., C].
        counts: C integers >= 1, examples per class in the training data.
        max_margin: number > 0, .5 in the paper.
        scale: number > 0, 30 in the paper's code.

    Returns:
        float [B, ...].
    """
    check_positive("max_margin", max_margin)
    check_positive("scale", scale)
    logits = to_float(logits)
    check_scores("logits", logits)
    rare = _counts_per_class(counts, logits.shape[-1]) ** -0.25
    margins = tf.constant(scale * max_margin * rare / rare.max(), logits.dtype)
    # -log(e^(s z_y - s Delta) / (e^(s z_y - s Delta) + sum_{j != y} e^(s z_j))), divided by the numerator
    return expect_odds(labels, lambda odds, margin: tf.nn.softplus(margin - odds), scale * logits, margins)


@keras.saving.register_keras_serializable(package="gradloom")
class LDAM(ClassLoss):
    """`ldam` as a Keras loss."""

    def __init__(
        self,
        counts: Sequence[int],
        max_margin: float = 0.5,
        scale: float = 30.0,
        reduction="sum_over_batch_size",
        name="ldam",
        dtype=None,
    ):
        check_positive("max_margin", max_margin)
        check_positive("scale", scale)
        arguments = {"counts": _counts_per_class(counts).tolist(), "max_margin": max_margin, "scale": scale}
        super().__init__(ldam, arguments, name, reduction, dtype)
