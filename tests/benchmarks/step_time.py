"""Time per step of our loop against the step written by hand and against Keras `fit`.

    python -m tests.benchmarks.step_time [--models=mlp,cnn,embedding] [--steps=1000] [--rounds=9] [--no_start]

All contestants of a model take turns in one process, on the same data; a
figure is the median over the rounds of time / time of the reference in the
same round. Then, one process per contestant: seconds from import to the end
of the first step, and peak memory.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
_STARTED = time.perf_counter()

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from optimizers import OptimizerGroup  # noqa: E402
from trainer.data import from_arrays  # noqa: E402
from trainer.trainer import Trainer  # noqa: E402

BATCH = 64


def mlp():
    """64-64-64-10, as in the design's figures."""
    layers = [
        keras.Input((64,)),
        *(keras.layers.Dense(64, activation="relu") for _ in range(2)),
        keras.layers.Dense(10),
    ]
    return keras.Sequential(layers), np.random.default_rng(0).normal(size=(1437, 64)).astype("float32")


def cnn():
    convolutions = [keras.layers.Conv2D(32, 3, activation="relu"), keras.layers.Conv2D(32, 3, activation="relu")]
    layers = [keras.Input((8, 8, 1)), *convolutions, keras.layers.Flatten(), keras.layers.Dense(10)]
    return keras.Sequential(layers), np.random.default_rng(0).normal(size=(1437, 8, 8, 1)).astype("float32")


def embedding():
    layers = [
        keras.Input((16,), dtype="int32"),
        keras.layers.Embedding(2000, 32),
        keras.layers.GlobalAveragePooling1D(),
        keras.layers.Dense(10),
    ]
    return keras.Sequential(layers), np.random.default_rng(0).integers(0, 2000, (1437, 16)).astype("int32")


def wide_mlp():
    """784-1024-1024-10: the update is half of the step."""
    layers = [
        keras.Input((784,)),
        *(keras.layers.Dense(1024, activation="relu") for _ in range(2)),
        keras.layers.Dense(10),
    ]
    return keras.Sequential(layers), np.random.default_rng(0).normal(size=(1437, 784)).astype("float32")


MODELS = {"mlp": mlp, "cnn": cnn, "embedding": embedding, "wide_mlp": wide_mlp}


def loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def source_of(inputs):
    return from_arrays((inputs, np.random.default_rng(1).integers(0, 10, len(inputs))), BATCH)


def by_hand(make_model, same_work):
    """The loop by hand: bare, or with the gradient norm, the guard and the reports that ours has."""
    model, inputs = make_model()
    optimizer, loss_function = keras.optimizers.Adam(1e-3), loss()
    optimizer.build(model.trainable_variables)
    variables = [v.value for v in model.trainable_variables]
    accuracy = keras.metrics.SparseCategoricalAccuracy()
    sums, skipped = tf.Variable(tf.zeros([2])), tf.Variable(0)

    def step(x, y):
        with tf.GradientTape() as tape:
            logits = model(x, training=True)
            value = loss_function(y, logits)
        gradients = tape.gradient(value, variables)
        if not same_work:
            optimizer.apply(gradients, model.trainable_variables)
            return
        norm = tf.linalg.global_norm(gradients)

        def good():
            optimizer.apply(gradients, model.trainable_variables)
            accuracy.update_state(y, logits)
            sums.assign_add([value, norm])
            return tf.constant(True)

        def bad():
            skipped.assign_add(1)
            return tf.constant(True)

        tf.cond(tf.math.is_finite(norm), good, bad)

    @tf.function
    def loop(iterator, num_steps):
        for _ in tf.range(num_steps):
            x, y = next(iterator)
            step(x, y)
        return sums.read_value()

    iterator = iter(source_of(inputs).batches(0))
    return lambda num_steps: loop(iterator, tf.constant(num_steps)).numpy()


def ours(make_model, chunk=None, fused=True, **arguments):
    model, inputs = make_model()
    group = OptimizerGroup(optimizer=keras.optimizers.Adam(1e-3), fused=fused)
    trainer = Trainer(model, loss(), ["accuracy"], [group], **arguments)
    iterator = iter(trainer.distribute(source_of(inputs), chunk=chunk))
    return lambda num_steps: trainer.train(iterator, num_steps)


