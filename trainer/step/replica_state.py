"""State that replicas change each by itself, kept right: moving statistics, random seeds, and the build trace."""

import contextlib

import tensorflow as tf

from trainer.replicas.cluster import worker_count, worker_index
from trainer.replicas.distribution import replica_values
from trainer.step.variables import raw


def average_replica_state(strategy, variables):
    """Gives all replicas the mean of the floating state that each changes by itself; traced or eager, cross-replica.

    BatchNormalization's moving statistics drift apart between two calls; their
    updates are linear, so that the mean is what one set of them would hold.
    Variables with an aggregation of their own are kept equal by TensorFlow.
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


def fork_seeds(strategy, variables):
    """Moves each replica's random seeds apart; eager, after building and after each restore.

    A SeedGenerator's state [seed, calls] is mirrored, so that Dropout would
    drop the same units on all replicas. Replica r gets [seed + r, calls]; a
    checkpoint holds replica 0's.
    """
    for variable in variables:
        if variable.name == "seed_generator_state":
            for replica, state in enumerate(replica_values(strategy, raw(variable)), _first_replica(strategy)):
                state.assign([state[0] + tf.cast(replica, state.dtype), state[1]])


def tracing_context(strategy):
    """The replica context in which `build` traces: user code that asks where it runs gets the answer of this worker's first replica."""
    if tf.distribute.get_replica_context() is not None:
        return contextlib.nullcontext()
    return _OnlyReplica(strategy, _first_replica(strategy))  # a variable has no value here for another worker's replica


def _first_replica(strategy):
    return worker_index(strategy) * strategy.num_replicas_in_sync // worker_count(strategy)


class _OnlyReplica(tf.distribute.ReplicaContext):
    """Nobody else is there to reduce with; the shapes are right, and nothing of the build trace is run."""

    def all_reduce(self, reduce_op, value, options=None):
        return value

    def all_gather(self, value, axis, options=None):
        return tf.nest.map_structure(lambda x: tf.concat([x] * self.num_replicas_in_sync, axis), value)
