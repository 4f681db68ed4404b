"""Checks the first batch: its size, its labels, and whether its inputs are finite."""

import keras
import tensorflow as tf

from trainer import console
from trainer.inputs.finite_inputs import not_finite
from trainer.inputs.source import batch_size_of
from trainer.step.loss_checks import check_targets
from trainer.step.outputs import by_output


def check_batch(trainer, batch):
    """Looks at the first batch; eager.

    Inputs that are not finite may be meant (NaN for what is missing), so that they are a warning.

    Raises:
        ValueError: for a batch that would train on nonsense: too small, or class ids that do not exist.
    """
    examples, replicas = int(batch_size_of(batch)), trainer.strategy.num_replicas_in_sync
    if examples < replicas:
        raise ValueError(
            f"The batch has {examples} examples for {replicas} replicas. Use a larger batch or fewer replicas."
        )
    check_labels(trainer, batch)
    for text in not_finite(trainer, batch):
        console.warning(f"In the first batch {text}. Unless the model expects it, no gradient will be finite.")


def check_labels(trainer, batch):
    """Raises ValueError for class ids that do not exist; eager."""
    built = trainer.built
    if built.default_losses and isinstance(batch, tuple) and len(batch) > 1 and built.outputs is not None:
        masks = tf.nest.pack_sequence_as(built.outputs, built.masks)
        _, targets, weights = keras.utils.unpack_x_y_sample_weight(batch)
        named = [by_output(nest, trainer.model) for nest in (built.outputs, masks)]
        check_targets(trainer.loss, targets, weights, *named)
