"""Per-replica state: averages over replicas, random seeds of each replica, the context of the build trace."""

import contextlib
import functools

import keras
import numpy as np
import tensorflow as tf

from trainer import console
from trainer.replicas.cluster import worker_count, worker_index
from trainer.replicas.distribution import distribute, replica_values
from trainer.step.variables import raw

_CURE = (
    "Compute the update from the global batch, the same on all replicas: in `Trainer.after_update(batch, outputs)` "
    "from `trainer.all_gather(outputs)`, or in place from `trainer.all_gather(x)`, `global_sum(x)` or `global_mean(x)`."
)


class ReplicaState:
    """The state that a forward pass assigns on each replica separately, and its combination over replicas.

    Moving statistics of BatchNormalization are averaged over replicas at the end of each loop: their updates are
    linear, so the mean equals the statistics of a single replica. What other layers assign is examined once, on the
    first batch (`examine`). On one replica there is nothing to do.

    Args:
        strategy: tf.distribute.Strategy.
        variables: {name: variable} that a forward pass may assign.
        held: {name: variable}, all variables of the trainer.
        layers: the trainer's layers.
    """

    def __init__(self, strategy, variables, held, layers):
        self._strategy, self._held = strategy, held
        statistics = {
            id(raw(v))
            for layer in layers
            if isinstance(layer, keras.layers.BatchNormalization)
            for v in layer.non_trainable_variables
        }
        stateful = [layer for layer in layers if getattr(layer, "stateful", False)]
        states = [getattr(layer, "states", None) for layer in stateful]  # of a Keras RNN, which does not list them
        held = tf.nest.flatten([states, [layer.variables for layer in stateful]])
        per_batch = {id(raw(v)) for v in held if isinstance(v, keras.Variable)}
        own = {name: v for name, v in variables.items() if _is_per_replica(v)}
        self.averaged = [v for v in own.values() if id(raw(v)) in statistics]
        self._rows_of_replicas = [name for name, v in own.items() if id(raw(v)) in per_batch]
        self._unknown = {name: v for name, v in own.items() if id(raw(v)) not in statistics | per_batch}
        self._all = list(variables.values())

    def average(self, ends):
        """Assigns the mean over replicas to the averaged state if a loop `ends`; traced or eager, cross-replica.

        Once a loop, not once a call of it: means at other steps would be rounded differently.
        """
        own = [raw(v) for v in self.averaged]
        if self._strategy.num_replicas_in_sync == 1 or not own:
            return

        def average():
            context = tf.distribute.get_replica_context()
            means = context.all_reduce(tf.distribute.ReduceOp.MEAN, [tf.identity(v) for v in own])
            for variable, mean in zip(own, means):
                variable.assign(mean)

        def at_end():
            self._strategy.run(average)
            return tf.constant(True)

        tf.cond(ends, at_end, lambda: tf.constant(False))

    def examine(self, batch, forward, update=None):
        """Determines how unknown variables are updated, on the first batch; eager. Changes no state.

        The forward pass runs from three states s, s + d and s + 2d. An update that is a moving average, a * s + b with
        the same 0 <= a < 1 on all replicas, is averaged at the end of a loop like those of BatchNormalization. One that
        is the same on all replicas is not changed.

        Args:
            batch: a global batch.
            forward: function of an element, per replica, that takes a forward pass in training mode.
            update: function of an element, per replica: a forward pass and `after_update`, where that is defined.

        Raises:
            ValueError: for any other update, and for an `after_update` that differs between replicas: its result would
                depend on the number of replicas.
        """
        if self._strategy.num_replicas_in_sync == 1:
            return
        if self._rows_of_replicas:
            console.warning(
                f"{', '.join(self._rows_of_replicas)} holds the states of a replica's own rows. A checkpoint has those "
                "of the first replica, so a resumed run is exact on one replica only."
            )
        unknown, self._unknown = self._unknown, {}
        for (name, variable), (shift, states) in zip(
            unknown.items(), self._updates(unknown, self._all, batch, forward)
        ):
            if _is_moving_average(shift, *states):
                self.averaged.append(variable)
            elif not _same_on_replicas(states) and raw(variable).name.startswith("StateVar"):
                raise ValueError(
                    f"{name} belongs to a tf.random.Generator, which has its own stream on each replica; no checkpoint "
                    "holds them all. Draw with keras.random and a keras.random.SeedGenerator in an attribute, or train "
                    "on one replica."
                )
            elif not _same_on_replicas(states):
                raise ValueError(
                    f"{name} is assigned by its layer on each replica from the replica's own examples, and the update "
                    f"is not a moving average: its values would depend on the number of replicas. {_CURE} Or train on "
                    "one replica."
                )
        if update is None:
            return
        apart = {id(v) for v in self.averaged} | {id(self._held[name]) for name in self._rows_of_replicas}
        held = {name: v for name, v in self._held.items() if _is_per_replica(v) and id(v) not in apart}
        for name, (_, states) in zip(held, self._updates(held, self._held.values(), batch, update, starts=1)):
            if not _same_on_replicas(states):
                raise ValueError(
                    f"{name} is assigned by `after_update` on each replica from the replica's own examples: its values "
                    f"would depend on the number of replicas. {_CURE}"
                )

    def _updates(self, unknown, assigned, batch, function, starts=3):
        """Returns [(shift, [states after `function` from s, s + shift, s + 2 shift])] of {name: variable}."""
        if not unknown:
            return []
        uneven = _uneven(batch, self._strategy.num_replicas_in_sync)
        try:
            return self._states(unknown, assigned, uneven, function, starts)
        except (ValueError, tf.errors.InvalidArgumentError):  # a model of one batch size
            if uneven is batch:
                raise
            return self._states(unknown, assigned, batch, function, starts)

    def _states(self, unknown, assigned, batch, function, starts):
        (element,) = distribute(self._strategy, tf.data.Dataset.from_tensors(batch))
        shifts = [_shift(v, number) for number, v in enumerate(unknown.values())]

        def call(element):
            function(element)  # for what it assigns

        # TensorFlow counts the traces of a function over all trainers, and would warn of retracing; not of a partial.
        take = tf.function(functools.partial(lambda x: self._strategy.run(call, args=(x,))), autograph=False)
        gather = tf.function(functools.partial(_gather, self._strategy, list(unknown.values())), autograph=False)
        found = []
        with unchanged(self._strategy, assigned):
            start = [[one.read_value() for one in replica_values(self._strategy, raw(v))] for v in assigned]
            for times in range(starts):
                for variable, values in zip(assigned, start):
                    for one, value in zip(replica_values(self._strategy, raw(variable)), values):
                        one.assign(value)
                for variable, shift in zip(unknown.values(), shifts):
                    raw(variable).assign_add(tf.cast(times * shift, raw(variable).dtype))
                take(element)
                found.append([x.numpy() for x in gather()])
        return list(zip(shifts, zip(*found)))


