"""Overlap losses for segmentation with one value per example; Keras' Dice and Tversky return one for a batch.

Keras does not divide a scalar loss by the number of replicas, and weights an
example with a small object less than one with a large object.
Targets or probabilities outside [0, 1] are an error in eager code, else NaN.
"""

import keras
import tensorflow as tf

from losses.base import BinaryLoss, check_positive, check_range, examples_in_unit, to_float


def soft_dice(targets: tf.Tensor, probabilities: tf.Tensor, smoothing: float = 1.0) -> tf.Tensor:
    """Returns 1 - (2 TP + s) / (2 TP + FP + FN + s) (Milletari et al. 2016, 1606.04797).

    It is the mean over an example's classes. TP, FP, FN are sums of products of probabilities over all axes but the
    first and the last. With s, a class that is neither present nor predicted gives 0.

    Args:
        targets: [B, ..., C], 0 and 1 (one-hot for exclusive classes), the shape of `probabilities`; [B, ...] for C = 1.
        probabilities: float [B, ..., C] in [0, 1]: apply a sigmoid or softmax to logits first.
        smoothing: number > 0, s, in pixels.

    Returns:
        float [B], in [0, 1].
    """
    check_positive("smoothing", smoothing, " It sets the loss of an empty mask.")
    return soft_tversky(targets, probabilities, 0.5, 0.5, smoothing / 2)


def soft_tversky(
    targets: tf.Tensor, probabilities: tf.Tensor, alpha: float = 0.3, beta: float = 0.7, smoothing: float = 1.0
) -> tf.Tensor:
    """Returns 1 - (TP + s) / (TP + alpha FP + beta FN + s) for each example (Salehi et al. 2017, 1706.05721, eq. 4).

    Args:
        targets, probabilities: as in `soft_dice`.
        alpha, beta: numbers >= 0, weights of false positives and of false negatives; .3 and .7 in the paper.
        smoothing: number > 0, s.

    Returns:
        float [B], in [0, 1].
    """
    return tf.reduce_mean(1 - _tversky_index(targets, probabilities, alpha, beta, smoothing), -1)


def focal_tversky(
    targets: tf.Tensor,
    probabilities: tf.Tensor,
    alpha: float = 0.3,
    beta: float = 0.7,
    gamma: float = 0.75,
    smoothing: float = 1.0,
) -> tf.Tensor:
    """Returns (1 - Tversky index)^gamma, the mean over an example's classes (Abraham & Khan 2019, 1810.07842, eq. 4).

    Args:
        targets, probabilities, alpha, beta, smoothing: as in `soft_tversky`.
        gamma: number > 0; the paper's exponent is 1 / (4/3) = .75. Below 1 the
            slope grows without bound near a perfect match; at the match itself it is 0.

    Returns:
        float [B], in [0, 1].
    """
    check_positive("gamma", gamma)
    rest = 1 - _tversky_index(targets, probabilities, alpha, beta, smoothing)
    # In float32 an index cannot come nearer to 1. NaN is not exact (`not <=` would do, but grappler makes `>` of it).
    exact = rest <= 1e-6
    return tf.reduce_mean(
        tf.where(exact, tf.zeros_like(rest), tf.pow(tf.where(exact, tf.ones_like(rest), rest), gamma)), -1
    )


def _tversky_index(targets, probabilities, alpha, beta, smoothing):
    """The index of each example and class, [B, C]."""
    _check(alpha, beta, smoothing)
    probabilities = to_float(probabilities)
    targets = tf.cast(tf.convert_to_tensor(targets), probabilities.dtype)
    if (
        targets.shape.rank is not None
        and probabilities.shape.rank == targets.shape.rank + 1
        and probabilities.shape[-1] == 1
    ):
        targets = targets[..., tf.newaxis]
    rank = probabilities.shape.rank
    if (
        rank is None
        or rank < 3
        or targets.shape.rank != rank
        or not targets.shape.is_compatible_with(probabilities.shape)
    ):
        raise ValueError(
            f"`targets` of shape {targets.shape} do not fit `probabilities` of shape {probabilities.shape}; both are "
            "[B, ..., C] with one map per class. Give one-hot targets: keras.ops.one_hot(ids, C)."
        )
    known = examples_in_unit(
        "targets", targets, "Give 0 and 1: divide a mask of 0 and 255 by 255, one-hot encode class ids."
    )
    known *= examples_in_unit("probabilities", probabilities, "Apply a sigmoid or softmax to logits first.")
    pixels = list(range(1, rank - 1))
    # FP = sum(p) - TP and FN = sum(t) - TP cost less than sums of 1 - t and 1 - p.
    hit, predicted, present = (tf.reduce_sum(x, pixels) for x in (targets * probabilities, probabilities, targets))
    return known * (hit + smoothing) / (hit + alpha * (predicted - hit) + beta * (present - hit) + smoothing)


def _check(alpha, beta, smoothing):
    check_range("alpha", alpha, 0.0)
    check_range("beta", beta, 0.0)
    check_positive("smoothing", smoothing, " It sets the loss of an empty mask.")


@keras.saving.register_keras_serializable(package="gradloom")
class SoftDice(BinaryLoss):
    """`soft_dice` as a Keras loss."""

    def __init__(self, smoothing: float = 1.0, reduction="sum_over_batch_size", name="soft_dice", dtype=None):
        _check(0.5, 0.5, smoothing)
        super().__init__(soft_dice, {"smoothing": smoothing}, name, reduction, dtype)


@keras.saving.register_keras_serializable(package="gradloom")
class SoftTversky(BinaryLoss):
    """`soft_tversky` as a Keras loss."""

    def __init__(
        self,
        alpha: float = 0.3,
        beta: float = 0.7,
        smoothing: float = 1.0,
        reduction="sum_over_batch_size",
        name="soft_tversky",
        dtype=None,
    ):
        _check(alpha, beta, smoothing)
        super().__init__(soft_tversky, {"alpha": alpha, "beta": beta, "smoothing": smoothing}, name, reduction, dtype)


@keras.saving.register_keras_serializable(package="gradloom")
class FocalTversky(BinaryLoss):
    """`focal_tversky` as a Keras loss."""

    def __init__(
        self,
        alpha: float = 0.3,
        beta: float = 0.7,
        gamma: float = 0.75,
        smoothing: float = 1.0,
        reduction="sum_over_batch_size",
        name="focal_tversky",
        dtype=None,
    ):
        _check(alpha, beta, smoothing)
        check_positive("gamma", gamma)
        arguments = {"alpha": alpha, "beta": beta, "gamma": gamma, "smoothing": smoothing}
        super().__init__(focal_tversky, arguments, name, reduction, dtype)
