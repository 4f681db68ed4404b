"""Gradient surgery: the losses of a group are kept from undoing one another."""

import tensorflow as tf

from optimizers import OptimizerGroup
from trainer.trainer import Trainer


class PCGrad(Trainer):
    """Takes out of the gradients of a group's losses what conflicts (Yu et al. 2020, 2001.06782, algorithm 1).

    Each loss that a group minimises (weighted, `regularization` and internal
    ones included) has a gradient of its own, reduced over replicas. Where the
    gradient of one has a negative product with that of another, it is projected
    onto the other's normal plane; the others come in random order, seeded by `global_step`, so
    that replicas and resumed runs draw the same. The sum is applied.

    What two losses share are the variables that both have a gradient for:
    product and length are taken over these, and a head that serves one loss
    keeps its gradient. Price: a backward pass, and memory for the gradients, per loss.
    """

    def compute_gradients(self, batch):
        """One forward pass, one gradient per loss; traced, per replica. See Trainer.compute_gradients."""
        p = self.current_pass
        groups = p.groups
        tasks = {
            group.name: [_Task(group, loss, weight) for loss, weight in group.loss_weights(self.loss_names).items()]
            for group in groups
        }
        with p.using(groups=[task for own in tasks.values() for task in own]):
            losses, gradients, outputs = super().compute_gradients(batch)
        surgery = {}
        for number, group in enumerate(groups):
            own = tasks[group.name]
            reached = [task.reached for task in own]
            group.check_connected([any(by) or None for by in zip(*reached)], losses)
            order = random_orders(len(own), tf.stack([number, tf.cast(self.global_step, tf.int32)]))
            surgery[group.name] = project(reached, [gradients[task.name] for task in own], order)
        return losses, surgery, outputs


class _Task(OptimizerGroup):
    """One loss of a group, of which a gradient of its own is taken."""

    def __init__(self, group, loss, weight):
        vars(self).update(vars(group), name=f"{group.name}/{loss}", losses={loss: weight})

    def check_connected(self, gradients, losses, explain=None):
        """Notes which variables the loss reaches, all of which it need not: summed over micro-batches, None is 0."""
        self.reached = [gradient is not None for gradient in gradients]


def random_orders(n, seed):
    """Returns int32 [n, n], each row a permutation of 0 .. n - 1 drawn from `seed`, int32 [2]; traced, per replica."""
    return tf.argsort(tf.random.stateless_uniform([n, n], seed))


def project(reached, gradients, order):
    """Returns the sum of n losses' projected gradients, a list aligned with the variables; traced, per replica.

    A projected gradient is a combination of the original ones, so that their
    products decide everything: n x n numbers are projected, not gradients.

    Args:
        reached: n lists of bool, which variables each loss has a gradient for.
        gradients: n lists of reduced gradients, aligned with them.
        order: int32 [n, n]; row i says in which order loss i meets the others.
    """
    n = len(gradients)
    places = {}  # {losses that reach a variable: positions of such variables}
    for position, by in enumerate(zip(*reached)):
        places.setdefault(tuple(i for i in range(n) if by[i]), []).append(position)
    products = tf.zeros([n, n, n])  # [i, j, k]: of the gradients of j and k, over the variables that i reaches
    for losses, positions in places.items():
        if len(losses) > 1:
            rows = {i: _flat([gradients[i][p] for p in positions]) for i in losses}
            rows = tf.stack([rows.get(i, tf.zeros_like(rows[losses[0]])) for i in range(n)])
            dots = tf.stack([tf.reduce_sum(rows * row, 1) for row in tf.unstack(rows)])  # no matmul: TF32 would round
            products += tf.reduce_sum(tf.one_hot(losses, n), 0)[:, tf.newaxis, tf.newaxis] * dots
    parts = _combine(products, order)
    summed = [None] * len(reached[0])
    for losses, positions in places.items():
        shares = tf.unstack(tf.reduce_sum(tf.gather(parts, losses), 0))
        for p in positions:
            own = [gradients[i][p] for i in losses]
            if len(own) > 1:
                own = [tf.cast(shares[i], g.dtype) * tf.convert_to_tensor(g) for i, g in zip(losses, own)]
            summed[p] = own[0] if len(own) == 1 else tf.add_n(own)
    return summed


def _combine(products, order):
    """Returns float32 [n, n]: row i, how much of each loss's gradient is in the projected gradient of loss i."""
    n = order.shape[0]
    parts = tf.eye(n)
    for other in tf.unstack(order, axis=1):  # [n], the loss that each one meets next
        products_with = tf.gather(products, other, axis=2, batch_dims=1)  # [i, j]: of j with the one that i meets
        conflict = tf.minimum(tf.reduce_sum(parts * products_with, 1), 0.0)
        length = tf.gather(products_with, other, axis=1, batch_dims=1)
        along = tf.where(other == tf.range(n), 0.0, tf.math.divide_no_nan(conflict, length))
        parts -= along[:, tf.newaxis] * tf.one_hot(other, n)
    return parts


def _flat(gradients):
    return tf.concat([tf.reshape(tf.cast(tf.convert_to_tensor(g), tf.float32), [-1]) for g in gradients], 0)
