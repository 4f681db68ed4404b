"""States of Keras metrics as vectors, and their combination over replicas and loops.

The state of most metrics is a sum over examples, so states of replicas and
loops are added. A running maximum is not a sum, and a correlation over the
batch is not a sum over its examples. `examine` detects such metrics by calling
them.
"""

import functools

import keras
import numpy as np
import tensorflow as tf

from trainer.replicas.distribution import replica_values
from trainer.step.reports import kind
from trainer.step.variables import raw

_EXAMPLES, _PART = 6, 2  # sizes of the batch for `examine`, and of its first part
_SHIFTS = (3.0, 1e6, -1e6)  # large shifts detect minima and maxima, a small one avoids rounding errors


class MetricStates:
    """Resets and reads the states of metrics; created in the strategy's scope.

    Args:
        metrics: {name: keras.metrics.Metric}.
        carried: names of metrics whose state is not a sum; it continues from loop to loop.
        gathered: names of metrics that every replica updates with the examples of all replicas.
    """

    def __init__(self, metrics, carried=(), gathered=()):
        self.metrics, self.gathered = dict(metrics), set(gathered)
        self._strategy = tf.distribute.get_strategy()
        self._initial = {name: _initial_state(metric) for name, metric in self.metrics.items()}
        self._sums = [name for name in self.metrics if name not in carried]
        self._carried = [name for name in self.metrics if name in carried]

    @property
    def layout(self):
        """Two lists of [name, kind, size], of the vectors that `read` returns.

        Kinds differ if the meaning of states differs.
        """
        return [
            [[name, kind(self.metrics[name]), sum(x.size for x in self._initial[name])] for name in names]
            for names in (self._sums, self._carried)
        ]

    @property
    def initial_carried(self):
        """The vector of the initial states that are not sums."""
        return np.concatenate([np.zeros(0), *(x.ravel() for name in self._carried for x in self._initial[name])])

    def start(self):
        """Resets the states that are sums; cross-replica, eager or traced."""
        self._assign({name: self._initial[name] for name in self._sums})

    def begin(self, carried=None):
        """Resets the states that are not sums, or sets them to the vector `carried`; eager, cross-replica."""
        initial = {name: self._initial[name] for name in self._carried}
        self._assign(initial if carried is None else self._split(carried, self._carried))

    def read(self):
        """Returns (sums, carried), float64 vectors: sums since `start`, and the other current states; cross-replica."""
        sums = [
            self._added(name, variable, initial)
            for name in self._sums
            for variable, initial in zip(self.metrics[name].variables, self._initial[name])
        ]
        carried = [self._replicas(v)[0] for name in self._carried for v in self.metrics[name].variables]
        return _flat(sums), _flat(carried)

    def results(self, sums, carried, taken=()):
        """Returns {tag: float} of the metrics with these states, vectors as `read` returns them; eager.

        Tags that occur in several metrics, or in `taken`, get the metric's name as prefix.
        """
        states = {
            name: [added + start for added, start in zip(values, self._initial[name])]
            for name, values in self._split(sums, self._sums).items()
        }
        states.update(self._split(carried, self._carried))
        found = [
            (name, tag, value)
            for name, metric in self.metrics.items()
            for tag, value in _flatten(name, _result(metric, states[name])).items()
        ]
        tags = [*(tag for _, tag, _ in found), *taken]
        return {
            f"metrics/{tag}" if tags.count(tag) == 1 or tag == name else f"metrics/{name}/{tag}": value
            for name, tag, value in found
        }

    def _added(self, name, variable, initial):
        if name in self.gathered:
            return tf.cast(self._replicas(variable)[0], tf.float64) - initial
        return tf.cast(variable.value, tf.float64) - self._strategy.num_replicas_in_sync * initial

    def _assign(self, states):
        for name, values in states.items():
            for variable, value in zip(self.metrics[name].variables, values):
                for own in self._replicas(variable):  # a joint assignment would divide a sum over replicas
                    own.assign(tf.cast(value, own.dtype))

    def _replicas(self, variable):
        return replica_values(self._strategy, raw(variable))

    def _split(self, vector, names):
        """Returns {name: arrays like the variables of the metric}."""
        found, start = {}, 0
        for name in names:
            found[name] = []
            for initial in self._initial[name]:
                found[name].append(np.reshape(vector[start : start + initial.size], initial.shape))
                start += initial.size
        return found


