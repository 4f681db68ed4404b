"""Time per step of two groups with clipping, against the same step by hand.

    python -m tests.benchmarks.group_time [--steps=1000] [--rounds=9]

Two Adams on a small MLP, each group's gradient clipped to a global norm; ours
with each guard, by hand with and without the condition on a finite norm.
"""

import argparse

import keras
import tensorflow as tf

from optimizers import OptimizerGroup, clip_by_global_norm
from tests.benchmarks.step_time import loss, mlp, source_of, take_turns
from trainer.trainer import Trainer

CLIP = 1.0


def by_hand(guarded):
    """The loop by hand: two optimizers, clipping, metrics; `guarded` adds the finite check of guard="skip"."""
    model, inputs = mlp()
    loss_function, accuracy = loss(), keras.metrics.SparseCategoricalAccuracy()
    lower, upper = (
        model.layers[0].trainable_variables,
        [v for layer in model.layers[1:] for v in layer.trainable_variables],
    )
    parts = [(part, keras.optimizers.Adam(1e-3)) for part in (lower, upper)]
    for part, optimizer in parts:
        optimizer.build(part)
    sums = tf.Variable(tf.zeros([5]))

    def step(x, y):
        with tf.GradientTape() as tape:
            logits = model(x, training=True)
            value = loss_function(y, logits)
        flat = tape.gradient(value, [v.value for part, _ in parts for v in part])
        gradients = [flat[: len(lower)], flat[len(lower) :]]
        norms = [tf.linalg.global_norm(g) for g in gradients]

        def good():
            entries = [value]
            for (part, optimizer), own, norm in zip(parts, gradients, norms):
                scale = CLIP / tf.maximum(norm, CLIP)
                optimizer.apply([g * scale for g in own], part)
                entries += [norm, tf.cast(norm > CLIP, tf.float32)]
            accuracy.update_state(y, logits)
            sums.assign_add(entries)
            return tf.constant(True)

        if guarded:
            tf.cond(tf.math.is_finite(norms[0] + norms[1]), good, lambda: tf.constant(False))
        else:
            good()

    @tf.function
    def loop(iterator, num_steps):
        for _ in tf.range(num_steps):
            step(*next(iterator))
        return sums.read_value()

    iterator = iter(source_of(inputs).batches(0))
    return lambda num_steps: loop(iterator, tf.constant(num_steps)).numpy()


def ours(guard):
    model, inputs = mlp()
    groups = [
        OptimizerGroup(
            pattern, optimizer=keras.optimizers.Adam(1e-3), transforms=[clip_by_global_norm(CLIP)], name=name
        )
        for name, pattern in (("lower", "dense/.*"), ("upper", "dense_[12]/.*"))
    ]
    trainer = Trainer(model, loss(), ["accuracy"], groups, guard=guard)
    iterator = iter(trainer.distribute(source_of(inputs)))
    return lambda num_steps: trainer.train(iterator, num_steps)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    contestants = {"by hand": by_hand(False), "by hand, finite check": by_hand(True)}
    contestants.update({f"ours, guard={guard}": ours(guard) for guard in ("skip", "stop", "off")})
    references = {"by hand": "by hand", "by hand, finite check": "with check"}
    take_turns("mlp, two groups with clipping", contestants, references, arguments.steps, arguments.rounds)


if __name__ == "__main__":
    main()
