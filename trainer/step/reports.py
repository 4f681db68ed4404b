"""Accumulates losses, metrics and norms: over the steps of a loop on the device, over loops on the host in float64."""

import json
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from trainer.step.reduction import tag_of_all_calls


def loss_entries(losses, weights, share):
    """Returns the Tally's entries of a step's losses and their weighted sum; traced, per replica.

    Args:
        losses: {name: scalar}, this replica's share of each.
        weights: {name: number or scalar}.
        share: number, 1 / replicas: what this replica adds to a count of 1.
    """
    losses = {name: tf.cast(loss, tf.float32) for name, loss in losses.items()}
    total = tf.add_n([loss * weights[name] for name, loss in losses.items()])
    return {"loss": (total, share), **{f"losses/{name}": (loss, share) for name, loss in losses.items()}}


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

    def start(self):
        """Resets to zero; cross-replica, eager or traced."""
        self._sums.assign(tf.zeros([2, len(self.names)]))

    def read(self):
        """Returns the sums over replicas, float64 [2, n]; cross-replica, eager or traced."""
        return tf.cast(self._sums.read_value(), tf.float64)


def _scalar(value):
    return tf.reshape(tf.cast(value, tf.float32), [])


class Folds:
    """Values that are not summed over steps, on the device: maxima, and the values of the last step.

    Args:
        sizes: {column: int}, sizes of vectors whose elementwise maximum is reported.
        last: names whose (value, weight) of the last step is reported.
    """

    def __init__(self, sizes, last):
        self.sizes, self.last_names = dict(sizes), list(last)
        self._largest = _on_read(tf.fill([sum(self.sizes.values())], -np.inf), "largest")
        self._last = _on_read(tf.zeros([2, len(self.last_names)]), "last")

    def add(self, measured):
        """Adds one step's {"largest": {column: vector}, "last": {name: (value, weight)}}; traced, per replica."""
        if self.sizes:
            new = tf.concat([measured["largest"][column] for column in self.sizes], 0)
            self._largest.assign(tf.maximum(self._largest.read_value(), new))
        if self.last_names:
            self._last.assign(tf.stack([tf.stack(measured["last"][name]) for name in self.last_names], 1))

    def start(self, strategy):
        """Resets; cross-replica, eager or traced."""

        def reset():
            self._largest.assign(tf.fill(self._largest.shape, -np.inf))
            self._last.assign(tf.zeros(self._last.shape))

        if self.sizes or self.last_names:
            strategy.run(reset)

    def read(self, strategy):
        """Returns (largest [n], last [2 m]) over all replicas, float64; cross-replica."""
        if not self.sizes and not self.last_names:
            return tf.zeros([0], tf.float64), tf.zeros([0], tf.float64)
        take = lambda: (tf.identity(self._largest)[tf.newaxis], tf.identity(self._last)[tf.newaxis])  # noqa: E731
        largest, last = (tf.cast(strategy.gather(values, 0), tf.float64) for values in strategy.run(take))
        return tf.reduce_max(largest, 0), tf.reshape(tf.reduce_sum(last, 0), [-1])


def _on_read(value, name):
    on_read, sums = tf.VariableSynchronization.ON_READ, tf.VariableAggregation.SUM
    return tf.Variable(value, trainable=False, synchronization=on_read, aggregation=sums, name=name)


_PAIRS = ("sums", "last")  # fields of a Report with a row of values and a row of weights


class Report(NamedTuple):
    """The result of `Reports.read` on the host: float64 arrays. `then` combines the reports of two loops."""

    scalars: np.ndarray  # [n], last values
    sums: np.ndarray  # [2, m], values and weights
    metrics: np.ndarray  # [k], metric states that are sums
    largest: np.ndarray  # [j], Folds
    last: np.ndarray  # [2, i], Folds
    carried: np.ndarray  # [l], metric states that continue from loop to loop

    def then(self, later):
        """Returns the report of this loop and a later one."""
        last = np.where(later.last[1] > 0, later.last, self.last)
        return Report(
            scalars=later.scalars,
            sums=self.sums + later.sums,
            metrics=self.metrics + later.metrics,
            largest=np.maximum(self.largest, later.largest),
            last=last,
            carried=later.carried,
        )


