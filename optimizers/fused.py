"""Updates of Keras' optimizers with fewer kernels, equal slot variables and equal results.

Keras computes an update with about a dozen kernels per variable. Here variables of at least `KERNEL_SIZE` elements are
updated by one of TensorFlow's `ResourceApply*` kernels if there is one, others by the formula with as few kernels as
possible. Scalars such as Adam's bias correction are computed once for all variables. Only `update_step` is replaced:
weight decay, clipping, constraints, replicas and the iteration count remain in Keras' `apply`.
"""

import contextlib
import functools

import keras
import tensorflow as tf

from optimizers.multipliers import LearningRateMultipliers
from optimizers.transforms import unique_rows

KERNEL_SIZE = 16_384  # elements; for fewer, the kernels are slower than the formula


def fuse(optimizer, names, slots):
    """Replaces the `update_step` of a built optimizer if its class is one of FORMULAS; returns its FusedUpdate or None.

    Subclasses, and instances with their own `update_step`, are not changed.

    Args:
        optimizer: a Keras optimizer, or LearningRateMultipliers of one.
        names: names of the variables, in the order of `build`.
        slots: {"variable name/slot name": keras.Variable}.
    """
    wrapped = type(optimizer) is LearningRateMultipliers
    inner, name = (optimizer.inner, "step_of_inner") if wrapped else (optimizer, "update_step")
    own_step = getattr(optimizer, name)
    if type(inner) not in FORMULAS or getattr(own_step, "__func__", None) is not type(inner).update_step:
        return None
    of_each = [
        {key.removeprefix(f"{v}/"): slot for key, slot in slots.items() if key.startswith(f"{v}/")} for v in names
    ]
    fused = FusedUpdate(inner, FORMULAS[type(inner)], of_each, own_step)
    setattr(optimizer, name, fused.update_step)
    return fused


class FusedUpdate:
    """The fused `update_step` of one Keras optimizer. Variables of dtypes but float32 and float64 use `own_step`."""

    def __init__(self, optimizer, formula, slots, own_step):
        self._optimizer, self._formula, self._slots, self._own_step = optimizer, formula, slots, own_step
        self._scalars = None

    @property
    def dense(self):
        """True if a sparse gradient also updates every row of a variable, as the moments of most optimizers do."""
        return not (self._formula is _adagrad or (self._formula is _sgd and not self._optimizer.momentum))

    @contextlib.contextmanager
    def one_update(self):
        """A context for one call of the optimizer's `apply`, in which variables share scalars; traced or eager."""
        self._scalars = {}
        try:
            yield
        finally:
            self._scalars = None

    def update_step(self, gradient, variable, learning_rate):
        """Updates one variable, or its copy on one replica, like Keras' method of this name."""
        gradient = unique_rows(tf.cast(gradient, variable.dtype), self.dense)
        if variable.dtype not in (tf.float32, tf.float64):
            self._own_step(gradient, variable, learning_rate)
            return
        scalars = _Scalars(self._optimizer, learning_rate, variable.dtype)
        if self._scalars is not None:  # the key has the rate's id, the value the rate
            key = variable.device, variable.dtype, id(learning_rate)
            scalars = self._scalars.setdefault(key, scalars)
        slots = self._slots[_index(self._optimizer, variable)]
        self._formula(self._optimizer, variable, gradient, {name: slot.value for name, slot in slots.items()}, scalars)


def _index(optimizer, variable):
    """Returns the index of `variable`, which may be a replica's copy, in `build`'s variables; private in Keras."""
    return optimizer._get_variable_index(variable)


