"""Normalized weights against SVD, the papers' gradients, finite differences; Keras' SpectralNormalization is wrong."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import layers
from tests.layers.contract_test import check_gradients

L = keras.layers
RNG = np.random.default_rng(0)
KINDS = {  # layer, shape of its input, axes of its kernel that are summed inside an output unit
    "Dense": (lambda **k: L.Dense(3, **k), (5, 4), (0,)),
    "Conv1D": (lambda **k: L.Conv1D(3, 2, **k), (2, 4, 5), (0, 1)),
    "Conv2D": (lambda **k: L.Conv2D(3, 2, padding="same", **k), (2, 3, 3, 4), (0, 1, 2)),
    "Conv2DTranspose": (lambda **k: L.Conv2DTranspose(3, 2, **k), (2, 3, 3, 4), (0, 1, 3)),
    "DepthwiseConv2D": (lambda **k: L.DepthwiseConv2D(2, depth_multiplier=2, **k), (2, 3, 3, 2), (0, 1)),
    "EinsumDense": (lambda **k: L.EinsumDense("abc,cde->abde", (None, 2, 3), **k), (2, 3, 4), (0,)),
    "EinsumDense, in last": (lambda **k: L.EinsumDense("...x,yx->...y", 3, **k), (5, 4), (1,)),
}


def _wrapped(wrap, kind, dtype="float64", **arguments):
    """Returns (wrapper, input, kernel as NumPy, axes inside a unit); biases are not zero."""
    make, shape, inside = KINDS[kind]
    layer = wrap(make(dtype=dtype), **arguments)
    layer.build(shape)
    for variable in layer.layer.weights:
        variable.assign(RNG.normal(size=variable.shape))
    return layer, RNG.normal(size=shape), layer.layer.kernel.numpy(), inside


def _plain(layer, x, kernel):
    """What the wrapped layer gives with `kernel`, by a plain layer of its own."""
    twin = type(layer.layer).from_config(layer.layer.get_config())
    twin.build(x.shape)
    twin.set_weights([kernel if v.name == "kernel" else v.numpy() for v in layer.layer.weights])
    return twin(x)


def _renew_gain(layer):
    layer.gain.assign(layer._first_gain(layer.gain.shape, "float64"))


# ---- WeightNorm -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_weight_norm_is_eq_2_for_every_kernel(kind):
    layer, x, v, inside = _wrapped(layers.WeightNorm, kind)
    layer.gain.assign(RNG.uniform(1, 2, layer.gain.shape))
    wanted = layer.gain.numpy() * v / np.sqrt((v**2).sum(inside, keepdims=True))
    np.testing.assert_allclose(layer.effective_kernel(), wanted, rtol=1e-10)
    np.testing.assert_allclose(np.sqrt((wanted**2).sum(inside)).ravel(), layer.gain.numpy().ravel(), rtol=1e-10)
    np.testing.assert_allclose(layer(x), _plain(layer, x, wanted), rtol=1e-8, atol=1e-10)
    np.testing.assert_array_equal(layer.layer.kernel, v)


@pytest.mark.parametrize("kind", ["Dense", "Conv2DTranspose"])
def test_weight_norm_begins_as_the_layer_it_wraps(kind):
    make, shape, _ = KINDS[kind]
    layer, x = layers.WeightNorm(make(dtype="float64")), RNG.normal(size=shape)
    np.testing.assert_allclose(layer(x), _plain(layer, x, layer.layer.kernel.numpy()), rtol=1e-8, atol=1e-10)


def test_the_gradients_of_weight_norm_are_eq_3():
    layer, x, v, _ = _wrapped(layers.WeightNorm, "Dense")
    layer.gain.assign([[0.5, 2.0, 3.0]])
    g, norm = layer.gain.numpy(), np.linalg.norm(v, axis=0, keepdims=True)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(x) ** 3) / 3
    by_v, by_g = tape.gradient(loss, [layer.layer.kernel.value, layer.gain.value])
    by_w = x.T @ np.array(layer(x)) ** 2
    wanted_g = (by_w * v).sum(0, keepdims=True) / norm
    np.testing.assert_allclose(by_g, wanted_g, rtol=1e-8)
    np.testing.assert_allclose(by_v, g / norm * by_w - g * wanted_g / norm**2 * v, rtol=1e-7)
    np.testing.assert_allclose((np.array(by_v) * v).sum(0), 0, atol=1e-8)  # v moves at right angles to itself
    check_gradients(layer, x)


def test_a_kernel_of_zeros_is_no_nan():
    for wrap in (layers.WeightNorm, layers.SpectralNorm, layers.WeightStandardization):
        layer, x, v, _ = _wrapped(wrap, "Dense", "float32")
        layer.layer.kernel.assign(np.zeros_like(v))
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(x, training=True) ** 2)
        np.testing.assert_array_equal(layer.effective_kernel(), np.zeros_like(v))
        assert all(np.isfinite(g).all() for g in tape.gradient(loss, [w.value for w in layer.trainable_weights]))


# ---- SpectralNorm -----------------------------------------------------------------------------------------------


def _sigma(kernel, inside):
    outside = [axis for axis in range(kernel.ndim) if axis not in inside]
    matrix = np.transpose(kernel, (*inside, *outside)).reshape(int(np.prod([kernel.shape[a] for a in inside])), -1)
    return np.linalg.svd(matrix, compute_uv=False)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_spectral_norm_divides_by_the_largest_singular_value(kind):
    layer, x, w, inside = _wrapped(layers.SpectralNorm, kind, power_iterations=50)
    for _ in range(4):
        layer(x, training=True)
    np.testing.assert_allclose(layer.effective_kernel(), w / _sigma(w, inside), rtol=1e-6)
    np.testing.assert_allclose(layer(x), _plain(layer, x, w / _sigma(w, inside)), rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(layer.layer.kernel, w)


def test_it_begins_near_the_largest_singular_value():
    layer = layers.SpectralNorm(L.Dense(20))
    layer.build((None, 30))
    w = layer.layer.kernel.numpy()
    assert np.linalg.norm(np.array(layer.effective_kernel()), 2) == pytest.approx(1.0, abs=0.02)
    assert np.linalg.norm(w, 2) > 1.2


def test_u_is_renewed_by_training_only_and_follows_the_power_iteration():
    layer, x, w, _ = _wrapped(layers.SpectralNorm, "Dense", power_iterations=2)
    u = np.array([1.0, 0.0, 0.0])
    layer.u.assign(u)
    evaluated = np.array(layer(x))
    np.testing.assert_array_equal(layer.u, u)
    for _ in range(2):
        v = w @ u / np.linalg.norm(w @ u)
        u = w.T @ v / np.linalg.norm(w.T @ v)
    trained = np.array(layer(x, training=True))
    np.testing.assert_allclose(layer.u, u, rtol=1e-10)
    np.testing.assert_allclose(trained, evaluated, rtol=1e-12)
    np.testing.assert_allclose(trained, x @ w / (v @ w @ u) + layer.layer.bias.numpy(), rtol=1e-9)


@pytest.mark.parametrize("kind", ["Dense", "Conv2D"])
def test_the_gradient_goes_through_sigma(kind):
    """Against finite differences of W / sigma with sigma from NumPy's SVD."""
    layer, x, w, inside = _wrapped(layers.SpectralNorm, kind, power_iterations=50)
    for _ in range(10):
        layer(x, training=True)
    weights = RNG.normal(size=layer(x).shape)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(x, training=True) * weights)
    gradient = tape.gradient(loss, layer.layer.kernel.value)
    value = lambda w: float(tf.reduce_sum(_plain(layer, x, w / _sigma(w, inside)) * weights))  # noqa: E731
    for position in [tuple(RNG.integers(0, size) for size in w.shape) for _ in range(6)]:
        up, down = w.copy(), w.copy()
        up[position] += 1e-5
        down[position] -= 1e-5
        assert float(gradient[position]) == pytest.approx((value(up) - value(down)) / 2e-5, rel=1e-4, abs=1e-6)
    # W / sigma does not change with the length of W: the gradient is at right angles to it.
    assert abs((np.array(gradient) * w).sum()) < 1e-6 * np.abs(gradient).max() * w.size


