"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from optimizers.base import Optimizer, check_count, check_decay_rate, check_positive, widen

# Rounding errors of two projections, in units of the last place of the gradient's norm.
_ROUNDING = 8


@keras.saving.register_keras_serializable(package="gradloom")
class SOAP(Optimizer):
    """Adam in the eigenbasis of the gradient's second moments (Vyas et al. 2024, 2409.11321, algorithms 3 and 4).

        M <- beta_1 * M + (1 - beta_1) * G                          G the gradient as a matrix
        V <- beta_2 * V + (1 - beta_2) * (QL' G QR)^2
        W <- W - rate * QL (QL' M QR / (sqrt(V) + epsilon)) QR'     rate with Adam's bias correction
        L <- beta_2 * L + (1 - beta_2) * G G',   R likewise of G' G
        every `refresh_interval` updates: QL <- QR decomposition of L QL, columns sorted by eigenvalue; QR likewise

    As in the authors' program the first update of a matrix only computes the
    first bases, so that no gradient is projected on its own eigenvectors. A kernel of rank > 2 counts as the matrix
    [all axes but the last, last]. A side longer than `max_dim` keeps its own
    basis; where both do, and for vectors, this is Adam. With n rows and m
    columns the state is 2 (n^2 + m^2) numbers more than Adam's.

    Unlike in the paper, directions whose gradient is zero up to rounding are not
    updated. In directions of equal moments the basis depends on rounding, so that
    two equal runs diverge sooner than with Adam.

    Args:
        learning_rate: number, schedule, or callable without arguments.
        beta_1, beta_2: floats in [0, 1).
        epsilon: float > 0.
        refresh_interval: int >= 1, updates between two refreshes of the bases; the paper's f.
        max_dim: int >= 1, longest side that gets a basis.
        **kwargs: those of `keras.optimizers.Optimizer`; `weight_decay` (decoupled) is 1e-2 in the paper.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        learning_rate: float | Callable = 0.003,
        beta_1: float = 0.95,
        beta_2: float = 0.95,
        epsilon: float = 1e-8,
        refresh_interval: int = 10,
        max_dim: int = 1024,
        **kwargs,
    ):
        super().__init__(learning_rate, **kwargs)
        self.beta_1, self.beta_2 = check_decay_rate("beta_1", beta_1), check_decay_rate("beta_2", beta_2)
        self.epsilon = check_positive("epsilon", epsilon, "The paper uses 1e-8.")
        self.refresh_interval = check_count(
            "refresh_interval", refresh_interval, 1, "The paper uses 10; 1 refreshes always."
        )
        self.max_dim = check_count("max_dim", max_dim, 1, "1 makes it Adam.")

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._momentums, self._velocities = self.add_optimizer_variables(variables, ["momentum", "velocity"])
        # A checkpoint names these slots by attribute and place in the list, so each list has one entry per variable.
        lengths = [_matrix_shape(variable.shape) for variable in variables]
        self._left, self._left_basis = self._add_sides("left", [n for n, _ in lengths])
        self._right, self._right_basis = self._add_sides("right", [m for _, m in lengths])

    def _add_sides(self, side, lengths):
        """Returns the second moments and bases of one side of each variable, None where it has none."""
        moments, bases = [], []
        for n in lengths:
            if 1 < n <= self.max_dim:
                moments.append(self.add_variable((n, n), name=side))
                bases.append(self.add_variable((n, n), keras.initializers.Identity(), name=f"{side}_basis"))
            else:
                moments.append(None)
                bases.append(None)
        return moments, bases

    def update_step(self, gradient, variable, learning_rate):
        i = self.index(variable)
        g, w = widen(gradient), widen(variable)
        m = self.beta_1 * widen(self._momentums[i]) + (1 - self.beta_1) * g
        v = widen(self._velocities[i])
        rate = tf.cast(learning_rate, g.dtype)
        if self._left[i] is None and self._right[i] is None:
            t = tf.cast(self.iterations + 1, g.dtype)
            v = self.beta_2 * v + (1 - self.beta_2) * tf.square(g)
            w -= rate * self._correction(t) * m / (tf.sqrt(v) + self.epsilon)
        else:
            m, v, step = self._matrix_step(i, g, m, v)
            w -= rate * step
        self.assign(self._momentums[i], m)
        self.assign(self._velocities[i], v)
        self.assign(variable, w)

    def _correction(self, t):
        return tf.sqrt(1 - self.beta_2**t) / (1 - self.beta_1**t)

    def _matrix_step(self, i, g, m, v):
        """Returns (m, v, step) of a variable with a basis on one side at least, and updates its sides."""
        shape = g.shape
        g, m, v = (tf.reshape(x, _matrix_shape(shape)) for x in (g, m, v))
        slots = [(self._left[i], self._left_basis[i]), (self._right[i], self._right_basis[i])]
        moments, bases = ([None if s is None else widen(s) for s in pair] for pair in zip(*slots))
        # Without second moments there is no basis: this gradient initializes them, without an update.
        starts = tf.reduce_all([tf.reduce_all(x == 0) for x in moments if x is not None])
        v = self.beta_2 * v + (1 - self.beta_2) * tf.square(_project(g, bases))
        step = _project(self._normalized(_project(m, bases), v), bases, back=True)
        # The update that only computed bases does not count.
        step *= self._correction(tf.cast(tf.maximum(self.iterations, 1), g.dtype))
        m, v, step = (tf.where(starts, tf.zeros_like(x), x) for x in (m, v, step))

        squares = (tf.matmul(g, g, transpose_b=True), tf.matmul(g, g, transpose_a=True))
        moments = [None if x is None else self.beta_2 * x + (1 - self.beta_2) * s for x, s in zip(moments, squares)]
        due = tf.equal(tf.math.floormod(tf.cast(self.iterations, tf.int64), self.refresh_interval), 0)
        # Only tensors inside the conditions: an assignment there fails on several replicas.
        found = tf.cond(
            starts,
            lambda: (v, *_eigenbases(moments)),
            lambda: tf.cond(due, lambda: _refreshed(v, moments, bases), lambda: (v, *_present(bases))),
        )
        v, new_bases = found[0], iter(found[1:])
        for (moment_slot, basis_slot), moment in zip(slots, moments):
            if moment_slot is not None:
                self.assign(moment_slot, moment)
                self.assign(basis_slot, next(new_bases))
        return *(tf.reshape(x, shape) for x in (m, v)), tf.reshape(step, shape)

    def _normalized(self, m, v):
        """Returns m / (sqrt(v) + epsilon), or 0 if v is a rounding error of zero.

        A softmax's kernel has no gradient along the sum of its columns; projected
        in float32 it has one of 1e-8 and random sign, which Adam would amplify to a full step.
        """
        size = tf.sqrt(v)
        noise = _ROUNDING * np.finfo(v.dtype.as_numpy_dtype).eps * tf.sqrt(tf.reduce_sum(v))
        return tf.where(size <= noise, tf.zeros_like(m), m / (size + self.epsilon))  # NaN stays NaN, for the guard

    def get_config(self):
        config = {"beta_1": self.beta_1, "beta_2": self.beta_2, "epsilon": self.epsilon}
        return {**super().get_config(), **config, "refresh_interval": self.refresh_interval, "max_dim": self.max_dim}


def _matrix_shape(shape):
    """Returns (rows, columns) of a variable seen as a matrix; a vector or scalar has sides of length 1, so no basis."""
    if len(shape) < 2:
        return (1, 1)
    rows = 1
    for n in shape[:-1]:
        rows *= n
    return (rows, shape[-1])


def _project(g, bases, back=False):
    """Returns QL' g QR, or with `back` QL g QR'; a basis that is None is the identity."""
    left, right = bases
    if left is not None:
        g = tf.matmul(left, g, transpose_a=not back)
    if right is not None:
        g = tf.matmul(g, right, transpose_b=back)
    return g


def _present(bases):
    return [basis for basis in bases if basis is not None]


def _eigenbases(moments):
    """Returns the eigenvectors of each moment that there is, in falling order of eigenvalue."""
    bases = []
    for moment in _present(moments):
        # The decomposition of a NaN is an error on CPU, before the non-finite guard runs.
        finite = tf.reduce_all(tf.math.is_finite(moment))
        _, vectors = tf.linalg.eigh(tf.where(finite, moment, tf.eye(moment.shape[0], dtype=moment.dtype)))
        bases.append(tf.reverse(vectors, [1]))
    return bases


def _refreshed(v, moments, bases):
    """Returns (v, *bases) after one step of power iteration (algorithm 4), v in the new order of the columns."""
    new = []
    for axis, (moment, basis) in enumerate(zip(moments, bases)):
        if moment is None:
            continue
        power = tf.matmul(moment, basis)
        order = tf.argsort(tf.reduce_sum(basis * power, 0), direction="DESCENDING", stable=True)
        v = tf.gather(v, order, axis=axis)
        new.append(tf.linalg.qr(tf.gather(power, order, axis=1)).q)
    return (v, *new)
