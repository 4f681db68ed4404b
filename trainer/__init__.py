"""Gradloom: a training loop for people who research the training step.

The public names load on first use (PEP 562), so that `import trainer` costs
no TensorFlow import: flags and gin files are checked before it.
"""

import importlib

_HOME = {
    "Trainer": "trainer.trainer",
    "weighted": "trainer.step.metrics",
    "add_loss": "layers.internals",
    "add_metric": "layers.internals",
    "tap": "layers.internals",
    "OptimizerGroup": "optimizers",
    "configurable": "trainer.config",
    "run": "trainer.experiment",
    "load": "trainer.saving.loading",
    "STOP": "trainer.hooks",
    "data": None,  # a module: `trainer.data.from_arrays`
}

__all__ = list(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'trainer' has no attribute {name!r}; its public names are {', '.join(_HOME)}.")
    if _HOME[name] is None:
        return importlib.import_module(f"trainer.{name}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(__all__)
