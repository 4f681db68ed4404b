"""What can be wrong with the arguments of `run`, before anything is trained or written."""

import math

from trainer import config
from trainer import data as data_lib

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
        if source.steps_per_epoch is None:
            raise ValueError("`epochs` needs data of known size, which this source does not say. Give `train_steps`.")
        return math.ceil(epochs * source.steps_per_epoch)
    if train_steps is None and source.infinite:
        raise ValueError("`train_steps` or `epochs` must be given: the training data never ends.")
    return train_steps


def eval_sources(eval_data):
    """Returns {split: source}: "validation", or "validation_NAME" of each named one."""
    if eval_data is None:
        return {}
    named = eval_data if isinstance(eval_data, dict) else {None: eval_data}
    sources = {f"validation_{name}" if name else "validation": data_lib.as_source(data) for name, data in named.items()}
    for split, source in sources.items():
        if source.infinite:
            raise ValueError(
                f"`eval_data` of {split} never ends. Use from_arrays(..., repeat=False) or dataset.take(n)."
            )
    return sources


def report_unused():
    """Nothing that was bound is ignored in silence."""
    lines = config.unused()
    if lines:
        raise config.ConfigError("\n".join(lines))