def fit(make_model, steps_per_execution):
    model, inputs = make_model()
    model.compile(
        keras.optimizers.Adam(1e-3),
        loss(),
        metrics=["accuracy"],
        steps_per_execution=steps_per_execution,
        jit_compile=False,
    )
    batches = source_of(inputs).batches(0)
    return lambda num_steps: model.fit(batches, steps_per_epoch=num_steps, epochs=1, verbose=0)


CONTESTANTS = {
    "by hand, bare": lambda m: by_hand(m, same_work=False),
    "by hand, same work": lambda m: by_hand(m, same_work=True),
    "ours, guard=skip": lambda m: ours(m),
    "ours, guard=stop": lambda m: ours(m, guard="stop"),
    "ours, not fused": lambda m: ours(m, fused=False),
    "ours, guard=off": lambda m: ours(m, guard="off"),
    "ours, xla_step": lambda m: ours(m, compile="xla_step"),
    "ours, xla_loop": lambda m: ours(m, compile="xla_loop", chunk=100),
    "fit, 100 per execution": lambda m: fit(m, 100),
    "fit, default": lambda m: fit(m, 1),
}


REFERENCES = {
    "by hand, bare": "bare", "by hand, same work": "same work",
    "fit, 100 per execution": "fit(100)", "fit, default": "fit(1)",
}  # fmt: skip


def take_turns(title, contestants, references, steps, rounds):
    """Prints a table of {name: function of the number of steps}; `references` is {name: column to divide by}."""
    times = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, run in contestants.items():
            began = time.perf_counter()
            run(steps)
            if turn:  # the first one traces
                times[name].append((time.perf_counter() - began) / steps * 1e6)
    references = {name: column for name, column in references.items() if name in times}
    print(f"\n{title}: {steps} steps a call, batch {BATCH}, median of {rounds}")
    print(f"{'':28}{'us/step':>9}" + "".join(f"{'/ ' + column:>13}" for column in references.values()))
    for name in contestants:
        ratios = [statistics.median(a / b for a, b in zip(times[name], times[reference])) for reference in references]
        print(f"{name:28}{statistics.median(times[name]):9.0f}" + "".join(f"{ratio:13.3f}" for ratio in ratios))


def first_step(model, name):
    """Prints what a fresh process needs until the first step is done, and its peak memory after 200 steps."""
    run = CONTESTANTS[name](MODELS[model])
    run(100 if "xla_loop" in name or "100" in name else 1)
    seconds = time.perf_counter() - _STARTED
    run(200)
    print(json.dumps({"seconds": seconds, "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def compare_starts(model, names, repeats=3):
    print(f"\n{model}: one process each, median of {repeats}")
    print(f"{'':26}{'s to first step':>16}{'peak MB':>10}")
    for name in names:
        command = [sys.executable, "-m", "tests.benchmarks.step_time", f"--first_step={name}", f"--models={model}"]
        rows = [
            json.loads(subprocess.check_output(command, stderr=subprocess.DEVNULL).splitlines()[-1])
            for _ in range(repeats)
        ]
        seconds, megabytes = (statistics.median(row[key] for row in rows) for key in ("seconds", "megabytes"))
        print(f"{name:26}{seconds:16.2f}{megabytes:10.0f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="mlp,cnn,embedding")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--contestants", default=",".join(CONTESTANTS).replace(", ", ";"))
    parser.add_argument("--first_step")
    parser.add_argument("--no_start", action="store_true")
    arguments = parser.parse_args()
    models = arguments.models.split(",")
    if arguments.first_step:
        first_step(models[0], arguments.first_step)
        return
    names = [name.replace(";", ", ") for name in arguments.contestants.split(",")]
    for model in models:
        contestants = {name: CONTESTANTS[name](MODELS[model]) for name in names}
        take_turns(model, contestants, REFERENCES, arguments.steps, arguments.rounds)
    if not arguments.no_start:
        compare_starts("mlp", names)


if __name__ == "__main__":
    main()
