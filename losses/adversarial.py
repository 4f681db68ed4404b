"""Losses of generative adversarial networks, and penalties on the gradient of the discriminator.

These are functions for `compute_losses`, because a Keras Loss does not get the
outputs of two models. `real` and `fake` may be from different batches of equal size.
"""

from collections.abc import Callable

import tensorflow as tf

from losses.base import check_range, to_float

KINDS = ("ns", "lsgan", "hinge", "wgan")
PENALTIES = ("wgan_gp", "one_sided", "r1")


def discriminator_loss(
    real_logits: tf.Tensor, fake_logits: tf.Tensor, kind: str = "ns", label_smoothing: float = 0.0
) -> tf.Tensor:
    """Returns the discriminator's loss for a batch of real and one of fake examples.

    - "ns": softplus(-r) + softplus(f), logistic (Goodfellow et al. 2014, 1406.2661);
    - "lsgan": (r - 1)^2 + f^2 (Mao et al. 2017, 1611.04076, eq. 9, without its 1/2);
    - "hinge": max(1 - r, 0) + max(1 + f, 0) (Lim & Ye 2017, 1705.02894);
    - "wgan": f - r (Arjovsky et al. 2017, 1701.07875); needs a penalty or clipped weights;
    - "relativistic": softplus(f - r), each real example against a fake one (RSGAN, Jolicoeur-Martineau 2018,
      1807.00734); the generator's is the same with the two exchanged, `discriminator_loss(fake, real, "relativistic")`.

    Args:
        real_logits, fake_logits: float [B], [B, 1] or [B, ...], patches, whose mean is taken.
        kind: one of the above.
        label_smoothing: in [0, 1), s: the target is 1 - s for real examples, 0 for fake ones ("ns" and "lsgan" only).

    Returns:
        float [B].

    Example:
        >>> float(discriminator_loss([0.0], [0.0])[0])  # 2 ln 2
        1.3862943649291992
    """
    _check_kind("kind", kind, (*KINDS, "relativistic"))
    _check_smoothing(kind, label_smoothing)
    real, fake = _per_example("real_logits", real_logits), _per_example("fake_logits", fake_logits)
    if not real.shape[:1].is_compatible_with(fake.shape[:1]):
        raise ValueError(
            f"`real_logits` and `fake_logits` must have the same number of examples, got {real.shape} and {fake.shape}."
        )
    wanted = 1 - label_smoothing
    if kind == "relativistic":
        return _mean(tf.nn.softplus(_minus(fake, real)))
    if kind == "ns":
        values = _mean(tf.nn.softplus(-real) + label_smoothing * real), _mean(tf.nn.softplus(fake))
    elif kind == "lsgan":
        values = _mean(tf.square(real - wanted)), _mean(tf.square(fake))
    elif kind == "hinge":
        values = _mean(tf.nn.relu(1 - real)), _mean(tf.nn.relu(1 + fake))
    else:
        values = _mean(-real), _mean(fake)
    return values[0] + values[1]


def generator_loss(fake_logits: tf.Tensor, kind: str = "ns") -> tf.Tensor:
    """Returns the generator's loss.

    softplus(-f), non-saturating, for "ns"; (f - 1)^2 for "lsgan"; -f for "hinge" and "wgan".
    Args:
        fake_logits: float [B], [B, 1] or [B, ...], patches, whose mean is taken.
        kind: as in `discriminator_loss`, which also has the generator's form of "relativistic".

    Returns:
        float [B].
    """
    _check_kind("kind", kind, KINDS)
    fake = _per_example("fake_logits", fake_logits)
    if kind == "ns":
        return _mean(tf.nn.softplus(-fake))
    return _mean(tf.square(fake - 1) if kind == "lsgan" else -fake)


def _minus(fake, real):
    if not real.shape.is_compatible_with(fake.shape):
        raise ValueError(
            f"`real_logits` and `fake_logits` are compared one by one, got the shapes {real.shape} and {fake.shape}."
        )
    return fake - real


