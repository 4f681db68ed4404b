"""S0, customization: layers and losses of one's own, and gradients that are None."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import layers
import losses
from optimizers.transforms import clip_by_global_norm
from tests.conformance.training import digits, learns, numbers, sequential, train
from trainer import OptimizerGroup, Trainer, run
from trainer.data import from_arrays

L, SGD = keras.layers, keras.optimizers.SGD
LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class OldScaledDense(L.Layer):
    """As the material has it: the weight's name comes first."""

    def __init__(self, units):
        super().__init__()
        self.units = units

    def build(self, input_shape):
        self.dense = L.Dense(self.units)
        self.scale = self.add_weight("scale", shape=(1,), initializer="ones")

    def call(self, inputs):
        return self.scale * self.dense(inputs)


def test_scaled_dense(tmp_path):
    """Row 1: ScaledDense."""
    with pytest.raises(ValueError, match="`name` must be passed as a keyword argument"):
        train(lambda: Trainer(sequential(OldScaledDense(1)), "mse"), numbers())
    trainer = learns(
        lambda: Trainer(sequential(layers.ScaledDense(4, "tanh"), L.Dense(1)), "mse", (), SGD(0.1)),
        numbers(),
        strategy="mirrored",
    )
    assert {"scaled_dense/scale", "scaled_dense/dense/kernel"} < set(trainer.variables)
    trainer.model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(again(numbers()[0]), trainer.model(numbers()[0]))


class Lazy(L.Layer):
    """Its child has no variables before the first call."""

    def build(self, input_shape):
        self.child = L.Dense(4, "tanh")

    def call(self, inputs):
        return self.child(inputs)


def test_a_child_that_is_built_in_call():
    """Row 2: a child built in `call` only: an optimizer built before does not know it, the Trainer's does."""
    model, optimizer = sequential(Lazy(), L.Dense(1)), SGD(0.1)
    optimizer.build(model.layers[1].trainable_variables)
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply([tf.ones(v.shape) for v in model.trainable_variables], model.trainable_variables)
    model = lambda: keras.Sequential([Lazy(name="lazy"), L.Dense(1)])  # noqa: E731 not even an Input
    trainer = learns(lambda: Trainer(model(), "mse", (), SGD(0.1)), numbers(), strategy="mirrored")
    assert "lazy/child/kernel" in trainer.trainable_variables


def classifier(units=10):
    return sequential(L.Flatten(), L.Dense(units), shape=(8, 8, 1))


def test_weighted_crossentropy():
    """Row 3: weighted cross-entropy: Keras refuses a list beside a tensor; ours takes it, and is Keras' weighted."""
    weights = np.linspace(0.5, 2.0, 10)
    with pytest.raises(ValueError, match="Expected an instance of list, got"):
        LOGITS([0, 1], tf.zeros([2, 10]))
    loss = losses.WeightedCrossentropy(weights)
    assert float(loss([0, 1], tf.zeros([2, 10]))) == pytest.approx((weights[0] + weights[1]) / 2 * np.log(10), rel=1e-6)
    x, y = digits()
    ours = learns(lambda: Trainer(classifier(), loss, (), SGD(0.1), compile="eager"), (x, y))
    keras_own = learns(
        lambda: Trainer(classifier(), LOGITS, (), SGD(0.1), compile="eager"), (x, y, weights[y].astype(np.float32))
    )
    for name, v in ours.variables.items():
        np.testing.assert_allclose(v.numpy(), keras_own.variables[name].numpy(), rtol=1e-5, atol=1e-7)


def functional():
    image = keras.Input((8, 8, 1))
    x = L.MaxPooling2D()(L.Conv2D(4, 3, activation="relu")(image))
    return keras.Model(image, L.Dense(10)(L.Flatten()(x)))


def multi_branch():
    image = keras.Input((8, 8, 1))
    branches = [L.Conv2D(4, size, padding="same", activation="relu")(image) for size in (1, 3, 5)]
    return keras.Model(image, L.Dense(10)(L.GlobalAveragePooling2D()(L.Concatenate()(branches))))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.head = L.Conv2D(4, 3, activation="relu"), L.Flatten(), L.Dense(10)

    def call(self, images):
        return self.head(self.pool(self.conv(images)))


@pytest.mark.parametrize(
    "make, strategy", [(functional, "default"), (multi_branch, "mirrored"), (Subclassed, "default")]
)
def test_three_kinds_of_cnn(make, strategy):
    """Row 4: Functional, multi-branch and Subclassing CNNs."""
    learns(lambda: Trainer(make(), LOGITS, ["accuracy"], keras.optimizers.Adam(0.01)), digits(), strategy=strategy)


