"""Focal losses, which reduce the weight of easy examples.

They are computed in log space, which keeps the gradient of confident errors.

For the binary losses, labels outside [0, 1] are an error in eager code, else NaN: the loss would have no lower bound.
"""

import numbers
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from losses.base import (
    BinaryLoss,
    ClassLoss,
    check_range,
    check_scores,
    class_vector,
    expect_odds,
    in_unit,
    mean_last,
    pair,
    to_float,
)

_LABELS = "They are 0 and 1, or probabilities; map -1 and 1 by (labels + 1) / 2."


def binary_focal(
    labels: tf.Tensor, logits: tf.Tensor, gamma: float = 2.0, alpha: float | Sequence[float] | None = 0.25
) -> tf.Tensor:
    """Returns alpha_t (1 - p_t)^gamma (-log p_t) (Lin et al. 2017, 1708.02002, eq. 5).

    p_t is the predicted probability of the label.
    Args:
        labels: 0 and 1, or probabilities, of the shape of `logits`; [B] matches [B, 1].
        logits: float [B], or [B, ..., K] for K labels, whose mean is taken. (Detectors sum over anchors and divide by
            the number of positives: multiply by K / positives.)
        gamma: number >= 0; 0 gives the cross-entropy, 2 is the paper's.
        alpha: weight of label 1 in [0, 1], 1 - alpha being that of label 0
            (.25 in the paper, for gamma = 2); K of them; or None: no weights.

    Returns:
        float [B, ...].

    Example:
        >>> float(binary_focal([1.0], [0.0], alpha=None)[0])  # (1/2)^2 ln 2
        0.1732867956161499
    """
    labels, logits = pair(labels, logits)
    labels = in_unit("labels", labels, _LABELS)
    check_range("gamma", gamma, 0.0)
    weight = _weight_of_ones(alpha, logits)
    if_one = _modulate(logits, gamma)
    if_zero = _modulate(-logits, gamma)
    if weight is not None:
        if_one, if_zero = weight * if_one, (1 - weight) * if_zero
    return mean_last(labels * if_one + (1 - labels) * if_zero)


def _modulate(logits, gamma):
    """(1 - p)^gamma (-log p) for p = sigmoid(logits)."""
    crossentropy = tf.nn.softplus(-logits)
    if isinstance(gamma, numbers.Number) and gamma == 0:
        return crossentropy
    return tf.exp(-gamma * tf.nn.softplus(logits)) * crossentropy


def _weight_of_ones(alpha, logits):
    if alpha is None:
        return None
    weight = _check_alpha(alpha)
    if weight.ndim and weight.size != logits.shape[-1]:
        raise ValueError(
            f"`alpha` has {weight.size} numbers for logits of shape {logits.shape}. Give one, or one per label."
        )
    return tf.constant(weight, logits.dtype)


def _check_alpha(alpha):
    weight = np.asarray(alpha, np.float64)
    if weight.ndim > 1 or not ((weight >= 0) & (weight <= 1)).all():
        raise ValueError(
            f"`alpha` must be None, or weights of label 1 in [0, 1], got {alpha!r:.80}. Label 0 gets 1 - alpha."
        )
    return weight


@keras.saving.register_keras_serializable(package="gradloom")
class BinaryFocal(BinaryLoss):
    """`binary_focal` as a Keras loss."""

    takes_logits = True

    def __init__(
        self,
        gamma: float = 2.0,
        alpha: float | Sequence[float] | None = 0.25,
        reduction="sum_over_batch_size",
        name="binary_focal",
        dtype=None,
    ):
        check_range("gamma", gamma, 0.0)
        arguments = {"gamma": gamma, "alpha": None if alpha is None else _check_alpha(alpha).tolist()}
        super().__init__(binary_focal, arguments, name, reduction, dtype)


