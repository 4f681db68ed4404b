"""Gradient transforms, applied to reduced gradients before the optimizer.

A transform is `transform(gradients, variables, norms) -> gradients`: traced,
per replica, on gradients that all replicas share already. `gradients` is a
list aligned with `variables` (dense tensors, `tf.IndexedSlices` whose indices
are unique, or None); `norms` holds the step's L2 norms before any transform,
float32 scalars, one per group and `all`. One with state has `build(variables)`;
one with a report has `report() -> dict[str, scalar]`, called right after
the call.
"""

import functools

import tensorflow as tf


def map_values(function, gradient):
    """Applies an elementwise `function` to a gradient and keeps a sparse one sparse."""
    if gradient is None:
        return None
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(function(gradient.values), gradient.indices, gradient.dense_shape)
    return function(gradient)


def unique_rows(gradient, dense=False):
    """Adds repeated rows of a sparse gradient, so that its norm is that of the dense gradient.

    With `dense` it becomes a dense tensor, which XLA needs.
    """
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    if dense:
        return tf.convert_to_tensor(gradient)
    rows, position = tf.unique(gradient.indices)
    return tf.IndexedSlices(
        tf.math.unsorted_segment_sum(gradient.values, position, tf.size(rows)), rows, gradient.dense_shape
    )


def l2_norm(gradients):
    """Returns the L2 norm over all `gradients`, a float32 scalar, 0 where there is none; of complex ones that of |g|.

    Sums of squares are taken in float32 at least: in half precision they overflow at 256.
    """
    squares = []
    for gradient in gradients:
        if gradient is None:
            continue
        values = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
        if values.dtype.is_complex:
            values = tf.stack([tf.math.real(values), tf.math.imag(values)])
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
    """Limits each element of a gradient to [-clip_value, clip_value], the magnitude of a complex one to clip_value."""

    def __init__(self, clip_value: float):
        self.clip_value = _check_positive("clip_value", clip_value)

    def __call__(self, gradients: list, variables: list, norms: dict[str, tf.Tensor]) -> list:
        limit = self.clip_value
        clipped = [map_values(functools.partial(_clip_elements, limit=limit), g) for g in gradients]
        over = [
            tf.reduce_any(tf.abs(g.values if isinstance(g, tf.IndexedSlices) else g) > limit)
            for g in gradients
            if g is not None
        ]
        self._clipped = tf.cast(tf.reduce_any(over), tf.float32) if over else tf.zeros([])
        return clipped

    def report(self) -> dict[str, tf.Tensor]:
        return {"clipped": self._clipped}


def _clip_elements(values, limit):
    if not values.dtype.is_complex:
        return tf.clip_by_value(values, -limit, limit)
    return values * tf.cast(limit / tf.maximum(tf.abs(values), limit), values.dtype)


class clip_by_norm:
    """Scales each variable's gradient down to an L2 norm of at most `clip_norm`."""

    def __init__(self, clip_norm: float):
        self.clip_norm = _check_positive("clip_norm", clip_norm)

    def __call__(self, gradients: list, variables: list, norms: dict[str, tf.Tensor]) -> list:
        own = [None if g is None else l2_norm([g]) for g in gradients]
        clipped = [None if g is None else _scale_to(g, norm, self.clip_norm) for g, norm in zip(gradients, own)]
        over = [norm > self.clip_norm for norm in own if norm is not None]
        self._clipped = tf.cast(tf.reduce_any(over), tf.float32) if over else tf.zeros([])
        return clipped

    def report(self) -> dict[str, tf.Tensor]:
        return {"clipped": self._clipped}


