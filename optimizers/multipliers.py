"""Learning rates per variable: multipliers by name, and layer-wise decay."""

from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from optimizers.base import Optimizer, check_number, widen


@keras.saving.register_keras_serializable(package="gradloom")
class LearningRateMultipliers(Optimizer):
    """Wraps a Keras optimizer and multiplies its learning rate for the variables that a pattern matches.

    Such a variable is updated with learning_rate * multiplier, including decoupled
    weight decay. This scales the update. Scaling the gradient would have no effect
    in Adam, whose step does not depend on the gradient's size. A multiplier of 0
    keeps a variable unchanged; `Trainer.frozen` does the same at a lower cost.

    Args:
        optimizer: a Keras optimizer or its name. Do not use the object elsewhere.
        multipliers: dict pattern -> number >= 0. A pattern matches a variable's whole name: in a Trainer the name
            that groups use, in `fit` `variable.path`. Variables without a match have multiplier 1.
        name: of the optimizer.

    Raises:
        ValueError: a multiplier is not a number >= 0; when built, a pattern that matches no variable, or two
            that match the same one.

    Example:
        >>> optimizer = LearningRateMultipliers("adam", {".*encoder/.*": 0.1})
    """

    def __init__(
        self, optimizer: keras.optimizers.Optimizer | str, multipliers: Mapping[str, float], name: str | None = None
    ):
        super().__init__(0.0, name=name)  # learning rate, steps and state are those of `inner`
        self.inner = _check_optimizer(keras.optimizers.get(optimizer))
        if not isinstance(multipliers, dict) or not multipliers:
            raise ValueError(
                f"`multipliers` must be a dict pattern -> number, got {multipliers!r}. Example: {{'encoder/.*': 0.1}}."
            )
        for pattern, value in multipliers.items():
            check_number(f"multipliers[{pattern!r}]", value, "a number >= 0", lambda x: x >= 0, "1 changes nothing.")
        # Pairs, because Keras would wrap a dict, and the order of patterns must be kept.
        self._pairs = tuple((pattern, float(value)) for pattern, value in multipliers.items())
        # Keras applies weight decay before all updates, at one rate; here it is applied per variable.
        self._decay, self.inner.weight_decay = self.inner.weight_decay, None
        self.step_of_inner, self.inner.update_step = self.inner.update_step, self.update_step
        _share_reduction(self, self.inner)

    def name_variables(self, names):
        super().name_variables(names)
        if hasattr(self.inner, "name_variables"):
            self.inner.name_variables(names)

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        found = self.find("multipliers", [pattern for pattern, _ in self._pairs], variables)
        for name, numbers in zip(self.names_of(variables), found):
            if len(numbers) > 1:
                raise ValueError(
                    f"`multipliers` must give a variable one number, but {name!r} is matched by "
                    + " and ".join(repr(self._pairs[i][0]) for i in numbers)
                    + ". Narrow one of the patterns."
                )
        self._factors = tuple(self._pairs[numbers[0]][1] if numbers else 1.0 for numbers in found)
        self._decays = tuple(self._decay is not None and _uses_weight_decay(self.inner, v) for v in variables)
        # An OptimizerGroup intercepts this method of its optimizer to record the names of slot variables.
        self.inner.add_variable_from_reference = self.add_variable_from_reference
        try:
            self.inner.build(variables)
        finally:
            del self.inner.add_variable_from_reference

    def add_variable_from_reference(self, *args, **kwargs):
        return type(self.inner).add_variable_from_reference(self.inner, *args, **kwargs)

    def apply(self, grads, trainable_variables=None):
        if not self.built and trainable_variables is not None:
            self.build(list(trainable_variables))
        self.inner.apply(grads, trainable_variables)

    def update_step(self, gradient, variable, learning_rate):
        """Called by `inner` for each variable: its own step, at another rate."""
        i = self.index(variable)
        rate = tf.cast(learning_rate, tf.float32) * self._factors[i]
        if self._decays[i]:
            w = widen(variable)
            self.assign(variable, w - w * tf.cast(self._decay * rate, w.dtype))
        self.step_of_inner(gradient, variable, rate)

    @property
    def variables(self):
        return self.inner.variables

    @property
    def iterations(self):
        return self.inner.iterations

    @property
    def learning_rate(self):
        return self.inner.learning_rate

    @learning_rate.setter
    def learning_rate(self, value):
        self.inner.learning_rate = value

    def finalize_variable_values(self, var_list):
        self.inner.finalize_variable_values(var_list)

    def get_config(self):
        inner = keras.optimizers.serialize(self.inner)
        if self._decay is not None:
            inner["config"]["weight_decay"] = self._decay
        return {"name": self.name, "optimizer": inner, "multipliers": dict(self._pairs)}


