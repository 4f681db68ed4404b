"""Prints the settings of a run before its first step: model, data, devices, and the group of each variable."""

import shlex

import numpy as np
import tensorflow as tf

from trainer import console
from trainer.config.run_folder import command_of
from trainer.replicas.cluster import worker_count
from trainer.step.variables import numbered_names

_MAX_ROWS = 30  # variables that the banner lists


def show(trainer, source, step, train_steps, model_dir, all_variables=False):
    """Prints the banner and the tables of a built trainer; eager. all_variables: whether a long table is in full."""
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
    rows = list(_group_rows(trainer))
    if len(rows) <= _MAX_ROWS or all_variables:
        console.group_table(rows)
        console.line()
    console.table(("group", "variables", "parameters", "trainable", "weights", "slots"), _totals(trainer), right=True)
    if len(rows) > _MAX_ROWS and not all_variables:
        console.line(f"--dry_run lists all {len(rows)} variables, with their groups, learning rates and transforms.")
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


def show_end(title, metrics, progress, model_dir):
    """Prints the last and best reports, where the time went, and the commands that continue from here."""
    evaluations = [split for split in metrics if split != "train"]
    console.closing_table(title, {**metrics, **progress.best_columns(evaluations)})
    console.line()
    console.table(("time", "", ""), progress.spent(), right=True)
    if model_dir is None:
        return
    folder, command = shlex.quote(str(model_dir)), command_of(model_dir)
    rows = [("resume", command or "the same call of `run`"), ("compare", f"python -m trainer.compare {folder} OTHER")]
    rows.append(("export", f"{command} --mode=export" if command else f"trainer.load({str(model_dir)!r})"))
    console.line()
    console.banner(rows)


def _totals(trainer):
    """Returns rows of texts: group, number of variables, parameters, trainable ones, bytes of weights and of slots."""
    owned = {name for group in trainer.groups for name in group.variable_names}
    groups = {group.name: (group.variables, group.optimizer.variables) for group in trainer.groups}
    if rest := [variable for name, variable in trainer.variables.items() if name not in owned]:
        groups["-"] = (rest, [])
    rows = []
    for name, (variables, slots) in groups.items():
        parameters = sum(map(_size, variables))
        trained = parameters if name != "-" else 0
        sizes = (sum(_size(v) * tf.as_dtype(v.dtype).size for v in listed) for listed in (variables, slots))
        rows.append((name, f"{len(variables):,}", f"{parameters:,}", f"{trained:,}", *map(console.size, sizes)))
    return rows


def _size(variable):
    return int(np.prod(variable.shape))


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
