"""Arguments and result of a run: Arguments, validated before anything is built; Request; Result."""

import dataclasses
import math
import numbers
import re
from typing import Any

import keras
import numpy as np

from trainer import config, console
from trainer import data as data_lib
from trainer.config import usage
from trainer.config.paths import folder_path
from trainer.inputs.limited import FirstBatches, RepeatedBatches
from trainer.outer_loop.intervals import Intervals, count
from trainer.outer_loop.preflight import hooks_of
from trainer.outer_loop.progress import HOW

MODES = ("train_and_eval", "train", "eval", "export", "fast_dev_run")
RESUMES = ("auto", "never", "must")


def _is_policy(name):
    try:
        return name is None or bool(keras.dtype_policies.get(name))
    except (ValueError, TypeError, AttributeError):
        return False


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))


def _is_pair(value):
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(v, numbers.Integral) for v in value)


def _is_checkpoints(value):
    return hasattr(value, "retention") and not isinstance(value, type)


_RULES = {  # argument: (function that validates a value, the rule in words)
    "trainer": (
        lambda value: callable(value) or hasattr(value, "train_step"),
        "Trainer, a subclass or a function that returns one, uncalled (in gin @Trainer)",
    ),
    "epochs": (
        lambda value: value is None or (_is_number(value) and 0 < value < math.inf),
        "a number > 0 or None (`train_steps` or the data defines the end)",
    ),
    "loop_seconds": (lambda value: _is_number(value) and value > 0, "a number > 0"),
    "seed": (
        lambda value: isinstance(value, numbers.Integral) and not isinstance(value, bool) and 0 <= value < 2**32,
        "an int from 0 to 2**32 - 1",
    ),
    "deterministic": (lambda value: isinstance(value, (bool, np.bool_)), "True or False"),
    "precision": (_is_policy, "a dtype policy of Keras such as 'mixed_bfloat16', or None (float32)"),
    "checkpoints": (
        lambda value: value is None or _is_checkpoints(value),
        "a Checkpoints (in gin @Checkpoints()) or None",
    ),
    "mode": (lambda value: value in MODES, f"one of {', '.join(MODES)}"),
    "resume": (lambda value: value in RESUMES, f"one of {', '.join(RESUMES)}"),
    "sanity_eval_batches": (lambda value: _is_number(value) and value >= 0 and value == int(value), "an int >= 0"),
    "profile": (
        lambda value: value is None or (_is_pair(value) and 0 <= value[0] < value[1]),
        "a pair (first, last) of steps, 0 <= first < last, or None",
    ),
    "debug_nans": (lambda value: isinstance(value, (bool, np.bool_)), "True or False"),
    "progress": (lambda value: value in HOW, f"one of {', '.join(HOW)}"),
    "eval_data": (
        lambda value: not isinstance(value, dict) or (value and all(_is_name(name) for name in value)),
        "data, a dict name -> data, each name of letters, digits, '_', '-' and '.', or None",
    ),
}


def _is_name(name):
    return isinstance(name, str) and re.fullmatch(r"[\w.-]+", name) is not None


@dataclasses.dataclass(frozen=True)
class Request:
    """Options of the command line that are not arguments of `run`. A call from Python uses the defaults.

    Attributes:
        dry_run: bool, whether to build, trace one step and write nothing.
        init_from: path of the initial weights, or None.
        owns_process: bool, whether a second signal may end the process.
    """

    dry_run: bool = False
    init_from: str | None = None
    owns_process: bool = False


