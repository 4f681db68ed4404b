"""How the numbers of replicas, steps and loops become one number.

A loss is reduced by rule R2 of the design: values mean over all elements of
the global batch that count, (values, weights) divide by the sum of weights, a
scalar counts with the examples of its replica. Reports are sums and weights:
on the device over the steps of a loop, on the host (float64) over loops.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf


class Term(NamedTuple):
    """What one replica (or micro-batch) knows of a loss.

    Without weights of its own (`own` False) `value` is the mean over the
    elements here and `weight` the number of real examples here; with `own`,
    they are the sum of values * weights and the sum of weights, and replicas
    have to add the latter up before the gradient.
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
        """Returns (value, weight) for a Tally, whose quotient over replicas and batches is the loss of an evaluation."""
        return self.value if self.own else self.value * self.weight, self.weight


def make_term(name, value, examples, counted=False):
    """Returns the Term of one loss value, in float32 or wider. Traced, per replica.

    Args:
        name: the loss's name, for errors.
        value: a tensor of any rank, or (values, weights).
        examples: int scalar, how many real examples stand behind it (0: padding).
        counted: count elements instead of examples, where their number per
            example varies.
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


def _mean(values):
    """Returns the mean of all elements, 0 where there are none: a batch may turn out to be empty."""
    if values.shape.num_elements():  # known, and not none
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


class Tally:
    """Sums of step values on the device, one vector; sums over replicas when read.

    An entry added as (value, weight) is reported as sum(value) / sum(weight).
    """

    def __init__(self, names):
        self.names = list(names)
        self._sums = _on_read(tf.zeros([2, len(self.names)]), "tally")

    def add(self, entries):
        """Adds {name: (value, weight)}; traced, per replica."""
        zero = tf.zeros([])
        rows = [entries.get(name, (zero, zero)) for name in self.names]
        values, weights = zip(*rows)
        self._sums.assign_add([[_scalar(x) for x in values], [_scalar(x) for x in weights]])

    def read(self):
        """Returns the sums, float64 [2, n], and starts again from zero; cross-replica, eager or traced."""
        sums = tf.cast(tf.identity(self._sums.read_value()), tf.float64)
        with tf.control_dependencies([sums]):
            self._sums.assign(tf.zeros([2, len(self.names)]))
        return sums


def _scalar(value):
    return tf.reshape(tf.cast(value, tf.float32), [])


class Folds:
    """What does not add up over steps, on the device: the largest so far, and what the last step said.

    Args:
        sizes: {column: int}, vectors of which the largest elements count.
        last: names of which the last step's (value, weight) counts.
    """

    def __init__(self, sizes, last):
        self.sizes, self.last_names = dict(sizes), list(last)
        self._largest = _on_read(tf.fill([sum(self.sizes.values())], -np.inf), "largest")
        self._last = _on_read(tf.zeros([2, len(self.last_names)]), "last")

    def add(self, measured):
        """Takes in one step's {"largest": {column: vector}, "last": {name: (value, weight)}}; traced, per replica."""
        if self.sizes:
            new = tf.concat([measured["largest"][column] for column in self.sizes], 0)
            self._largest.assign(tf.maximum(self._largest.read_value(), new))
        if self.last_names:
            self._last.assign(tf.stack([tf.stack(measured["last"][name]) for name in self.last_names], 1))

    def read(self, strategy):
        """Returns (largest [n], last [2 m]) over all replicas, float64, and starts anew; cross-replica."""

        def take():
            largest, last = tf.identity(self._largest), tf.identity(self._last)
            with tf.control_dependencies([largest, last]):
                self._largest.assign(tf.fill(largest.shape, -np.inf))
                self._last.assign(tf.zeros_like(last))
            return largest[tf.newaxis], last[tf.newaxis]

        if not self.sizes and not self.last_names:
            return tf.zeros([0], tf.float64), tf.zeros([0], tf.float64)
        largest, last = (strategy.gather(values, 0) for values in strategy.run(take))
        return tf.cast(tf.reduce_max(largest, 0), tf.float64), tf.cast(
            tf.reshape(tf.reduce_sum(last, 0), [-1]), tf.float64
        )


def _on_read(value, name):
    on_read, sums = tf.VariableSynchronization.ON_READ, tf.VariableAggregation.SUM
    return tf.Variable(value, trainable=False, synchronization=on_read, aggregation=sums, name=name)


class Report(NamedTuple):
    """What `Reports.read` gave, on the host: float64 arrays. Two of them add up to the report of both loops."""

    scalars: np.ndarray  # [n], last values
    sums: np.ndarray  # [2, m], values and weights
    metrics: np.ndarray  # [k], metric states
    largest: np.ndarray  # [j], Folds
    last: np.ndarray  # [2, i], Folds

    def then(self, later):
        """Returns the report of this loop and a later one."""
        last = np.where(later.last[1] > 0, later.last, self.last)
        largest = np.maximum(self.largest, later.largest)
        return Report(later.scalars, self.sums + later.sums, self.metrics + later.metrics, largest, last)


