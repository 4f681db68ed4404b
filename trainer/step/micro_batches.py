"""Gradient accumulation inside the step: a replica computes its shard in parts, one after the other.

The result equals that of the whole batch, also if parts differ in size or
losses have weights, because every part divides by the global denominators.
"""

import keras
import tensorflow as tf

from trainer.inputs.batches import batch_size_of, cut, units_of
from trainer.replicas.distribution import sum_replicas
from trainer.step.internals import merge
from trainer.step.outputs import keras_masks, set_keras_mask


def accumulate(micro_gradients, loss_terms, p, micro_batches, built):
    """Returns (losses, gradients, outputs) of a pass, summed over micro-batches; traced, per replica, not reduced.

    Outputs of the parts are concatenated along their first axis; scalars are those of the last part.

    Args:
        micro_gradients, loss_terms: methods of the Trainer, which read the current pass.
        p: ReplicaPass of the replica's shard.
        micro_batches: int, parts of a batch.
        built: Built.
    """
    units = units_of(p.batch, micro_batches, f"{micro_batches} micro-batches")
    parts = tf.cast(tf.minimum(tf.cast(micro_batches, tf.int64), units), tf.int32)
    rows = tf.cast(batch_size_of(p.batch) // units, tf.int32)  # rows of the first element per unit

    def part(index):
        """A context in which `p` is the pass of micro-batch `index`."""
        index, of = tf.cast(index, tf.int64), tf.cast(parts, tf.int64)
        low, high = index * units // of, (index + 1) * units // of
        here = tf.cast(high - low, tf.int32) * rows
        examples = here if p.whole else tf.where(p.examples > 0, here, 0)
        batch = cut(p.batch, low, high, units, micro_batches)
        return p.using(batch=batch, examples=examples, whole=False, is_part=True, measured=None)

    with p.using(loss_weights=_sum_weights(loss_terms, p, part, parts)):
        zeros = {group.name: [tf.zeros(v.shape, v.dtype) for v in group.variables] for group in p.groups}
        losses = {name: tf.zeros([]) for name in built.loss_names}
        specs = _leaves(built.outputs, built.masks)
        shapes = [[None, *spec.shape[1:]] if spec.shape.rank else [] for spec in specs]
        arrays = [
            tf.TensorArray(spec.dtype, size=parts, infer_shape=False, element_shape=shape)
            for spec, shape in zip(specs, shapes)
        ]

        def body(index, losses, gradients, arrays, measured):
            with part(index):
                new_losses, new_gradients, outputs = micro_gradients(p.batch)
                measured = merge(measured, p.measured)
            losses = {name: losses[name] + tf.cast(new_losses[name], tf.float32) for name in losses}
            gradients = {
                name: [_add(total, new) for total, new in zip(gradients[name], new_gradients[name])]
                for name in gradients
            }
            leaves = _leaves(outputs, keras_masks(outputs))
            arrays = [array.write(index, leaf) for array, leaf in zip(arrays, leaves)]
            return index + 1, losses, gradients, arrays, measured

        start = (tf.constant(0), losses, zeros, arrays, built.internals.empty())
        _, losses, gradients, arrays, measured = tf.while_loop(
            lambda index, *_: index < parts, body, start, parallel_iterations=1
        )
    if p.measured is None:  # of several forward passes in a step, the first is reported
        p.measured = measured
    joined = iter(
        [array.read(parts - 1) if spec.shape.rank == 0 else array.concat() for array, spec in zip(arrays, specs)]
    )
    if built.outputs is None:
        return losses, gradients, None
    outputs = tf.nest.map_structure(lambda spec: None if spec is None else next(joined), built.outputs)
    for output, mask in zip(tf.nest.flatten(outputs), built.masks):
        set_keras_mask(output, None if mask is None else next(joined))
    return losses, gradients, outputs


def _sum_weights(loss_terms, p, part, parts):
    """Returns {loss key: sum of its weights over the global batch}, or None if no loss has weights.

    The pass runs in a StatelessScope and changes no state. TensorFlow keeps only
    the part of the forward pass that the weights depend on.
    """
    names = []

    def weights(index):
        with keras.StatelessScope(), part(index):
            terms, _ = loss_terms(p.batch, training=True)
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
    """Returns the leaves of `outputs` and the existing `masks`; [] if `compute_losses` returns only losses."""
    leaves = [leaf for leaf in (*tf.nest.flatten(outputs), *masks) if leaf is not None]
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