class _Scalars:
    """Scalars of one update that are the same for all variables of one dtype and rate, computed on first use."""

    def __init__(self, optimizer, learning_rate, dtype):
        self._optimizer, self._learning_rate, self.dtype = optimizer, learning_rate, dtype

    @functools.cached_property
    def rate(self):
        return tf.cast(self._learning_rate, self.dtype)

    @functools.cached_property
    def zero(self):
        """A kernel's power of beta where the bias is corrected already."""
        return tf.zeros([], self.dtype)

    @functools.cached_property
    def updates(self):
        """int64: the number of updates, including this one."""
        return self._optimizer.iterations + 1

    def power(self, beta):
        return tf.pow(tf.cast(beta, self.dtype), tf.cast(self.updates, self.dtype))

    @functools.cached_property
    def adam_rate(self):
        """Adam's rate with the bias correction of both moments."""
        return self.rate * tf.sqrt(1 - self.power(self._optimizer.beta_2)) / (1 - self.power(self._optimizer.beta_1))

    @functools.cached_property
    def adam_kernel_rate(self):
        """`adam_rate` for the moments of TensorFlow's kernel, which rounds beta first, then subtracts it from 1.

        In float32, 1 - .999 then has an error of 1.3e-5, as has the first velocity. The rate corrects it; otherwise the
        weights would differ by 6e-6 of a step.
        """
        first, second = self._kernel_share(self._optimizer.beta_1), self._kernel_share(self._optimizer.beta_2)
        return self.adam_rate * tf.cast(tf.sqrt(second) / first, self.dtype)

    def _kernel_share(self, beta):
        """float64: ratio of the kernel's moving average to Keras', both of a constant, starting from 0."""
        rounded, t = float(self.dtype.as_numpy_dtype(beta)), tf.cast(self.updates, tf.float64)
        one = tf.ones([], tf.float64)
        return one if rounded == beta else (one - rounded**t) / (one - beta**t)

    @functools.cached_property
    def adamax_rate(self):
        return self.rate / (1 - self.power(self._optimizer.beta_1))


def _subtract(variable, rate, values):
    """variable -= rate * values, in one kernel."""
    rate = tf.convert_to_tensor(rate, values.dtype)
    tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=rate, delta=values)


def _is_large(variable):
    return variable.shape.num_elements() >= KERNEL_SIZE


# ---- Formulas: (optimizer, variable, gradient, {slot name: variable}, scalars) ---------------------------------------


def _sgd(optimizer, w, g, slots, scalars):
    if not optimizer.momentum:
        if isinstance(g, tf.IndexedSlices):
            w.scatter_sub(tf.IndexedSlices(g.values * scalars.rate, g.indices, g.dense_shape))
        else:
            _subtract(w, scalars.rate, g)
        return
    m, momentum = slots["momentum"], tf.cast(optimizer.momentum, w.dtype)
    if _is_large(w):
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=w.handle, accum=m.handle, lr=scalars.rate, grad=g, momentum=momentum, use_nesterov=optimizer.nesterov
        )
    else:
        step = g * scalars.rate
        m = m.assign(m * momentum - step)
        w.assign_add(m * momentum - step if optimizer.nesterov else m)


def _adam(optimizer, w, g, slots, scalars):
    m, v = slots["momentum"], slots["velocity"]
    if _is_large(w) and not optimizer.amsgrad:  # XLA has no kernel with amsgrad
        tf.raw_ops.ResourceApplyAdam(
            var=w.handle, m=m.handle, v=v.handle, beta1_power=scalars.zero, beta2_power=0.0,
            beta1=optimizer.beta_1, beta2=optimizer.beta_2, epsilon=optimizer.epsilon, lr=scalars.adam_kernel_rate,
            grad=g,
        )  # fmt: skip
        return
    _subtract(m, 1 - optimizer.beta_1, m - g)
    _subtract(v, 1 - optimizer.beta_2, v - tf.square(g))
    if optimizer.amsgrad:
        v = slots["velocity_hat"].assign(tf.maximum(slots["velocity_hat"], v))
    _subtract(w, scalars.adam_rate, m / (tf.sqrt(v) + optimizer.epsilon))


def _rmsprop(optimizer, w, g, slots, scalars):
    v, momentum = slots["velocity"], slots.get("momentum")
    if _is_large(w) and momentum is not None:
        named = {"var": w, "ms": v, "mom": momentum}
        apply = tf.raw_ops.ResourceApplyRMSProp
        if optimizer.centered:
            named["mg"], apply = slots["average_gradient"], tf.raw_ops.ResourceApplyCenteredRMSProp
        apply(
            **{name: variable.handle for name, variable in named.items()}, lr=scalars.rate, rho=optimizer.rho,
            momentum=optimizer.momentum, epsilon=optimizer.epsilon, grad=g,
        )  # fmt: skip
        return
    _subtract(v, 1 - optimizer.rho, v - tf.square(g))
    squares = tf.convert_to_tensor(v)
    if optimizer.centered:
        average = slots["average_gradient"]
        _subtract(average, 1 - optimizer.rho, average - g)
        squares -= tf.square(average)
    root = tf.sqrt(squares + optimizer.epsilon)
    if momentum is None:
        _subtract(w, scalars.rate, g / root)
    else:  # in Keras' order: grappler reorders rate * (g / root) on one replica and not on the other
        w.assign_sub(momentum.assign(optimizer.momentum * momentum + scalars.rate * g / root))


