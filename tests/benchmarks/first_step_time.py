"""Time of the first 100 steps, from the model to their end: ours, by hand and Keras `fit`.

    python -m tests.benchmarks.first_step_time [--models=mlp,transformer] [--rounds=3]

Every contestant runs in a process of its own, in turns. Imports are not
counted; the numbers are medians over the rounds of wall and of processor
seconds (all threads).
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from tests.benchmarks.step_time import loss, mlp, source_of
from trainer.trainer import Trainer

STEPS = 100


def transformer():
    """Two blocks of width 64 with 4 heads, on 32 tokens out of 500."""
    inputs = keras.Input((32,), dtype="int32")
    x = keras.layers.Embedding(500, 64)(inputs)
    for _ in range(2):
        attended = keras.layers.MultiHeadAttention(4, 16)(x, x)
        x = keras.layers.LayerNormalization()(x + attended)
        x = keras.layers.LayerNormalization()(x + keras.layers.Dense(64)(keras.layers.Dense(256, activation="gelu")(x)))
    outputs = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling1D()(x))
    return keras.Model(inputs, outputs), np.random.default_rng(0).integers(0, 500, (1437, 32)).astype("int32")


MODELS = {"mlp": mlp, "transformer": transformer}


def ours(model, source):
    trainer = Trainer(model, loss(), ["accuracy"], "adam")
    trainer.train(iter(trainer.distribute(source)), STEPS)


def by_hand(model, source):
    optimizer, loss_function, metric = keras.optimizers.Adam(), loss(), keras.metrics.SparseCategoricalAccuracy()
    optimizer.build(model.trainable_variables)

    @tf.function
    def loop(iterator, steps):
        for _ in tf.range(steps):
            x, y = next(iterator)
            with tf.GradientTape() as tape:
                outputs = model(x, training=True)
                value = loss_function(y, outputs)
            variables = model.trainable_variables
            optimizer.apply(tape.gradient(value, [v.value for v in variables]), variables)
            metric.update_state(y, outputs)

    loop(iter(source.batches(0)), tf.constant(STEPS))


def fit(model, source):
    model.compile("adam", loss(), metrics=["accuracy"], steps_per_execution=STEPS)
    model.fit(source.batches(0), steps_per_epoch=STEPS, shuffle=False, verbose=0)


CONTESTANTS = {"ours": ours, "by_hand": by_hand, "fit": fit}


def measure(model_name, contestant):
    tf.zeros(1) + 1  # the runtime's own start
    wall, processor = time.perf_counter(), time.process_time()
    model, inputs = MODELS[model_name]()
    CONTESTANTS[contestant](model, source_of(inputs))
    print(time.perf_counter() - wall, time.process_time() - processor)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(*arguments.measure)
        return
    for model in arguments.models.split(","):
        seconds = {contestant: [] for contestant in CONTESTANTS}
        for _ in range(arguments.rounds):
            for contestant, measured in seconds.items():
                command = [sys.executable, "-m", "tests.benchmarks.first_step_time", "--measure", model, contestant]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                measured.append([float(word) for word in output.split()])
        for contestant, measured in seconds.items():
            wall, processor = (statistics.median(column) for column in zip(*measured, strict=True))
            print(f"{model:12} {contestant:8} {wall:6.2f} s wall, {processor:6.2f} s processor", flush=True)


if __name__ == "__main__":
    main()
