"""Loads a trained Trainer from its run folder, and initial weights from other files."""

import difflib
import functools
import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import tensorflow as tf

from trainer import config, console
from trainer.config.paths import local_path
from trainer.config.registry import configurable
from trainer.config.run_folder import config_of
from trainer.inputs.batches import spec_from_json
from trainer.saving.checkpoints import Checkpoints
from trainer.saving.state import restore, settle
from trainer.saving.weight_files import read_weights

if TYPE_CHECKING:
    from trainer.trainer import Trainer

_SHOWN = 6  # names shown of a list


def load(model_dir: str | os.PathLike, step: int | str = "latest", trainer: Callable | None = None) -> "Trainer":
    """Returns the trained Trainer of a run folder; eager.

    Args:
        model_dir: a folder that `run` wrote.
        step: "latest"; "best", by `Checkpoints.monitor`; or the int step of a checkpoint.
        trainer: a function that returns the Trainer, for a run without a gin config.
    """
    model_dir = local_path("model_dir", model_dir)
    found = Checkpoints().open(model_dir)
    checkpoint = {"latest": found.latest, "best": found.best}.get(step, lambda: found.at(step))()
    if checkpoint is None:
        which = {"latest": "no whole checkpoint", "best": "no rated checkpoint (bind Checkpoints.monitor)"}.get(
            step, f"none of step {step!r}"
        )
        raise ValueError(f"`model_dir` {str(model_dir)!r} has {which}; steps there: {found.steps()}.")
    if trainer is None:
        with config.isolated():
            config.read([str(config_of(model_dir))])
            config.bind()
            made = config.bound_value("trainer.run", "trainer")()
    else:
        made = trainer()
    specs = (checkpoint.manifest.get(name) for name in ("element_spec", "batch_spec"))
    made.build(*(spec and spec_from_json(spec) for spec in specs))
    restore(made, checkpoint)
    return made


@configurable(module="trainer.loading")
def init_from(
    path: str | os.PathLike,
    include: str | Sequence[str] | Callable = ".*",
    exclude: str | Sequence[str] | Callable = (),
    rename: dict[str, str] | None = None,
) -> Callable:
    """Returns a function that loads the weights at `path` into a built trainer and prints which were loaded; eager.

    A variable gets the tensor of its name, if the shapes are equal. A tf.train.Checkpoint or a Keras file is matched by
    the position in the model, not by name. All other variables stay as initialized.

    Args:
        path: a run folder, a checkpoint, a `.keras` or `.weights.h5` file (see `weight_files.read_weights`).
        include, exclude: regular expressions that must match a variable's whole name, a list of them, or a callable
            name -> bool, as in OptimizerGroup: the variables of this program to load.
        rename: {regular expression on whole names in the file: name in this program}; the first match is used. The
            name may refer to groups, as in `{'encoder/(.*)': 'backbone/\\1'}`.

    Raises:
        ValueError: from the function, if the file cannot be read, a pattern matches nothing, or no variable is loaded.
    """
    for pattern in [*_as_list(include), *_as_list(exclude), *(rename or {})]:
        try:
            callable(pattern) or re.compile(pattern)
        except re.error as error:
            raise ValueError(f"`init_from` takes regular expressions, got {pattern!r}: {error}.") from None
    return functools.partial(_take_weights, path=path, include=include, exclude=exclude, rename=rename or {})


def _take_weights(trainer, path, include, exclude, rename):
    there = read_weights(trainer, path)
    tensors, renamed = _rename(there, rename)
    wanted = _matching("include", include, trainer.variables) - _matching("exclude", exclude, trainer.variables)
    loaded, left = [], {"excluded": [], "not in the file": [], "another shape": []}
    for name, variable in trainer.variables.items():
        if name not in wanted:
            left["excluded"].append(name)
        elif name not in tensors:
            left["not in the file"].append(name)
        elif tensors[name].shape != tuple(variable.shape):
            left["another shape"].append(f"{name} {tensors[name].shape} in the file, {tuple(variable.shape)} here")
        else:
            loaded.append(name)
    if not loaded:
        raise ValueError(
            f"`init_from` {there.source} has no weights for this model; nothing was loaded. Map names with "
            "`init_from.rename`."
            f"\n  in the file: {_folded(there.tensors)}\n  here: {_folded(trainer.variables)}"
            + "".join(f"\n  {why}: {_folded(names)}" for why, names in left.items() if names)
        )
    for name in loaded:
        trainer.variables[name].assign(tf.cast(tensors[name], trainer.variables[name].dtype))
    settle(trainer)
    console.line(f"Weights from {there.source}: {len(loaded)} of {len(trainer.variables)} variables")
    notes = {
        "renamed": [f"{old} -> {new}" for old, new in renamed.items() if new in loaded],
        **{f"as initialized, {why}": names for why, names in left.items()},
        "in the file only": [name for name in tensors if name not in trainer.variables],
    }
    for what, names in notes.items():
        if names:
            console.line(f"  {what}: {_folded(names)}")


def _rename(there, rename):
    """Returns ({name here: tensor}, {name in the file: its new name})."""
    tensors, renamed, used = {}, {}, set()
    for name, tensor in there.tensors.items():
        matches = ((pattern, re.fullmatch(pattern, name)) for pattern in rename)
        pattern, match = next((found for found in matches if found[1]), (None, None))
        new = match.expand(rename[pattern]) if match else name
        new = there.here.get(new, new) if match else new
        if match:
            used.add(pattern)
            renamed[name] = new
        if new in tensors:
            raise ValueError(
                f"`init_from.rename` gives two tensors of {there.source} the name {new!r}; the second one is {name!r}."
            )
        tensors[new] = tensor
    for pattern in rename:
        if pattern not in used:
            raise ValueError(_no_match("rename", pattern, there.tensors))
    return tensors, renamed


def _matching(argument, patterns, names):
    matched = set()
    for pattern in _as_list(patterns):
        found = {name for name in names if (pattern(name) if callable(pattern) else re.fullmatch(pattern, name))}
        if not found:
            raise ValueError(_no_match(argument, pattern, names))
        matched |= found
    return matched


def _no_match(argument, pattern, names):
    near = difflib.get_close_matches(str(pattern), list(names), 3, cutoff=0.3)
    similar = "Similar names" if near else "The names"
    return f"`init_from.{argument}` {pattern!r} matches no whole name. {similar}: {_folded(near or names)}."


def _folded(names):
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f", ... and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _as_list(value):
    return list(value) if isinstance(value, (list, tuple)) else [value]
