"""What many tests do: train a Trainer, run a config, read what a run wrote, compare two runs."""

import json

import numpy as np
import pytest
import tensorflow as tf

import configs
from trainer import main


def run_config(name, folder, *params, strategy="default", init_from=None):
    """Runs configs/NAME.gin into `folder`, with gin bindings `params`, through the entry point; returns the folder."""
    flags = [f"--gin_param={param}" for param in params] + ([f"--init_from={init_from}"] if init_from else [])
    gin_file = f"--gin_file={configs.__path__[0]}/{name}.gin"
    assert main.main(["main", gin_file, f"--model_dir={folder}", f"--strategy={strategy}", *flags]) == 0
    return folder


TIMES = ("time", "examples_per_second", "step_milliseconds", "input_wait_fraction")  # tags that differ between two runs


def read_rows(folder, split=None, times=True):
    """Returns the rows of metrics.jsonl: those of one split, or all; with or without the tags in TIMES."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = [row for row in found if split in (None, row["split"])]
    return [{tag: x for tag, x in row.items() if times or tag not in TIMES} for row in found]


def read_last_rows(folder):
    """Returns {split: its last row of metrics.jsonl}."""
    return {row["split"]: row for row in read_rows(folder)}


def read_checkpoint(folder):
    """Returns {name: array} of the last checkpoint."""
    reader = tf.train.load_checkpoint(str(max((folder / "checkpoints").glob("step_*"))))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def train(trainer, data, steps, **distribute):
    """Trains `steps` steps in one loop, on an iterator of its own; returns the report."""
    return trainer.train(iter(trainer.distribute(data, **distribute)), steps)


def arrays_of(variables):
    """Returns {name: array} of {name: variable}: all those of a Trainer, of its model, or the trainable ones."""
    return {name: variable.numpy() for name, variable in variables.items()}


def assert_same(found, expected, **tolerances):
    """Two {name: array} have the same names and values: bit for bit, or within `rtol` and `atol`."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, **{"rtol": 0, "atol": 0, **tolerances}, err_msg=name)


def random_arrays(n, inputs=3, outputs=1, seed=0):
    """Returns float32 [n, inputs] and [n, outputs] of a normal distribution."""
    random = np.random.default_rng(seed)
    return random.normal(size=(n, inputs)).astype("float32"), random.normal(size=(n, outputs)).astype("float32")


def slow(*values):
    """Returns a case that repeats what another one shows: `pytest -m slow` runs it."""
    return pytest.param(*values, marks=pytest.mark.slow)
