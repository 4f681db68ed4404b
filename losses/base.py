"""Shared by losses: float types, label formats, and the Keras class around a function.

A loss is a function (targets, predictions, ...) that returns one value per
example, [B], or per element, [B, T], in float32 or float64, without reduction.
Its Keras class adds `fit`, sample weights, masks and serialization, and casts
to its `dtype` (default float32) as Keras losses do.
"""

import numbers

import keras
import numpy as np
import tensorflow as tf


def to_float(x):
    """Returns `x` as a float32 tensor, or float64 if it is one. Losses are not computed in half precision."""
    x = tf.convert_to_tensor(x)
    return x if x.dtype == tf.float64 else tf.cast(x, tf.float32)


def log_softmax(logits):
    """Returns log probabilities, float [..., C], of `logits`; checks their shape."""
    logits = to_float(logits)
    check_scores("logits", logits)
    return tf.nn.log_softmax(logits)


def log_softmax_and_rest(logits):
    """Returns (log p_c, log(1 - p_c)), float [..., C] each; the second is exact also where p_c rounds to 1."""
    log_p = log_softmax(logits)
    logits = tf.cast(logits, log_p.dtype)
    # 1 - p cancels for the largest p only: there it is the sum over the other classes.
    largest = tf.one_hot(tf.argmax(logits, -1), tf.shape(logits)[-1], on_value=True, off_value=False)
    others = tf.where(largest, log_p.dtype.min, logits)
    of_largest = tf.reduce_logsumexp(others, -1, keepdims=True) - tf.reduce_logsumexp(logits, -1, keepdims=True)
    of_others = tf.math.log1p(-tf.exp(tf.where(largest, log_p.dtype.min, log_p)))
    return log_p, tf.where(largest, of_largest, of_others)


def check_scores(name, scores):
    """Raises ValueError unless `scores` is [B, ..., C] with C > 1."""
    if scores.shape.rank is None or scores.shape.rank < 2 or scores.shape[-1] == 1:
        raise ValueError(
            f"`{name}` must be [B, ..., C] with one score for each of C > 1 classes, got the shape {scores.shape}. "
            "For one score per example use a binary loss."
        )


def expect(labels, function, *scores):
    """Returns the mean over `labels` of `function(score, ...)` taken class by class: [B, ..., C] -> [B, ...].

    For ids it is the value of the labelled class. A class of probability 0 has no
    effect on value and gradient, even if its score is infinite.

    Args:
        labels: class ids in [0, C), of any dtype, [B, ...] or [B, ..., 1]; or
            probabilities of the classes, [B, ..., C].
        function: elementwise, finite at 0; takes as many tensors as there are scores.
        *scores: float [B, ..., C], the first one; or [C].

    Raises:
        ValueError: for labels of any other shape.
        tf.errors.InvalidArgumentError: for an id outside [0, C), on CPU. Elsewhere value and gradient are NaN.
    """
    labels, rank = _as_ids(labels, scores[0].shape), scores[0].shape.rank
    if labels.shape.rank == rank:
        labels = tf.cast(labels, scores[0].dtype)
        present = tf.not_equal(labels, 0)
        return tf.reduce_sum(labels * function(*(tf.where(present, s, tf.zeros_like(s)) for s in scores)), -1)
    ids, known = _known(labels, scores[0])
    return known * function(*(tf.gather(s, ids, axis=-1, batch_dims=min(s.shape.rank, rank) - 1) for s in scores))


def expect_odds(labels, function, logits, *vectors):
    """As `expect`, of function(log(p_c / (1 - p_c)), ...): exact also where p_c rounds to 1. `vectors` are [C]."""
    if is_distribution(labels, logits):
        log_p, log_rest = log_softmax_and_rest(logits)
        return expect(labels, function, log_p - log_rest, *vectors)
    # Only the labelled class of each example, which halves the work.
    logits = to_float(logits)
    check_scores("logits", logits)
    ids = tf.cast(_as_ids(labels, logits.shape), tf.int32)
    labelled = tf.one_hot(ids, tf.shape(logits)[-1], on_value=True, off_value=False)
    others = tf.reduce_logsumexp(tf.where(labelled, logits.dtype.min, logits), -1)
    return expect(labels, lambda own, *rest: function(own - others, *rest), logits, *vectors)


def expect_row(labels, matrix, scores):
    """Returns sum_j M[label, j] s_j for a `matrix` M [C, C], or its mean over label probabilities, [B, ...]."""
    labels, matrix = _as_ids(labels, scores.shape), tf.cast(matrix, scores.dtype)
    if labels.shape.rank == scores.shape.rank:
        return tf.reduce_sum(tf.linalg.matmul(tf.cast(labels, scores.dtype), matrix) * scores, -1)
    ids, known = _known(labels, scores)
    return known * tf.reduce_sum(tf.gather(matrix, ids) * scores, -1)


def _known(labels, scores):
    """Returns (ids, int32; float factors: 1, or NaN for an id outside [0, C)), [B, ...] both.

    An id out of range raises on CPU. Elsewhere it is replaced by a valid id, and the factor makes value and gradient
    NaN, which the guard detects.
    """
    ids, classes = tf.cast(labels, tf.int32), tf.shape(scores)[-1]
    inside = tf.logical_and(ids >= 0, ids < classes)
    factors = tf.where(inside, tf.constant(1, scores.dtype), tf.constant(np.nan, scores.dtype))
    return tf.gather(tf.range(classes), ids), factors