def layer_wise_decay(decay: float, layers: Sequence[str]) -> dict[str, float]:
    """Returns multipliers that fall by `decay` from each layer to the one below (1801.06146, section 3.2; 2006.05987).

    The last of `layers` has 1, the one before it `decay`, then decay^2, and so on.

    Args:
        decay: float in (0, 1]; 0.75 to 0.95 are usual, ULMFiT's 1 / 2.6.
        layers: patterns on variable names from the input to the output, one per layer.

    Raises:
        ValueError: `decay` is out of its range, or `layers` is empty or holds a pattern twice.

    Example:
        >>> layer_wise_decay(0.5, ["embedding/.*", "blocks/0/.*", "head/.*"])
        {'embedding/.*': 0.25, 'blocks/0/.*': 0.5, 'head/.*': 1.0}
    """
    decay = check_number("decay", decay, "a number in (0, 1]", lambda x: 0 < x <= 1, "1 treats all layers equally.")
    if isinstance(layers, str) or not layers or len(set(layers)) < len(layers):
        raise ValueError(
            f"`layers` must be a list of different patterns, from input to output, got {layers!r}. One per layer."
        )
    return {pattern: decay**depth for depth, pattern in zip(range(len(layers) - 1, -1, -1), layers)}


def _check_optimizer(optimizer):
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise ValueError(f"`optimizer` must be a Keras optimizer or its name, got {optimizer!r:.80}.")
    # A group refuses these two, but sees only the wrapper.
    for argument, instead in (
        ("gradient_accumulation_steps", "Trainer.micro_batches"),
        ("use_ema", "a weight average"),
    ):
        if getattr(optimizer, argument, None):
            raise ValueError(f"`optimizer` must not set `{argument}`, which fails on several replicas. Use {instead}.")
    if type(optimizer).apply_gradients is not keras.optimizers.Optimizer.apply_gradients:
        raise ValueError(
            f"`optimizer` ({type(optimizer).__name__}) has its own `apply_gradients`, which multipliers of the rate in "
            "`update_step` might not reach. Use an OptimizerGroup for each learning rate."
        )
    own = [
        key
        for key, value in vars(optimizer).items()
        if key.endswith("_weight_decay") and isinstance(value, (int, float)) and value
    ]
    if own:
        raise ValueError(
            f"`optimizer` ({type(optimizer).__name__}) has its own decay, `{own[0]}`, which multipliers would not "
            f"reach. Build it with {own[0]}=None."
        )
    return optimizer


def _uses_weight_decay(optimizer, variable):
    """Whether Keras would decay `variable`; private in Keras, tested with `exclude_from_weight_decay`."""
    return optimizer._use_weight_decay(variable)


def _share_reduction(outer, inner):
    """Makes `inner` reduce gradients like `outer`, whose reduction an OptimizerGroup replaces.

    It sets the private method of Keras that skip_gradient_reduction replaces.
    """
    inner._all_reduce_sum_gradients = lambda grads_and_vars: outer._all_reduce_sum_gradients(grads_and_vars)
