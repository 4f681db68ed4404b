"""GAN losses and gradient penalties against hand numbers and closed forms."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import losses
from losses.adversarial import KINDS
from tests.runs import train
from trainer import Trainer
from trainer.replicas.distribution import make_strategy


def _softplus(x):
    return np.logaddexp(0, x)


@pytest.mark.parametrize(
    "kind, discriminator, generator",
    [
        ("ns", 2 * np.log(2), np.log(2)),
        ("lsgan", 1.0, 1.0),
        ("hinge", 2.0, 0.0),
        ("wgan", 0.0, 0.0),
    ],
)
def test_at_logit_zero(kind, discriminator, generator):
    assert float(losses.discriminator_loss([0.0], [0.0], kind)[0]) == pytest.approx(discriminator)
    assert float(losses.generator_loss([0.0], kind)[0]) == pytest.approx(generator)


def test_by_the_formulas():
    r, f = np.random.default_rng(0).normal(size=(2, 6)) * 2
    wanted = {
        "ns": (_softplus(-r) + _softplus(f), _softplus(-f)),
        "lsgan": ((r - 1) ** 2 + f**2, (f - 1) ** 2),
        "hinge": (np.maximum(1 - r, 0) + np.maximum(1 + f, 0), -f),
        "wgan": (f - r, -f),
    }
    for kind, (discriminator, generator) in wanted.items():
        for shape in ((6,), (6, 1), (6, 1, 1)):
            real, fake = r.reshape(shape), f.reshape(shape)
            np.testing.assert_allclose(losses.discriminator_loss(real, fake, kind), discriminator, rtol=1e-6)
            np.testing.assert_allclose(losses.generator_loss(fake, kind), generator, rtol=1e-6)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.sampled_from(["float16", "bfloat16", "float32", "float64"]),
    st.sampled_from([0.0, 1.0, 20.0, 100.0]),
    st.integers(0, 2**16),
)
def test_any_batch(shape, dtype, size, seed):
    """Of examples or patches, in any precision: the mean of the formula over each example, and a finite gradient."""
    logits = tf.cast(np.random.default_rng(seed).uniform(-size, size, (2, *shape)), dtype)
    r, f = tf.cast(logits, tf.float64).numpy().reshape(2, shape[0], -1)
    wanted = {
        "ns": (_softplus(-r) + _softplus(f), _softplus(-f)),
        "lsgan": ((r - 1) ** 2 + f**2, (f - 1) ** 2),
        "hinge": (np.maximum(1 - r, 0) + np.maximum(1 + f, 0), -f),
        "wgan": (f - r, -f),
        "relativistic": (_softplus(f - r), _softplus(r - f)),
    }
    for kind, elements in wanted.items():
        with tf.GradientTape() as tape:
            tape.watch(logits)
            discriminator = losses.discriminator_loss(logits[0], logits[1], kind)
            exchanged = losses.discriminator_loss(logits[1], logits[0], kind)
            generator = exchanged if kind == "relativistic" else losses.generator_loss(logits[1], kind)
            values = tf.stack([discriminator, generator])
        assert values.dtype == ("float64" if dtype == "float64" else "float32")
        np.testing.assert_allclose(values, np.mean(elements, -1), rtol=2e-6, atol=1e-4)
        assert np.isfinite(tf.cast(tape.gradient(values, logits), tf.float64)).all()


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=4),
    st.sampled_from(["float16", "float32", "float64"]),
    st.integers(0, 99),
)
def test_any_batch_is_penalised(shape, dtype, seed):
    """A linear discriminator has the same gradient everywhere."""
    w = np.random.default_rng(seed).normal(size=shape[1:])
    x = tf.ones(shape, dtype)
    for kind, wanted in (("wgan_gp", 10 * (np.sqrt(np.sum(w**2)) - 1) ** 2), ("r1", 5 * np.sum(w**2))):
        values = losses.gradient_penalty(
            lambda x: tf.reduce_sum(x * tf.cast(w, x.dtype), range(1, len(shape))), x, kind
        )
        np.testing.assert_allclose(
            values, np.full(shape[0], wanted), rtol=5e-3 if dtype == "float16" else 1e-5, atol=1e-5
        )


def test_patches_are_averaged():
    patches = np.random.default_rng(0).normal(size=(2, 3, 3, 1))
    wanted = [np.mean(_softplus(-p)) for p in patches]
    np.testing.assert_allclose(losses.generator_loss(patches), wanted, rtol=1e-9)


def test_one_sided_label_smoothing():
    r, f = np.array([1.3]), np.array([-0.4])
    wanted = 0.9 * _softplus(-r) + 0.1 * _softplus(r) + _softplus(f)
    np.testing.assert_allclose(losses.discriminator_loss(r, f, label_smoothing=0.1), wanted, rtol=1e-9)
    wanted = (r - 0.9) ** 2 + f**2
    np.testing.assert_allclose(losses.discriminator_loss(r, f, "lsgan", label_smoothing=0.1), wanted, rtol=1e-9)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_extreme_logits_are_finite(kind, dtype):
    logits = tf.constant([-100.0, -20.0, 0.0, 20.0, 100.0], dtype)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        values = losses.discriminator_loss(logits, -logits, kind) + losses.generator_loss(logits, kind)
    assert values.dtype == tf.float32 and np.isfinite(values).all()
    assert np.isfinite(tf.cast(tape.gradient(values, logits), tf.float32)).all()
    if kind == "ns":  # wrong and sure: the gradient is whole
        with tf.GradientTape() as tape:
            tape.watch(logits)
            values = losses.generator_loss(logits)
        assert float(tape.gradient(values, logits)[0]) == -1


W = np.array([[3.0], [4.0]])


def _linear(x):
    return tf.matmul(x, tf.cast(W, x.dtype))


@pytest.mark.parametrize(
    "kind, scale, wanted",
    [
        ("wgan_gp", 1.0, 160.0),
        ("one_sided", 1.0, 160.0),
        ("r1", 1.0, 125.0),
        ("wgan_gp", 0.1, 2.5),
        ("one_sided", 0.1, 0.0),
    ],
)
def test_penalties_of_a_linear_discriminator(kind, scale, wanted):
    # |w| = 5: 10 (5 - 1)^2, 10 / 2 * 25; |w| = .5: 10 (.5 - 1)^2, nothing
    x = np.random.default_rng(0).normal(size=(7, 2))
    values = losses.gradient_penalty(lambda x: scale * _linear(x), x, kind)
    np.testing.assert_allclose(values, np.full(7, wanted), rtol=1e-5, atol=1e-9)


def test_the_norm_is_over_all_axes_of_one_example():
    # d/dx sum(x^2) / 2 = x
    x = np.random.default_rng(0).normal(size=(4, 3, 2))
    values = losses.gradient_penalty(lambda x: tf.reduce_sum(tf.square(x), [1, 2]) / 2, x, "r1", weight=2.0)
    np.testing.assert_allclose(values, (x**2).sum((1, 2)), rtol=1e-9)


@pytest.mark.parametrize("kind", ["wgan_gp", "one_sided", "r1"])
def test_the_second_derivative_is_that_of_finite_differences(kind):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(5, "tanh", dtype="float64"), keras.layers.Dense(1, dtype="float64")]
    model = keras.Sequential([keras.Input((3,), dtype="float64"), *layers])
    kernel, x = model.weights[0], np.random.default_rng(0).normal(size=(4, 3)) * 2

    def total():
        return tf.reduce_sum(losses.gradient_penalty(model, x, kind))

    model.weights[2].assign(5 * model.weights[2].value)  # norms beyond 1
    with tf.GradientTape() as tape:
        value = total()
    gradient = tape.gradient(value, kernel.value).numpy()
    assert np.abs(gradient).max() > 0.1
    start = kernel.numpy()
    for position in ((0, 0), (2, 4), (1, 2)):
        moved = []
        for step in (1e-6, -1e-6):
            changed = start.copy()
            changed[position] += step
            kernel.assign(changed)
            moved.append(float(total()))
        kernel.assign(start)
        assert gradient[position] == pytest.approx((moved[0] - moved[1]) / 2e-6, rel=1e-4)


def test_a_flat_discriminator_is_no_nan():
    w = tf.Variable([[0.0], [0.0]])
    with tf.GradientTape() as tape:
        values = losses.gradient_penalty(lambda x: tf.matmul(x, w), np.ones((3, 2), np.float32))
    np.testing.assert_allclose(values, [10.0] * 3, rtol=1e-4)
    assert np.isfinite(tape.gradient(values, w)).all()


def test_half_precision_layers_are_penalised_in_float32():
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)])
    values = losses.gradient_penalty(model, np.ones((2, 3), np.float16))
    assert values.dtype == tf.float32 and np.isfinite(values).all()


def test_interpolation():
    real, fake = np.ones((3, 2, 2)), np.zeros((3, 2, 2))
    points = losses.interpolate(real, fake, [0.0, 0.25, 1.0])
    np.testing.assert_allclose(points[:, 0, 0], [0, 0.25, 1])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: losses.generator_loss([0.0], "gan"), "`kind` must be one of ns, lsgan, hinge, wgan, got 'gan'"),
        (lambda: losses.generator_loss(0.0), "`fake_logits` must be .B, ...., got the shape"),
        (lambda: losses.discriminator_loss([0.0], [0.0, 1.0]), "must have the same number of examples"),
        (lambda: losses.discriminator_loss([[0.0]], [0.0], "relativistic"), "are compared one by one"),
        (lambda: losses.generator_loss([0.0], "relativistic"), "`kind` must be one of ns, lsgan, hinge, wgan, got"),
        (lambda: losses.discriminator_loss([0.0], [0.0], label_smoothing=1.0), "`label_smoothing` must be in"),
        (lambda: losses.discriminator_loss([0.0], [0.0], "hinge", 0.1), "`label_smoothing` must be 0 for kind 'hinge'"),
        (
            lambda: losses.gradient_penalty(_linear, np.ones((2, 2)), "gp"),
            "`kind` must be one of wgan_gp, one_sided, r1",
        ),
        (lambda: losses.gradient_penalty(_linear, np.ones((2, 2)), weight=-1), "`weight` must be >= 0.0, got -1"),
        (lambda: losses.gradient_penalty(lambda x: tf.ones([2]), np.ones((2, 2))), "`discriminator` has no gradient"),
        (lambda: losses.interpolate(np.ones((2, 2)), np.ones((2, 3)), [0, 1]), "`real` and `fake` must have one shape"),
        (lambda: losses.interpolate(np.ones((2, 2)), np.ones((2, 2)), [0.5]), "`epsilon` must be .B."),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_two_replicas_train_a_penalised_discriminator_as_one():
    class Critic(Trainer):
        def compute_losses(self, batch, training):
            real, fake, epsilon = batch
            return {
                "critic": losses.discriminator_loss(self.model(real), self.model(fake), "wgan"),
                "penalty": losses.gradient_penalty(self.model, losses.interpolate(real, fake, epsilon)),
            }

    rng, weights = np.random.default_rng(0), []
    arrays = [rng.normal(size=(15, 2)), rng.normal(size=(15, 2)) + 1, rng.uniform(size=15)]
    data = tf.data.Dataset.from_tensor_slices(tuple(a.astype(np.float32) for a in arrays)).batch(5).repeat()
    for name in ("default", "mirrored"):
        keras.utils.set_random_seed(0)
        with make_strategy(name).scope():
            model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, "tanh")])
            trainer = Critic(model, optimizers=keras.optimizers.SGD(0.05))
        train(trainer, data, 6)
        weights.append(np.concatenate([w.numpy().ravel() for w in model.weights]))
    np.testing.assert_allclose(weights[1], weights[0], atol=2e-6)