class Reports:
    """All values that a loop reports, read as one vector and split on the host.

    Args:
        scalars: {name: function of no arguments}, scalars whose last value is reported.
        losses: {name: kind} of the Tally's entries that are means over steps; `kind` is the function.
        metrics: MetricStates.
        internals: trainer.internals.Internals.
    """

    def __init__(self, scalars, losses, metrics, internals):
        self._scalars, self._losses, self.metrics, self._internals = scalars, dict(losses), metrics, internals
        self.tally, self.folds = Tally([*losses, *internals.columns]), Folds(internals.sizes, internals.last)
        widths = {field: sum(size for *_, size in entries) for field, entries in self.layout.items()}
        self._sizes = {field: width * (2 if field in _PAIRS else 1) for field, width in widths.items()}

    def start(self, strategy, begins=True):
        """Resets all values if a loop `begins`, a bool or a bool scalar; cross-replica, eager or traced."""

        def reset():
            self.metrics.start()
            self.tally.start()
            self.folds.start(strategy)
            return tf.constant(True)

        reset() if begins is True else tf.cond(begins, reset, lambda: tf.constant(False))

    def read(self, strategy):
        """Returns all values since `start`, a float64 vector; cross-replica."""
        scalars = [tf.cast(tf.reshape(value(), [1]), tf.float64) for value in self._scalars.values()]
        metrics, carried = self.metrics.read()
        largest, last = self.folds.read(strategy)
        return tf.concat([*scalars, tf.reshape(self.tally.read(), [-1]), metrics, largest, last, carried], 0)

    def split(self, vector):
        """Returns the Report of a vector, a float64 array."""
        parts = dict(zip(self._sizes, np.split(vector, np.cumsum(list(self._sizes.values()))[:-1])))
        return Report(**{field: part.reshape(2, -1) if field in _PAIRS else part for field, part in parts.items()})

    @property
    def layout(self):
        """{field of a Report: list of [name, kind, size] along its last axis}; stored in a checkpoint's manifest."""
        kinds = self._internals.kinds
        metrics, carried = self.metrics.layout
        return {
            "scalars": [[name, "", 1] for name in self._scalars],
            "sums": [[name, self._losses.get(name, kinds.get(name, "")), 1] for name in self.tally.names],
            "metrics": metrics,
            "largest": [[name, kinds[name], size] for name, size in self.folds.sizes.items()],
            "last": [[name, kinds[name], 1] for name in self.folds.last_names],
            "carried": carried,
        }

    def adopt(self, arrays, layout=None):
        """Converts another program's Report to this program's layout; returns it and the names that cannot be
        converted.

        Args:
            arrays: {field: array}.
            layout: the other program's `layout`; None: assume this one if the sizes agree.
        """
        start = {"largest": -np.inf, "carried": self.metrics.initial_carried}
        fields, dropped = {}, []
        for field, here in self.layout.items():
            width = sum(size for *_, size in here)
            fields[field] = np.zeros([2, width] if field in _PAIRS else [width]) + start.get(field, 0.0)
            there = here if layout is None else layout.get(field, [])
            if field not in arrays or arrays[field].shape[-1] != sum(size for *_, size in there):
                dropped += [name for name, *_ in here if field in arrays]
                continue
            places = dict(zip(map(tuple, there), _slices(there)))
            for entry, place in zip(map(tuple, here), _slices(here)):
                if entry in places:
                    fields[field][..., place] = arrays[field][..., places[entry]]
            dropped += [entry[0] for entry in places if list(entry) not in here]
        return Report(**fields), dropped

    def tags(self, strategy):
        """Returns the tags of a training report and those of an evaluation, as two sets; eager, between loops."""
        report = self.split(self.read(strategy).numpy())
        full = report._replace(sums=np.ones_like(report.sums), last=np.ones_like(report.last))
        losses = {tag_of_all_calls(tag) for tag in self._losses if tag.startswith("losses/")}
        return set(self.results(full)), {"loss", *losses, *self._metrics(full)}

    def scalar(self, report, name):
        return report.scalars[list(self._scalars).index(name)]

    def results(self, report):
        """Returns {tag: float} of a training report; eager."""
        tags = means(self._losses, report.sums)
        tags.update(self._metrics(report) if tags else {})
        tags.update({name: float(x) for name, x in zip(self._scalars, report.scalars) if not name.startswith("_")})
        return tags

    def eval_results(self, report, weights):
        """Returns {tag: float} of an evaluation, whose total is the sum of its losses by {loss name: weight}; eager.

        Empty if there was no example.
        """
        losses = {}
        for tag, value in means(self._losses, report.sums).items():
            base = tag_of_all_calls(tag)
            losses[base] = losses.get(base, 0.0) + value
        if not losses:
            return {}
        # A loss that training does not have is not in the total, unless there are no others.
        known = {tag: weights[name] for tag in losses if (name := tag.removeprefix("losses/")) in weights}
        total = sum(losses[tag] * float(weight) for tag, weight in (known or dict.fromkeys(losses, 1.0)).items())
        return {"loss": float(total), **losses, **self._metrics(report)}

    def _metrics(self, report):
        places = np.split(report.largest, np.cumsum(list(self.folds.sizes.values())))
        internal = self._internals.results(
            dict(zip(self.tally.names, report.sums.T)),
            dict(zip(self.folds.sizes, places)),
            dict(zip(self.folds.last_names, report.last.T)),
        )
        taken = [tag.removeprefix("metrics/") for tag in internal]
        return {**self.metrics.results(report.metrics, report.carried, taken), **internal}


def means(names, sums):
    """Returns {name: mean} for the names that have a weight; `sums` is a float64 array [2, n]."""
    return {name: float(value / weight) for name, value, weight in zip(names, sums[0], sums[1]) if weight}


def kind(thing):
    """Returns a text that is equal for equal losses or metrics: class and arguments, or function."""
    if isinstance(thing, (keras.losses.Loss, keras.metrics.Metric)):
        try:
            arguments = json.dumps({**thing.get_config(), "name": None}, sort_keys=True, default=str)
        except Exception:  # a class without support for it
            arguments = ""
        return f"{type(thing).__module__}.{type(thing).__qualname__} {arguments}".strip()
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"


def _slices(entries):
    """Returns the slice of a vector that each of [name, kind, size] has."""
    ends = np.cumsum([size for *_, size in entries])
    return [slice(int(end) - size, int(end)) for (*_, size), end in zip(entries, ends)]
