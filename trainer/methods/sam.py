"""Sharpness-aware minimization: takes the gradient at the nearby weights with the largest loss."""

import math

import numpy as np
import tensorflow as tf

from optimizers.transforms import l2_norm, map_values
from trainer.step.variables import read, restore
from trainer.trainer import Trainer


class SAM(Trainer):
    """Minimizes the largest loss within `rho` of the weights (Foret et al. 2021, 2010.01412, algorithm 1).

    A step has two forward and backward passes. The reduced gradient g of the
    first, at the weights w, gives the ascent e = rho g / ||g||. Transforms and
    optimizers get the gradient of the second, at w + e, and update w.

    The norm is over all groups of a round, so it does not depend on the split of
    variables into groups. Both passes use the same random numbers. Losses,
    outputs, moving statistics and internal metrics are those of the first pass;
    `grad_norm/<group>` is the norm of the gradient that is applied. Regularizers
    are part of both losses; an optimizer's weight decay acts at w, as in the paper.

    Args:
        rho: number >= 0, the radius; .05 in the paper. 0 is the plain step at twice the cost.
        **kwargs: of Trainer.
    """

    def __init__(self, rho: float = 0.05, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rho < math.inf:
            raise ValueError(f"`rho` must be a number >= 0, got {rho}. It is a distance in weights, .05 in the paper.")
        self.rho = float(rho)

    def compute_gradients(self, batch):
        """Takes both passes; traced, per replica. See Trainer.compute_gradients."""
        state = self.built.forward_state  # moving statistics, random seeds
        before = read(state)
        losses, first, outputs = super().compute_gradients(batch)
        after = read(state)
        pairs = [
            (v, tf.convert_to_tensor(g))
            for group in self.groups if group.name in first
            for v, g in zip(group.variables, first[group.name]) if g is not None
        ]  # fmt: skip
        variables, gradients = zip(*pairs)
        weights = read(variables)
        restore(variables, [w + e for w, e in zip(weights, self.ascent(weights, gradients))])
        restore(state, before)
        _, second, _ = super().compute_gradients(batch)
        restore(variables, weights)  # what was saved: subtracting e would round, and could not undo a NaN
        restore(state, after)
        return losses, {name: [_spoil(g, f) for g, f in zip(second[name], first[name])] for name in second}, outputs

    def ascent(self, weights, gradients):
        """Returns e = rho T^2 g / ||T g|| for lists of weights and reduced gradients g; traced, per replica."""
        scales = [self.scale(w) for w in weights]
        scaled = [t * g for t, g in zip(scales, gradients)]
        factor = tf.math.divide_no_nan(self.rho, l2_norm(scaled))
        return [tf.cast(factor, g.dtype) * t * g for t, g in zip(scales, scaled)]

    def scale(self, weights):
        """Returns T for one variable, a number or a tensor that multiplies its gradient; traced, per replica."""
        return 1.0


class ASAM(SAM):
    """SAM in a neighbourhood that grows with the weights (Kwon et al. 2021, 2102.11600, algorithm 1).

    The ascent is e = rho |w|^2 g / || |w| g ||, weight by weight. A weight of 0
    stays; the authors' code adds .01 to |w|.

    Args:
        rho: number >= 0, the radius in units of the weights; .5 in the paper.
        **kwargs: of Trainer.
    """

    def __init__(self, rho: float = 0.5, **kwargs):
        super().__init__(rho, **kwargs)

    def scale(self, weights):
        """Returns |w|; traced, per replica."""
        return tf.abs(weights)


def _spoil(gradient, first):
    """Returns `gradient`, NaN where that of the first pass was not finite.

    At NaN weights a relu has gradient 0, which would hide the error from the guard.
    """
    if gradient is None or first is None:
        return gradient
    finite = tf.math.is_finite(l2_norm([first]))
    return map_values(lambda g: tf.where(finite, g, tf.constant(np.nan, g.dtype)), gradient)
