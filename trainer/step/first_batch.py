"""Prepares data for training, evaluation and prediction: builds the trainer for its sizes, validates first batches."""

import keras
import tensorflow as tf

from trainer import console
from trainer.data import NoBatches, as_source
from trainer.inputs.batches import batch_size_of, not_finite, spec_of, static_batch_size, units_of
from trainer.step.loss_checks import check_targets
from trainer.step.outputs import by_output


def build_for(trainer, source, start=0):
    """Builds `trainer` for the batches of a source, unless it is built; eager."""
    if not trainer.is_built:
        batch = source.first(start)
        trainer.build(source.element_spec, None if batch is None else spec_of(batch))


def finite_source(trainer, data, what, batch_size=None):
    """Returns the source for one pass over `data` for `what`; builds the trainer if necessary; eager."""
    known = static_batch_size(trainer.element_spec) if trainer.element_spec is not None else None
    source = as_source(data, batch_size=batch_size or known or 32, repeat=False)
    source.check_ends(f"`dataset` for {what}")
    if what == "prediction" and not trainer.is_built:
        try:
            build_for(trainer, source)
        except ValueError as error:
            raise ValueError(
                f"{error} `predict` builds a trainer that was not built before, for which this data would have to be "
                "training data. Call `distribute` or `build` with training data first."
            ) from error
    build_for(trainer, source)
    return source


def check_first(trainer, source, start):
    """Checks the first batch of training; eager. It is not an error if the data of a resumed run ends before `start`.

    Raises:
        ValueError: if there is nothing to train, no first batch, or an invalid one (see `check_batch`).
    """
    if trainer.built.no_training:
        raise ValueError(trainer.built.no_training)
    batch = source.first(start)
    if batch is not None:
        check_batch(trainer, batch)

        def forward(element):
            with trainer.replica_pass(element, ()) as p:
                return trainer.loss_terms(p.batch, training=True)[1]

        def update(element):
            trainer.call_after_update(element, forward(element))

        trainer.built.replica_state.examine(batch, forward, update if trainer.overrides("after_update") else None)
    elif start == 0:
        raise NoBatches("`data`")


def check_batch(trainer, batch):
    """Checks the first batch; eager.

    Non-finite inputs are only a warning, because they may be intended (NaN for missing values).

    Raises:
        ValueError: for a batch that is too small, or class ids out of range.
    """
    examples, replicas = int(batch_size_of(batch)), trainer.strategy.num_replicas_in_sync
    if examples < replicas:
        raise ValueError(
            f"The batch has {examples} examples for {replicas} replicas. Use a larger batch or fewer replicas."
        )
    units_of(batch, replicas, f"{replicas} shards, one for each replica")
    units_of(
        batch, replicas * trainer.micro_batches, f"{replicas * trainer.micro_batches} parts, one for each micro-batch"
    )
    check_labels(trainer, batch)
    for text in not_finite(trainer, batch):
        console.warning(f"In the first batch {text}. Unless the model handles them, no gradient will be finite.")


def check_labels(trainer, batch):
    """Raises ValueError for class ids out of range; eager."""
    built = trainer.built
    if built.default_losses and isinstance(batch, tuple) and len(batch) > 1 and built.outputs is not None:
        masks = tf.nest.pack_sequence_as(built.outputs, built.masks)
        _, targets, weights = keras.utils.unpack_x_y_sample_weight(batch)
        named = [by_output(nest, trainer.model) for nest in (built.outputs, masks)]
        check_targets(trainer.loss, targets, weights, *named)
