"""Runs an experiment as its users do, and reads what it wrote."""

import json

import tensorflow as tf

import configs
from trainer import main


def run_config(name, folder, *params, strategy="default", init_from=None):
    """Runs configs/NAME.gin into `folder`, with gin bindings `params`, through the entry point; returns the folder."""
    flags = [f"--gin_param={param}" for param in params] + ([f"--init_from={init_from}"] if init_from else [])
    gin_file = f"--gin_file={configs.__path__[0]}/{name}.gin"
    assert main.main(["main", gin_file, f"--model_dir={folder}", f"--strategy={strategy}", *flags]) == 0
    return folder


def rows(folder, split=None):
    """Returns the rows of metrics.jsonl: those of one split, or all."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if split in (None, row["split"])]


def last_rows(folder):
    """Returns {split: its last row of metrics.jsonl}."""
    return {row["split"]: row for row in rows(folder)}


def last_checkpoint(folder):
    """Returns {name: array} of the last checkpoint."""
    reader = tf.train.load_checkpoint(str(max((folder / "checkpoints").glob("step_*"))))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
