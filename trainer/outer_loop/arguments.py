"""What goes into a run and comes out of it: its arguments, checked before anything is built; the Request; the Result."""

import dataclasses
import math
import pathlib
from typing import Any

from trainer import config
from trainer import data as data_lib
from trainer.outer_loop.intervals import Intervals
from trainer.outer_loop.preflight import hooks_of

MODES = ("train_and_eval", "train", "eval", "export")
RESUMES = ("auto", "never", "must")


@dataclasses.dataclass(frozen=True)
class Request:
    """What the command line asks for beside the arguments of `run`. A call from Python asks for nothing.

    Attributes:
        dry_run: bool, whether to build, trace one step and write nothing.
        init_from: path of weights to begin with, or None.
        owns_process: bool, whether a second signal may end the process.
    """

    dry_run: bool = False
    init_from: str | None = None
    owns_process: bool = False


@dataclasses.dataclass
class Arguments:
    """What `run` was given; its docstring says what each one is.

    Attributes:
        intervals: Intervals, the four of them.

    Raises:
        ValueError: which argument is wrong, and what it must be.
    """

    model_dir: Any
    trainer: Any
    train_data: Any
    eval_data: Any
    train_steps: int | None
    epochs: float | None
    steps_per_loop: int
    eval_interval: int | None
    checkpoint_interval: int | None
    summary_interval: int | None
    seed: int
    deterministic: bool
    precision: str | None
    strategy: Any
    checkpoints: Any
    hooks: Any
    mode: str
    resume: str

    def __post_init__(self):
        self.intervals = Intervals(
            self.steps_per_loop, self.eval_interval, self.checkpoint_interval, self.summary_interval
        )
        for argument, known in (("mode", MODES), ("resume", RESUMES)):
            value = getattr(self, argument)
            if value not in known:
                raise ValueError(f"`{argument}` must be one of {', '.join(known)}, got {value!r}.")
        if self.train_steps is not None and self.epochs is not None:
            raise ValueError(
                f"`train_steps` ({self.train_steps}) and `epochs` ({self.epochs}) both say when to end. Give one of them."
            )
        for argument in ("train_steps", "epochs"):
            value = getattr(self, argument)
            if value is not None and value <= 0:
                raise ValueError(f"`{argument}` must be > 0, got {value}.")
        self.model_dir = None if self.model_dir is None else pathlib.Path(self.model_dir).expanduser()
        self.hooks = hooks_of(self.hooks)

    def last_step(self, source):
        """Returns the step to end at, None where the data decides."""
        if self.train_steps is None and self.epochs is not None:
            if source.steps_per_epoch is None and source.epochs is not None:
                return None  # the source ends after that many passes
            if source.steps_per_epoch is None:
                raise ValueError(
                    "`epochs` needs data of known size, which this source does not say. Give `train_steps`."
                )
            return math.ceil(self.epochs * source.steps_per_epoch)
        if self.train_steps is None and source.infinite:
            raise ValueError("`train_steps` or `epochs` must be given: the training data never ends.")
        return self.train_steps

    def eval_sources(self):
        """Returns {split: source} of what `mode` evaluates: "validation", or "validation_NAME" of each named one."""
        if self.eval_data is None or self.mode not in ("train_and_eval", "eval"):
            return {}
        named = self.eval_data if isinstance(self.eval_data, dict) else {None: self.eval_data}
        sources = {
            f"validation_{name}" if name else "validation": data_lib.as_source(data) for name, data in named.items()
        }
        for split, source in sources.items():
            source.check_ends(f"`eval_data` of {split}")
            if source.cardinality == 0:
                raise data_lib.NoBatches(f"`eval_data` of {split}")
        return sources


@dataclasses.dataclass
class Result:
    """How a run ended.

    Attributes:
        status: "done", "stopped_nonfinite", "SIGINT", "SIGTERM", or "unsaved": the last checkpoint is not on disk.
        trainer: the Trainer.
        metrics: {split: {tag: value}} of the last reports, split being "train", "validation" or "validation_NAME".
    """

    status: str
    trainer: Any
    metrics: dict


def check_all_bindings_used():
    """Raises ConfigError for bindings that nothing has read, once everything is built."""
    lines = config.unused()
    if lines:
        raise config.ConfigError("\n".join(lines))