def test_keras_spectral_normalization_is_wrong_where_ours_is_right():
    """No gradient through sigma, and the weights themselves change with each call in training."""
    x = RNG.normal(size=(5, 4)).astype("float32")
    results = {}
    for wrap in (L.SpectralNormalization, layers.SpectralNorm):
        keras.utils.set_random_seed(1)
        layer = wrap(L.Dense(3, use_bias=False))
        layer.build((None, 4))
        start = np.diag([4.0, 2.0, 1.0, 0.0])[:, :3].astype("float32")
        layer.layer.kernel.assign(start)
        for _ in range(50):  # u converges
            layer(x, training=True)
        changed = not np.array_equal(layer.layer.kernel, start)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(x, training=True))
        gradient = tape.gradient(loss, layer.layer.kernel.value)
        results[wrap] = changed, np.array(gradient)
    plain = np.repeat(x.sum(0)[:, None], 3, 1)  # of sum(x W): as if nothing divided
    changed, gradient = results[L.SpectralNormalization]
    assert changed
    np.testing.assert_allclose(gradient, plain, rtol=1e-4)
    changed, gradient = results[layers.SpectralNorm]
    assert not changed
    # d sum(x W / s) = plain / s - sum(plain W) / s^2 * u v^T, and W = diag(4, 2, 1) has u = v = e_1
    wanted = plain / 4
    wanted[0, 0] -= (plain * start).sum() / 16
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-5)


