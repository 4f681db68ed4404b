"""Losses on two views of a batch without negatives, whose feature statistics prevent collapse.

The statistics are those of the global batch (`losses.global_batch`), so the value is
the same for every example and its gradient reaches all rows. A sample weight or
mask scales an example's value and does not change the statistics.
"""

import keras
import tensorflow as tf

from losses.base import FunctionLoss, check_range
from losses.contrastive import gather_both, of_pairs, views


def vic_reg(
    first: tf.Tensor, second: tf.Tensor, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0
) -> tf.Tensor:
    """Returns the variance-invariance-covariance loss of two views (Bardes et al. 2022, 2105.04906, eq. 1 to 6).

    With z, z' the views of an example, C the covariance of a view over the
    batch (divided by B - 1), and the scales of the authors' code:

        invariance |z - z'|^2 / D
        + variance / 2 sum over both views of mean_j max(0, 1 - sqrt(C_jj + 1e-4))
        + covariance   sum over both views of sum_{i != j} C_ij^2 / D

    Args:
        first, second: float [B, D], views of the same examples in the same order.
        invariance, variance, covariance: numbers >= 0; 25, 25 and 1 in the paper.

    Returns:
        float [B]; the last two terms are the same for each example. A global batch of one example has variance 0.

    Example:
        >>> square = tf.constant([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])  # variances 4 / 3, covariance 0
        >>> vic_reg(square, square).numpy()
        array([0., 0., 0., 0.], dtype=float32)
    """
    _check_weights(invariance=invariance, variance=variance, covariance=covariance)
    first, second = views(first, second)
    size, total = tf.cast(tf.shape(first)[-1], first.dtype), 0.0
    for view in gather_both(first, second):
        centred, rows = _centred(view)
        matrix = tf.linalg.matmul(centred, centred, transpose_a=True) / tf.maximum(rows - 1, 1)
        diagonal = tf.linalg.diag_part(matrix)
        too_narrow = tf.reduce_mean(tf.maximum(1 - tf.sqrt(diagonal + 1e-4), 0))
        total += variance / 2 * too_narrow + covariance * _off_diagonal(matrix) / size
    return invariance * tf.reduce_mean(tf.square(first - second), -1) + total


def barlow_twins(first: tf.Tensor, second: tf.Tensor, redundancy: float = 5e-3) -> tf.Tensor:
    """Returns sum_i (1 - C_ii)^2 + redundancy sum_{i != j} C_ij^2 (Zbontar et al. 2021, 2103.03230, eq. 1).

    C is the correlation of the features of one view with those of the other over the batch (eq. 2), with
    1e-5 added to the variances, as in the batch normalization of the authors' code.

    Args:
        first, second: float [B, D], views of the same examples in the same order.
        redundancy: number >= 0; 5e-3 in the paper.

    Returns:
        float [B], the same for each example; D for a global batch of one example, which correlates with nothing.

    Example:
        >>> square = tf.constant([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> barlow_twins(square, -square).numpy().round(3)  # each feature is the opposite of itself: 2 (1 + 1)^2
        array([8., 8., 8., 8.], dtype=float32)
    """
    _check_weights(redundancy=redundancy)
    first, second = views(first, second)
    normal = []
    for view in gather_both(first, second):
        centred, rows = _centred(view)
        normal.append(centred / tf.sqrt(tf.reduce_mean(tf.square(centred), 0) + 1e-5))
    matrix = tf.linalg.matmul(*normal, transpose_a=True) / rows
    value = tf.reduce_sum(tf.square(1 - tf.linalg.diag_part(matrix))) + redundancy * _off_diagonal(matrix)
    return tf.fill(tf.shape(first)[:1], value)


def _centred(view):
    """Returns `view` without its mean over the batch, and the number of rows."""
    return view - tf.reduce_mean(view, 0), tf.cast(tf.shape(view)[0], view.dtype)


def _off_diagonal(matrix):
    """Returns the sum of the squares off the diagonal."""
    return tf.reduce_sum(tf.square(tf.linalg.set_diag(matrix, tf.zeros_like(matrix[0]))))


def _check_weights(**weights):
    for name, weight in weights.items():
        check_range(name, weight, 0.0)


@keras.saving.register_keras_serializable(package="gradloom")
class VICReg(FunctionLoss):
    """`vic_reg` as a Keras loss on predictions [B, 2, D]; targets are ignored."""

    needs_targets = False

    def __init__(
        self,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        reduction="sum_over_batch_size",
        name="vic_reg",
        dtype=None,
    ):
        weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
        _check_weights(**weights)
        super().__init__(of_pairs(vic_reg), weights, name, reduction, dtype)


@keras.saving.register_keras_serializable(package="gradloom")
class BarlowTwins(FunctionLoss):
    """`barlow_twins` as a Keras loss on predictions [B, 2, D]; targets are ignored."""

    needs_targets = False

    def __init__(self, redundancy: float = 5e-3, reduction="sum_over_batch_size", name="barlow_twins", dtype=None):
        _check_weights(redundancy=redundancy)
        super().__init__(of_pairs(barlow_twins), {"redundancy": redundancy}, name, reduction, dtype)
