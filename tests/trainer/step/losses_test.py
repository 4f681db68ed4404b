"""Losses of the default Trainer are those of Keras' `evaluate`, whatever the shapes that a loss puts together."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.runs import slow
from trainer import Trainer, data
from trainer.replicas.distribution import make_strategy

L = keras.losses
RNG = np.random.default_rng(0)
X = RNG.normal(size=(11, 4)).astype("float32")
WEIGHT = RNG.uniform(0.5, 2.0, 11).astype("float32")
IDS = RNG.integers(0, 3, 11).astype("int32")
ONE_HOT = np.eye(3, dtype="float32")[IDS]
POSITIVE = np.abs(X[:, :3])
BINARY = (X[:, :1] > 0).astype("float32")
SIGNS = np.sign(X[:, :3])

# (loss, arguments, last activation, units, targets)
TABLE = [
    (L.MeanSquaredError, {}, None, 3, POSITIVE),
    (L.MeanSquaredError, {}, None, 1, X[:, 0]),
    (L.MeanAbsoluteError, {}, None, 3, POSITIVE),
    (L.MeanAbsolutePercentageError, {}, None, 3, POSITIVE),
    (L.MeanSquaredLogarithmicError, {}, "softplus", 3, POSITIVE),
    (L.LogCosh, {}, None, 3, POSITIVE),
    (L.Huber, {"delta": 0.5}, None, 3, POSITIVE),
    (L.Poisson, {}, "softplus", 3, POSITIVE),
    (L.KLDivergence, {}, "softmax", 3, ONE_HOT),
    (L.CosineSimilarity, {}, None, 3, POSITIVE),
    (L.Hinge, {}, None, 3, SIGNS),
    (L.SquaredHinge, {}, None, 3, SIGNS),
    (L.CategoricalHinge, {}, None, 3, ONE_HOT),
    (L.BinaryCrossentropy, {"from_logits": True, "label_smoothing": 0.1}, None, 1, BINARY),
    (L.BinaryFocalCrossentropy, {"apply_class_balancing": True}, "sigmoid", 1, BINARY),
    (L.CategoricalCrossentropy, {"label_smoothing": 0.1}, "softmax", 3, ONE_HOT),
    (L.CategoricalFocalCrossentropy, {}, "softmax", 3, ONE_HOT),
    (L.CategoricalGeneralizedCrossEntropy, {}, "softmax", 3, IDS),
    (L.SparseCategoricalCrossentropy, {"from_logits": True}, None, 3, IDS),
    (L.SparseCategoricalCrossentropy, {"ignore_class": 1}, "softmax", 3, IDS[:, None]),
    (L.Circle, {}, None, 3, IDS),
    (L.Dice, {}, "sigmoid", 3, ONE_HOT),
    (L.Tversky, {"alpha": 0.3, "beta": 0.7}, "sigmoid", 3, ONE_HOT),
    (L.Tversky, {"axis": (1,)}, "sigmoid", 3, ONE_HOT),
]
OTHERS = {L.Loss, L.CTC}  # the base class; sequences


def test_the_table_has_all_losses_of_keras():
    there = {x for x in vars(keras.losses).values() if isinstance(x, type)}
    assert there == {cls for cls, *_ in TABLE} | OTHERS


def _model(units, activation):
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(units, activation)])


def _many(table):
    """A model with an output for each loss, the losses, and the targets."""
    keras.utils.set_random_seed(1)
    x = keras.Input((4,))
    outputs = {f"o{i}": keras.layers.Dense(units, activation)(x) for i, (*_, activation, units, _) in enumerate(table)}
    losses = {f"o{i}": cls(**arguments) for i, (cls, arguments, *_) in enumerate(table)}
    return keras.Model(x, outputs), losses, {f"o{i}": y for i, (*_, y) in enumerate(table)}


@pytest.mark.parametrize("kind", [slow("default"), "mirrored"])
def test_losses_are_those_of_keras(kind):
    """One model with all losses, and one batch."""
    model, losses, targets = _many(TABLE)
    right = {}
    for name, loss in losses.items():
        right[f"losses/{name}"] = float(loss(targets[name], model(X)[name]))
    model.compile("sgd", losses)
    by_keras = model.evaluate(X, targets, 11, verbose=0, return_dict=True)
    with make_strategy(kind).scope():
        model, losses, targets = _many(TABLE)
        trainer = Trainer(model, losses, optimizers=keras.optimizers.SGD(0.0))
    source = data.from_arrays((X, targets), 11, repeat=False)
    found = trainer.evaluate(source)
    assert {tag: found[tag] for tag in right} == pytest.approx(right, rel=1e-4)
    assert found["loss"] == pytest.approx(by_keras["loss"], rel=1e-4)
    iterator = iter(trainer.distribute(source))
    assert trainer.train(iterator, 1)["loss"] == pytest.approx(by_keras["loss"], rel=1e-4)


COUPLED = [entry for entry in TABLE if entry[0] in (L.Circle, L.Dice, L.Tversky)]


@pytest.mark.parametrize("rows", [11, 3])
def test_losses_that_compare_examples_train_on_two_replicas_as_on_one(rows):
    """The whole batch is compared, not a replica's shard; `fit` has the right weights. 3 rows: a last batch of one."""
    model, losses, targets = _many(COUPLED)
    model.compile(keras.optimizers.SGD(0.5), losses)
    arrays = (X[:rows], {name: y[:rows] for name, y in targets.items()})
    model.fit(*arrays, batch_size=2 if rows == 3 else rows, epochs=2, shuffle=False, verbose=0)
    with make_strategy("mirrored").scope():
        trained, losses, _ = _many(COUPLED)
        trainer = Trainer(trained, losses, optimizers=keras.optimizers.SGD(0.5))
    iterator = iter(
        trainer.distribute(tf.data.Dataset.from_tensor_slices(arrays).batch(2 if rows == 3 else rows).repeat(2))
    )
    trainer.train(iterator, 4 if rows == 3 else 2)
    for got, right in zip(trained.weights, model.weights):
        np.testing.assert_allclose(got.numpy(), right.numpy(), rtol=1e-4, atol=1e-5)


