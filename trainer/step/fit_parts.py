"""Warns of the parts of a Keras model for `fit` that a Trainer does not use."""

import keras

from trainer import console

_METHODS = ("train_step", "test_step", "compute_loss", "compute_metrics")


def warn_of_unused(trainer):
    """Warns of methods and `compile` arguments of `trainer.model` that the default losses do not use; eager."""
    model = trainer.model
    if not isinstance(model, keras.Model):
        return
    texts = []
    own = [name for name in _METHODS if getattr(type(model), name) is not getattr(keras.Model, name)]
    if own:
        texts.append(
            f"The model's own {', '.join(own)} of {type(model).__name__} will not be called. Override "
            "`Trainer.compute_losses` for its losses, `Trainer.update_metrics` for its metrics."
        )
    if model.compiled:
        used = [trainer.loss, *(group.optimizer for group in trainer.groups)]
        left = [
            f"{argument}={_describe(value)}"
            for argument, value in (("loss", getattr(model, "loss", None)), ("optimizer", model.optimizer))
            if value is not None and not any(value is one for one in used)
        ]
        if left:
            texts.append(
                f"The model was compiled with {' and '.join(left)}, which the Trainer does not use; its own are the "
                "arguments `loss`, `metrics` and `optimizers` of the Trainer."
            )
    for text in texts:
        console.warning(text)


def _describe(value):
    if isinstance(value, (str, dict, list, tuple)):
        return repr(value)[:80]
    return getattr(value, "__name__", None) or type(value).__name__
