"""Pass-through layers for Functional models that add a loss, a metric, or statistics of an activation."""

from collections.abc import Callable

import keras

from layers.base import SameShape, to_config, to_object
from layers.internals import add_loss, add_metric, monitor


@keras.saving.register_keras_serializable(package="gradloom")
class AddLoss(SameShape):
    """Adds `fn(inputs)` as a loss of the step and returns the inputs.

    Args:
        fn: function of the inputs that returns a value for `add_loss`.
        name: str, the loss's name and the layer's.
        weight: number or schedule, as in `add_loss`.
    """

    def __init__(self, fn: Callable, name: str, weight: float | Callable = 1.0, **kwargs):
        super().__init__(name=name, **kwargs)
        self.fn, self.weight = fn, weight

    def call(self, inputs):
        add_loss(self.fn(inputs), self.name, self.weight)
        return inputs

    def get_config(self):
        return {**super().get_config(), "fn": to_config(self.fn), "weight": to_config(self.weight)}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "fn": to_object(config["fn"]), "weight": to_object(config["weight"])})


@keras.saving.register_keras_serializable(package="gradloom")
class AddMetric(SameShape):
    """Reports `fn(inputs)` as a metric and returns the inputs.

    Args:
        fn: function of the inputs that returns a value for `add_metric`.
        name: str, the metric's name and the layer's.
        reduce: as in `add_metric`.
    """

    def __init__(self, fn: Callable, name: str, reduce: str = "mean", **kwargs):
        super().__init__(name=name, **kwargs)
        self.fn, self.reduce = fn, reduce

    def call(self, inputs):
        add_metric(self.fn(inputs), self.name, self.reduce)
        return inputs

    def get_config(self):
        return {**super().get_config(), "fn": to_config(self.fn), "reduce": self.reduce}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "fn": to_object(config["fn"])})


@keras.saving.register_keras_serializable(package="gradloom")
class ActivationMonitor(SameShape):
    """Reports mean, standard deviation and the fraction of dead units of an activation [..., units].

    The tags are `metrics/<name>/mean`, `/std` and `/dead`. A unit is dead if it
    was <= 0 for all examples of a report, on all replicas.
    """

    def call(self, inputs):
        monitor(inputs, self.name)
        return inputs