def test_an_embedding_has_a_spectral_norm():
    layer = layers.SpectralNorm(L.Embedding(6, 3, mask_zero=True))
    y = layer(np.array([[1, 2, 0]]))
    table = np.array(layer.effective_kernel())
    np.testing.assert_allclose(y[0], table[[1, 2, 0]], rtol=1e-6)
    assert np.linalg.norm(table, 2) == pytest.approx(1.0, abs=0.02)
    np.testing.assert_array_equal(y._keras_mask, [[True, True, False]])


def test_the_smallest_and_largest_weights_keep_their_directions():
    for scale in (1e-18, 1e18):
        layer, x, w, inside = _wrapped(layers.SpectralNorm, "Dense", "float32")
        layer.layer.kernel.assign(w * scale)
        for _ in range(9):
            layer(x, training=True)
        assert np.isfinite(layer.u.numpy()).all() and np.linalg.norm(layer.u.numpy()) == pytest.approx(1.0, rel=1e-5)
        assert np.isfinite(layer(x)).all()


# ---- WeightStandardization ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [None, 1.7])
@pytest.mark.parametrize("kind", KINDS)
def test_weight_standardization_is_its_formula(kind, gamma):
    layer, x, w, inside = _wrapped(layers.WeightStandardization, kind, gamma=gamma)
    mean, variance = w.mean(inside, keepdims=True), w.var(inside, keepdims=True)
    wanted = (w - mean) / np.sqrt(variance + 1e-5)
    if gamma is not None:
        layer.gain.assign(RNG.uniform(1, 2, layer.gain.shape))
        fan_in = np.prod([w.shape[axis] for axis in inside])
        wanted = gamma * layer.gain.numpy() * (w - mean) / np.sqrt(fan_in * variance)
    np.testing.assert_allclose(layer.effective_kernel(), wanted, rtol=1e-9)
    np.testing.assert_allclose(layer(x), _plain(layer, x, wanted), rtol=1e-8, atol=1e-9)
    np.testing.assert_array_equal(layer.layer.kernel, w)


@pytest.mark.parametrize("gamma", [None, 1.7])
def test_the_gradients_of_weight_standardization(gamma):
    layer, x, *_ = _wrapped(layers.WeightStandardization, "Dense", gamma=gamma)
    check_gradients(layer, x)