def examine(metrics, update, batch_spec, output_spec, size):
    """Returns (known, names of metrics whose state is not a sum, names of metrics coupled over the batch); eager.

    Updates from two states must differ by the difference of the states, and
    the updates of two parts of a batch must add up to that of the batch.
    `known` is False where the metrics cannot be called with random numbers.

    Args:
        metrics: {name: keras.metrics.Metric}.
        update: function (batch, outputs) that updates them.
        batch_spec, output_spec: nests of tf.TypeSpec or None.
        size: int, the batch size in the specs.
    """
    if not metrics:
        return True, set(), set()
    rng = np.random.default_rng(0)
    variables = [(name, variable) for name, metric in metrics.items() for variable in metric.variables]
    initial = [value for metric in metrics.values() for value in _initial_state(metric)]

    def added(batch, shift=0.0):
        start = [
            tf.cast(value + shift * rng.uniform(1.0, 1.5, value.shape), variable.dtype)
            for value, (_, variable) in zip(initial, variables)
        ]
        with keras.StatelessScope([(variable, value) for (_, variable), value in zip(variables, start)]) as scope:
            update(*batch)
        ends = [scope.get_current_value(variable) for _, variable in variables]
        return [np.asarray(end, np.float64) - np.asarray(value, np.float64) for end, value in zip(ends, start)]

    def differing(others, tolerance):
        return {
            name
            for (name, _), one, other in zip(variables, whole, others)
            if not (np.isfinite(one).all() and np.allclose(one, other, 1e-4, tolerance))
        }

    try:
        batch = tf.nest.map_structure(lambda spec: _random(spec, size, rng), (batch_spec, output_spec))
        first, rest = (
            tf.nest.map_structure(functools.partial(_part, start=start, stop=stop), batch)
            for start, stop in ((0, _PART), (_PART, _EXAMPLES))
        )
        whole = added(batch)
        coupled = differing([a + b for a, b in zip(added(first), added(rest))], 1e-4)
        no_sum = set().union(*(differing(added(batch, shift), 1e-4 + 1e-6 * abs(shift)) for shift in _SHIFTS))
    except Exception:  # the user's code may raise any exception for random numbers
        return False, set(), set()
    return True, no_sum, coupled


def _random(spec, size, rng):
    """Returns a tensor of `spec` for a batch of _EXAMPLES instead of `size`; None for types without random values."""
    if isinstance(spec, tf.RaggedTensorSpec):
        lengths, count = [], _EXAMPLES
        for _ in range(spec.ragged_rank):
            lengths.append(rng.integers(1, 4, count))
            count = int(lengths[-1].sum())
        values = tf.TensorSpec([count, *spec.shape[spec.ragged_rank + 1 :]], spec.dtype)
        return tf.RaggedTensor.from_nested_row_lengths(_random(values, None, rng), lengths)
    if not isinstance(spec, tf.TensorSpec):
        return None
    shape = [8 if n is None else n for n in spec.shape or ()]
    if shape and size and (spec.shape[0] is None or shape[0] % size == 0):
        shape[0] = (spec.shape[0] or size) // size * _EXAMPLES
    if spec.dtype == tf.string:
        return tf.constant(rng.choice(["a", "b"], shape))
    numbers = rng.uniform(0.05, 0.95, shape) if spec.dtype.is_floating else rng.integers(0, 2, shape)
    return tf.cast(numbers, spec.dtype)


def _part(value, start, stop):
    """Returns the rows that belong to the examples from `start` to `stop` of `_random`'s batch."""
    if value is None or not value.shape.rank:
        return value
    rows, rest = divmod(value.shape[0], _EXAMPLES)
    return value if rest else value[rows * start : rows * stop]


def _initial_state(metric):
    """Returns the metric's state after a reset, float64 arrays, without resetting it; in the strategy's scope."""
    strategy = tf.distribute.get_strategy()
    with keras.StatelessScope() as scope:
        metric.reset_state()
    ends = [scope.get_current_value(variable) for variable in metric.variables]
    return [
        np.asarray(replica_values(strategy, raw(variable))[0] if end is None else end, np.float64)
        for variable, end in zip(metric.variables, ends)
    ]


def _flat(values):
    values = [tf.reshape(tf.cast(value, tf.float64), [-1]) for value in values]
    return tf.concat(values, 0) if values else tf.zeros([0], tf.float64)


def _result(metric, state):
    """Returns `metric.result()` for a state, with variables replaced by their values in this scope."""
    values = [tf.cast(value, variable.dtype) for variable, value in zip(metric.variables, state)]
    with keras.StatelessScope(list(zip(metric.variables, values))):
        return tf.nest.map_structure(np.asarray, metric.result())


def _flatten(name, result):
    """Returns {tag: float}, with one tag for each key of a dict and each index of an array."""
    if isinstance(result, dict):
        return {tag: value for key, part in result.items() for tag, value in _flatten(str(key), part).items()}
    result = np.asarray(result, np.float64)
    if result.ndim == 0:
        return {name: float(result)}
    return {f"{name}/{i}": float(value) for i, value in enumerate(result.reshape(-1))}
