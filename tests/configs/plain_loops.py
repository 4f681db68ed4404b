"""Compares an experiment's Trainer with the plain loop of the same research: tf.function and GradientTape."""

import importlib
import sys

import keras
import numpy as np
import tensorflow as tf

import configs
from trainer.replicas.distribution import make_strategy
from trainer.saving.state import settle, state_of

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def load_config(name):
    """Imports configs/NAME.py as a run does: by its own name."""
    if configs.__path__[0] not in sys.path:
        sys.path.append(configs.__path__[0])
    return importlib.import_module(name)


def assert_like_the_plain_loop(make, source, plain, steps=30, **tolerance):
    """The same losses at each step and variables at the end, on 1 and 2 replicas; resumed, the same bit for bit.

    Args:
      make: function that returns a Trainer.
      source: training data.
      plain: function (trainer, batches) -> a list with {tag: value} for each step. It takes models, variables and
        attributes of a trainer that is never trained, changes them, and calls nothing of Trainer.
    """
    tolerance = {**TOLERANCE, **tolerance}
    by_hand, _ = _build(make, source)
    expected = plain(by_hand, list(source.batches().take(steps)))
    for name in ("default", "mirrored"):
        trainer, iterator = _build(make, source, name)
        for step, values in enumerate(expected):
            if name == "default" and step == steps // 2:
                halfway = _state(trainer)
            report = trainer.train(iterator, 1)
            for tag, value in values.items():
                np.testing.assert_allclose(report[tag], value, err_msg=f"{tag}, step {step}, {name}", **tolerance)
        for variable, value in trainer.variables.items():
            np.testing.assert_allclose(
                value.numpy(), by_hand.variables[variable].numpy(), err_msg=f"{variable}, {name}", **tolerance
            )
        end = end if name == "mirrored" else _state(trainer)  # noqa: F821
    resumed, iterator = _build(make, source, seed=1, start=steps // 2)
    for name, variable in state_of(resumed).items():
        variable.assign(halfway[name])
    settle(resumed)
    resumed.train(iterator, steps - steps // 2)
    for name, value in _state(resumed).items():
        np.testing.assert_array_equal(value, end[name], err_msg=name)


def _build(make, source, strategy="default", seed=0, start=0):
    keras.utils.set_random_seed(seed)
    with make_strategy(strategy).scope():
        trainer = make()
    return trainer, iter(trainer.distribute(source, start=start))


def _state(trainer):
    return {name: variable.numpy() for name, variable in state_of(trainer).items()}


def gradients(tape, loss, variables):
    """Returns [(gradient, variable)] for `optimizer.apply_gradients`."""
    return list(zip(tape.gradient(loss, [v.value for v in variables]), variables))


def run(step, batches, compiled=True):
    """Calls `step`, compiled, for each batch; returns [{tag: float}] of the dicts that it returns."""
    step = tf.function(step) if compiled else step
    return [{tag: float(value) for tag, value in step(batch).items()} for batch in batches]