class Branching(L.Layer):
    """Which branch is taken depends on the data; `how` is an `if`, or tf.cond."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def call(self, x):
        if self.how == "cond":
            return tf.cond(tf.reduce_sum(x) > 0, lambda: x, lambda: -x)
        if tf.reduce_sum(x) > 0:
            return x
        return -x


def test_a_branch_on_a_tensor_inside_a_layer():
    """Row 4: `if tensor` in `call` fails even inside the compiled loop; tf.cond trains."""
    model = lambda how: sequential(L.Dense(4), Branching(how), L.Dense(1))  # noqa: E731
    with pytest.raises(Exception, match="Using a symbolic `tf.Tensor` as a Python `bool` is not allowed"):
        train(lambda: Trainer(model("if"), "mse"), numbers())
    learns(lambda: Trainer(model("cond"), "mse", (), SGD(0.05)), numbers())


NO_GRADIENT = {
    "cast to integers": lambda x: tf.cast(tf.cast(x, tf.int32), tf.float32),
    "argmax": lambda x: tf.cast(tf.argmax(x, -1), tf.float32)[:, None],
    "comparison": lambda x: tf.cast(x > 0, tf.float32),
    "stop_gradient": lambda x: tf.stop_gradient(x) * 1.0,
    "NumPy function": lambda x: tf.ensure_shape(tf.numpy_function(np.square, [x], tf.float32), x.shape),
    "rounding": lambda x: tf.round(x) * 1.0,
}


@pytest.mark.parametrize("reason", NO_GRADIENT)
def test_a_gradient_of_none(reason):
    """Row 5: the tape says None and nothing else; the Trainer names the variables and the reason."""
    x = tf.constant([[0.3, 1.7]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = NO_GRADIENT[reason](x)
    assert tape.gradient(y, x) is None
    model = lambda: sequential(L.Dense(2, name="encoder"), L.Lambda(NO_GRADIENT[reason]), L.Dense(1))  # noqa: E731
    with pytest.raises(
        ValueError, match=f"(?si)without a gradient.*encoder/kernel, encoder/bias:.*{reason}.* gradient"
    ):
        train(lambda: Trainer(model(), "mse", compile="eager"), numbers())


def test_gradients_that_are_there():
    """Row 5: sign has zeros; casts between floats and a straight-through gradient train; a double where is no NaN."""

    def gradient(function, x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        return tape.gradient(y, x).numpy()

    x = tf.constant([0.0, 2.0])
    np.testing.assert_array_equal(gradient(tf.sign, x), [0, 0])
    np.testing.assert_array_equal(gradient(lambda x: tf.cast(tf.cast(x, tf.float16), tf.float32), x), [1, 1])
    for bad in (
        lambda x: tf.where(x > 0, tf.math.log(x), 0.0),
        lambda x: tf.where(x > 0, 1 / x, 0.0),
        lambda x: tf.norm(x - x),
    ):
        assert np.isnan(gradient(bad, x)[0])
    safe = lambda x: tf.where(x > 0, tf.math.log(tf.where(x > 0, x, 1.0)), 0.0)  # noqa: E731
    np.testing.assert_array_equal(gradient(safe, x), [0, 0.5])
    model = lambda: sequential(L.Dense(4), layers.StraightThrough("round"), L.Lambda(safe), L.Dense(1))  # noqa: E731
    learns(lambda: Trainer(model(), "mse", (), SGD(0.05)), numbers(), steps=10)


def test_accuracy_and_gradient_norms_are_to_be_seen(tmp_path):
    """Row 6: accuracy, gradient norm before clipping, share of clipped steps, rate and histograms, in TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def made():
        group = OptimizerGroup(optimizer=SGD(0.1), transforms=[clip_by_global_norm(1e-3)], name="main")
        return Trainer(classifier(), LOGITS, ["accuracy"], group)

    def histograms(trainer, step, metrics):
        for name, v in trainer.trainable_variables.items():
            trainer.summaries.histogram(name, v.numpy())

    run(
        tmp_path, made, lambda: from_arrays(digits(), 8), train_steps=4, steps_per_loop=2, summary_interval=2,
        checkpoint_interval=None, strategy="default", hooks=[histograms],
    )  # fmt: skip
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["clipped/main"] == 1.0 and row["grad_norm/main"] > 1e-3 and 0 <= row["metrics/accuracy"] <= 1
    assert row["learning_rate/main"] == pytest.approx(0.1)
    tags = set(EventAccumulator(str(tmp_path / "train")).Reload().Tags()["tensors"])
    assert {"loss", "losses/main", "metrics/accuracy", "grad_norm/main", "clipped/main", "learning_rate/main"} < tags
    assert {"dense/kernel", "dense/bias"} < tags


def test_a_polynomial_layer_on_digits():
    """Row 7: the polynomial-transform layer, on images."""
    model = lambda: sequential(layers.PolynomialTransform(3), L.Flatten(), L.Dense(10), shape=(8, 8, 1))  # noqa: E731
    trainer = learns(lambda: Trainer(model(), LOGITS, (), SGD(0.1)), digits())
    assert trainer.variables["polynomial_transform/coefficients"].shape == (4, 1)


def test_losses_that_punish_classes_differently():
    """Row 8: class weights, given or by frequency, and a cost matrix: each moves the decision to its optimum."""
    y = np.array([0] * 6 + [1] * 2, np.int32)  # one input, two classes: the loss alone decides
    x = np.ones([8, 1], np.float32)

    def share_of_ones(loss):
        head = L.Dense(2, kernel_initializer="zeros", use_bias=False)
        trainer = learns(lambda: Trainer(sequential(head, shape=(1,)), loss, (), SGD(1.0)), (x, y), steps=40)
        return float(tf.nn.softmax(trainer.model(x[:1]))[0, 1])

    # The optimum of a weighted cross-entropy is w_c n_c over its sum.
    assert share_of_ones(losses.WeightedCrossentropy([1.0, 9.0])) == pytest.approx(18 / 24, abs=1e-3)
    assert share_of_ones(losses.WeightedCrossentropy(losses.class_balanced_weights([6, 2], beta=0.5))) == pytest.approx(
        2 / (1 - 0.5**2) / (6 / (1 - 0.5**6) + 2 / (1 - 0.5**2)), abs=1e-3
    )
    # An expected cost, 6 p_1 C[0, 1] + 2 p_0 C[1, 0], is linear in p: everything goes to the cheaper side.
    assert share_of_ones(losses.CostSensitive([[0, 1], [9, 0]])) > 0.9
