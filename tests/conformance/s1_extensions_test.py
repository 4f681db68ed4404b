"""S1, extensions: gradients, losses and optimizers of one's own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import layers
import losses
import optimizers
from tests.conformance.training import learns, numbers, sequential, train
from trainer import OptimizerGroup, Trainer

L, SGD = keras.layers, keras.optimizers.SGD


@tf.custom_gradient
def old_clip_by_value(x, low, high):
    """As the material has it: a mask in float32, and a None for each bound."""

    def gradient(dy):
        return dy * tf.cast((x >= low) & (x <= high), tf.float32), None, None

    return tf.clip_by_value(x, low, high), gradient


def clip_by_value(x, low, high):
    """Its modern form: bounds stay outside, and the mask has the dtype of the gradient."""
    low, high = tf.cast(low, x.dtype), tf.cast(high, x.dtype)

    @tf.custom_gradient
    def clip(x):
        return tf.clip_by_value(x, low, high), lambda dy: tf.where((x >= low) & (x <= high), dy, tf.zeros_like(dy))

    return clip(x)


class Clip(L.Layer):
    def __init__(self, how, **kwargs):
        super().__init__(**kwargs)
        self.how = how

    def call(self, x):
        return self.how(x, -1.0, 1.0)


POLICIES = {"float32": 1e-6, "float64": 1e-6, "mixed_float16": 2e-2, "mixed_bfloat16": 5e-2}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_custom_gradient_in_any_dtype(policy):
    """Row 9: tf.custom_gradient of a clip; the old form trains in float32 only, the modern one in each policy."""
    x = np.array([[-0.6, 0.5, 1.5]], np.float32)

    def made(how):
        head = L.Dense(
            1, use_bias=False, kernel_initializer="ones", dtype="float64" if policy == "float64" else "float32"
        )
        first = L.EinsumDense("bf,f->bf", 3, kernel_initializer="ones", dtype=policy)  # x * kernel
        return Trainer(sequential(first, Clip(how, dtype=policy), head), "mse", (), SGD(0.1), compile="eager")

    batch = (x, np.zeros([1, 1], np.float32))
    if policy != "float32":
        with pytest.raises(TypeError, match="type float32 that does not match type (float16|bfloat16|float64)"):
            train(lambda: made(old_clip_by_value), batch)
    trainer = train(lambda: made(clip_by_value), batch, steps=2)[0]
    kernel, head = np.ones(3), np.ones(3)
    for _ in range(2):  # by hand: no gradient where the clip is active
        scaled = x[0] * kernel
        clipped = np.clip(scaled, -1, 1)
        slope = 2 * (clipped @ head)
        kernel, head = kernel - 0.1 * slope * head * x[0] * (np.abs(scaled) <= 1), head - 0.1 * slope * clipped
    np.testing.assert_allclose(trainer.variables["einsum_dense/kernel"].numpy(), kernel, atol=POLICIES[policy])
    np.testing.assert_allclose(trainer.variables["dense/kernel"].numpy()[:, 0], head, atol=POLICIES[policy])


class Scaled(L.Layer):
    """A custom gradient that captures a variable, and doubles the variable's gradient."""

    def build(self, input_shape):
        self.w = self.add_weight(name="w", shape=(), initializer="ones")

    def call(self, x):
        @tf.custom_gradient
        def scale(x):
            def gradient(dy, variables=None):
                return dy * self.w, [2 * tf.reduce_sum(dy * x) for _ in variables]

            return x * self.w, gradient

        return scale(x)


def test_a_custom_gradient_that_captures_a_variable():
    """Row 9: `grad(dy, variables=None)` returns the variable's gradient too: here twice the true one."""
    x = np.array([[1.0], [3.0]], np.float32)
    trainer = train(lambda: Trainer(sequential(Scaled(), shape=(1,)), "mse", (), SGD(0.01)), (x, 0 * x), steps=2)[0]
    w = 1.0
    for _ in range(2):
        w -= 0.01 * 2 * 2 * w * np.mean(x**2)
    assert float(trainer.variables["scaled/w"].numpy()) == pytest.approx(w, rel=1e-5)


PASSING = {
    "GradientReversal": (layers.GradientReversal(0.5), lambda x: x, -0.5),
    "ScaleGradient": (layers.ScaleGradient(3.0), lambda x: x, 3.0),
    "ClipGradient": (layers.ClipGradient(0.25), lambda x: x, None),
    "StraightThrough": (layers.StraightThrough("round"), np.round, 1.0),
}


@pytest.mark.parametrize("name", PASSING)
def test_layers_whose_gradient_is_not_that_of_their_value(name):
    """Row 10: a custom gradient of an operation, as a layer in a model: one step of the Trainer by hand."""
    layer, value, factor = PASSING[name]
    first = L.Dense(1, use_bias=False, kernel_initializer=keras.initializers.Constant(0.7))
    x = np.array([[1.0]], np.float32)
    trainer = train(
        lambda: Trainer(sequential(first, layer, L.Activation("linear"), shape=(1,)), "mse", (), SGD(0.1)),
        (x, 3 * x),
        steps=1,
    )[0]
    slopes, kernel = [], 0.7
    for _ in range(2):
        slope = 2 * (value(kernel) - 3.0)
        slopes.append(np.clip(slope, -0.25, 0.25) if factor is None else factor * slope)
        kernel -= 0.1 * slopes[-1]
    assert float(trainer.variables["dense/kernel"].numpy()[0, 0]) == pytest.approx(kernel, rel=1e-5)


