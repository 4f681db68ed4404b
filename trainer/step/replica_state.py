"""Per-replica state: averages moving statistics, gives replicas their own seeds, provides the context of the build trace."""

import contextlib

import tensorflow as tf

from trainer.replicas.cluster import worker_count, worker_index
from trainer.replicas.distribution import replica_values
from trainer.step.variables import raw


def average_replica_state(strategy, variables):
    """Assigns to floating variables their mean over replicas; traced or eager, cross-replica.

    Each replica updates BatchNormalization's moving statistics from its part of
    the batch. The updates are linear, so the mean equals the statistics of all
    replicas. TensorFlow keeps variables with an aggregation equal by itself.
    """
    own = [raw(v) for v in variables]
    own = [v for v in own if v.dtype.is_floating and v.aggregation == tf.VariableAggregation.NONE]
    if strategy.num_replicas_in_sync == 1 or not own:
        return

    def average():
        context = tf.distribute.get_replica_context()
        for variable, mean in zip(own, context.all_reduce(tf.distribute.ReduceOp.MEAN, [tf.identity(v) for v in own])):
            variable.assign(mean)

    strategy.run(average)


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