def test_the_scaled_form_keeps_the_variance_behind_a_relu():
    layer = layers.WeightStandardization(L.Dense(256, use_bias=False), gamma=float(np.sqrt(2 / (1 - 1 / np.pi))))
    signal = RNG.normal(size=(2000, 256)).astype("float32")
    for _ in range(3):
        signal = np.array(layer(np.maximum(signal, 0)))
        assert signal.var() == pytest.approx(1.0, rel=0.1) and abs(signal.mean()) < 0.05


# ---- The wrapper --------------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="tests")
class CountingDense(L.Dense):
    """A dense layer that changes a variable and adds a loss."""

    def build(self, input_shape):
        super().build(input_shape)
        self.calls = self.add_weight(name="calls", shape=(), initializer="zeros", trainable=False)

    def call(self, inputs):
        self.calls.assign_add(1.0)
        outputs = super().call(inputs)
        self.add_loss(tf.reduce_sum(outputs))
        return outputs


def test_what_the_layer_does_besides_is_kept():
    layer = layers.WeightNorm(CountingDense(3, activity_regularizer="l2", kernel_regularizer="l1"))
    x = RNG.normal(size=(5, 4)).astype("float32")
    y = layer(x)
    y = np.array(layer(x)) if float(layer.layer.calls.numpy()) == 1 else y
    assert float(layer.layer.calls.numpy()) == 2
    wanted = [y.sum(), 0.01 * (y**2).sum() / 5, 0.01 * np.abs(layer.layer.kernel.numpy()).sum()]
    inner = keras.Sequential([keras.Input((4,)), layer])
    inner(x)
    np.testing.assert_allclose(sorted(float(v) for v in inner.losses), sorted(wanted), rtol=1e-4)


def test_values_given_from_outside_reach_the_layer():
    layer, x, w, _ = _wrapped(layers.SpectralNorm, "Dense", "float32")
    x = x.astype("float32")
    wanted = layer(x, training=True)
    state = [v.numpy() for v in layer.non_trainable_variables]
    doubled = [
        2 * v.numpy() for v in layer.trainable_variables
    ]  # the kernel's length does not count, that of the bias does
    layer.u.assign(-state[0])
    y, changed = layer.stateless_call(doubled, state, x, training=True)
    np.testing.assert_allclose(y, wanted + layer.layer.bias.numpy(), rtol=1e-2, atol=1e-2)
    np.testing.assert_array_equal(layer.u, -state[0])
    assert np.dot(changed[0], state[0]) > 0.9


def test_a_wrapper_may_hold_another():
    """WeightNorm(SpectralNorm(...)): the inner one normalizes the direction, whatever the gain outside."""
    make, shape, inside = KINDS["Conv2DTranspose"]
    inner = layers.SpectralNorm(make(dtype="float64"), power_iterations=50)
    layer, x = layers.WeightNorm(inner), RNG.normal(size=shape)
    layer(x)
    start = inner.u.numpy()
    layer.gain.assign(RNG.uniform(1, 2, layer.gain.shape))
    for _ in range(4):
        y = layer(x, training=True)
    kernel = np.array(layer.effective_kernel())
    np.testing.assert_allclose(y, _plain(inner, x, kernel / _sigma(kernel, inside)), rtol=1e-6, atol=1e-9)
    assert not np.array_equal(inner.u, start)


def test_mixed_precision_normalises_in_float32():
    layer, x, w, _ = _wrapped(layers.WeightNorm, "Dense", "mixed_float16")
    layer.layer.kernel.assign(w * 1e-3)  # the squares would vanish in float16
    norm = np.linalg.norm(np.array(layer.effective_kernel()), axis=0)
    np.testing.assert_allclose(norm, np.abs(layer.gain.numpy()).ravel(), rtol=1e-5)
    inputs = keras.Input((4,), dtype="float16")
    model = keras.Model(inputs, layer(inputs))
    assert model(x.astype("float16")).dtype == tf.float16 and layer.effective_kernel().dtype == tf.float32