def _biased(units, bias):
    """A model that begins with these logits for every input."""
    return sequential(
        L.Dense(units, kernel_initializer="zeros", bias_initializer=lambda shape, dtype=None: tf.constant(bias, dtype))
    )


def test_focal_loss_leaves_a_sure_mistake():
    """Row 11: focal loss: Keras' has no gradient, or NaN, at a sure logit; ours leads away from the mistake."""
    x = np.ones([4, 3], np.float32)
    z = tf.Variable([[20.0, 0.0]])
    with tf.GradientTape() as tape:
        value = keras.losses.CategoricalFocalCrossentropy(from_logits=True)(tf.constant([[0.0, 1.0]]), z)
    assert not tape.gradient(value, z).numpy().any()
    z = tf.Variable([[40.0]])
    with tf.GradientTape() as tape:
        value = keras.losses.BinaryFocalCrossentropy(gamma=0.5, from_logits=True)(tf.constant([[1.0]]), z)
    assert np.isnan(tape.gradient(value, z).numpy())
    groups = [OptimizerGroup("dense/bias", optimizer=SGD(1.0))]
    model = lambda: _biased(2, [20.0, 0.0])  # noqa: E731
    trainer = learns(
        lambda: Trainer(model(), losses.CategoricalFocal(), (), groups, frozen=["dense/kernel"]),
        (x, np.ones(4, np.int32)),
        3,
    )
    # (1 - p)^2 (-log p) with p = e^-20: the gradient of the right logit is -1, three times.
    np.testing.assert_allclose(trainer.variables["dense/bias"].numpy(), [17.0, 3.0], rtol=1e-5)


def test_binary_focal_loss_at_a_sure_logit():
    """Row 11: gamma below 1 at logit 40 is finite, right or wrong."""
    x, y = np.ones([4, 3], np.float32), np.zeros([4, 1], np.float32)
    loss = losses.BinaryFocal(gamma=0.5, alpha=None)
    group = OptimizerGroup("dense/bias", optimizer=SGD(1.0))
    trainer = learns(lambda: Trainer(_biased(1, [40.0]), loss, (), group, frozen=["dense/kernel"]), (x, y), 3)
    assert float(trainer.variables["dense/bias"].numpy()[0]) == pytest.approx(37.0, rel=1e-5)


class FirstMomentum(keras.optimizers.Optimizer):
    """TensorFlow 1 to 2.10: slots and hyperparameters by name."""

    def __init__(self, learning_rate=0.1, name="Momentum"):
        super().__init__(name)
        self._set_hyper("learning_rate", learning_rate)

    def _create_slots(self, variables):
        for v in variables:
            self.add_slot(v, "momentum")


class SecondMomentum(keras.optimizers.Optimizer):
    """TensorFlow 2.11 to 2.15: `update_step` of two arguments, `variable_name`."""

    def build(self, variables):
        super().build(variables)
        self.momentums = [self.add_variable_from_reference(v, variable_name="m") for v in variables]

    def update_step(self, gradient, variable):
        variable.assign_sub(self.learning_rate * gradient)


class NoSlotMomentum(keras.optimizers.Optimizer):
    """The same without a slot: only `update_step` is old."""

    def update_step(self, gradient, variable):
        variable.assign_sub(self.learning_rate * gradient)


class OwnMomentum(keras.optimizers.Optimizer):
    """Keras 3."""

    def build(self, variables):
        super().build(variables)
        self.momentums = self.add_optimizer_variables(variables, "m")

    def update_step(self, gradient, variable, learning_rate):
        m = self.momentums[self._get_variable_index(variable)]
        self.assign(m, 0.9 * m - learning_rate * gradient)
        self.assign_add(variable, m)


def test_the_old_forms_of_a_momentum_optimizer():
    """Row 12: `_set_hyper`, `variable_name=` and an `update_step` of two arguments are gone."""
    with pytest.raises((AttributeError, ValueError, TypeError), match="_set_hyper|learning_rate|name"):
        FirstMomentum()
    model = lambda: sequential(L.Dense(1))  # noqa: E731
    with pytest.raises(TypeError, match="unexpected keyword argument 'variable_name'"):
        train(lambda: Trainer(model(), "mse", (), SecondMomentum(0.1)), numbers())
    with pytest.raises(TypeError, match="takes 3 positional arguments but 4 were given"):
        train(lambda: Trainer(model(), "mse", (), NoSlotMomentum(0.1)), numbers())


def test_a_custom_optimizer_beside_the_standard_one():
    """Rows 12 and 13: a user's momentum, ours and Keras' give the same losses; without momentum they are others."""
    curves = []
    for optimizer in (OwnMomentum, optimizers.MomentumSGD, lambda rate: SGD(rate, momentum=0.9), SGD):
        make = lambda: Trainer(sequential(L.Dense(4, "tanh"), L.Dense(1)), "mse", (), optimizer(0.05), compile="eager")  # noqa: B023, E731
        trainer, first, last = train(make, numbers(), 6)
        curves.append([first["loss"], last["loss"]])
        assert last["loss"] < first["loss"]
    np.testing.assert_allclose(curves[:2], [curves[2]] * 2, rtol=1e-5)
    assert abs(curves[3][1] - curves[2][1]) > 1e-3