def test_losses_that_compare_examples_refuse_micro_batches():
    trainer = Trainer(_model(3, "sigmoid"), L.Dice(), optimizers="sgd", micro_batches=2)
    with pytest.raises(ValueError, match="the loss 'dice' is not a mean over examples.*micro_batches` = 1"):
        trainer.train(iter(trainer.distribute(data.from_arrays((X, ONE_HOT), 4))), 1)


class Mixture(keras.losses.Loss):
    """Negative log likelihood of a mixture of three Gaussians: targets [B, 1], predictions [B, 9]."""

    def call(self, y, p):
        w, mean, deviation = tf.split(p, 3, -1)
        log = tf.nn.log_softmax(w) - deviation - 0.5 * ((y - mean) / tf.exp(deviation)) ** 2
        return -tf.reduce_logsumexp(log, -1)


class Boxes(keras.losses.MeanSquaredError):
    """A subclass of an elementwise loss that is none: a list of boxes [B, 5, 4] against a map [B, 6, 6, 7]."""

    def call(self, y, p):
        return tf.reduce_mean(p**2, [1, 2, 3]) + tf.reduce_sum(y, [1, 2])


def _quantiles(y, p):
    q = tf.constant([0.1, 0.5, 0.9])
    return tf.reduce_mean(tf.maximum(q * (y - p), (q - 1) * (y - p)), -1)


def _net(*layers):
    return keras.Sequential(layers)


def _normal(*shape):
    return np.random.default_rng(1).normal(size=shape).astype("float32")


