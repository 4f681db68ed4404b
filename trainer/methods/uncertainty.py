"""Weights the losses of several tasks by uncertainties that are trained with the model."""

from collections.abc import Mapping

import keras
import tensorflow as tf

from layers import add_metric
from losses.base import check_positive, to_float
from trainer.trainer import Trainer

_FACTORS = {"regression": 0.5, "classification": 1.0}


class UncertaintyWeighting(Trainer):
    """Learns the weights of losses as uncertainties of their tasks (Kendall et al. 2018, 1705.07115, eqs. 7 and 10).

    With s = log sigma^2, one trainable number per task and 0 at first, a loss L
    becomes exp(-s) L / 2 + s / 2 for regression (L a squared error) and
    exp(-s) L + s / 2 for classification (L a crossentropy). The report has the
    weighted losses under their names, `metrics/unweighted/<name>` and
    `metrics/log_variance/<name>`.

    The variables are named `log_variances/<name>`. The default group trains them;
    a separate group gives them their own learning rate, without weight decay.

    Args:
        tasks: dict loss name -> "regression" or "classification"; other losses stay as they are.
        limit: number > 0; s is clipped to [-limit, limit] after each update.
        **kwargs: of Trainer.
    """

    def __init__(self, tasks: Mapping[str, str], limit: float = 10.0, **kwargs):
        super().__init__(**kwargs)
        if not isinstance(tasks, dict) or not tasks or not set(tasks.values()) <= set(_FACTORS):
            raise ValueError(f"`tasks` must be a dict loss name -> 'regression' or 'classification', got {tasks!r}.")
        check_positive("limit", limit)
        self.tasks = tasks
        self.log_variances = {name: keras.Variable(0.0, dtype="float32") for name in tasks}
        for s in self.log_variances.values():  # not inside the loss, where a clip would have no gradient
            s.constraint = lambda value: keras.ops.clip(value, -limit, limit)

    def compute_losses(self, batch, training):
        """Returns the weighted losses of `batch`, and outputs; traced, per replica."""
        returned = super().compute_losses(batch, training)
        losses, outputs = returned if isinstance(returned, tuple) else (returned, None)
        unknown = [name for name in self.tasks if name not in losses]
        if unknown:
            raise ValueError(f"`tasks` names {', '.join(unknown)}, but the step has the losses {', '.join(losses)}.")
        return {name: self._weigh(name, loss) if name in self.tasks else loss for name, loss in losses.items()}, outputs

    def _weigh(self, name, loss):
        values, weights = loss if isinstance(loss, tuple) else (loss, None)
        s = self.log_variances[name].value
        add_metric(loss, f"unweighted/{name}")
        add_metric(s, f"log_variance/{name}", reduce="last")
        values = to_float(values)
        s = tf.cast(s, values.dtype)
        values = _FACTORS[self.tasks[name]] * tf.exp(-s) * values + s / 2
        return values if weights is None else (values, weights)