class clip_by_global_norm:
    """Scales a group's gradients together to an L2 norm of at most `clip_norm` (Pascanu et al. 2013, 1211.5063).

    Args:
        clip_norm: float > 0.
        over: "group" takes the norm of this group's gradients as they arrive
            here; "all" takes the norm over all groups before any transform.
    """

    def __init__(self, clip_norm: float, over: str = "group"):
        self.clip_norm = _check_positive("clip_norm", clip_norm)
        if over not in ("group", "all"):
            raise ValueError(f"`over` must be 'group' or 'all', got {over!r}.")
        self.over = over

    def __call__(self, gradients: list, variables: list, norms: dict[str, tf.Tensor]) -> list:
        norm = norms["all"] if self.over == "all" else l2_norm(gradients)
        self._clipped = tf.cast(norm > self.clip_norm, tf.float32)
        return [None if g is None else _scale_to(g, norm, self.clip_norm) for g in gradients]

    def report(self) -> dict[str, tf.Tensor]:
        return {"clipped": self._clipped}


def _scale_to(gradient, norm, clip_norm):
    """Returns `gradient * min(1, clip_norm / norm)`; a zero norm does not change it."""
    scale = clip_norm / tf.maximum(norm, clip_norm)
    return map_values(lambda g: g * tf.cast(scale, g.dtype), gradient)


class adaptive_clip:
    """Limits each unit's gradient norm to a fraction of its weight norm: AGC (Brock et al. 2021, 2102.06171, eq. 3).

    A unit is a column of a matrix or an output channel of a convolution; a
    vector is one unit. The paper excludes the last layer: use a separate group for it.

    Args:
        clipping: float > 0, the largest |gradient| / |weight|, lambda in the paper.
        eps: float > 0, smallest weight norm that counts, so that zero weights can move.
    """

    def __init__(self, clipping: float = 0.01, eps: float = 1e-3):
        self.clipping, self.eps = _check_positive("clipping", clipping), _check_positive("eps", eps)

    def __call__(self, gradients: list, variables: list, norms: dict[str, tf.Tensor]) -> list:
        over = []
        clipped = []
        for gradient, variable in zip(gradients, variables):
            if gradient is None:
                clipped.append(None)
                continue
            limit = self.clipping * tf.maximum(_unit_norm(variable.value), self.eps)
            norm = _unit_norm(gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient)
            over.append(tf.reduce_any(norm > limit))
            scale = limit / tf.maximum(norm, limit)
            clipped.append(map_values(lambda g, scale=scale: g * tf.cast(scale, g.dtype), gradient))
        self._clipped = tf.cast(tf.reduce_any(over), tf.float32) if over else tf.zeros([])
        return clipped

    def report(self) -> dict[str, tf.Tensor]:
        return {"clipped": self._clipped}


def _unit_norm(values):
    """Returns the L2 norm over all axes but the last, float32, shaped to broadcast; one number for a vector."""
    values = tf.cast(tf.abs(values) if values.dtype.is_complex else values, tf.float32)
    axes = list(range(values.shape.rank - 1)) if values.shape.rank > 1 else None
    return tf.sqrt(tf.reduce_sum(tf.square(values), axes, keepdims=axes is not None))


class centralize:
    """Subtracts from each unit's gradient its mean (gradient centralization, Yong et al. 2020, 2004.01461, eq. 1).

    The mean is over all axes but the last. Vectors and embeddings are not changed.
    """

    def __call__(self, gradients: list, variables: list, norms: dict[str, tf.Tensor]) -> list:
        return [self._centre(gradient, variable) for gradient, variable in zip(gradients, variables)]

    def _centre(self, gradient, variable):
        if gradient is None or isinstance(gradient, tf.IndexedSlices):
            return gradient
        if len(variable.shape) < 2 or variable.name == "embeddings":
            return gradient
        wide = tf.cast(gradient, tf.float32) if gradient.dtype.size < 4 else gradient
        mean = tf.reduce_mean(wide, list(range(len(variable.shape) - 1)), keepdims=True)
        return gradient - tf.cast(mean, gradient.dtype)


