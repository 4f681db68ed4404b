"""Checks the arguments of `run` before anything is trained or written."""

import difflib
import inspect
import math
import re

import keras

from trainer import config, console
from trainer import data as data_lib
from trainer.hooks import split_of
from trainer.inputs.batches import spec_of
from trainer.outer_loop.reporting import TIMED

MODES = ("train_and_eval", "train", "eval", "export")
RESUMES = ("auto", "never", "must")


def check_arguments(mode, resume, train_steps, epochs):
    """Raises ValueError for what cannot be meant."""
    for argument, value, known in (("mode", mode, MODES), ("resume", resume, RESUMES)):
        if value not in known:
            raise ValueError(f"`{argument}` must be one of {', '.join(known)}, got {value!r}.")
    if train_steps is not None and epochs is not None:
        raise ValueError(
            f"`train_steps` ({train_steps}) and `epochs` ({epochs}) both say when to end. Give one of them."
        )
    for argument, value in (("train_steps", train_steps), ("epochs", epochs)):
        if value is not None and value <= 0:
            raise ValueError(f"`{argument}` must be > 0, got {value}.")


def last_step(source, train_steps, epochs):
    """Returns the step to end at, None where the data decides."""
    if train_steps is None and epochs is not None:
        if source.steps_per_epoch is None and source.epochs is not None:
            return None  # the source ends after that many passes
        if source.steps_per_epoch is None:
            raise ValueError("`epochs` needs data of known size, which this source does not say. Give `train_steps`.")
        return math.ceil(epochs * source.steps_per_epoch)
    if train_steps is None and source.infinite:
        raise ValueError("`train_steps` or `epochs` must be given: the training data never ends.")
    return train_steps


def first_spec(source):
    """Returns the nest of specs of the first batch of the training data; raises ValueError where there is none."""
    batch = source.first()
    if batch is None:
        raise data_lib.NoBatches("`train_data`")
    return spec_of(batch)


def has_ended(source, start, step, train_steps):
    """True if a resumed run finds no batch `start` for its first step `step`; says so unless the run was complete."""
    ended = step > 0 and source.first(start) is None
    if ended and step != train_steps:
        console.warning(f"The training data end before step {step}, the first one of this run: nothing is trained.")
    return ended


def eval_sources(eval_data):
    """Returns {split: source}: "validation", or "validation_NAME" of each named one."""
    if eval_data is None:
        return {}
    named = eval_data if isinstance(eval_data, dict) else {None: eval_data}
    sources = {f"validation_{name}" if name else "validation": data_lib.as_source(data) for name, data in named.items()}
    for split, source in sources.items():
        source.check_ends(f"`eval_data` of {split}")
        if source.cardinality == 0:
            raise data_lib.NoBatches(f"`eval_data` of {split}")
    return sources


def hooks_of(hooks):
    """Returns `hooks` as a list.

    Raises:
        ValueError: for what cannot be called as (trainer, step, metrics): a class, a Keras callback.
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
                f"`hooks` item {i} is the Keras callback {name}. A hook is a callable (trainer, step, metrics); trainer.hooks has "
                "EarlyStopping, ReduceOnPlateau and others, and `run` itself saves, reports and evaluates."
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


def check_monitors(trainer, evals, watchers, open_splits=(), evaluates=True):
    """Checks each `monitor` against the tags that the run will report; eager, after building.

    Args:
        trainer: a built Trainer.
        evals: {split: source}.
        watchers: hooks and Checkpoints; those with a str attribute `monitor` are checked.
        open_splits: "train", "validation" where the Trainer may add tags of its own, in train_end or eval_end.
        evaluates: False in a mode that leaves the evaluation out on purpose; its monitors are a warning then.

    Raises:
        ValueError: for a tag that no loop and no evaluation reports.
    """
    monitors = [(w, w.monitor) for w in watchers if isinstance(getattr(w, "monitor", None), str)]
    if not monitors:
        return
    of_loop, of_evaluation = trainer._state.reports.tags(trainer.strategy)
    tags = {*of_loop, *TIMED, *(f"{split}/{tag}" for split in evals for tag in of_evaluation)}
    for watcher, monitor in monitors:
        split = split_of(monitor)
        where = f"`monitor` {monitor!r} of {type(watcher).__name__}"
        if split is not None and not evaluates:
            console.warning(f"{where} is not measured in this mode, which evaluates nothing.")
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


def report_unused():
    """Nothing that was bound is ignored in silence."""
    lines = config.unused()
    if lines:
        raise config.ConfigError("\n".join(lines))
