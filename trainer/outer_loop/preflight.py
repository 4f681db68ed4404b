"""Checks the data, hooks and monitors of `run` before anything is trained or written."""

import difflib
import inspect
import re

import keras

from trainer import console
from trainer.config import usage
from trainer.data import NoBatches
from trainer.hooks import split_of
from trainer.inputs.batches import spec_of
from trainer.outer_loop.reporting import TIMED


def first_spec(source):
    """Returns the nest of specs of the first batch of the training data; raises ValueError if there is none."""
    batch = source.first()
    if batch is None:
        raise NoBatches("`train_data`")
    return spec_of(batch)


def has_ended(source, start, step, last_step):
    """True if the data has no batch `start` for the first step `step`; warns unless the run was complete."""
    ended = step > 0 and source.first(start) is None
    if ended and step != last_step:
        console.warning(f"The training data ends before step {step}, the first one of this run: nothing is trained.")
    return ended


def hooks_of(hooks):
    """Returns `hooks` as a list.

    Raises:
        ValueError: if one is not a callable (trainer, step, metrics), such as a class or a Keras callback.
    """
    listed = list(hooks) if isinstance(hooks, (list, tuple)) else [] if hooks is None else [hooks]
    for i, hook in enumerate(listed):
        name = hook.__name__ if isinstance(hook, type) else type(hook).__name__
        if isinstance(hook, type):
            raise ValueError(
                f"`hooks` item {i} is the class {name}, not an object. Call it: {name}(), in gin @{name}()."
            )
        if isinstance(hook, keras.callbacks.Callback):
            raise ValueError(
                f"`hooks` item {i} is the Keras callback {name}. A hook is a callable (trainer, step, metrics); "
                "trainer.hooks has EarlyStopping, ReduceOnPlateau and others, and `run` itself saves, reports and "
                "evaluates."
            )
        if not callable(hook) or not _takes_three(hook):
            raise ValueError(f"`hooks` item {i} must be a callable (trainer, step, metrics), got {hook!r:.80}.")
    return listed


def _takes_three(hook):
    try:
        inspect.signature(hook).bind_partial(None, None, None)
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        pass
    return True


def reported_tags(trainer, evals):
    """Returns the set of tags that a run reports, the evaluations' with their splits; eager, after building."""
    of_loop, of_evaluation = trainer.built.reports.tags(trainer.strategy)
    return {*of_loop, *TIMED, *(f"{split}/{tag}" for split in evals for tag in of_evaluation)}


def check_monitors(trainer, evals, watchers, evaluates=True):
    """Checks each `monitor` against the tags that the run will report; eager, after building.

    Args:
        trainer: a built Trainer.
        evals: {split: source}.
        watchers: hooks and Checkpoints; those with a str attribute `monitor` are checked.
        evaluates: False in a mode without evaluation; monitors of evaluation tags are then a warning.

    Raises:
        ValueError: for a tag that no loop and no evaluation reports.
    """
    monitors = [(w, w.monitor) for w in watchers if isinstance(getattr(w, "monitor", None), str)]
    if not monitors:
        return
    tags = reported_tags(trainer, evals)
    ends = {"train": "train_end", "validation": "eval_end"}  # overridden, they may report other tags
    open_splits = [split for split, end in ends.items() if trainer.overrides(end)]
    for watcher, monitor in monitors:
        split = split_of(monitor)
        where = f"`monitor` {monitor!r} of {type(watcher).__name__}"
        if split is not None and not evaluates:
            console.warning(f"{where} is not reported, because this mode does not evaluate.")
        elif monitor in tags or ("train" if split is None else "validation") in open_splits and split in {None, *evals}:
            continue
        else:
            of_keras = re.sub(r"^val_", "validation/", monitor)
            near = difflib.get_close_matches(of_keras, sorted(tags), 1, cutoff=0.4)
            sets = f"evaluates {', '.join(evals)}" if evals else "has no `eval_data`"
            raise ValueError(
                f"{where} will never be reported; the run {sets}."
                + (f" Did you mean {near[0]!r}?" if near else "")
                + f" The tags are: {', '.join(sorted(tags))}."
            )


def warn_of_unused_bindings():
    """Warns, once, of bindings that could have been used later, but were not up to the end of the first evaluation."""
    for line in usage.unused_later():
        console.warning(line)
