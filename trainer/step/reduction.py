"""Reduces each loss to a mean over the global batch.

Values are averaged over all elements of the global batch, (values, weights) give sum(values * weights) / sum(weights),
and a scalar counts with the number of examples of its replica.
"""

from typing import NamedTuple

import tensorflow as tf

from trainer.replicas.distribution import sum_replicas


class LossKey(NamedTuple):
    """A loss of a step and the number of the call: a layer that is called again adds its loss again."""

    name: str
    call: int = 0

    @property
    def tag(self):
        """The name of its sum in a Tally: `losses/<name>`, for further calls with the number of the call."""
        return f"losses/{self.name}#{self.call}" if self.call else f"losses/{self.name}"


def tag_of_all_calls(tag):
    """Returns the `LossKey.tag` of the first call: the tag under which all calls are reported."""
    return tag.partition("#")[0]


class Term(NamedTuple):
    """A loss on one replica or micro-batch, before the reduction over replicas.

    For a loss without weights (`own` False), `value` is the mean over its local
    elements and `weight` the local number of real examples. With `own`, they are
    the local sums of values * weights and of weights; the sum of weights must be
    summed over replicas before the gradient is taken.
    """

    value: tf.Tensor
    weight: tf.Tensor
    own: bool

    def share(self, total_weight, global_examples):
        """Returns this replica's share of the global loss: the shares of all replicas sum to it."""
        if self.own:
            return tf.math.divide_no_nan(self.value, tf.cast(total_weight, self.value.dtype))
        return self.value * tf.math.divide_no_nan(self.weight, tf.cast(global_examples, self.weight.dtype))

    def entry(self):
        """Returns (value, weight) for a Tally: the quotient of their sums is the loss of an evaluation."""
        return self.value if self.own else self.value * self.weight, self.weight


def make_term(name, value, examples, counted=False):
    """Returns the Term of one loss value, in float32 or wider. Traced, per replica.

    Args:
        name: the loss's name, for errors.
        value: a tensor of any rank, or (values, weights).
        examples: int scalar, number of real examples (0: padding).
        counted: whether to count elements instead of examples, because their
            number per example varies.
    """
    values, weights = value if isinstance(value, tuple) else (value, None)
    values = _to_float(name, values)
    if weights is None and not counted:
        return Term(_mean(values), tf.cast(examples, values.dtype), own=False)
    real = tf.cast(examples > 0, values.dtype)
    weights = tf.ones_like(values) if weights is None else tf.cast(weights, values.dtype)
    while weights.shape.rank < values.shape.rank:
        weights = weights[..., tf.newaxis]  # [B] weighs each row of [B, T]
    weights = tf.stop_gradient(tf.broadcast_to(weights, tf.shape(values))) * real
    return Term(tf.reduce_sum(values * weights), tf.reduce_sum(weights), own=True)


def global_shares(terms, p):
    """Returns {loss name: this replica's share of the global loss}, summed over calls; traced, per replica.

    Args:
        terms: {LossKey: Term}.
        p: ReplicaPass. If it does not hold the sums of the losses' own weights over the global batch, they are
            reduced here, before the gradient, in one all-reduce call.
    """
    own, weights = [key for key, term in terms.items() if term.own], p.loss_weights
    if own and weights is None:
        sums = sum_replicas(tf.stack([terms[key].weight for key in own]))
        weights = dict(zip(own, tf.unstack(sums, num=len(own))))
    shares = {}
    for key, term in terms.items():
        all_here = p.whole and not term.own
        share = term.value if all_here else term.share(weights and weights.get(key), p.global_examples)
        shares[key.name] = shares[key.name] + share if key.name in shares else share
    return shares


def penalty_terms(variables, examples):
    """Returns {"regularization": Term}, the sum of Keras regularizers in their widest dtype; {} without any."""
    penalties = [_to_float("regularization", v.regularizer(v)) for v in variables if v.regularizer is not None]
    if not penalties:
        return {}
    widest = max((penalty.dtype for penalty in penalties), key=lambda dtype: dtype.size)
    total = tf.add_n([tf.cast(penalty, widest) for penalty in penalties])
    return {LossKey("regularization"): make_term("regularization", total, examples)}


def _mean(values):
    """Returns the mean of all elements, or 0 for an empty batch."""
    if values.shape.num_elements():  # known and not 0
        return tf.reduce_mean(values)
    return tf.math.divide_no_nan(tf.reduce_sum(values), tf.cast(tf.size(values), values.dtype))


def _to_float(name, values):
    if isinstance(values, tf.RaggedTensor):
        values = values.flat_values
    try:
        values = tf.convert_to_tensor(values)
    except (TypeError, ValueError):
        raise ValueError(
            f"Loss {name!r} must be a tensor or (values, weights), got {type(values).__name__}: {values!r:.80}."
        ) from None
    if not values.dtype.is_floating:
        raise ValueError(f"Loss {name!r} must be of a floating dtype, got {values.dtype.name}; it has no gradient.")
    return tf.cast(values, tf.float32) if values.dtype.size < 4 else values