def _check_kind(name, kind, known):
    if kind not in known:
        raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {kind!r}.")


def _check_smoothing(kind, label_smoothing):
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"`label_smoothing` must be in [0, 1), got {label_smoothing}.")
    if label_smoothing and kind not in ("ns", "lsgan"):
        raise ValueError(
            f"`label_smoothing` must be 0 for kind {kind!r}, got {label_smoothing}. That loss has no labels."
        )


def _per_example(name, logits):
    logits = to_float(logits)
    if not logits.shape.rank:
        raise ValueError(
            f"`{name}` must be [B, ...], got the shape {logits.shape}. Do not reduce the discriminator's output."
        )
    return logits


def _mean(values):
    return tf.reduce_mean(values, list(range(1, values.shape.rank)))


def interpolate(real: tf.Tensor, fake: tf.Tensor, epsilon: tf.Tensor) -> tf.Tensor:
    """Returns epsilon real + (1 - epsilon) fake, the points of WGAN-GP's penalty (Gulrajani et al. 2017, 1704.00028).

    Args:
        real, fake: float [B, ...] of one shape.
        epsilon: float [B], uniform in [0, 1). Take it from the batch or from a
            `keras.random.SeedGenerator`, so that resume is exact.

    Returns:
        float [B, ...].
    """
    real, fake = to_float(real), to_float(fake)
    if real.shape.rank != fake.shape.rank or not real.shape.is_compatible_with(fake.shape):
        raise ValueError(f"`real` and `fake` must have one shape, got {real.shape} and {fake.shape}.")
    epsilon = tf.cast(tf.convert_to_tensor(epsilon), real.dtype)
    if epsilon.shape.rank != 1 or not epsilon.shape.is_compatible_with(real.shape[:1]):
        raise ValueError(
            f"`epsilon` must be [B], one number per example, got {epsilon.shape} for examples {real.shape}."
        )
    epsilon = tf.reshape(epsilon, [-1] + [1] * (real.shape.rank - 1))
    return epsilon * real + (1 - epsilon) * fake


def gradient_penalty(discriminator: Callable, x: tf.Tensor, kind: str = "wgan_gp", weight: float = 10.0) -> tf.Tensor:
    """Returns a penalty on the norm of the discriminator's gradient at each example of `x`.

    - "wgan_gp": weight (|g| - 1)^2 (Gulrajani et al. 2017, 1704.00028, eq. 3), at points from `interpolate`;
    - "one_sided": weight max(|g| - 1, 0)^2 (Petzka et al. 2018, 1709.08894);
    - "r1": weight / 2 |g|^2 (Mescheder et al. 2018, 1801.04406, eq. 9), at real examples; at fake ones it is R2.

    |g| is over all axes of an example, in float32 or wider. With batch statistics
    the gradient of one example is undefined: use layer or group normalization, and
    activations with a second derivative.

    Args:
        discriminator: a model or function [B, ...] -> [B, ...].
        x: float [B, ...].
        kind: one of the above.
        weight: number >= 0; 10 in the WGAN-GP paper, and R1's gamma.

    Returns:
        float [B].

    Raises:
        ValueError: if the discriminator's output does not depend on `x`.
    """
    _check_kind("kind", kind, PENALTIES)
    check_range("weight", weight, 0.0)
    x = _per_example("x", x)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        scores = to_float(discriminator(x))
    gradient = tape.gradient(scores, x)
    if gradient is None:
        raise ValueError(
            "`discriminator` has no gradient with respect to `x`. Feed it `x` itself, through differentiable layers."
        )
    squared = tf.reduce_sum(tf.square(gradient), list(range(1, x.shape.rank)))
    if kind == "r1":
        return weight / 2 * squared
    norm = tf.sqrt(squared + 1e-12)  # the square root at 0 has no finite gradient
    return weight * tf.square(norm - 1 if kind == "wgan_gp" else tf.nn.relu(norm - 1))