@dataclasses.dataclass
class Arguments:
    """The arguments of `run`; see its docstring.

    Attributes:
        intervals: Intervals, made of the four interval arguments.

    Raises:
        ValueError: names the invalid argument and the rule.
    """

    model_dir: Any
    trainer: Any
    train_data: Any
    eval_data: Any
    train_steps: int | None
    epochs: float | None
    steps_per_loop: int
    loop_seconds: float
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
    overfit_batches: int | None
    sanity_eval_batches: int
    limit_eval_batches: int | None
    profile: Any
    debug_nans: bool
    progress: str

    def __post_init__(self):
        self.model_dir = None if self.model_dir is None else folder_path("model_dir", self.model_dir)
        self.train_steps = count("train_steps", self.train_steps, none="`epochs` or the data defines the end")
        self.intervals = Intervals(
            self.steps_per_loop, self.eval_interval, self.checkpoint_interval, self.summary_interval
        )
        for argument, (is_right, rule) in _RULES.items():
            value = getattr(self, argument)
            if not is_right(value):
                raise ValueError(f"`{argument}` must be {rule}, got {value!r:.80}.")
        self.overfit_batches = count("overfit_batches", self.overfit_batches, none="all data")
        self.limit_eval_batches = count("limit_eval_batches", self.limit_eval_batches, none="all data")
        self.hooks = hooks_of(self.hooks)
        if self.train_steps is not None and self.epochs is not None:
            raise ValueError(
                f"`train_steps` ({self.train_steps}) and `epochs` ({self.epochs}) both set the end of the run. "
                "Give one of them."
            )
        if self.mode == "eval" and self.eval_data is None:
            raise ValueError("`eval_data` must be given with `mode` 'eval', got None.")

    def train_source(self):
        """Returns the source of the training data; called in the strategy's scope."""
        source = data_lib.as_source(self.train_data, self.epochs, argument="train_data")
        return RepeatedBatches(source, self.overfit_batches) if self.overfit_batches else source

    def last_step(self, source):
        """Returns the last step, or None if the run ends with the data."""
        if self.train_steps is None and self.epochs is not None:
            if source.steps_per_epoch is None and source.epochs is not None:
                return None  # the source ends after `epochs` passes
            if source.steps_per_epoch is None:
                raise ValueError(
                    "`epochs` needs a source with a known number of batches per epoch. Give `train_steps`."
                )
            return math.ceil(self.epochs * source.steps_per_epoch)
        if self.train_steps is None and source.infinite and self.mode in ("train_and_eval", "train"):
            raise ValueError("`train_steps` or `epochs` must be given: the training data is infinite.")
        return self.train_steps

    def eval_sources(self):
        """Returns {split: source} for `mode`: "validation", or "validation_NAME" for each named one."""
        if self.eval_data is None or self.mode not in ("train_and_eval", "eval"):
            return {}
        named = self.eval_data if isinstance(self.eval_data, dict) else {None: self.eval_data}
        sources = {
            f"validation_{name}" if name else "validation": data_lib.as_source(data, argument="eval_data")
            for name, data in named.items()
        }
        if self.limit_eval_batches:
            sources = {split: FirstBatches(source, self.limit_eval_batches) for split, source in sources.items()}
        for split, source in sources.items():
            source.check_ends(f"`eval_data` of {split}")
            if source.cardinality == 0:
                raise data_lib.NoBatches(f"`eval_data` of {split}")
        return sources


@dataclasses.dataclass
class Result:
    """The result of a run.

    Attributes:
        status: "done", "stopped_nonfinite", "SIGINT", "SIGTERM", or "unsaved": the last checkpoint is not on disk.
        trainer: the Trainer.
        metrics: {split: {tag: value}} of the last reports, split being "train", "validation" or "validation_NAME".
        reports: what `history` returns.
    """

    status: str
    trainer: Any
    metrics: dict
    reports: list = dataclasses.field(default_factory=list)

    def history(self) -> list[dict]:
        """Returns all reports of the run, also those before a resume: {"step", "split", "time", tag: float, ...} each.

        `pandas.DataFrame(result.history())` has a row per report.
        """
        return [dict(row) for row in self.reports]

    def __repr__(self):
        values = [
            f"{split} {tag} {console.number(value)}"
            for split, metrics in self.metrics.items()
            for tag, value in metrics.items()
            if tag == "loss" or tag.startswith("metrics/")
        ]
        step = int(self.trainer.global_step.numpy())
        return f"<Result: {', '.join([f'{self.status} at step {step:,}', *values])}; {len(self.reports)} reports>"


def one_loop(arguments, folder):
    """Returns the arguments of mode "fast_dev_run" as those of a run of one loop, evaluation and checkpoint."""
    steps = count("steps_per_loop", arguments["steps_per_loop"])
    if arguments["train_steps"] is not None:
        steps = min(steps, count("train_steps", arguments["train_steps"]))
    at_end = dict.fromkeys(("eval_interval", "checkpoint_interval", "summary_interval", "epochs"))
    short = {"model_dir": folder, "train_steps": steps, "mode": "train_and_eval", "resume": "never"}
    return {**arguments, **at_end, **short}


def check_all_bindings_used():
    """Raises ConfigError for bindings that were not used, once everything is built.

    Those that only overridden bindings needed are named and removed from the config.
    """
    if dropped := usage.drop_overridden():
        console.line(f"Not used, because a later binding replaces what needs it: {', '.join(dropped)}.")
    lines = usage.unused()
    if lines:
        raise config.ConfigError("\n".join(lines))
