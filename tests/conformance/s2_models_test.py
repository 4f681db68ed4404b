"""S2, models and training: losses and metrics inside a model, robust losses, and everything of one's own at once."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import layers
from optimizers.schedules import LinearWarmup
from tests.conformance.training import both, learns, numbers, sequential, train
from trainer import Trainer, add_loss

L, SGD = keras.layers, keras.optimizers.SGD


def test_tensors_numpy_and_assignments():
    """Row 14: dtypes do not mix, slices of a variable are assigned, and a loss casts before it computes."""
    with pytest.raises(tf.errors.InvalidArgumentError, match="cannot compute AddV2 as input #1"):
        tf.constant(1.0) + tf.constant(1)
    for v in (tf.Variable([[1.0, 2.0]]), keras.Variable([[1.0, 2.0]])):
        v[0, 1].assign(5.0)
        np.testing.assert_array_equal(np.square(v.numpy()), [[1, 25]])

    def loss(targets, predictions):
        return tf.square(tf.cast(targets, predictions.dtype) - predictions)[:, 0]

    x, y = numbers()
    whole = np.round(2 * y).astype(np.int32)
    trainer, first, _ = train(
        lambda: Trainer(sequential(L.Dense(1, kernel_initializer="zeros")), loss, (), SGD(0.1)), (x, whole), 1
    )
    assert first["loss"] == pytest.approx(np.mean(whole**2.0), rel=1e-6)
    trainer.model.layers[0].bias[0].assign(7.0)  # between two loops, it counts in the next
    iterator = iter(trainer.distribute(tf.data.Dataset.from_tensors((x, whole))))
    kernel = trainer.variables["dense/kernel"].numpy()
    assert trainer.train(iterator, 1)["loss"] == pytest.approx(np.mean(np.square(x @ kernel + 7.0 - whole)), rel=1e-5)


class Halves(L.Layer):
    """Adds two losses that half precision cannot add up."""

    def call(self, x):
        add_loss(tf.constant(2048.0, x.dtype), "large")
        add_loss(tf.constant(1.0, x.dtype), "small")
        self.add_loss(tf.constant(1.0, x.dtype))
        return x


def test_sums_of_losses_are_taken_in_float32():
    """Row 15: tf.add_n is no more exact than +; the Trainer adds losses up in float32, whatever dtype they have."""
    terms = [tf.constant(2048.0, tf.float16), *[tf.constant(1.0, tf.float16)] * 4]
    assert float(tf.add_n(terms)) == 2048.0 == float(sum(terms[1:], terms[0]))  # right: 2052
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    head = L.Dense(1, kernel_initializer="zeros", dtype="float32")
    model = lambda: sequential(Halves(name="own"), head)  # noqa: E731
    _, first, _ = train(
        lambda: Trainer(model(), "mse", compile="eager"), (numbers()[0], np.zeros([16, 1], np.float32)), 1
    )
    assert first["loss"] == 2050.0 and first["losses/large"] == 2048.0


def test_a_keras_optimizer_clips_in_one_way_only():
    """Row 16: clipnorm beside clipvalue is an error in Keras."""
    with pytest.raises(ValueError, match="Only one of `clipnorm`, `clipvalue` and `global_clipnorm` can be set"):
        SGD(0.1, clipnorm=1.0, clipvalue=1.0)


@both
@pytest.mark.parametrize("argument", ["clipnorm", "clipvalue"])
def test_clipping_trains(strategy, argument):
    """Row 16: clipnorm and clipvalue on 1 and 2 replicas: two steps by hand, from the gradient of the whole batch."""
    x = np.array([[3.0], [-1.0]], np.float32)  # gradients of the replicas: 3 and -1

    def made():
        model = sequential(L.Dense(1, use_bias=False, kernel_initializer="ones"), shape=(1,))
        return Trainer(model, lambda targets, predictions: predictions[:, 0], (), SGD(0.5, **{argument: 0.25}))

    trainer, first, _ = train(made, (x, x), 1, strategy)
    assert first["grad_norm/main"] == pytest.approx(1.0)
    assert float(trainer.variables["dense/kernel"].numpy()[0, 0]) == 1 - 2 * 0.5 * 0.25


def test_the_old_forms_of_losses_and_metrics_inside_a_functional_model():
    """Rows 17 and 18: tf functions on symbolic tensors, Model.add_loss and add_metric fail, each in its way."""
    inputs = keras.Input((3,))
    rebuilt = L.Dense(3)(inputs)
    with pytest.raises(ValueError, match="A KerasTensor cannot be used as input to a TensorFlow function"):
        tf.reduce_mean(tf.square(rebuilt - inputs))
    model = keras.Model(inputs, rebuilt)
    with pytest.raises(NotImplementedError):
        model.add_loss(0.01 * keras.ops.mean(keras.ops.square(rebuilt - inputs)))
    with pytest.raises(NotImplementedError, match="`add_metric` is deprecated|add_metric"):
        model.add_metric(keras.ops.mean(rebuilt), name="mean")


def functional_reconstruction():
    inputs = keras.Input((3,))
    hidden = L.Dense(4, "tanh")(inputs)
    hidden, rebuilt = layers.AddMetric(lambda h: h[1], "rebuilt")([hidden, L.Dense(3, name="rebuild")(hidden)])
    hidden, _, _ = layers.AddLoss(lambda h: keras.ops.square(h[1] - h[2]), "reconstruction", 0.05)(
        [hidden, rebuilt, inputs]
    )
    return keras.Model(inputs, L.Dense(1)(hidden))


class Reconstruction(keras.Model):
    """As in the material: a stack of selu layers, and a head that is as wide as the input, known in `build`."""

    def __init__(self, weight=0.05):
        super().__init__()
        self.hidden = [L.Dense(6, "selu", kernel_initializer="lecun_normal") for _ in range(3)]
        self.out, self.error, self.weight = L.Dense(1), keras.metrics.Mean(name="reconstruction_error"), weight

    def build(self, input_shape):
        self.rebuild = L.Dense(input_shape[-1])
        super().build(input_shape)

    def call(self, inputs, training=None):
        x = inputs
        for layer in self.hidden:
            x = layer(x)
        error = keras.ops.mean(keras.ops.square(self.rebuild(x) - inputs))
        self.add_loss(self.weight * error)
        if training:
            self.error.update_state(error)
        return self.out(x)


@pytest.mark.parametrize("make, strategy", [(functional_reconstruction, "mirrored"), (Reconstruction, "default")])
def test_an_auxiliary_reconstruction_loss_and_its_metric(make, strategy):
    """Rows 17, 18 and 19: a model adds a loss and a metric of its own; the values are those of NumPy."""
    x, y = numbers()
    seen = {}

    def made():
        trainer = Trainer(make(), "mse", (), SGD(0.05))
        trainer.train_begin = lambda: seen or seen.update(outputs=trainer.model(x), rebuilt=_rebuilt(trainer.model, x))
        return trainer

    _, first, last = train(made, (x, y), 5, strategy)
    squared = np.mean(np.square(seen["rebuilt"] - x))
    assert first["loss"] == pytest.approx(np.mean(np.square(seen["outputs"] - y)) + 0.05 * squared, rel=1e-5)
    if make is Reconstruction:
        assert first["metrics/reconstruction_error"] == pytest.approx(squared, rel=1e-5)
    else:
        assert first["losses/reconstruction"] == pytest.approx(squared, rel=1e-5)
        assert first["metrics/rebuilt"] == pytest.approx(np.mean(seen["rebuilt"]), rel=1e-4, abs=1e-6)
    assert last["loss"] < first["loss"]


def _rebuilt(model, x):
    if isinstance(model, Reconstruction):
        for layer in [*model.hidden, model.rebuild]:
            x = layer(x)
        return np.array(x)
    return np.array(model.get_layer("rebuild")(model.layers[1](x)))


@pytest.mark.parametrize(
    "loss, optimum", [("mse", 2.0), ("mae", 0.0), (keras.losses.Huber(1.0), 0.25)], ids=["mse", "mae", "huber"]
)
def test_the_best_constant_under_noise(loss, optimum):
    """Row 20: of 0, 0, 0, 0, 10 the squared error wants the mean, the absolute error the median, Huber 4 b = 1."""
    y = np.array([[0.0], [0.0], [0.0], [0.0], [10.0]], np.float32)
    rate = keras.optimizers.schedules.PolynomialDecay(0.5, 100, 0.0)
    model = lambda: sequential(L.Dense(1, bias_initializer=keras.initializers.Constant(1.0)), shape=(1,))  # noqa: E731
    trainer, _, _ = train(lambda: Trainer(model(), loss, (), SGD(rate), frozen=["dense/kernel"]), (0 * y, y), 100)
    assert float(trainer.variables["dense/bias"].numpy()[0]) == pytest.approx(optimum, abs=0.05)


def test_wide_and_deep_self_normalising_batch_norm_dropout_and_a_schedule():
    """Row 21: the parts together; each by itself in configs/wide_deep, configs/snn_deep and their tests."""

    def made():
        wide, deep = keras.Input((2,), name="wide"), keras.Input((3,), name="deep")
        x = L.BatchNormalization()(deep)
        for _ in range(2):
            x = layers.SelfNormalizingBlock(6, rate=0.05)(x)
        outputs = L.Dense(1)(L.Concatenate()([wide, L.Dropout(0.1)(x)]))
        rate = LinearWarmup(0.05, warmup_steps=3)
        return Trainer(keras.Model({"wide": wide, "deep": deep}, outputs), "mse", (), SGD(rate))

    x, y = numbers()
    trainer = learns(made, ({"wide": x[:, :2], "deep": x}, y), 12)
    np.testing.assert_allclose(
        trainer.variables["batch_normalization/moving_mean"].numpy(), x.mean(0) * (1 - 0.99**12), rtol=1e-3
    )


# ---- Row 22: everything of one's own -------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="tests")
def small(shape, dtype=None):
    return keras.random.uniform(shape, -0.3, 0.3, dtype, seed=1)


@keras.saving.register_keras_serializable(package="tests")
class OffTarget(keras.regularizers.Regularizer):
    def __init__(self, target=0.1):
        self.target = target

    def __call__(self, w):
        return keras.ops.sum(keras.ops.square(w - self.target))

    def get_config(self):
        return {"target": self.target}


@keras.saving.register_keras_serializable(package="tests")
class AtLeast(keras.constraints.Constraint):
    def __init__(self, least=-0.2):
        self.least = least

    def __call__(self, w):
        return keras.ops.maximum(w, self.least)

    def get_config(self):
        return {"least": self.least}


@keras.saving.register_keras_serializable(package="tests")
class AbsoluteError(keras.metrics.Metric):
    def __init__(self, name="absolute_error", **kwargs):
        super().__init__(name=name, **kwargs)
        self.total = self.add_weight(name="total", initializer="zeros")
        self.count = self.add_weight(name="count", initializer="zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.total.assign_add(keras.ops.sum(keras.ops.abs(y_true - y_pred)))
        self.count.assign_add(keras.ops.cast(keras.ops.size(y_true), self.dtype))

    def result(self):
        return self.total / self.count


class OldMetric(keras.metrics.Metric):
    def __init__(self):
        super().__init__(name="old")
        self.total = self.add_weight("total", initializer="zeros")


@keras.saving.register_keras_serializable(package="tests")
class OwnLoss(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return keras.ops.mean(keras.ops.square(y_true - y_pred) + 0.1 * keras.ops.abs(y_true - y_pred), -1)


@keras.saving.register_keras_serializable(package="tests")
class OwnModel(keras.Model):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.hidden = L.Dense(
            units, "tanh", kernel_initializer=small, kernel_regularizer=OffTarget(), kernel_constraint=AtLeast()
        )
        self.out = L.Dense(1)

    def build(self, input_shape):
        self.hidden.build(input_shape)
        self.out.build((None, self.units))

    def call(self, x):
        return self.out(self.hidden(x))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def test_everything_of_ones_own(tmp_path):
    """Row 22: custom initializer, regularizer, constraint, model, loss and metric; on 2 replicas, saved and loaded."""
    with pytest.raises(ValueError, match="Cannot convert 'total' to a shape"):
        OldMetric()
    x, y = numbers()
    trainer, first, last = train(
        lambda: Trainer(OwnModel(4), OwnLoss(), [AbsoluteError()], SGD(0.05)), (x, y), 5, "mirrored"
    )
    keras.utils.set_random_seed(0)
    fresh = OwnModel(4)
    fresh.build((None, 3))
    kernel, error = fresh.hidden.kernel.numpy(), np.abs(fresh(x).numpy() - y)
    assert first["losses/main"] == pytest.approx(np.mean(error**2 + 0.1 * error), rel=1e-5)
    assert first["losses/regularization"] == pytest.approx(np.sum((kernel - 0.1) ** 2), rel=1e-5)
    assert first["metrics/absolute_error"] == pytest.approx(np.mean(error), rel=1e-5)
    assert kernel.min() < -0.2 <= trainer.variables["hidden/kernel"].numpy().min()
    assert last["loss"] < first["loss"]
    trainer.model.save(tmp_path / "m.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "m.keras")(x), trainer.model(x))
