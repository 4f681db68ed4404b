"""Gradients that are not those of the forward pass: closed forms, in every precision, traced, compiled and twice."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import layers
from tests.layers.contract_test import check_gradients

DTYPES = ("float16", "bfloat16", "float32", "float64")


def _gradient(function, x, upstream=None):
    x = tf.convert_to_tensor(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(x)
    return y, tape.gradient(y, x, upstream)


# function, x, what comes from above, wanted value, wanted gradient: numbers that float16 and bfloat16 hold exactly
BY_HAND = {
    "reversal": (lambda x: layers.gradient_reversal(x), [-2.0, 0.5, 3.0], [1, 2, 3], [-2.0, 0.5, 3.0], [-1, -2, -3]),
    "reversal by name": (
        lambda x: layers.gradient_reversal(x=x, strength=0.5),
        [-2.0, 0.5, 3.0],
        [1, 2, 4],
        [-2.0, 0.5, 3.0],
        [-0.5, -1, -2],
    ),
    "scale": (lambda x: layers.scale_gradient(x, scale=0.25), [1.0, 2.0, 3.0], [4, 8, -4], [1.0, 2.0, 3.0], [1, 2, -1]),
    "clip": (
        lambda x: layers.clip_gradient(x=x, limit=1.5),
        [9.0, 0.0, -9.0],
        [1, 2, -5],
        [9.0, 0.0, -9.0],
        [1, 1.5, -1.5],
    ),
    "round": (
        lambda x: layers.straight_through(x, op="round"),
        [0.5, 1.5, -1.25],
        [1, 2, 3],
        [0.0, 2.0, -1.0],
        [1, 2, 3],
    ),
    "sign": (lambda x: layers.straight_through(x, "sign"), [0.0, 1.5, -0.25], [1, 2, 3], [1.0, 1.0, -1.0], [1, 2, 3]),
    "sign in a window": (
        lambda x: layers.straight_through(x, "sign", window=1.0),
        [1.0, 1.5, -0.25, -7],
        [1, 2, 3, 4],
        [1, 1, -1, -1],
        [1, 0, 3, 0],
    ),
    "argmax": (lambda x: layers.straight_through(x, "argmax"), [0.5, 2.0, 2.0], [1, 2, 3], [0, 1, 0], [1, 2, 3]),
    "a function": (
        lambda x: layers.straight_through(x, tf.floor),
        [0.5, 1.75, -0.25],
        [1, 2, 3],
        [0, 1, -1],
        [1, 2, 3],
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BY_HAND)
def test_values_and_gradients_by_hand(name, dtype):
    function, x, upstream, value, gradient = BY_HAND[name]
    x, upstream = tf.constant(x, dtype), tf.constant(upstream, dtype)
    run = lambda x: _gradient(function, x, upstream)  # noqa: E731
    for how in (run, tf.function(run), tf.function(run, jit_compile=True)):
        got = how(x)
        assert got[0].dtype == got[1].dtype == x.dtype
        np.testing.assert_array_equal(tf.cast(got[0], tf.float64), value)
        np.testing.assert_array_equal(tf.cast(got[1], tf.float64), gradient)


SECOND = {  # of y = f(x)^3 at x: first and second derivative
    "reversal": (lambda x: layers.gradient_reversal(x, 0.5), lambda x: -0.5 * 3 * x**2, lambda x: 0.25 * 6 * x),
    "scale": (lambda x: layers.scale_gradient(x, 2.0), lambda x: 2 * 3 * x**2, lambda x: 4 * 6 * x),
    "clip, inside": (lambda x: layers.clip_gradient(x, 1e3), lambda x: 3 * x**2, lambda x: 6 * x),
    "clip, outside": (lambda x: layers.clip_gradient(x, 1.0), lambda x: 1.0, lambda x: 0.0),
    "round": (lambda x: layers.straight_through(x, "round"), lambda x: 3 * round(x) ** 2, lambda x: 6 * round(x)),
    "in the window": (lambda x: layers.straight_through(x, tf.floor, 9.0), lambda x: 3 * 4.0, lambda x: 6 * 2.0),
    "out of the window": (lambda x: layers.straight_through(x, tf.floor, 1.0), lambda x: 0.0, lambda x: 0.0),
}


@pytest.mark.parametrize("name", SECOND)
def test_the_second_derivative_is_that_of_the_first(name):
    function, first, second = SECOND[name]
    x = tf.constant(2.25, tf.float64)
    with tf.GradientTape() as outer:
        outer.watch(x)
        _, gradient = _gradient(lambda x: function(x) ** 3, x)
    assert float(gradient) == pytest.approx(first(2.25))
    assert float(outer.gradient(gradient, x, unconnected_gradients="zero")) == pytest.approx(second(2.25))


def test_a_scale_may_be_a_variable_and_gets_no_gradient():
    scale, x = tf.Variable(3.0), tf.constant([1.0, 2.0])
    for function in (layers.scale_gradient, layers.clip_gradient):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = 5.0 * function(x, scale)
        by_x, by_scale = tape.gradient(y, [x, scale])
        assert by_scale is None
        np.testing.assert_array_equal(by_x, [15.0, 15.0] if function is layers.scale_gradient else [3.0, 3.0])


def test_rows_of_an_embedding_keep_their_gradient():
    table = tf.Variable(np.eye(4, dtype=np.float32))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.gather(layers.gradient_reversal(table, 2.0), [1, 1, 3]))
    np.testing.assert_array_equal(tape.gradient(loss, table)[:, 0], [0, -4, 0, -2])


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
def test_the_strength_of_a_reversal_follows_its_schedule(dtype):
    layer = layers.GradientReversal(0.0, dtype=dtype)
    x = tf.constant([1.0, 2.0], layer.compute_dtype)
    step = tf.function(lambda x: _gradient(layer, x)[1])
    np.testing.assert_array_equal(step(x), [0.0, 0.0])
    layer.strength.assign(0.75)
    np.testing.assert_array_equal(step(x), [-0.75, -0.75])
    assert not layer.trainable_weights and layer.strength.dtype == "float32"


def test_a_reversal_makes_the_encoder_and_the_critic_disagree():
    encoder, critic = keras.layers.Dense(1, use_bias=False), keras.layers.Dense(1, use_bias=False)
    inputs = keras.Input((3,))
    model = keras.Model(inputs, critic(layers.GradientReversal()(encoder(inputs))))
    plain = keras.Model(inputs, critic(encoder(inputs)))
    x, kernels = np.ones((2, 3)), [encoder.kernel.value, critic.kernel.value]
    results = []
    for m in (model, plain):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(m(x) ** 2)
        results.append(tape.gradient(loss, kernels))
    np.testing.assert_allclose(results[0][0], -results[1][0], rtol=1e-6)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-6)


@keras.saving.register_keras_serializable(package="tests")
def floor(x):
    return tf.floor(x)


def test_a_layer_with_a_function_is_saved(tmp_path):
    layer = layers.StraightThrough(floor, window=2.0)
    model = keras.Sequential([keras.Input((3,)), layer])
    model.save(tmp_path / "m.keras")
    x = np.array([[0.5, 1.75, -0.25]])
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "m.keras")(x), [[0.0, 1.0, -1.0]])


# ---- Gumbel-softmax -----------------------------------------------------------------------------------------------


def test_draws_are_distributed_as_softmax_says_at_any_temperature():
    logits = np.log([0.5, 0.3, 0.15, 0.05])
    for temperature, hard in ((0.1, False), (3.0, False), (1.0, True)):
        draws = np.array(layers.gumbel_softmax(np.tile(logits, (20000, 1)), temperature, hard, seed=3))
        np.testing.assert_allclose(draws.sum(-1), 1.0, rtol=1e-6)
        share = np.bincount(draws.argmax(-1), minlength=4) / 20000
        np.testing.assert_allclose(share, [0.5, 0.3, 0.15, 0.05], atol=0.012)  # 3.4 standard deviations
        assert hard == bool((draws.max(-1) == 1.0).all())


def test_a_hard_draw_has_the_gradient_of_the_soft_one():
    logits = np.random.default_rng(0).normal(size=(5, 4))
    weights = np.arange(4.0)
    results = [
        _gradient(lambda x, hard=hard: layers.gumbel_softmax(x, 0.7, hard, seed=1) * weights, logits)
        for hard in (False, True)
    ]
    (soft, soft_gradient), (hard, hard_gradient) = results
    soft, hard = np.array(soft), np.array(hard)
    p = np.array(layers.gumbel_softmax(logits, 0.7, seed=1))
    np.testing.assert_array_equal((hard > 0).argmax(-1) * (hard.sum(-1) > 0), (p.argmax(-1)))
    np.testing.assert_allclose(hard_gradient, soft_gradient, rtol=1e-12)
    # d/dz sum_i w_i p_i = p (w - sum w p) / temperature
    np.testing.assert_allclose(soft_gradient, p * (weights - (p * weights).sum(-1, keepdims=True)) / 0.7, rtol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1e-6, 1.0, 1e6])
def test_extreme_temperatures_and_excluded_classes_are_finite(temperature, dtype):
    logits = tf.constant([[100.0, -100.0, 0.0, -np.inf]] * 50, dtype)
    for hard in (False, True):
        y, gradient = _gradient(lambda x: layers.gumbel_softmax(x, temperature, hard)[:, :1], logits)  # noqa: B023
        draws = layers.gumbel_softmax(logits, temperature, hard)
        assert draws.dtype == gradient.dtype == tf.as_dtype(dtype)
        assert np.isfinite(tf.cast(draws, tf.float64)).all() and np.isfinite(tf.cast(gradient, tf.float64)).all()
        assert np.all(tf.cast(draws[:, 3], tf.float32) == 0)


def test_a_temperature_of_nothing_is_a_one_hot_draw():
    draws = np.array(layers.gumbel_softmax(np.full((50, 4), 80.0, np.float32), 1e-37))
    np.testing.assert_allclose(np.sort(draws), np.tile([0, 0, 0, 1], (50, 1)), rtol=1e-6)


def test_numbers_reach_float64_unrounded():
    x = tf.constant([1.0], tf.float64)
    for function, wanted in (
        (lambda x: layers.scale_gradient(x, 0.1), 0.1),
        (lambda x: layers.gradient_reversal(x, 0.1), -0.1),
        (lambda x: layers.clip_gradient(x, 0.1), 0.1),
        (lambda x: layers.straight_through(0.1 * x, "sign", window=0.1), 0.1),
    ):
        assert _gradient(function, x)[1].numpy()[0] == wanted


def test_evaluation_has_no_noise():
    logits = np.random.default_rng(0).normal(size=(5, 4))
    layer = layers.GumbelSoftmax(0.5, dtype="float64")
    wanted = np.exp(logits / 0.5) / np.exp(logits / 0.5).sum(-1, keepdims=True)
    np.testing.assert_allclose(layer(logits), wanted, rtol=1e-9)
    check_gradients(layer, logits)
    assert not np.allclose(layer(logits, training=True), layer(logits, training=True))
    layer.temperature.assign(1e6)
    np.testing.assert_allclose(layer(logits), np.full((5, 4), 0.25), atol=1e-5)
    np.testing.assert_array_equal(layers.GumbelSoftmax(hard=True)(logits), np.eye(4)[logits.argmax(-1)])


# ---- arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: layers.StraightThrough("floor"),
            "`op` must be one of round, sign, argmax, or a function, got 'floor'",
        ),
        (lambda: layers.StraightThrough("sign", window=0), "`window` must be a finite number > 0, got 0. Use None"),
        (lambda: layers.straight_through(tf.ones([2]), "round", -1.0), "`window` must be .* got -1.0. Use None"),
        (
            lambda: layers.straight_through(tf.ones([2, 3]), tf.reduce_sum),
            r"`op` must keep the shape, got \(\) from \(2, 3\)",
        ),
        (lambda: layers.GradientReversal(-1), "`strength` must be a finite number >= 0, got -1. The gradient"),
        (lambda: layers.ScaleGradient(float("nan")), "`scale` must be a finite number, got nan"),
        (lambda: layers.ClipGradient(0), "`limit` must be a finite number > 0, got 0. Remove the layer"),
        (lambda: layers.GumbelSoftmax(0), "`temperature` must be a finite number > 0, got 0"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---- The teaching material's clip with a gradient of its own -------------------------------------------------------


@tf.custom_gradient
def old_clip_by_value(x, low, high):
    def gradient(dy):
        return dy * tf.cast((x >= low) & (x <= high), tf.float32), None, None

    return tf.clip_by_value(x, low, high), gradient


def test_the_old_form_holds_in_float32_only():
    x = [-2.0, 0.5, 3.0]
    np.testing.assert_array_equal(_gradient(lambda x: old_clip_by_value(x, -1.0, 1.0), tf.constant(x))[1], [0, 1, 0])
    for dtype, said in (("float16", "a half tensor"), ("float64", "a double tensor")):
        with pytest.raises(tf.errors.InvalidArgumentError, match=said):
            _gradient(lambda x: old_clip_by_value(x, -1.0, 1.0), tf.constant(x, dtype))
    with pytest.raises(ValueError, match="expected to return 1 gradients, but returned 3"):
        _gradient(lambda x: old_clip_by_value(x, low=-1.0, high=1.0), tf.constant(x))
    with pytest.raises(ValueError, match="KerasTensor cannot be used as input to a TensorFlow function"):
        old_clip_by_value(keras.Input((3,)), -1.0, 1.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_modern_form_holds_everywhere(dtype):
    """A clip with its own gradient is Keras'; one with another gradient is ours. S1's values are [0, 1, 0]."""
    clip = lambda x: keras.ops.clip(x, x_min=-1.0, x_max=1.0)  # noqa: E731
    x = tf.constant([-2.0, 0.5, 3.0], dtype)
    np.testing.assert_array_equal(tf.cast(_gradient(clip, x)[1], tf.float32), [0, 1, 0])
    for window, wanted in ((1.0, [0, 1, 0]), (None, [1, 1, 1])):
        y, gradient = _gradient(lambda x: layers.straight_through(x=x, op=clip, window=window), x)  # noqa: B023
        np.testing.assert_array_equal(tf.cast(y, tf.float32), [-1, 0.5, 1])
        np.testing.assert_array_equal(tf.cast(gradient, tf.float32), wanted)
    inputs = keras.Input((3,), dtype=dtype)
    model = keras.Model(inputs, layers.StraightThrough(clip, dtype=dtype)(inputs))
    np.testing.assert_array_equal(tf.cast(model(x[None]), tf.float32), [[-1, 0.5, 1]])
