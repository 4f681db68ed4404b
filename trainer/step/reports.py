"""Reports: sums and weights of what steps measure, on the device over a loop, on the host (float64) over loops."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf


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

    def tags(self, strategy):
        """Returns the tags of a training report and those of an evaluation, as two sets; eager, between loops."""
        report = self.split(self.read(strategy).numpy())
        full = report._replace(sums=np.ones_like(report.sums), last=np.ones_like(report.last))
        losses = {tag.partition("#")[0] for tag in self._losses if tag.startswith("losses/")}
        return set(self.results(full)), {"loss", *losses, *self._metrics(full)}

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
