"""Gradient surgery: removes conflicts between the gradients of a group's losses."""

import tensorflow as tf

from optimizers import OptimizerGroup
from trainer.trainer import Trainer


class PCGrad(Trainer):
    """Projects conflicting gradients of a group's losses (Yu et al. 2020, 2001.06782, algorithm 1).

    The gradient of each loss that a group minimizes (weighted; including
    `regularization` and internal losses) is computed and reduced over replicas.
    If it has a negative inner product with the gradient of another loss, it is
    projected onto the normal plane of the other. The others are visited in random
    order, seeded by `global_step`, so that replicas and resumed runs agree. The
    sum of the projected gradients is applied.

    Products and norms are over the variables for which both losses have a
    gradient, so a head with a single loss keeps its gradient. The cost is a
    backward pass, and memory for the gradients, per loss.
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
    """One loss of a group, whose gradient is computed separately."""

    def __init__(self, group, loss, weight):
        vars(self).update(vars(group), name=f"{group.name}/{loss}", losses={loss: weight})

    def check_connected(self, gradients, losses, explain=None):
        """Records the variables that the loss depends on.

        None is allowed; it becomes 0 when summed over micro-batches.
        """
        self.reached = [gradient is not None for gradient in gradients]


def random_orders(n, seed):
    """Returns int32 [n, n], each row a permutation of 0 .. n - 1 drawn from `seed`, int32 [2]; traced, per replica."""
    return tf.argsort(tf.random.stateless_uniform([n, n], seed))


def project(reached, gradients, order):
    """Returns the sum of n losses' projected gradients, a list aligned with the variables; traced, per replica.

    A projected gradient is a linear combination of the original ones, so it is
    computed from their n x n inner products.

    Args:
        reached: n lists of bool, whether each loss has a gradient for each variable.
        gradients: n lists of reduced gradients, aligned with them.
        order: int32 [n, n]; row i is the order in which loss i visits the others.
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
    """Returns float32 [n, n]: row i has the coefficients of the projected gradient of loss i."""
    n = order.shape[0]
    parts = tf.eye(n)
    for other in tf.unstack(order, axis=1):  # [n], the next loss that each one visits
        products_with = tf.gather(products, other, axis=2, batch_dims=1)  # [i, j]: of j with the loss that i visits
        conflict = tf.minimum(tf.reduce_sum(parts * products_with, 1), 0.0)
        length = tf.gather(products_with, other, axis=1, batch_dims=1)
        along = tf.where(other == tf.range(n), 0.0, tf.math.divide_no_nan(conflict, length))
        parts -= along[:, tf.newaxis] * tf.one_hot(other, n)
    return parts


def _flat(gradients):
    return tf.concat([tf.reshape(tf.cast(tf.convert_to_tensor(g), tf.float32), [-1]) for g in gradients], 0)