# ---- FilterResponseNorm, TLU --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 4, 4, 3), (2, 2, 3, 2, 3)])
def test_filter_response_norm_is_a_loop_over_channels(shape):
    layer, x = layers.FilterResponseNorm(1e-3, learned_epsilon=True, dtype="float64"), RNG.normal(size=shape)
    layer.build(shape)
    gamma, beta, epsilon = RNG.normal(size=(3, 3))
    for variable, value in ((layer.gamma, gamma), (layer.beta, beta), (layer.epsilon, epsilon)):
        variable.assign(value)
    wanted = np.empty_like(x)
    for b in range(2):
        for c in range(3):
            values = x[b, ..., c]
            wanted[b, ..., c] = gamma[c] * values / np.sqrt((values**2).mean() + abs(epsilon[c])) + beta[c]
    np.testing.assert_allclose(layer(x), wanted, rtol=1e-10)
    if len(shape) == 3:
        check_gradients(layer, x)


def test_one_position_is_a_sign_unless_epsilon_is_learned():
    x = RNG.normal(size=(4, 1, 1, 3))
    np.testing.assert_allclose(layers.FilterResponseNorm(1e-12, dtype="float64")(x), np.sign(x), rtol=1e-6)
    learned = layers.FilterResponseNorm(1e-4, learned_epsilon=True, dtype="float64")
    np.testing.assert_allclose(learned(x), x / np.sqrt(x**2 + 1e-4), rtol=1e-6)
    assert [v.name for v in learned.trainable_weights] == ["gamma", "beta", "epsilon"]


def test_filter_response_norm_squares_in_float32():
    layer = layers.FilterResponseNorm(dtype="mixed_float16")
    y = layer(tf.constant(np.full((1, 2, 2, 1), 1000.0), tf.float16))  # 1000^2 is no float16
    np.testing.assert_allclose(tf.cast(y, tf.float32), np.ones((1, 2, 2, 1)), rtol=1e-3)


def test_tlu_is_a_relu_that_learns_its_threshold():
    x = RNG.normal(size=(5, 2, 3))
    layer = layers.TLU(dtype="float64")
    np.testing.assert_array_equal(layer(x), np.maximum(x, 0))
    layer.tau.assign([-0.5, 0.2, 9.0])
    np.testing.assert_array_equal(layer(x), np.maximum(x, [-0.5, 0.2, 9.0]))
    check_gradients(layer, x)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: layers.WeightNorm(L.Dense), "`layer` must be a Keras layer, got <class .*In gin, call it: @Dense"),
        (
            lambda: layers.WeightNorm(L.ReLU())(tf.ones([2, 3])),
            "`layer` must have one weight named kernel, got ReLU .* none",
        ),
        (
            lambda: layers.SpectralNorm(L.LSTM(2))(tf.ones([2, 3, 4])),
            "named kernel or embeddings, got LSTM .*recurrent_kernel",
        ),
        (lambda: layers.WeightNorm(L.Embedding(3, 2))(tf.ones([2, 3], tf.int32)), "named kernel, got Embedding"),
        (
            lambda: layers.WeightNorm(L.SeparableConv1D(2, 2))(tf.ones([2, 3, 4])),
            "got SeparableConv1D with .*depthwise_kernel",
        ),
        (lambda: layers.SpectralNorm(L.Dense(2), 0), "`power_iterations` must be a whole number >= 1, got 0"),
        (lambda: layers.WeightStandardization(L.Dense(2), 0), "`gamma` must be a finite number > 0, got 0. Use None"),
        (
            lambda: layers.WeightStandardization(L.Dense(2))(tf.ones([2, 1])),
            r"more than one input per unit, got .*\(1, 2\)",
        ),
        (lambda: layers.FilterResponseNorm(0), "`epsilon` must be a finite number > 0, got 0"),
        (
            lambda: layers.FilterResponseNorm()(tf.ones([2, 3])),
            "needs inputs .B, positions, ..., C., .*RMSNormalization",
        ),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