class Reports:
    """Everything that a loop reports, read as one vector and split again on the host.

    Args:
        scalars: {name: function of no arguments}, numbers of which the last value counts.
        losses: names of the Tally's entries that are means over steps.
        metrics: MetricStates.
        internals: trainer.internals.Internals.
    """

    def __init__(self, scalars, losses, metrics, internals):
        self._scalars, self._losses, self.metrics, self._internals = scalars, list(losses), metrics, internals
        self.tally, self.folds = Tally([*losses, *internals.columns]), Folds(internals.sizes, internals.last)

    def read(self, strategy):
        """Returns all reports since the last read as a float64 vector, and starts them anew; cross-replica."""
        scalars = tf.stack([tf.cast(tf.convert_to_tensor(value()), tf.float64) for value in self._scalars.values()])
        metrics = self.metrics.read()
        with tf.control_dependencies([metrics]):
            self.metrics.reset()
        return tf.concat([scalars, tf.reshape(self.tally.read(), [-1]), *self.folds.read(strategy), metrics], 0)

    def split(self, vector):
        """Returns the Report of what `read` gave, a float64 array."""
        sizes = [
            len(self._scalars),
            2 * len(self.tally.names),
            sum(self.folds.sizes.values()),
            2 * len(self.folds.last_names),
        ]
        scalars, sums, largest, last, metrics = np.split(vector, np.cumsum(sizes))
        return Report(scalars, sums.reshape(2, -1), metrics, largest, last.reshape(2, -1))

    def scalar(self, report, name):
        return report.scalars[list(self._scalars).index(name)]

    def results(self, report):
        """Returns {tag: float} of a training report; eager."""
        tags = means(self._losses, report.sums)
        tags.update({name: float(x) for name, x in zip(self._scalars, report.scalars) if not name.startswith("_")})
        return {**tags, **self._metrics(report)}

    def eval_results(self, report, weights):
        """Returns {tag: float} of an evaluation, whose total is the sum of its losses by {loss name: weight}; eager."""
        losses = {}
        for tag, value in means(self._losses, report.sums).items():
            base = tag.partition("#")[0]  # further calls of one layer add up
            losses[base] = losses.get(base, 0.0) + value
        total = sum(value * float(weights[tag.removeprefix("losses/")]) for tag, value in losses.items())
        return {"loss": float(total), **losses, **self._metrics(report)}

    def _metrics(self, report):
        places = np.split(report.largest, np.cumsum(list(self.folds.sizes.values())))
        internal = self._internals.results(
            dict(zip(self.tally.names, report.sums.T)),
            dict(zip(self.folds.sizes, places)),
            dict(zip(self.folds.last_names, report.last.T)),
        )
        return {**self.metrics.results(report.metrics), **internal}


def means(names, sums):
    """Returns {name: mean} for the names that have a weight; `sums` is a float64 array [2, n]."""
    return {name: float(value / weight) for name, value, weight in zip(names, sums[0], sums[1]) if weight}


class MetricStates:
    """The states of Keras metrics as one vector, so that loops can be added up on the host.

    A metric's state must be a sum (true of Keras' metrics, which are summed
    over replicas in the same way).
    """

    def __init__(self, metrics):
        self.metrics = dict(metrics)

    @property
    def variables(self):
        return [variable for metric in self.metrics.values() for variable in metric.variables]

    def read(self):
        """Returns all states as a float64 vector; cross-replica, eager or traced."""
        states = [tf.reshape(tf.cast(v.value, tf.float64), [-1]) for v in self.variables]
        return tf.concat(states, 0) if states else tf.zeros([0], tf.float64)

    def reset(self):
        for metric in self.metrics.values():
            metric.reset_state()

    def results(self, states):
        """Returns {tag: float} of the metrics at `states`, a vector as `read` gives it; eager."""
        tags, position = {}, 0
        for name, metric in self.metrics.items():
            own = []
            for variable in metric.variables:
                size = int(np.prod(variable.shape))
                value = states[position : position + size].reshape(tuple(variable.shape))
                own.append(tf.cast(value, variable.dtype))
                position += size
            tags.update(_flatten(f"metrics/{name}", metric.stateless_result(own)))
        return tags


def _flatten(tag, result):
    if isinstance(result, dict):
        return {key: value for name, part in result.items() for key, value in _flatten(f"metrics/{name}", part).items()}
    result = np.asarray(result, np.float64)
    if result.ndim == 0:
        return {tag: float(result)}
    return {f"{tag}/{i}": float(value) for i, value in enumerate(result.reshape(-1))}
