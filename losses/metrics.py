"""Metrics that Keras lacks. Their states are sums, which can be added over replicas, steps and loops."""

import keras
import numpy as np
import tensorflow as tf

from losses.base import check_scores, to_float


class _FromConfusion(keras.metrics.Metric):
    """A metric of the weighted confusion matrix [C, C], row = true class, column = predicted class."""

    def __init__(self, num_classes, name, dtype):
        super().__init__(name=name, dtype=dtype)
        if num_classes < 2:
            raise ValueError(f"`num_classes` must be >= 2, got {num_classes}. Give 2 for one score per example.")
        self.num_classes = num_classes
        self.confusion = self.add_weight(name="confusion", shape=(num_classes, num_classes), initializer="zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Adds a batch.

        Args:
            y_true: class ids [B, ...] or [B, ..., 1], or one-hot [B, ..., C].
            y_pred: scores [B, ..., C], of which the largest counts; for two
                classes also probabilities of class 1, [B, ...] or [B, ..., 1], which count from .5 on.
            sample_weight: [B, ...] or [B], or None.
        """
        weights = _weights(y_pred, sample_weight)
        truth, predicted = _class_ids(y_true, y_pred, self.num_classes)
        weights = _spread(weights, truth, self.dtype)
        pairs = tf.reshape(truth * self.num_classes + predicted, [-1])
        # An id outside [0, C) would count in another cell, so it makes the result NaN.
        known = tf.reshape(tf.logical_and(truth >= 0, truth < self.num_classes), [-1])
        weights = tf.where(known, tf.reshape(weights, [-1]), tf.constant(np.nan, weights.dtype))
        cells = tf.math.unsorted_segment_sum(weights, tf.where(known, pairs, 0), self.num_classes**2)
        self.confusion.assign_add(tf.reshape(cells, self.confusion.shape))

    def get_config(self):
        return {**super().get_config(), "num_classes": self.num_classes}


def _class_ids(y_true, y_pred, classes):
    """Returns (true ids, predicted ids), int32 [B, ...]."""
    y_true, y_pred = tf.convert_to_tensor(y_true), tf.convert_to_tensor(y_pred)
    shape = y_pred.shape
    if shape.rank and shape[-1] == classes and (classes > 2 or shape.rank > 1):
        predicted = tf.argmax(y_pred, -1, output_type=tf.int32)
    elif classes == 2 and shape.rank:
        if shape.rank > 1 and shape[-1] == 1:
            y_pred = tf.squeeze(y_pred, -1)
        predicted = tf.cast(to_float(y_pred) >= 0.5, tf.int32)
    else:
        raise ValueError(
            f"`y_pred` of shape {shape} has no {classes} scores per example. Set `num_classes` to the size of the last "
            "layer."
        )
    if y_true.shape.rank == predicted.shape.rank + 1:
        one_hot = y_true.shape[-1] == classes
        y_true = tf.argmax(y_true, -1) if one_hot else tf.squeeze(y_true, -1) if y_true.shape[-1] == 1 else y_true
    if y_true.shape.rank != predicted.shape.rank or not y_true.shape.is_compatible_with(predicted.shape):
        raise ValueError(
            f"`y_true` of shape {y_true.shape} does not fit `y_pred` of shape {shape}. "
            f"Give class ids of shape {predicted.shape}, or one-hot labels."
        )
    return tf.cast(y_true, tf.int32), predicted


def _weights(y_pred, sample_weight):
    """Returns `sample_weight` times Keras' mask of the predictions, or None without both."""
    mask = getattr(y_pred, "_keras_mask", None)
    if mask is None:
        return sample_weight
    mask = tf.cast(mask, tf.float32)
    if sample_weight is None:
        return mask
    weights = tf.cast(sample_weight, tf.float32)
    while weights.shape.rank < mask.shape.rank:
        weights = weights[..., tf.newaxis]
    return weights * mask


def _spread(weights, like, dtype):
    """Returns `weights` (None: ones) for each element of `like`."""
    if weights is None:
        return tf.ones(tf.shape(like), dtype)
    weights = tf.cast(weights, dtype)
    if weights.shape.rank == like.shape.rank + 1 and weights.shape[-1] == 1:
        weights = tf.squeeze(weights, -1)
    while weights.shape.rank < like.shape.rank:
        weights = weights[..., tf.newaxis]
    return tf.broadcast_to(weights, tf.shape(like))


@keras.saving.register_keras_serializable(package="gradloom")
class CohenKappa(_FromConfusion):
    """Agreement beyond chance: 1 - sum w o / sum w e (Cohen 1960, 1968).

    o and e are observed and expected frequencies of (true class, predicted class), w the weights.
    Args:
        num_classes: int >= 2.
        weighting: weight of confusing class i with j: None, 1 if i != j; "linear", |i - j|; "quadratic", (i - j)^2.

    The result is 0 before any update, or if chance agreement is 1.
    """

    def __init__(self, num_classes: int, weighting: str | None = None, name="cohen_kappa", dtype=None):
        super().__init__(num_classes, name, dtype)
        if weighting not in (None, "linear", "quadratic"):
            raise ValueError(f"`weighting` must be None, 'linear' or 'quadratic', got {weighting!r}.")
        self.weighting = weighting

    def result(self):
        observed = tf.convert_to_tensor(self.confusion)
        total = tf.reduce_sum(observed)
        expected = tf.math.divide_no_nan(tf.reduce_sum(observed, 1, keepdims=True) * tf.reduce_sum(observed, 0), total)
        places = np.arange(self.num_classes)
        apart = np.abs(places[:, np.newaxis] - places)
        weights = {None: apart > 0, "linear": apart, "quadratic": apart**2}[self.weighting]
        weights = tf.cast(weights, observed.dtype)
        by_chance = tf.reduce_sum(weights * expected)
        kappa = 1 - tf.math.divide_no_nan(tf.reduce_sum(weights * observed), by_chance)
        return tf.where(tf.equal(by_chance, 0), tf.zeros_like(kappa), kappa)

    def get_config(self):
        return {**super().get_config(), "weighting": self.weighting}


@keras.saving.register_keras_serializable(package="gradloom")
class MatthewsCorrelation(_FromConfusion):
    """Correlation of true and predicted classes, for two classes phi, for more R_K (Matthews 1975; Gorodkin 2004).

    Args:
        num_classes: int >= 2.

    The result is 0 if only one class occurred, or only one was predicted.
    """

    def __init__(self, num_classes: int = 2, name="matthews_correlation", dtype=None):
        super().__init__(num_classes, name, dtype)

    def result(self):
        confusion = tf.convert_to_tensor(self.confusion)
        # Fractions, not counts, whose squares exceed the exact integers of float32.
        confusion = tf.math.divide_no_nan(confusion, tf.reduce_sum(confusion))
        truth, predicted = tf.reduce_sum(confusion, 1), tf.reduce_sum(confusion, 0)
        covariance = tf.linalg.trace(confusion) - tf.reduce_sum(truth * predicted)
        spread = tf.sqrt((1 - tf.reduce_sum(truth**2)) * (1 - tf.reduce_sum(predicted**2)))
        return tf.where(spread > 1e-6, covariance / tf.maximum(spread, 1e-6), tf.zeros_like(spread))


@keras.saving.register_keras_serializable(package="gradloom")
class ExpectedCalibrationError(keras.metrics.Metric):
    """Mean distance of confidence and accuracy (Guo et al. 2017, 1706.04599, eq. 5).

    sum_b n_b / n |accuracy_b - confidence_b| over bins b.
    Confidence is the largest probability; bins are equally wide over [0, 1].

    Args:
        bins: int >= 1; 15 in the paper.
        from_logits: bool, whether predictions still need a softmax (a sigmoid, for one score per example).

    The result is 0 before any update.
    """

    def __init__(self, bins: int = 15, from_logits: bool = False, name="expected_calibration_error", dtype=None):
        super().__init__(name=name, dtype=dtype)
        if bins < 1:
            raise ValueError(f"`bins` must be >= 1, got {bins}. The paper uses 15.")
        self.bins, self.from_logits = bins, from_logits
        self.sums = self.add_weight(name="sums", shape=(3, bins), initializer="zeros")  # weight, confidence, hits

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Adds a batch.

        Args:
            y_true: class ids [B, ...] or one-hot [B, ..., C].
            y_pred: predictions [B, ..., C]; for two classes also those of class 1, [B, ..., 1].
            sample_weight: [B, ...] or [B], or None.
        """
        weights = _weights(y_pred, sample_weight)
        probabilities = self._probabilities(to_float(y_pred))
        truth, predicted = _class_ids(y_true, probabilities, probabilities.shape[-1])
        confidence = tf.cast(tf.reduce_max(probabilities, -1), self.dtype)
        weights = tf.reshape(_spread(weights, truth, self.dtype), [-1])
        confidence = tf.reshape(confidence, [-1])
        hits = tf.reshape(tf.cast(tf.equal(truth, predicted), self.dtype), [-1])
        place = tf.clip_by_value(
            tf.cast(tf.math.ceil(confidence * self.bins), tf.int32) - 1, 0, self.bins - 1
        )  # (low, high]
        columns = tf.stack([weights, weights * confidence, weights * hits], 1)
        self.sums.assign_add(tf.transpose(tf.math.unsorted_segment_sum(columns, place, self.bins)))

    def _probabilities(self, predictions):
        """Returns float [B, ..., C], C >= 2."""
        if predictions.shape.rank and predictions.shape.rank > 1 and predictions.shape[-1] == 1:
            ones = tf.sigmoid(predictions) if self.from_logits else predictions
            return tf.concat([1 - ones, ones], -1)
        check_scores("y_pred", predictions)
        return tf.nn.softmax(predictions) if self.from_logits else predictions

    def result(self):
        weight, confidence, hits = tf.unstack(tf.convert_to_tensor(self.sums))
        return tf.math.divide_no_nan(tf.reduce_sum(tf.abs(hits - confidence)), tf.reduce_sum(weight))

    def get_config(self):
        return {**super().get_config(), "bins": self.bins, "from_logits": self.from_logits}