def _same_on_replicas(states):
    return all(np.allclose(state, state[:1], rtol=1e-5, atol=1e-6, equal_nan=True) for state in states)


def _uneven(batch, replicas):
    """The batch, without its last example if all shards have one size: counts of examples then differ."""
    sizes = {x.shape[0] for x in tf.nest.flatten(batch) if tf.is_tensor(x) and x.shape.rank}
    if len(sizes) != 1 or min(sizes) % replicas or min(sizes) < 2:
        return batch
    return tf.nest.map_structure(lambda x: x[:-1] if tf.is_tensor(x) and x.shape.rank else x, batch)


def _is_per_replica(variable):
    """True if replicas may hold different values: not a seed, and without an aggregation that keeps them equal."""
    if variable.name == "seed_generator_state" or raw(variable).dtype in (tf.string, tf.bool):
        return False
    return raw(variable).aggregation == tf.VariableAggregation.NONE


def _shift(variable, number):
    """A random float64 array of the variable's shape, in [0.5, 1.5), rounded up for integers."""
    random = np.random.default_rng(number)
    shift = random.uniform(0.5, 1.5, tuple(variable.shape))
    return shift if raw(variable).dtype.is_floating or raw(variable).dtype.is_complex else np.ceil(shift)


def _is_moving_average(shift, *states):
    """True if the states [replica, ...] updated from s, s + shift, s + 2 shift are a * s + b with one 0 <= a < 1."""
    first, second, third = states
    if not np.issubdtype(first.dtype, np.floating):
        return False
    factors = (second - first) / shift
    is_affine = np.allclose((third - second) / shift, factors, rtol=1e-3, atol=1e-4)
    return (
        is_affine and np.allclose(factors, factors.flat[0], rtol=1e-3, atol=1e-4) and -1e-4 < factors.flat[0] < 1 - 1e-4
    )


def _gather(strategy, variables):
    """Returns for each variable the values of all replicas, [replica, ...]; traced, cross-replica."""
    values = strategy.run(lambda: [tf.identity(raw(v))[tf.newaxis] for v in variables])
    return [strategy.gather(value, 0) for value in values]


@contextlib.contextmanager
def unchanged(strategy, variables):
    """A context that restores `variables` on each replica at its end; eager."""
    kept = {id(one): (one, one.read_value()) for v in variables for one in replica_values(strategy, raw(v))}
    try:
        yield
    finally:
        for variable, value in kept.values():
            variable.assign(value)


def seed_replicas(strategy, variables):
    """Gives each replica its own random seeds; eager, after building and after each restore.

    The state [seed, calls] of a SeedGenerator is mirrored: Dropout would drop
    the same units on all replicas. Replica r gets [seed + r, calls]. A
    checkpoint holds the state of replica 0.
    """
    for variable in variables:
        if variable.name == "seed_generator_state":
            for replica, state in enumerate(replica_values(strategy, raw(variable)), _first_replica(strategy)):
                state.assign([state[0] + tf.cast(replica, state.dtype), state[1]])


def tracing_context(strategy):
    """Returns the replica context of the build trace, in which user code runs as this worker's first replica."""
    if tf.distribute.get_replica_context() is not None:
        return contextlib.nullcontext()
    return _OnlyReplica(
        strategy, _first_replica(strategy)
    )  # variables have no value here for replicas of other workers


def _first_replica(strategy):
    return worker_index(strategy) * strategy.num_replicas_in_sync // worker_count(strategy)


class _OnlyReplica(tf.distribute.ReplicaContext):
    """A replica context whose collectives see one replica. Shapes are right; the build trace is never executed."""

    def all_reduce(self, reduce_op, value, options=None):
        return value

    def all_gather(self, value, axis, options=None):
        return tf.nest.map_structure(lambda x: tf.concat([x] * self.num_replicas_in_sync, axis), value)
