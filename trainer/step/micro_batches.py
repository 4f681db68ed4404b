"""Accumulation inside the step: a replica takes its batch in parts, one after the other.

Equal to the whole batch, also where parts differ in size and losses have
weights of their own, because every part divides by the global denominators.
"""

import keras
import tensorflow as tf

from trainer.inputs.batches import batch_size_of, cut, units_of
from trainer.replicas.distribution import sum_replicas
from trainer.step.internals import merge
from trainer.step.outputs import keras_masks, set_keras_mask


def accumulate(trainer, batch):
    """Returns (losses, gradients, outputs) of `batch`, summed over micro-batches; traced, per replica, not reduced.

    Outputs of the parts are joined along their first axis; scalars are those of the last part.
    """
    scope = trainer._scope
    of_first_pass = scope.measured  # of several passes in a step, the first one is reported
    examples, padded = scope.examples, scope.examples is not scope.global_examples
    units = units_of(batch, trainer.micro_batches, f"{trainer.micro_batches} micro-batches")
    parts = tf.cast(tf.minimum(tf.cast(trainer.micro_batches, tf.int64), units), tf.int32)
    rows = tf.cast(batch_size_of(batch) // units, tf.int32)  # of the first element, in a unit

    def part(index):
        """Micro-batch `index`, and the scope's count of real examples for it."""
        index, of = tf.cast(index, tf.int64), tf.cast(parts, tf.int64)
        low, high = index * units // of, (index + 1) * units // of
        here = tf.cast(high - low, tf.int32) * rows
        scope.examples = tf.where(examples > 0, here, 0) if padded else here
        return cut(batch, low, high, units, trainer.micro_batches)

    scope.weights = sum_weights(trainer, part, parts)
    scope.measured = None
    scope.examples, scope.global_examples = examples, tf.identity(scope.global_examples)
    groups = scope.groups
    zeros = {group.name: [tf.zeros(v.shape, v.dtype) for v in group.variables] for group in groups}
    losses = {name: tf.zeros([]) for name in trainer.loss_names}
    specs = _leaves(trainer._state.outputs, trainer._state.masks)
    arrays = [
        tf.TensorArray(
            s.dtype, size=parts, infer_shape=False, element_shape=[None, *s.shape[1:]] if s.shape.rank else []
        )
        for s in specs
    ]

    def body(index, losses, gradients, arrays, measured):
        scope.measured = None
        new_losses, new_gradients, outputs = trainer.micro_gradients(part(index))
        losses = {name: losses[name] + tf.cast(new_losses[name], tf.float32) for name in losses}
        gradients = {
            name: [_add(total, new) for total, new in zip(gradients[name], new_gradients[name])] for name in gradients
        }
        arrays = [array.write(index, output) for array, output in zip(arrays, _leaves(outputs, keras_masks(outputs)))]
        return index + 1, losses, gradients, arrays, merge(measured, scope.measured)

    start = (tf.constant(0), losses, zeros, arrays, trainer._internals.empty())
    _, losses, gradients, arrays, measured = tf.while_loop(
        lambda index, *_: index < parts, body, start, parallel_iterations=1
    )
    scope.examples, scope.measured = examples, measured if of_first_pass is None else of_first_pass
    joined = iter(
        [array.read(parts - 1) if spec.shape.rank == 0 else array.concat() for array, spec in zip(arrays, specs)]
    )
    if trainer._state.outputs is None:
        return losses, gradients, None
    outputs = tf.nest.map_structure(lambda _: next(joined), trainer._state.outputs)
    for output, mask in zip(tf.nest.flatten(outputs), trainer._state.masks):
        set_keras_mask(output, None if mask is None else next(joined))
    return losses, gradients, outputs


def sum_weights(trainer, part, parts):
    """Returns {loss name: global sum of its own weights}, or None where no loss has any.

    The pass runs in a StatelessScope, so that it changes nothing, and only the
    part of the forward pass that the weights depend on stays in the graph.
    """
    names = []

    def weights(index):
        with keras.StatelessScope():
            terms, _ = trainer.loss_terms(part(index), training=True)
        own = {name: tf.cast(term.weight, tf.float32) for name, term in terms.items() if term.own}
        names[:] = own
        return tf.stack(list(own.values())) if own else tf.zeros([0])

    first = weights(tf.constant(0))
    if not names:
        return None
    _, total = tf.while_loop(
        lambda index, _: index < parts,
        lambda index, total: (index + 1, total + weights(index)),
        (tf.constant(1), first),
    )
    return dict(zip(list(names), tf.unstack(sum_replicas(total), num=len(names))))


def _leaves(outputs, masks):
    """The leaves of `outputs`, then those of their `masks` that there are; none where `compute_losses` returns losses only."""
    leaves = [] if outputs is None else [*tf.nest.flatten(outputs), *(mask for mask in masks if mask is not None)]
    for leaf in leaves:
        if isinstance(leaf, (tf.RaggedTensorSpec, tf.SparseTensorSpec)):
            raise ValueError(
                "`micro_batches` > 1 cannot join ragged or sparse outputs of `compute_losses`. Return dense ones."
            )
    return leaves


def _add(total, new):
    if new is None:
        return total
    return total + tf.convert_to_tensor(new)
