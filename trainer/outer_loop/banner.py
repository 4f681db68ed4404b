"""Prints the settings of a run before its first step: model, data, devices, and the group of each variable."""

import shlex

import numpy as np
import tensorflow as tf

from trainer import console
from trainer.replicas.cluster import worker_count
from trainer.step.variables import numbered_names


def show(trainer, source, step, train_steps, model_dir):
    """Prints the banner and the group table of a built trainer; eager."""
    parameters = sum(int(np.prod(v.shape)) for v in trainer.variables.values() if getattr(v, "trainable", False))
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    names = ", ".join(device.name.split("device:")[-1] for device in devices)
    replicas = trainer.strategy.num_replicas_in_sync
    rows = [
        (
            "model",
            f"{type(trainer.model).__name__} {getattr(trainer.model, 'name', '')}, {console.number(parameters)} "
            "parameters",
        ),
        ("trainer", f"{type(trainer).__name__}, compile={trainer.compile}, guard={trainer.guard}"),
        ("data", source.describe()),
        (
            "replicas",
            f"{replicas} ({type(trainer.strategy).__name__}) on {names}" + _shard_sizes(source.batch_size, replicas),
        ),
        ("steps", f"{step} to {train_steps if train_steps is not None else 'the end of the data'}"),
    ]
    if worker_count(trainer.strategy) > 1:
        rows.append(("input", _input(source, worker_count(trainer.strategy))))
    graph = " (no graph: with compile='eager' nothing is traced)" if trainer.compile == "eager" else ""
    if model_dir is not None:
        rows += [("folder", str(model_dir)), ("watch", f"tensorboard --logdir {shlex.quote(str(model_dir))}{graph}")]
    console.banner(rows)
    console.group_table(list(_group_rows(trainer)))
    for name, further in numbered_names(trainer.held()).items():
        console.line(
            f"Several variables of one layer are named {name}; in the order of the layer's attributes, "
            f"the others are {', '.join(further)}."
        )
    if trainer.built.frozen_layers.names:
        shown = ", ".join(trainer.built.frozen_layers.names)
        console.line(f"Frozen layers run in inference mode; their statistics do not change: {shown}.")
    for group in trainer.groups:
        for note in group.notes:
            console.line(f"{group.name}: {note}")


def _shard_sizes(batch_size, replicas):
    if not batch_size or replicas == 1:
        return ""
    low, high = batch_size // replicas, -(-batch_size // replicas)
    return f", {low if low == high else f'{low} or {high}'} examples of each batch"


def _input(source, workers):
    """Returns a text on how each worker reads the global batches."""
    if hasattr(source, "shards"):
        return f"each of {workers} workers makes its own shard of every batch"
    return (
        f"each of {workers} workers reads every batch and keeps its own shard; "
        "a source with `shards` (from_arrays) reads less"
    )


def _group_rows(trainer):
    owners = {name: group for group in trainer.groups for name in group.variable_names}
    for name, variable in trainer.variables.items():
        shape = tuple(variable.shape)
        if name in owners:
            group = owners[name]
            rate = "schedule" if group.learning_rate is None else group.learning_rate
            transforms = ", ".join(getattr(t, "__name__", type(t).__name__) for t in group.transforms) or "-"
            yield name, shape, group.name, rate, transforms
        else:
            frozen = trainer.frozen_variables.get(name)
            yield name, shape, "-", "-", f"frozen by {frozen!r}" if frozen else "not trainable"
