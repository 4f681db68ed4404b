"""What each replica assigns by itself: averaged where that is right, left alone where it is the same, else refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.runs import slow, train
from trainer import Trainer, all_gather, data, global_sum
from trainer.outer_loop.banner import show
from trainer.replicas.distribution import make_strategy, replica_values

RANDOM = np.random.default_rng(3)
X = RANDOM.normal(size=(24, 4)).astype("float32")


class Buffered(keras.Model):
    """A dense layer, and a buffer that `update(buffer, x)` assigns in each forward pass."""

    def __init__(self, update, shape=(4,), dtype="float32"):
        super().__init__()
        self.dense, self.update = keras.layers.Dense(3), update
        self.buffer = self.add_weight(name="buffer", shape=shape, dtype=dtype, trainable=False, initializer="zeros")

    def call(self, x, training=None):
        if training:
            self.buffer.assign(self.update(self.buffer.value, x))
        return self.dense(x)


def moving_mean(buffer, x):
    return 0.9 * buffer + 0.1 * tf.reduce_mean(x, 0)


def steps(buffer, x):
    return buffer + 1


def summed(buffer, x):
    return buffer + global_sum(x)


def gathered_queue(buffer, x):
    return tf.concat([buffer, tf.math.l2_normalize(all_gather(x), 1)], 0)[-tf.shape(buffer)[0] :]


def queue(buffer, x):
    return tf.concat([buffer[tf.shape(x)[0] :], tf.math.l2_normalize(x, 1)], 0)


def count(buffer, x):
    return buffer + tf.cast(tf.shape(x)[0], buffer.dtype)


def largest(buffer, x):
    return tf.maximum(buffer, tf.reduce_max(x, 0))


def _train(name, *model, batches=6):
    strategy = make_strategy(name)
    with strategy.scope():
        keras.utils.set_random_seed(0)
        trainer = Trainer(Buffered(*model), "mse", optimizers=keras.optimizers.SGD(0.1))
    iterator = iter(trainer.distribute(data.from_arrays((X, X[:, :3]), 8)))
    for _ in range(2):
        trainer.train(iterator, batches // 2)
    return [v.numpy() for v in replica_values(strategy, trainer.model.buffer.value)]


@pytest.mark.parametrize(
    "model",
    [(moving_mean,), (steps,), (summed,), (gathered_queue, (16, 4)), (steps, (), "int32")],
    ids=lambda m: f"{m[0].__name__}_{len(m)}",
)
def test_two_replicas_hold_what_one_holds(model):
    (one,) = _train("default", *model)
    for two in _train("mirrored", *model):
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-6)
    assert np.any(one)


@pytest.mark.parametrize(
    "model",
    [(queue, (16, 4)), (count, ()), (count, (), "int32"), (largest,)],
    ids=lambda m: f"{m[0].__name__}_{len(m)}",
)
def test_what_would_depend_on_the_number_of_replicas_is_refused(model):
    with pytest.raises(ValueError, match="buffer is assigned by its layer on each replica.*all_gather"):
        _train("mirrored", *model)
    _train("default", *model)


@pytest.mark.parametrize("layer", ["GRU", "LSTM", "SimpleRNN"])
def test_a_stateful_recurrent_layer_keeps_the_states_of_its_replicas_rows(layer):
    """States are carried over steps and loops as in `fit`; a model is built for the batch of a replica."""
    x = RANDOM.normal(size=(24, 5, 3)).astype("float32")
    batches = tf.data.Dataset.from_tensor_slices((x, x[:, 0, :1])).batch(8)

    def model(rows):
        keras.utils.set_random_seed(0)
        recurrent = getattr(keras.layers, layer)(4, stateful=True)
        return keras.Sequential([keras.Input(batch_shape=(rows, 5, 3)), recurrent, keras.layers.Dense(1)])

    fitted = model(8)
    fitted.compile(keras.optimizers.SGD(0.1), "mse")
    fitted.fit(batches.repeat(2), verbose=0)
    with make_strategy("mirrored").scope():
        trainer = Trainer(model(4), "mse", optimizers=keras.optimizers.SGD(0.1))
    iterator = iter(trainer.distribute(batches.repeat()))
    for _ in range(3):
        trainer.train(iterator, 2)
    for ours, theirs in zip(trainer.model.trainable_variables, fitted.trainable_variables, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=2e-6)


def test_the_look_changes_nothing():
    strategy = make_strategy("mirrored")
    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5), Buffered(moving_mean)])
        trainer = Trainer(model, "mse", optimizers="sgd")
    source = data.from_arrays((X, X[:, :3]), 8)
    trainer.build(source.element_spec)
    before = {name: [x.numpy() for x in replica_values(strategy, v.value)] for name, v in trainer.variables.items()}
    trainer.distribute(source)
    for name, values in before.items():
        for old, new in zip(values, replica_values(strategy, trainer.variables[name].value)):
            np.testing.assert_array_equal(new.numpy(), old, err_msg=name)


def _encoder_and_head(affine=True):
    normalization = keras.layers.BatchNormalization(momentum=0.5, center=affine, scale=affine)
    encoder = keras.Sequential([keras.layers.Dense(3), normalization], name="encoder")
    return keras.Sequential([keras.Input((4,)), encoder, keras.layers.Dense(3, name="head")])


@pytest.mark.parametrize("affine, micro_batches", [(True, 1), (False, 2), slow(True, 2), slow(False, 1)])
def test_a_frozen_encoder_does_not_drift(strategy, affine, micro_batches):
    x = 3.0 + X
    with strategy.scope():
        keras.utils.set_random_seed(1)
        model = _encoder_and_head(affine)
        trainer = Trainer(
            model,
            "mse",
            optimizers=keras.optimizers.SGD(0.1),
            frozen=["encoder/.*"],
            micro_batches=micro_batches,
        )
    keras.utils.set_random_seed(1)
    reference = _encoder_and_head(affine)
    reference.get_layer("encoder").trainable = False
    reference.compile(keras.optimizers.SGD(0.1), "mse")
    before = model.get_layer("encoder")(x[:4]).numpy()
    train(trainer, data.from_arrays((x, X[:, :3]), 24, shuffle=False), 3)
    reference.fit(x, X[:, :3], batch_size=24, epochs=3, shuffle=False, verbose=0)
    np.testing.assert_array_equal(model.get_layer("encoder")(x[:4]).numpy(), before)
    for ours, theirs in zip(model.weights, reference.weights):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-4, atol=1e-5)
    assert model.get_layer("encoder").trainable and trainer.built.frozen_layers.names == ["encoder/batch_normalization"]


def test_the_banner_names_frozen_layers(capsys):
    source = data.from_arrays((X, X[:, :3]), 8)
    trainer = Trainer(_encoder_and_head(), "mse", frozen=["encoder/.*"])
    trainer.build(source.element_spec)
    show(trainer, source, 0, 3, None)
    assert "inference mode; their statistics do not change: encoder/batch_normalization" in capsys.readouterr().out


def test_a_group_that_never_updates_lets_statistics_move():
    from trainer import OptimizerGroup

    model = _encoder_and_head()
    groups = [
        OptimizerGroup("encoder/.*", optimizer="sgd", start=10_000),
        OptimizerGroup("head/.*", optimizer="sgd"),
    ]
    trainer = Trainer(model, "mse", optimizers=groups)
    iterator = iter(trainer.distribute(data.from_arrays((3.0 + X, X[:, :3]), 8)))
    kernel, mean = (model.get_layer("encoder").weights[i].numpy() for i in (0, 4))
    trainer.train(iterator, 3)
    np.testing.assert_array_equal(model.get_layer("encoder").weights[0].numpy(), kernel)
    assert np.any(model.get_layer("encoder").weights[4].numpy() != mean)


class Temperature(keras.losses.Loss):
    def __init__(self):
        super().__init__()
        self.log_scale = keras.Variable(0.0, name="log_scale")

    def call(self, targets, predictions):
        return tf.reduce_mean((targets - predictions) ** 2, -1) * tf.exp(-self.log_scale) + self.log_scale


class Scaled(keras.Model):
    def __init__(self, holder):
        super().__init__()
        self.dense, self.holder = keras.layers.Dense(3), holder

    def call(self, x):
        return self.dense(x) * self.holder["weight"]()


class Plain:
    """An object that no attribute walk looks into."""

    def __init__(self):
        self.layer = keras.layers.Dense(3)

    def __getitem__(self, name):
        return lambda: self.layer(tf.ones([1, 2]))


class Module(tf.Module):
    def __init__(self):
        super().__init__()
        self.weight = tf.Variable(tf.ones([3]), name="module_weight")

    def __getitem__(self, name):
        return lambda: self.weight


UNREACHABLE = "not reachable from attributes of the model or the Trainer: .*"


@pytest.mark.parametrize("compile", ["graph", "eager"])
@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Trainer(_encoder_and_head(), Temperature(), compile="graph"), f"{UNREACHABLE}log_scale"),
        (lambda: Trainer(Scaled(Module()), "mse"), "holder/weight is a trainable tf.Variable.*trainable=False"),
        (lambda: Trainer(Scaled(Plain()), "mse"), f"{UNREACHABLE}kernel"),
    ],
    ids=["loss", "module", "object"],
)
def test_a_trainable_variable_that_nothing_would_train_is_an_error(make, message, compile):
    trainer = make()
    trainer.compile = compile
    if message.startswith(UNREACHABLE) and compile == "graph":  # eager, there is no graph to look at
        message += ".*, read at .*replica_state_test.py:[0-9]+"
    with pytest.raises(ValueError, match=message):
        train(trainer, data.from_arrays((X, X[:, :3]), 8), 1)