def _as_ids(labels, scores):
    """Returns `labels` as [B, ...] (ids) or [B, ..., C] (probabilities), for scores of shape `scores`."""
    labels = tf.convert_to_tensor(labels)
    have, ids = labels.shape, scores[:-1]
    if have.rank == scores.rank and have[-1] is not None:
        if have[-1] == 1:
            have, labels = have[:-1], tf.squeeze(labels, -1)
        elif have.is_compatible_with(scores):
            return labels
    if have.rank != ids.rank or not have.is_compatible_with(ids):
        raise ValueError(
            f"`labels` of shape {labels.shape} do not fit scores of shape {scores}. Give class ids of shape {ids} "
            f"(or with a last axis of 1), or class probabilities of shape {scores}."
        )
    return labels


def is_distribution(labels, scores):
    """True if `labels` holds probabilities of the classes, not ids."""
    return _as_ids(labels, scores.shape).shape.rank == scores.shape.rank


def pair(targets, predictions):
    """Returns (targets, predictions) as floats of equal shape; a last axis of 1 that only one of them has is removed.

    Raises:
        ValueError: if one would broadcast against the other.
    """
    predictions = to_float(predictions)
    targets = tf.cast(tf.convert_to_tensor(targets), predictions.dtype)
    have, want = targets.shape, predictions.shape
    if have.rank is not None and want.rank is not None:
        if have.rank == want.rank + 1 and have[-1] == 1:
            targets = tf.squeeze(targets, -1)
        elif want.rank == have.rank + 1 and want[-1] == 1:
            predictions = tf.squeeze(predictions, -1)
        if targets.shape.rank == predictions.shape.rank and targets.shape.is_compatible_with(predictions.shape):
            return targets, predictions
    raise ValueError(
        f"`targets` of shape {have} do not fit predictions of shape {want}; they are compared element by element. "
        "Reshape one of them, e.g. targets[:, None], or change the last layer."
    )


def in_unit(name, x, fix):
    """Returns `x`, with NaN for values outside [0, 1] beyond rounding.

    Raises:
        ValueError: for such a value in eager code.
    """
    inside = x * (1 - x) >= -1e-3
    if tf.executing_eagerly() and not tf.reduce_all(inside):
        raise ValueError(f"`{name}` must be in [0, 1], got {x[tf.logical_not(inside)][0].numpy():g}. {fix}")
    return tf.where(inside, x, tf.constant(np.nan, x.dtype))


def examples_in_unit(name, x, fix):
    """Returns [B, 1] for `x` [B, ...]: 1, or NaN for an example with a value outside [0, 1]; raises like `in_unit`.

    It compares only the extremes of each example, which is faster for large examples.
    """
    if tf.executing_eagerly():
        in_unit(name, x, fix)
    x, axes = tf.stop_gradient(x), list(range(1, x.shape.rank))
    inside = tf.logical_and(tf.reduce_min(x, axes) >= -1e-3, tf.reduce_max(x, axes) <= 1 + 1e-3)
    return tf.where(inside, tf.constant(1, x.dtype), tf.constant(np.nan, x.dtype))[:, tf.newaxis]


def mean_last(values):
    """Returns the mean over the last axis, as Keras' losses do; a vector is returned unchanged."""
    return tf.reduce_mean(values, -1) if values.shape.rank > 1 else values


def class_vector(name, values, classes=None):
    """Returns one finite number >= 0 per class as a NumPy float64 array [C].

    Raises:
        ValueError: for another shape or length, or a negative or non-finite number.
    """
    vector = np.asarray(values, np.float64)
    if vector.ndim != 1 or vector.size < 2 or not np.isfinite(vector).all() or (vector < 0).any():
        raise ValueError(f"`{name}` must be a list of finite numbers >= 0, one per class, got {values!r:.80}.")
    if classes is not None and vector.size != classes:
        raise ValueError(
            f"`{name}` has {vector.size} numbers for {classes} classes. Give one number per class, in their order."
        )
    return vector


def check_range(name, value, low, high=np.inf, hint=""):
    """Raises ValueError unless low <= value <= high; a tensor (a schedule, a trained parameter) is not checked."""
    if isinstance(value, numbers.Number) and not low <= value <= high:
        limits = f">= {low}" if high == np.inf else f"in [{low}, {high}]"
        raise ValueError(f"`{name}` must be {limits}, got {value}.{hint}")


def check_positive(name, value, hint=""):
    """Raises ValueError unless value > 0; a tensor is not checked."""
    if isinstance(value, numbers.Number) and not 0 < value < np.inf:
        raise ValueError(f"`{name}` must be > 0, got {value}.{hint}")


class FunctionLoss(keras.losses.Loss):
    """A Keras loss whose values are `function(y_true, y_pred, **arguments)`; `arguments` is what `get_config` saves."""

    checks_shapes = True  # its function checks shapes and refuses broadcasting
    takes_logits = False

    def __init__(self, function, arguments, name, reduction, dtype):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.from_logits = (
            self.takes_logits
        )  # Keras' attribute, by which a trainer refuses a model that ends in a softmax
        self._function, self._arguments = function, arguments

    def call(self, y_true, y_pred):
        return self._function(y_true, y_pred, **self._arguments)

    def get_config(self):
        return {**keras.losses.Loss.get_config(self), "dtype": self.dtype, **self._arguments}


class ClassLoss(FunctionLoss, keras.losses.SparseCategoricalCrossentropy):
    """A FunctionLoss on class ids; a trainer checks that the ids exist."""

    takes_logits = takes_class_ids = True


class BinaryLoss(FunctionLoss):
    """A FunctionLoss with targets in [0, 1]; a trainer checks that they are."""

    binary_targets = True