def categorical_focal(
    labels: tf.Tensor, logits: tf.Tensor, gamma: float = 2.0, alpha: float | Sequence[float] | None = None
) -> tf.Tensor:
    """Returns alpha_y (sum_{j != y} p_j)^gamma (-log p_y): the focal loss over classes (Lin et al. 2017, 1708.02002).

    Args:
        labels: class ids [B, ...] or [B, ..., 1], or class probabilities [B, ..., C].
        logits: float [B, ..., C].
        gamma: number >= 0; 0 gives the cross-entropy.
        alpha: number >= 0 that multiplies the loss, C of them, e.g. from `class_balanced_weights`, or None.

    Returns:
        float [B, ...].
    """
    check_range("gamma", gamma, 0.0)
    logits = to_float(logits)
    check_scores("logits", logits)
    weights = tf.constant(_class_alpha(alpha, logits.shape[-1]), logits.dtype)
    return expect_odds(labels, lambda odds, weight: weight * _modulate(odds, gamma), logits, weights)


def _class_alpha(alpha, classes):
    if alpha is None or np.ndim(alpha) == 0:
        check_range("alpha", 1.0 if alpha is None else alpha, 0.0)
        return np.full(classes, 1.0 if alpha is None else alpha)
    return class_vector("alpha", alpha, classes)


@keras.saving.register_keras_serializable(package="gradloom")
class CategoricalFocal(ClassLoss):
    """`categorical_focal` as a Keras loss."""

    def __init__(
        self,
        gamma: float = 2.0,
        alpha: float | Sequence[float] | None = None,
        reduction="sum_over_batch_size",
        name="categorical_focal",
        dtype=None,
    ):
        check_range("gamma", gamma, 0.0)
        if alpha is not None:
            alpha = float(_class_alpha(alpha, 1)[0]) if np.ndim(alpha) == 0 else class_vector("alpha", alpha).tolist()
        super().__init__(categorical_focal, {"gamma": gamma, "alpha": alpha}, name, reduction, dtype)


def asymmetric(
    labels: tf.Tensor, logits: tf.Tensor, gamma_positive: float = 0.0, gamma_negative: float = 4.0, margin: float = 0.05
) -> tf.Tensor:
    """Returns the asymmetric loss for many, mostly absent labels (ASL, Ridnik et al. 2021, 2009.14119, eq. 7).

    Label 1: (1 - p)^gamma_positive (-log p). Label 0: q^gamma_negative
    (-log(1 - q)) with q = max(p - margin, 0), so that easy negatives have loss 0.

    Args:
        labels: 0 and 1, or probabilities, of the shape of `logits`; [B] matches [B, 1].
        logits: float [B], or [B, ..., K] for K labels, whose mean is taken; the paper's code sums.
        gamma_positive, gamma_negative: numbers >= 0; 0 and 4 in the paper.
        margin: in [0, 1), .05 in the paper. With 0 and both gammas 0 this is binary cross-entropy.

    Returns:
        float [B, ...].
    """
    labels, logits = pair(labels, logits)
    labels = in_unit("labels", labels, _LABELS)
    _check_asymmetric(gamma_positive, gamma_negative, margin)
    if_one = _modulate(logits, gamma_positive)
    if margin == 0:
        return mean_last(labels * if_one + (1 - labels) * _modulate(-logits, gamma_negative))
    shifted = tf.sigmoid(logits) - margin  # log(1 - q) is at least log(margin): no log space needed
    counts = shifted > 0
    q = tf.where(counts, shifted, 0.5)
    if_zero = tf.where(counts, -tf.pow(q, gamma_negative) * tf.math.log1p(-q), 0)
    return mean_last(labels * if_one + (1 - labels) * if_zero)


def _check_asymmetric(gamma_positive, gamma_negative, margin):
    check_range("gamma_positive", gamma_positive, 0.0)
    check_range("gamma_negative", gamma_negative, 0.0)
    if not 0 <= margin < 1:
        raise ValueError(f"`margin` must be in [0, 1), got {margin}. At 1 no negative would count.")


@keras.saving.register_keras_serializable(package="gradloom")
class Asymmetric(BinaryLoss):
    """`asymmetric` as a Keras loss."""

    takes_logits = True

    def __init__(
        self,
        gamma_positive: float = 0.0,
        gamma_negative: float = 4.0,
        margin: float = 0.05,
        reduction="sum_over_batch_size",
        name="asymmetric",
        dtype=None,
    ):
        _check_asymmetric(gamma_positive, gamma_negative, margin)
        arguments = {"gamma_positive": gamma_positive, "gamma_negative": gamma_negative, "margin": margin}
        super().__init__(asymmetric, arguments, name, reduction, dtype)