class add_noise:
    """Adds N(0, eta / (1 + t)^gamma) to the gradient at update t (Neelakantan et al. 2015, 1511.06807, eq. 1).

    t counts the group's updates. The noise is the same on all replicas and after a resume. A sparse gradient becomes
    dense, because every row gets noise.

    Args:
        eta: float > 0, variance at t = 0; the paper tries .01, .3 and 1.
        gamma: float, decay; .55 in the paper.
        seed: int.
    """

    def __init__(self, eta: float = 0.01, gamma: float = 0.55, seed: int = 0):
        self.eta, self.gamma, self.seed = _check_positive("eta", eta), gamma, seed

    def build(self, variables):
        self.updates = _state(tf.zeros([], tf.int64), "updates")

    def __call__(self, gradients: list, variables: list, norms: dict[str, tf.Tensor]) -> list:
        step = tf.convert_to_tensor(self.updates)
        deviation = tf.sqrt(self.eta / tf.pow(1.0 + tf.cast(step, tf.float32), self.gamma))
        self.updates.assign_add(1)
        return [self._noisy(g, i, step, deviation) for i, g in enumerate(gradients)]

    def _noisy(self, gradient, index, step, deviation):
        if gradient is None:
            return None
        gradient = tf.convert_to_tensor(gradient)
        seed = tf.stack([tf.constant(self.seed * 100_003 + index, tf.int64), step])
        if gradient.dtype.is_complex:  # half of the variance in each part
            parts = tf.random.stateless_normal(tf.concat([[2], tf.shape(gradient)], 0), seed) * 0.5**0.5
            return gradient + tf.cast(tf.complex(parts[0], parts[1]) * tf.cast(deviation, tf.complex64), gradient.dtype)
        noise = deviation * tf.random.stateless_normal(tf.shape(gradient), seed)
        return gradient + tf.cast(noise, gradient.dtype)


class zclip:
    """Clips the group's norm if it is an outlier among its past values (ZClip, Kumar et al. 2025, 2504.02507, section
    3).

    A running mean m and deviation s of the norm give z = (norm - m) / s; a
    norm with z > z_threshold is scaled to m + z_threshold^2 / z * s. The
    running values use the clipped norm.

    Args:
        z_threshold: float > 0, 2.5 in the paper.
        decay: float in (0, 1), of the running values, .97 in the paper.
        warmup: int >= 2, updates whose plain mean and variance start them; nothing is clipped before. 25 in the paper.
    """

    def __init__(self, z_threshold: float = 2.5, decay: float = 0.97, warmup: int = 25):
        self.z_threshold = _check_positive("z_threshold", z_threshold)
        if not 0 < decay < 1:
            raise ValueError(f"`decay` must be in (0, 1), got {decay}.")
        if warmup < 2:
            raise ValueError(f"`warmup` must be >= 2, got {warmup}. A variance needs two norms.")
        self.decay, self.warmup = decay, warmup

    def build(self, variables):
        self.moments = _state(tf.zeros([3]), "moments")  # count, mean, variance

    def __call__(self, gradients: list, variables: list, norms: dict[str, tf.Tensor]) -> list:
        norm = l2_norm(gradients)
        count, mean, variance = tf.unstack(tf.convert_to_tensor(self.moments))
        deviation = tf.sqrt(variance)
        warm = count >= self.warmup
        z = (norm - mean) / tf.maximum(deviation, 1e-12)
        outlier = tf.logical_and(warm, z > self.z_threshold)
        limit = mean + self.z_threshold**2 / tf.maximum(z, self.z_threshold) * deviation
        kept = tf.where(outlier, limit, norm)
        # Welford's update gives the plain mean and variance of the warm-up without a buffer.
        step = tf.where(warm, 1.0 - self.decay, 1.0 / (count + 1.0))
        new_mean = mean + step * (kept - mean)
        squared = tf.where(warm, tf.square(kept - new_mean), (kept - mean) * (kept - new_mean))
        self.moments.assign(tf.stack([count + 1.0, new_mean, variance + step * (squared - variance)]))
        self._clipped = tf.cast(outlier, tf.float32)
        return [None if g is None else _scale_to(g, norm, kept) for g in gradients]

    def report(self) -> dict[str, tf.Tensor]:
        return {"clipped": self._clipped}


def _state(value, name):
    """Returns a variable that all replicas update equally."""
    return tf.Variable(value, trainable=False, name=name, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
