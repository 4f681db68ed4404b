"""Gradient transforms: what happens to a reduced gradient before its optimizer sees it.

A transform is `transform(gradients, variables, norms) -> gradients`: traced,
per replica, on gradients that all replicas share already. `gradients` is a
list aligned with `variables` (dense tensors, `tf.IndexedSlices` whose indices
are unique, or None); `norms` holds the step's L2 norms before any transform,
float32 scalars, one per group and `all`. One with state has `build(variables)`;
one with something to tell has `report() -> dict[str, scalar]`, read right after
the call.
"""

import tensorflow as tf


def map_values(function, gradient):
    """Applies an elementwise `function` to a gradient and keeps a sparse one sparse."""
    if gradient is None:
        return None
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(function(gradient.values), gradient.indices, gradient.dense_shape)
    return function(gradient)


def l2_norm(gradients):
    """Returns the L2 norm over all `gradients`, float32 or wider, 0 where there is none.

    Sums of squares are taken in float32 at least: in half precision they overflow at 256.
    """
    squares = []
    for gradient in gradients:
        if gradient is None:
            continue
        values = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
        if values.dtype.size < 4:
            values = tf.cast(values, tf.float32)
        squares.append(tf.cast(2.0 * tf.nn.l2_loss(values), tf.float32))
    return tf.sqrt(tf.add_n(squares)) if squares else tf.zeros([])


def _check_positive(name, value):
    if value is None or value <= 0:
        raise ValueError(
            f"`{name}` must be > 0, got {value}. Leave the transform out of `transforms` to switch clipping off."
        )
    return float(value)


class clip_by_value:
    """Limits each element of a gradient to [-clip_value, clip_value]."""

    def __init__(self, clip_value):
        self.clip_value = _check_positive("clip_value", clip_value)

    def __call__(self, gradients, variables, norms):
        limit = self.clip_value
        clipped = [map_values(lambda g: tf.clip_by_value(g, -limit, limit), g) for g in gradients]
        over = [
            tf.reduce_any(tf.abs(g.values if isinstance(g, tf.IndexedSlices) else g) > limit)
            for g in gradients
            if g is not None
        ]
        self._clipped = tf.cast(tf.reduce_any(over), tf.float32) if over else tf.zeros([])
        return clipped

    def report(self):
        return {"clipped": self._clipped}


class clip_by_norm:
    """Scales each variable's gradient down to an L2 norm of at most `clip_norm`."""

    def __init__(self, clip_norm):
        self.clip_norm = _check_positive("clip_norm", clip_norm)

    def __call__(self, gradients, variables, norms):
        own = [None if g is None else l2_norm([g]) for g in gradients]
        clipped = [None if g is None else _scale_to(g, norm, self.clip_norm) for g, norm in zip(gradients, own)]
        over = [norm > self.clip_norm for norm in own if norm is not None]
        self._clipped = tf.cast(tf.reduce_any(over), tf.float32) if over else tf.zeros([])
        return clipped

    def report(self):
        return {"clipped": self._clipped}


class clip_by_global_norm:
    """Scales a group's gradients together to an L2 norm of at most `clip_norm` (Pascanu et al. 2013, 1211.5063).

    Args:
        clip_norm: float > 0.
        over: "group" takes the norm of this group's gradients as they arrive
            here; "all" takes the norm over all groups before any transform.
    """

    def __init__(self, clip_norm, over="group"):
        self.clip_norm = _check_positive("clip_norm", clip_norm)
        if over not in ("group", "all"):
            raise ValueError(f"`over` must be 'group' or 'all', got {over!r}.")
        self.over = over

    def __call__(self, gradients, variables, norms):
        norm = norms["all"] if self.over == "all" else l2_norm(gradients)
        self._clipped = tf.cast(norm > self.clip_norm, tf.float32)
        return [None if g is None else _scale_to(g, norm, self.clip_norm) for g in gradients]

    def report(self):
        return {"clipped": self._clipped}


def _scale_to(gradient, norm, clip_norm):
    """Returns `gradient * min(1, clip_norm / norm)`; a zero norm leaves it as it is."""
    scale = clip_norm / tf.maximum(norm, clip_norm)
    return map_values(lambda g: g * tf.cast(scale, g.dtype), gradient)
