"""Gradloom: a training loop for research on the training step.

The public names load on first use (PEP 562), so that `import trainer` costs
no TensorFlow import: flags and gin files are checked before it.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers, which run nothing
    from layers.internals import add_loss, add_metric, tap
    from losses.global_batch import all_gather, global_mean, global_sum
    from optimizers import OptimizerGroup
    from trainer import data
    from trainer.config import configurable
    from trainer.experiment import run
    from trainer.hooks import STOP
    from trainer.saving.loading import load
    from trainer.step.metrics import weighted
    from trainer.trainer import Trainer

_HOME = {
    "Trainer": "trainer.trainer",
    "weighted": "trainer.step.metrics",
    "add_loss": "layers.internals",
    "add_metric": "layers.internals",
    "tap": "layers.internals",
    "all_gather": "losses.global_batch",
    "global_mean": "losses.global_batch",
    "global_sum": "losses.global_batch",
    "OptimizerGroup": "optimizers",
    "configurable": "trainer.config",
    "run": "trainer.experiment",
    "load": "trainer.saving.loading",
    "STOP": "trainer.hooks",
    "data": None,  # a module: `trainer.data.from_arrays`
}

__all__ = [
    "STOP",
    "OptimizerGroup",
    "Trainer",
    "add_loss",
    "add_metric",
    "all_gather",
    "configurable",
    "data",
    "global_mean",
    "global_sum",
    "load",
    "run",
    "tap",
    "weighted",
]


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'trainer' has no attribute {name!r}; its public names are {', '.join(_HOME)}.")
    try:
        module = importlib.import_module(_HOME[name] or f"trainer.{name}")
    except ImportError as error:
        from trainer.config.files import shadows

        hidden = list(shadows())
        if hidden:
            raise ImportError(" ".join(hidden)) from error
        raise
    if _HOME[name] is None:
        return module
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(__all__)