RELATING = {
    "mixture": (lambda: _net(keras.Input((4,)), keras.layers.Dense(9)), Mixture(), _normal(8, 4), _normal(8, 1)),
    "quantiles": (lambda: _net(keras.Input((4,)), keras.layers.Dense(3)), _quantiles, _normal(8, 4), _normal(8, 1)),
    "boxes": (
        lambda: _net(keras.Input((6, 6, 3)), keras.layers.Conv2D(7, 1)),
        Boxes(),
        _normal(8, 6, 6, 3),
        _normal(8, 5, 4),
    ),
    "ctc": (
        lambda: _net(keras.Input((9, 4)), keras.layers.Dense(5)),
        L.CTC(),
        _normal(8, 9, 4),
        np.random.default_rng(1).integers(1, 5, (8, 3)),
    ),
}


@pytest.mark.parametrize("case", RELATING)
def test_losses_that_relate_other_shapes_are_not_refused(case, capsys):
    make, loss, x, y = RELATING[case]
    model = make()
    values = loss(y, model(x))
    found = Trainer(model, loss, optimizers="sgd").evaluate(data.from_arrays((x, y), 8, repeat=False))
    assert found["loss"] == pytest.approx(float(tf.reduce_mean(values)), rel=1e-4)
    assert "broadcast" not in capsys.readouterr().err


@pytest.mark.parametrize("shape, warned", [((8,), True), ((8, 1), False)])
@pytest.mark.parametrize("reduce", [True, False])
def test_targets_that_broadcast_in_a_custom_loss_are_named(shape, warned, reduce, capsys):
    def loss(y, p):
        return tf.reduce_mean((y - p) ** 2, -1) if reduce else (y - p) ** 2

    trainer = Trainer(_model(1, None), loss, optimizers="sgd")
    trainer.evaluate(data.from_arrays((X[:8], np.ones(shape, "float32")), 8, repeat=False))
    said = " ".join(capsys.readouterr().err.split())
    assert ("of shape (8,), with each of the predictions, of shape (8, 1)" in said) == warned


def test_string_targets_and_ids_as_bool():
    def evaluate(loss, y, units=3):
        return Trainer(_model(units, "softmax"), loss, optimizers="sgd").evaluate(
            data.from_arrays((X, y), 11, repeat=False)
        )

    for loss in ("mse", L.SparseCategoricalCrossentropy(), "binary_crossentropy"):
        with pytest.raises(ValueError, match="the targets are strings.*StringLookup"):
            evaluate(loss, np.array(["cat"] * 11))
    ids = IDS > 0
    right = L.SparseCategoricalCrossentropy()(ids.astype("int32"), _model(3, "softmax")(X))
    assert evaluate(L.SparseCategoricalCrossentropy(), ids)["loss"] == pytest.approx(float(right), rel=1e-5)


class Partial(Trainer):
    """A loss alone; an output that is None and a nest as batch."""

    def compute_losses(self, batch, training):
        a, b, c, d = batch
        p = self.model(a, training=training)
        return {"l": (p - b) ** 2 + 0.0 * (c + d)}, {"p": p, "none": None, "more": [None, p]}


@pytest.mark.parametrize("parts", [1, 2])
def test_outputs_that_are_none_and_batches_of_four_elements(strategy, parts):
    with strategy.scope():
        trainer = Partial(_model(1, None), optimizers=keras.optimizers.SGD(0.0), micro_batches=parts)
    source = data.from_arrays((X, *[X[:, :1]] * 3), 8, repeat=False)
    right = float(tf.reduce_mean((trainer.model(X) - X[:, :1]) ** 2))
    assert trainer.evaluate(source)["loss"] == pytest.approx(right, rel=1e-5)
    iterator = iter(trainer.distribute(source))
    trainer.train(iterator, 1)


def test_an_output_of_a_functional_model_that_is_none():
    class Maybe(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, x):
            return {"a": self.dense(x), "b": None}

    model = Maybe()
    trainer = Trainer(model, "mse", ["mae"], optimizers="sgd")
    found = trainer.evaluate(data.from_arrays((X, {"a": X[:, :1]}), 11, repeat=False))
    assert found["loss"] == pytest.approx(float(np.mean((model(X)["a"] - X[:, :1]) ** 2)), rel=1e-5)
    assert trainer.predict(data.from_arrays((X,), 4, repeat=False))["b"] is None