def _adagrad(optimizer, w, g, slots, scalars):
    squares = slots["accumulator"]
    if isinstance(g, tf.IndexedSlices):
        squares.scatter_add(tf.IndexedSlices(tf.square(g.values), g.indices, g.dense_shape))
        step = scalars.rate * g.values / tf.sqrt(tf.gather(squares, g.indices) + optimizer.epsilon)
        w.scatter_sub(tf.IndexedSlices(step, g.indices, g.dense_shape))
    else:
        # TensorFlow's kernel adds epsilon to the root.
        _subtract(w, scalars.rate, g / tf.sqrt(squares.assign_add(tf.square(g)) + optimizer.epsilon))


def _ftrl(optimizer, w, g, slots, scalars):
    squares, linear = slots["accumulator"], slots["linear"]
    l1, rate, power = optimizer.l1_regularization_strength, scalars.rate, -optimizer.learning_rate_power
    l2 = optimizer.l2_regularization_strength + optimizer.beta / (2.0 * rate)
    shrinkage = optimizer.l2_shrinkage_regularization_strength
    if _is_large(w) and not shrinkage:  # with shrinkage the kernel rounds differently, by 1e-5
        tf.raw_ops.ResourceApplyFtrlV2(
            var=w.handle, accum=squares.handle, linear=linear.handle, grad=g, lr=rate, l1=l1, l2=l2, l2_shrinkage=0.0,
            lr_power=-power,
        )  # fmt: skip
        return
    old = tf.pow(squares, power)
    new = tf.pow(squares.assign_add(tf.square(g)), power)
    slope = linear.assign_add((g + 2 * shrinkage * w if shrinkage else g) - (new - old) / rate * w)
    w.assign((tf.clip_by_value(slope, -l1, l1) - slope) / (new / rate + 2 * l2))


def _adamax(optimizer, w, g, slots, scalars):
    m, norm = slots["momentum"], slots["norm"]
    if _is_large(w):
        tf.raw_ops.ResourceApplyAdaMax(
            var=w.handle, m=m.handle, v=norm.handle, beta1_power=scalars.zero, lr=scalars.adamax_rate,
            beta1=optimizer.beta_1, beta2=optimizer.beta_2, epsilon=optimizer.epsilon, grad=g,
        )  # fmt: skip
        return
    _subtract(m, 1 - optimizer.beta_1, m - g)
    largest = norm.assign(tf.maximum(optimizer.beta_2 * norm, tf.abs(g)))
    _subtract(w, scalars.adamax_rate, m / (largest + optimizer.epsilon))


def _adadelta(optimizer, w, g, slots, scalars):
    squares, steps = slots["accumulated_grad"], slots["accumulated_delta_var"]
    if _is_large(w):
        tf.raw_ops.ResourceApplyAdadelta(
            var=w.handle, accum=squares.handle, accum_update=steps.handle, lr=scalars.rate, rho=optimizer.rho,
            epsilon=optimizer.epsilon, grad=g,
        )  # fmt: skip
        return
    _subtract(squares, 1 - optimizer.rho, squares - tf.square(g))
    step = tf.sqrt(steps + optimizer.epsilon) * g / tf.sqrt(squares + optimizer.epsilon)
    _subtract(steps, 1 - optimizer.rho, steps - tf.square(step))
    _subtract(w, scalars.rate, step)


FORMULAS = {
    keras.optimizers.SGD: _sgd,
    keras.optimizers.Adam: _adam,
    keras.optimizers.AdamW: _adam,
    keras.optimizers.RMSprop: _rmsprop,
    keras.optimizers.Adagrad: _adagrad,
    keras.optimizers.Ftrl: _ftrl,
    keras.optimizers.Adamax: _adamax,
    keras.optimizers.Adadelta: _adadelta,
}
