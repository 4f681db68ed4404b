"""Time per step on several replicas, against the same step by hand, and on one replica at the same global batch.

    python -m tests.benchmarks.replica_time                                                   two devices of this CPU
    python -m trainer.launch --workers=2 --module=tests.benchmarks.replica_time -- --steps=300    two processes

Two devices or processes of one CPU share its cores: what is measured is the
overhead of our loop and of talking, no gain.
"""

import argparse
import os

import keras
import tensorflow as tf

from tests.benchmarks.step_time import BATCH, MODELS, loss, source_of, take_turns
from trainer.replicas.cluster import worker_count
from trainer.replicas.distribution import distribute, make_strategy, unpack
from trainer.trainer import Trainer


def by_hand(strategy, model):
    """The loop by hand: a mean over the global batch, Keras' own all-reduce, loss and accuracy of all replicas."""
    with strategy.scope():
        model, inputs = MODELS[model]()
        values = keras.losses.sparse_categorical_crossentropy
        accuracy, optimizer = keras.metrics.SparseCategoricalAccuracy(), keras.optimizers.Adam(1e-3)
        optimizer.build(model.trainable_variables)
        on_read, total = tf.VariableSynchronization.ON_READ, tf.VariableAggregation.SUM
        losses = tf.Variable(0.0, trainable=False, synchronization=on_read, aggregation=total)

    def replica(element):
        x, y = unpack(element)[0]
        with tf.GradientTape() as tape:
            logits = model(x, training=True)
            share = tf.reduce_sum(values(y, logits, from_logits=True)) / BATCH
        optimizer.apply(tape.gradient(share, [v.value for v in model.trainable_variables]), model.trainable_variables)
        accuracy.update_state(y, logits)
        losses.assign_add(share)

    @tf.function
    def loop(iterator, num_steps):
        for _ in tf.range(num_steps):
            strategy.run(replica, args=(next(iterator),))
        return losses.read_value()

    iterator = iter(distribute(strategy, source_of(inputs)))
    return lambda num_steps: loop(iterator, tf.constant(num_steps)).numpy()


def ours(strategy, model, guard):
    with strategy.scope():
        model, inputs = MODELS[model]()
        trainer = Trainer(model, loss(), ["accuracy"], keras.optimizers.Adam(1e-3), guard=guard)
    iterator = iter(trainer.distribute(source_of(inputs)))
    return lambda num_steps: trainer.train(iterator, num_steps)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="mlp,cnn")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if not os.environ.get("TF_CONFIG"):
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    many = make_strategy("auto")
    for model in arguments.models.split(","):
        contestants = {"by hand": by_hand(many, model)}
        contestants.update({f"ours, guard={guard}": ours(many, model, guard) for guard in ("stop", "skip")})
        references = {"by hand": "by hand"}
        if worker_count(many) == 1:
            one = make_strategy("default")
            contestants.update({"by hand, 1 replica": by_hand(one, model), "ours, 1 replica": ours(one, model, "stop")})
            references.update({"by hand, 1 replica": "by hand, 1", "ours, 1 replica": "ours, 1"})
        title = f"{model}, {many.num_replicas_in_sync} replicas ({type(many).__name__})"
        take_turns(title, contestants, references, arguments.steps, arguments.rounds)


if __name__ == "__main__":
    main()
