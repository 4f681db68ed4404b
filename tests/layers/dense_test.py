"""Layers on the last axis against NumPy and their papers; the teaching material's old forms and what is right today."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import layers
from tests.layers.contract_test import check_gradients, set_weights

RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 4))


def _built(layer, *shapes):
    layer.build(*shapes or ((None, 4),))
    return layer


# ---- ScaledDense ------------------------------------------------------------------------------------------------


def test_scaled_dense_is_its_formula():
    layer = _built(layers.ScaledDense(3, "tanh", dtype="float64"))
    kernel, bias = RNG.normal(size=(4, 3)), RNG.normal(size=3)
    assert float(layer.scale.numpy()) == 1.0
    set_weights(layer, {"scale": 1.7, "dense/kernel": kernel, "dense/bias": bias})
    np.testing.assert_allclose(layer(X), np.tanh(1.7 * (X @ kernel + bias)), rtol=1e-12)
    check_gradients(layer, X)


def test_scaled_dense_has_names_to_route_by():
    layer = layers.ScaledDense(3, name="s")
    layer(X)
    assert [v.path for v in layer.weights] == ["s/scale", "s/dense/kernel", "s/dense/bias"]


# ---- PolynomialTransform ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [1, 2, 5])
def test_a_polynomial_begins_as_the_identity(degree):
    np.testing.assert_array_equal(layers.PolynomialTransform(degree)(X.astype("float32")), X.astype("float32"))


def test_a_polynomial_of_degree_0_is_a_constant():
    layer = layers.PolynomialTransform(0)
    np.testing.assert_array_equal(layer(X), np.zeros_like(X))
    layer.coefficients.assign([[1.0, 2.0, 3.0, 4.0]])
    np.testing.assert_array_equal(layer(X), np.tile([1.0, 2.0, 3.0, 4.0], (5, 1)))


@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 4)])
def test_a_polynomial_is_that_of_numpy(shape):
    layer, x, a = layers.PolynomialTransform(4, dtype="float64"), RNG.normal(size=shape), RNG.normal(size=(5, 4))
    layer.build(shape)
    layer.coefficients.assign(a)
    wanted = np.stack([np.polyval(a[::-1, f], x[..., f]) for f in range(4)], -1)
    np.testing.assert_allclose(layer(x), wanted, rtol=1e-12)
    check_gradients(layer, x)


def test_a_polynomial_that_half_precision_cannot_hold_stays_finite():
    layer = _built(layers.PolynomialTransform(3, dtype="mixed_float16"))
    layer.coefficients.assign(np.full((4, 4), 1.0))
    x = tf.constant([[0.5, 30.0, 300.0, -300.0]], tf.float16)  # 300^3 is 27 million; float16 ends at 65504
    np.testing.assert_allclose(layer(x)[0], [1.875, 27931.0, 65504.0, -65504.0], rtol=1e-3)


# ---- CrossLayer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [None, 2])
def test_cross_layer_is_eq_1_and_2(rank):
    layer = _built(layers.CrossLayer(rank, dtype="float64"))
    values = {v.name: RNG.normal(size=v.shape) for v in layer.weights}
    for variable in layer.weights:
        variable.assign(values[variable.name])
    matrix = values["kernel"] if rank is None else values["down"] @ values["kernel"]
    x0, x = RNG.normal(size=(2, 5, 4))
    wanted = np.empty_like(x)
    for b in range(5):
        for i in range(4):
            wanted[b, i] = x0[b, i] * (sum(x[b, j] * matrix[j, i] for j in range(4)) + values["bias"][i]) + x[b, i]
    np.testing.assert_allclose(layer(x0, x), wanted, rtol=1e-10)
    np.testing.assert_array_equal(layer(x0), layer(x0, x0))
    assert len(layer.trainable_weights) == (2 if rank is None else 3)
    check_gradients(layer, x0)


def test_crossed_layers_stack_in_a_functional_model():
    x0 = keras.Input((4,))
    x = x0
    for _ in range(2):
        x = layers.CrossLayer()(x0, x)
    model = keras.Model(x0, x)
    assert model.output_shape == (None, 4)
    # With W = I and b = 0 each layer maps x to x0 x + x: (1 + x0)^2 x0 after two.
    for layer in model.layers[1:]:
        layer.kernel.assign(np.eye(4))
    np.testing.assert_allclose(model(X), X * (1 + X) ** 2, rtol=1e-5)


def test_a_cross_keeps_the_mask_of_the_first_input():
    x = np.array(np.tile(X, (2, 1, 1)), "float32")
    x[0, 3:] = 0
    masked = keras.layers.Masking()(x)
    np.testing.assert_array_equal(layers.CrossLayer()(masked, tf.ones_like(masked))._keras_mask, masked._keras_mask)


# ---- Maxout -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 6), (2, 3, 6)])
def test_maxout_takes_the_largest_of_every_second(shape):
    x = RNG.normal(size=shape)
    layer = layers.Maxout(2, dtype="float64")
    wanted = np.stack([x[..., 0::2].max(-1), x[..., 1::2].max(-1)], -1)
    np.testing.assert_array_equal(layer(x), wanted)
    check_gradients(layer, x)
    np.testing.assert_array_equal(layers.Maxout(6, dtype="float64")(x), x)


# ---- NoisyDense -------------------------------------------------------------------------------------------------


def test_noisy_dense_takes_the_means_in_evaluation():
    layer = _built(layers.NoisyDense(3, "relu", dtype="float64"))
    wanted = np.maximum(X @ layer.kernel.numpy() + layer.bias.numpy(), 0)
    np.testing.assert_allclose(layer(X), wanted, rtol=1e-12)
    assert not np.allclose(layer(X, training=True), wanted)


def test_noisy_dense_begins_as_section_3_2_says():
    layer = _built(layers.NoisyDense(500), (None, 16))
    for mean in (layer.kernel, layer.bias):
        assert 0.2 < np.abs(mean.numpy()).max() <= 0.25 and abs(mean.numpy().mean()) < 0.03
    for spread in (layer.kernel_sigma, layer.bias_sigma):
        np.testing.assert_allclose(spread, 0.125)


def test_the_noise_is_factorised():
    layer = _built(layers.NoisyDense(3, seed=1, dtype="float64"))
    for name in ("kernel", "bias"):
        getattr(layer, name).assign(np.zeros(getattr(layer, name).shape))
        getattr(layer, f"{name}_sigma").assign(np.ones(getattr(layer, name).shape))
    # On the rows of the identity and on 0 the layer shows eps_w + eps_b and eps_b.
    seen = np.array(layer(np.concatenate([np.eye(4), np.zeros((1, 4))]), training=True))
    bias, kernel = seen[4], seen[:4] - seen[4]
    assert np.linalg.matrix_rank(kernel, 1e-6) == 1
    ratio = kernel / bias  # f(eps_in), the same in each column: eps_b is f(eps_out)
    np.testing.assert_allclose(ratio, np.repeat(ratio[:, :1], 3, 1), rtol=1e-6)
    assert not np.allclose(seen, layer(np.concatenate([np.eye(4), np.zeros((1, 4))]), training=True))


def test_the_noise_has_the_moments_of_a_signed_root():
    layer = _built(layers.NoisyDense(20000, sigma=2.0, seed=0))  # sigma / sqrt(4) = 1
    layer.bias.assign(np.zeros(20000))
    noise = np.array(layer(np.zeros((1, 4)), training=True))
    assert abs(noise.mean()) < 0.03
    assert (noise**2).mean() == pytest.approx(np.sqrt(2 / np.pi), rel=0.02)  # E |e|
    assert (noise**4).mean() == pytest.approx(1.0, rel=0.05)  # E e^2


def test_the_noise_trains_its_spread():
    layer = _built(layers.NoisyDense(3, seed=1))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(X, training=True) ** 2)
    assert all(np.abs(g).max() > 0 for g in tape.gradient(loss, [v.value for v in layer.trainable_weights]))


# ---- arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: layers.ScaledDense(0), "`units` must be a whole number >= 1, got 0"),
        (lambda: layers.ScaledDense("3"), "`units` must be a whole number >= 1, got '3'"),
        (lambda: layers.PolynomialTransform(-1), "`degree` must be a whole number >= 0, got -1"),
        (lambda: layers.PolynomialTransform(1.5), "`degree` must be a whole number >= 0, got 1.5"),
        (
            lambda: layers.PolynomialTransform(2)(keras.Input((None,))),
            "`PolynomialTransform` needs .* Give keras.Input",
        ),
        (lambda: layers.CrossLayer(0), "`rank` must be .* got 0. Use None"),
        (lambda: layers.CrossLayer()(X, X[:, :2]), r"`x` must have the features of `x0`, got .*\(5, 2\) and \(5, 4\)"),
        (lambda: layers.Maxout(3)(X), "`units` must divide .* got 3 for 4. Give the layer before"),
        (lambda: layers.NoisyDense(True), "`units` must be a whole number >= 1, got True"),
        (lambda: layers.NoisyDense(2, sigma=-1), "`sigma` must be a finite number >= 0, got -1"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---- The teaching material: the old form fails, the modern one works -----------------------------------------------


class OldScaledDense(keras.layers.Layer):
    """As the tutorial writes it: the name is the first argument."""

    def __init__(self, units):
        super().__init__()
        self.units = units

    def build(self, input_shape):
        self.dense = keras.layers.Dense(self.units)
        self.scale = self.add_weight("scale", shape=(1,), initializer="ones")

    def call(self, inputs):
        return self.scale * self.dense(inputs)


class OldMyCustomLayer(keras.layers.Layer):
    def build(self, input_shape):
        self.kernel = self.add_weight("kernel", shape=[int(input_shape[-1]), 3])

    def call(self, inputs):
        return tf.matmul(inputs, self.kernel)


class OldCustomDense(keras.layers.Layer):
    def __init__(self, units=3):
        super().__init__()
        self.units = units

    def build(self, input_shape):
        self.w = self.add_weight(shape=(input_shape[-1], self.units), initializer="random_normal", trainable=True)
        self.b = self.add_weight(shape=(self.units,), initializer="zeros", trainable=True)

    def call(self, inputs):
        return tf.matmul(inputs, self.w) + self.b


@pytest.mark.parametrize("old", [lambda: OldScaledDense(3), OldMyCustomLayer], ids=["ScaledDense", "MyCustomLayer"])
def test_a_positional_weight_name_fails_where_it_is_first_used(old):
    model = keras.Sequential([old()])
    model.compile("sgd", "mse")  # says nothing
    with pytest.raises(ValueError, match="`name` must be passed as a keyword argument"):
        model.fit(X, X[:, :3], verbose=0)


def test_custom_dense_has_weights_without_names_and_no_way_back(tmp_path):
    model = keras.Sequential([keras.Input((4,)), OldCustomDense(2)])
    assert [v.name.split("_")[0] for v in model.weights] == ["variable", "variable"]
    model.save(tmp_path / "old.keras")
    with pytest.raises(TypeError, match="could not be deserialized properly"):
        keras.saving.load_model(tmp_path / "old.keras")
    with pytest.raises(ValueError, match="of type 'Variable', not tf.Tensor or tf.Variable"), tf.GradientTape() as tape:
        tape.watch(model.weights[0])


def test_the_modern_form_fits_and_comes_back(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.ScaledDense(3, "tanh"), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    y = X[:, :1]
    first, *_, last = model.fit(X, y, epochs=20, verbose=0).history["loss"]
    assert last < first / 2
    model.save(tmp_path / "new.keras")
    again = keras.saving.load_model(tmp_path / "new.keras")
    np.testing.assert_array_equal(again(X), model(X))
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(model.layers[0].scale.value)
        loss = tf.reduce_sum(model(X))
    assert tape.gradient(loss, model.layers[0].scale.value) is not None
