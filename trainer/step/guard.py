"""The guard against non-finite gradients: skips, counts and names bad steps, and adapts the float16 loss scale."""

import functools

import tensorflow as tf

from optimizers.loss_scale import LossScale
from optimizers.transforms import map_values
from trainer.replicas.distribution import replica_values

GUARDS = ("skip", "stop", "off")


class NonFiniteError(ArithmeticError):
    """Gradients were not finite, and the guard stopped the run.

    Attributes:
        variables: names of the variables whose gradients were not finite, as far as known.
    """

    def __init__(self, message, variables=()):
        super().__init__(message)
        self.variables = list(variables)


class Guard:
    """Counts and names bad steps; created in the strategy's scope.

    Args:
        mode: "skip", "stop" or "off" (Trainer).
        max_skipped: int, skipped steps in a row that stop the run.
        names: names of the trainable variables, in order.
        float16: whether to scale the loss. A step that overflows is then skipped
            in every mode, and counts as bad only at the smallest scale.
    """

    def __init__(self, mode, max_skipped, names, float16):
        self.mode, self.max_skipped, self._names = mode, max_skipped, list(names)
        self.loss_scale = LossScale() if float16 else None
        self.skipped, self.skipped_in_row = _replicated(0, "skipped"), _replicated(0, "skipped_in_row")
        self.last_skipped = _replicated(-2, "last_skipped")  # a step number, so that a good step needs no counting
        self._longest_row = _replicated(0, "longest_row")
        self._bad = _replicated([False] * len(self._names), "bad", tf.bool)  # of the first of consecutive bad steps

    @property
    def may_skip(self):
        """True if a step may be skipped, so that the graph needs a condition."""
        return self.mode == "skip" or self.loss_scale is not None

    @property
    def state(self):
        """{name: variable} for checkpoints."""
        state = {"skipped": self.skipped, "skipped_in_row": self.skipped_in_row, "last_skipped": self.last_skipped}
        if self.loss_scale is not None:
            state.update(loss_scale=self.loss_scale.value, finite_steps=self.loss_scale.finite_steps)
        return state

    @property
    def bad_variables(self):
        """Names of the variables with non-finite gradients in the first of the last consecutive bad steps; eager."""
        return [name for name, bad in zip(self._names, self._bad.numpy()) if bad]

    @property
    def scalars(self):
        """{name: function} of the scalars of a report; names with an underscore are for `check`."""
        numbers = {"skipped_steps": self.skipped, "_longest_row": self._longest_row}
        if self.loss_scale is not None:
            numbers["loss_scale"] = self.loss_scale.value
        return {name: functools.partial(tf.convert_to_tensor, variable) for name, variable in numbers.items()}

    def scale(self, objective):
        """Multiplies an objective by the loss scale; traced, per replica."""
        if self.loss_scale is None:
            return objective
        return objective * tf.cast(self.loss_scale.value, objective.dtype)

    def unscale(self, gradients):
        """Divides a list of gradients, some of which may be None, by the loss scale; traced, per replica."""
        if self.loss_scale is None:
            return gradients
        factor = 1.0 / self.loss_scale.value
        return [map_values(lambda g: g * tf.cast(factor, g.dtype), g) for g in gradients]

    def count_good(self):
        """Updates the loss scale after a good step; traced, cross-replica."""
        if self.loss_scale is not None:
            self.loss_scale.count_finite()

    def count_bad(self, strategy, step, gradients):
        """Counts a skipped step, or a skipped round of it; traced, cross-replica.

        Args:
            strategy: tf.distribute.Strategy.
            step: int64 scalar, `global_step` before the step.
            gradients: {variable name: reduced gradient or None}, of all replicas.
        """
        if self.loss_scale is None:
            self._count(strategy, step, gradients)
            return
        count = functools.partial(self._count, strategy, step, gradients)
        tf.cond(self.loss_scale.at_smallest(), count, functools.partial(tf.constant, True))
        self.loss_scale.lower()

    def _count(self, strategy, step, gradients):
        flags = dict.fromkeys(self._names, tf.constant(False))
        for name, gradient in gradients.items():
            if gradient is not None:
                flags[name] = _not_finite(replica_values(strategy, gradient)[0])
        last, row = self.last_skipped.read_value(), self.skipped_in_row.read_value()
        again = tf.equal(last, step)  # another round of this step was skipped already
        row = tf.where(again, row, tf.where(tf.equal(last, step - 1), row + 1, 1))
        known = tf.logical_and(self._bad.read_value(), tf.logical_or(again, row > 1))
        self._bad.assign(tf.where(row == 1, tf.logical_or(known, tf.stack(list(flags.values()))), known))
        self.skipped.assign_add(tf.where(again, tf.zeros_like(row), tf.ones_like(row)))
        self.skipped_in_row.assign(row)
        self.last_skipped.assign(step)
        self._longest_row.assign(tf.maximum(self._longest_row.read_value(), row))
        return tf.constant(True)

    def check(self, step, scalar, metrics):
        """Raises NonFiniteError if the loop must end the run; eager.

        Args:
            step: int, the step at which the loop ended.
            scalar: function name -> number, of the loop's report.
            metrics: {tag: float} of the loop.
        """
        names = self.bad_variables if scalar("skipped_steps") else []
        where = f"; the first of them in {', '.join(names)}" if names else ""
        if self.mode == "skip" and scalar("_longest_row") >= self.max_skipped:
            self._longest_row.assign(0)  # a caller that catches the error may continue training
            self.last_skipped.assign(-2)
            raise NonFiniteError(
                f"{self.max_skipped} steps in a row, the last at or before step {step}, had non-finite "
                f"gradients{where}. All were skipped.",
                names,
            )
        if self.mode != "stop":
            return
        bad = [tag for tag, value in metrics.items() if tag.startswith(("grad_norm/", "loss")) and value - value != 0]
        if names:
            bad.append("gradients at the smallest loss scale")
        if bad:
            raise NonFiniteError(f"Not finite in the loop that ended at step {step}: {', '.join(bad)}{where}.", names)


def _replicated(value, name, dtype=tf.int64):
    only_first = tf.VariableAggregation.ONLY_FIRST_REPLICA
    return tf.Variable(value, trainable=False, name=name, dtype=dtype, aggregation=only_first)


def _not_finite(gradient):
    values = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
    return tf.logical_not(tf.reduce_all(tf.math.is_finite(tf.abs(values))))  # of complex ones too
