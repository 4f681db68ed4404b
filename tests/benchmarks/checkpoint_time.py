"""Price of checkpoints: the share of time that saving every 50 steps takes from training, and the time to restore.

    python -m tests.benchmarks.checkpoint_time [--models=mlp_5m,cnn] [--saves=6] [--rounds=5]

Training alone, training with the copy of the state from device to host every
50 steps, and training that saves it in the background take turns in one
process, with one Trainer. What saving costs beyond the copy is told in wall
time, which other work on the machine disturbs, and in processor time of all
threads, which is an upper bound: a core that training leaves idle is free.
"""

import argparse
import os
import statistics
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from tests.benchmarks.step_time import MODELS, loss, source_of
from trainer.saving.checkpoints import Checkpoints
from trainer.saving.state import copy_state, learning_rates, restore
from trainer.trainer import Trainer

INTERVAL = 50  # steps


def mlp_5m():
    """5.3 M parameters, 63 MB with Adam's slots."""
    layers = [
        keras.Input((1024,)),
        *(keras.layers.Dense(units, activation="relu") for units in (2048, 1536)),
        keras.layers.Dense(10),
    ]
    return keras.Sequential(layers), np.random.default_rng(0).normal(size=(1437, 1024)).astype("float32")


def ways(trainer, iterator, checkpoints):
    """Returns {name: function that trains 50 steps}."""

    def alone():
        trainer.train(iterator, INTERVAL)

    def copied():
        alone()
        return copy_state(trainer)

    def saved():
        details = {"element_spec": None, "learning_rates": learning_rates(trainer)}
        checkpoints.save(int(trainer.global_step.numpy()), copied(), details)

    return {"training alone": alone, "and the copy": copied, "and the save": saved}


def compare(name, trainer, iterator, checkpoints, saves, rounds):
    seconds = {}
    for turn in range(rounds + 1):
        for way, act in ways(trainer, iterator, checkpoints).items():
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(saves):
                act()
            wall = time.perf_counter() - wall  # the last save goes on while the next loops would run, here untimed
            checkpoints.wait()
            if turn:  # the first one traces
                seconds.setdefault(way, []).append((wall, time.process_time() - cpu))
    megabytes = sum(value.numpy().nbytes for value in copy_state(trainer).values()) / 1e6
    print(f"\n{name}: {megabytes:.1f} MB every {INTERVAL} steps, {saves} saves a turn, median of {rounds}")
    print(f"{'':18}{'ms/step':>9}{'beyond the copy':>17}{'processor time':>16}")
    for way, times in seconds.items():
        shares = [
            statistics.median(
                (a[clock] - b[clock]) / c[clock]
                for a, b, c in zip(times, seconds["and the copy"], seconds["training alone"])
            )
            for clock in (0, 1)
        ]
        step = statistics.median(wall for wall, _ in times) / saves / INTERVAL * 1e3
        print(f"{way:18}{step:9.3f}{shares[0]:17.1%}{shares[1]:16.1%}")
    return megabytes


def time_restore(trainer, folder, megabytes, rounds):
    """Prints the time to find, verify, read and put back the newest checkpoint, its files being in memory already."""
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        restore(trainer, Checkpoints().open(folder).latest())
        seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds)
    print(f"restored in {median * 1e3:.0f} ms, {median * 1e5 / megabytes:.0f} ms for 100 MB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="mlp_5m,cnn")
    parser.add_argument("--saves", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    for name in arguments.models.split(","):
        model, inputs = {**MODELS, "mlp_5m": mlp_5m}[name]()
        trainer = Trainer(model, loss(), ["accuracy"], keras.optimizers.Adam(1e-3))
        iterator = iter(trainer.distribute(source_of(inputs)))
        with tempfile.TemporaryDirectory() as folder:
            megabytes = compare(name, trainer, iterator, Checkpoints().open(folder), arguments.saves, arguments.rounds)
            time_restore(trainer, folder, megabytes, arguments.rounds)


if __name__ == "__main__":
    main()
