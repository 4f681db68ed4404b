"""Batches of any nest: elements of several sizes, scalars, None, extension types; one rule splits them all."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.runs import slow, train
from trainer import Trainer, data
from trainer.inputs.batches import cut, spec_from_json, spec_of, spec_to_json, units_of
from trainer.replicas.distribution import distribute, make_strategy, unpack

R = np.random.default_rng(0)
X, Y = R.normal(size=(32, 3)).astype(np.float32), R.normal(size=(32, 1)).astype(np.float32)
U = R.normal(size=(96, 3)).astype(np.float32)


class Masked(tf.experimental.BatchableExtensionType):
    values: tf.Tensor
    mask: tf.Tensor


class Semi(Trainer):
    """A supervised loss over x and an unsupervised one over u."""

    def compute_losses(self, batch, training):
        (x, y), u = batch
        return {"main": tf.square(self.model(x) - y), "unlabeled": tf.square(self.model(u) - 1.0)[:, 0]}


def _model():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])


def _make(cls, strategy, **arguments):
    with make_strategy(strategy).scope():
        return cls(_model(), optimizers=keras.optimizers.SGD(0.1), **arguments)


def _streams(x=8, u=24, drop_remainder=True, n=32):
    labeled = tf.data.Dataset.from_tensor_slices((X[:n], Y[:n])).batch(x, drop_remainder=drop_remainder)
    return tf.data.Dataset.zip(labeled, tf.data.Dataset.from_tensor_slices(U).batch(u, drop_remainder=drop_remainder))


def _by_hand(dataset, learning_rate=0.1):
    """Returns (mean losses of the last step, weights) of a plain loop."""
    model = _model()
    for (x, y), u in dataset:
        with tf.GradientTape() as tape:
            main = tf.reduce_mean(tf.square(model(x) - y))
            unlabeled = tf.reduce_mean(tf.square(model(u) - 1.0))
            total = main + unlabeled
        gradients = tape.gradient(total, [v.value for v in model.trainable_variables])
        for variable, gradient in zip(model.trainable_variables, gradients):
            variable.assign_sub(learning_rate * gradient)
    return float(main), float(unlabeled), [v.numpy() for v in model.variables]


@pytest.mark.parametrize("parts", [slow(1), 2])
@pytest.mark.parametrize("strategy", [slow("default"), "mirrored"])
@pytest.mark.parametrize("sizes", [(8, 24), (8, 12), (24, 8)])
def test_streams_of_other_sizes_are_cut_in_proportion(sizes, strategy, parts):
    dataset = _streams(*sizes).take(1) if sizes[0] == 24 else _streams(*sizes)
    *expected, weights = _by_hand(dataset)
    trainer = _make(Semi, strategy, micro_batches=parts)
    iterator = iter(trainer.distribute(dataset))
    for _ in range(int(dataset.cardinality())):
        metrics = trainer.train(iterator, 1)
    assert [metrics["losses/main"], metrics["losses/unlabeled"]] == pytest.approx(expected, rel=1e-5)
    for value, variable in zip(weights, trainer.model.variables):
        np.testing.assert_allclose(variable.numpy(), value, atol=1e-6)


@pytest.mark.parametrize("strategy", [slow("default"), "mirrored"])
def test_an_evaluation_counts_the_rows_of_each_stream(strategy):
    """x: 8 + 2 rows, u: 24 and 24: a mean over batches, or over the rows of x, is not the mean over the rows of u."""
    dataset = _streams(drop_remainder=False, n=10)
    model = _model()
    losses = _make(Semi, strategy).evaluate(dataset)
    assert losses["losses/main"] == pytest.approx(np.mean((model.predict(X[:10], verbose=0) - Y[:10]) ** 2), rel=1e-5)
    assert losses["losses/unlabeled"] == pytest.approx(np.mean((model.predict(U[:48], verbose=0) - 1) ** 2), rel=1e-5)


class Graphs(Trainer):
    def compute_losses(self, batch, training):
        nodes, edges = batch["nodes"], batch["edges"]
        return {"main": tf.square(tf.gather(self.model(nodes), edges[:, 0]) - 1.0)}


def test_rows_that_do_not_belong_together():
    one = {"nodes": X[:10], "edges": np.arange(21)[:, None] % 10}
    dataset = tf.data.Dataset.from_tensors(one)
    trainer = _make(Graphs, "default")
    assert np.isfinite(train(trainer, dataset, 1)["loss"])
    text = r"same proportion into 2 .*batch\['nodes'\]: 10 rows, batch\['edges'\]: 21 rows"
    with pytest.raises(ValueError, match=text):
        _make(Graphs, "mirrored").distribute(dataset)
    with pytest.raises(ValueError, match=text):
        _make(Graphs, "default", micro_batches=2).distribute(dataset)

    def grow():  # of another size in each batch, which is seen when it comes
        yield {"nodes": X[:10], "edges": np.arange(20)[:, None] % 10}
        yield one

    signature = {"nodes": tf.TensorSpec([None, 3]), "edges": tf.TensorSpec([None, 1], tf.int64)}
    growing = tf.data.Dataset.from_generator(grow, output_signature=signature)
    with pytest.raises(tf.errors.InvalidArgumentError, match="same proportion into 2"):
        list(distribute(make_strategy("mirrored"), growing))


def _parts(dataset):
    """Returns [[(batch, examples) of each replica] of each batch] on two replicas."""
    strategy, found = make_strategy("mirrored"), []
    for element in distribute(strategy, dataset):
        seen = []
        strategy.run(lambda e, seen=seen: seen.append(unpack(e)), args=(element,))
        found.append([(batch, int(examples)) for batch, examples, _ in seen])
    return found


def test_scalars_none_and_extension_types_reach_every_replica():
    values = np.arange(5, dtype=np.float32)[:, None]
    batch = {"m": Masked(values, values > 2), "rate": 0.5, "none": None, "a": (values, None)}
    dataset = tf.data.Dataset.from_tensors(batch)
    (replicas,) = _parts(dataset)
    assert [examples for _, examples in replicas] == [2, 3]
    for (part, _), rows in zip(replicas, (slice(0, 2), slice(2, 5))):
        assert part["none"] is None and part["a"][1] is None and float(part["rate"]) == 0.5
        assert isinstance(part["m"], Masked)
        np.testing.assert_array_equal(part["m"].values, values[rows])
        np.testing.assert_array_equal(part["m"].mask, values[rows] > 2)
        np.testing.assert_array_equal(part["a"][0], values[rows])


def test_the_last_batch_may_be_smaller_than_the_replicas():
    (replicas,) = _parts(tf.data.Dataset.from_tensors((X[:1], U[:3])))
    assert [examples for _, examples in replicas] == [0, 1]
    np.testing.assert_array_equal(replicas[1][0][1], U[:3])


class OfAnything(Trainer):
    def compute_losses(self, batch, training):
        values = self.model(batch["m"].values) * tf.cast(batch["m"].mask, tf.float32)[:, None] * batch["rate"]
        return {"main": tf.square(values)}, values


@pytest.mark.parametrize("strategy", ["default", "mirrored"])
@pytest.mark.parametrize("mode", ["graph", "xla_loop"])
def test_batches_of_any_nest_train_evaluate_and_are_saved_as_specs(strategy, mode):
    if (strategy, mode) == ("mirrored", "xla_loop"):
        pytest.skip("XLA needs one replica")
    batch = {"m": Masked(X[:8], np.arange(8) > 2), "rate": 0.5, "none": None}
    dataset = tf.data.Dataset.from_tensors(batch).repeat(4)
    trainer = _make(OfAnything, strategy, compile=mode, micro_batches=2)
    metrics = train(trainer, dataset, 2, chunk=2)
    expected = np.mean((_model()(X[:8]).numpy()[3:] * 0.5) ** 2) * 5 / 8
    first = _make(OfAnything, strategy).evaluate(dataset.take(1))["loss"]
    assert first == pytest.approx(expected, rel=1e-5) and metrics["loss"] < first
    assert spec_from_json(json.loads(json.dumps(spec_to_json(dataset.element_spec)))) == dataset.element_spec


def test_units_and_cuts():
    x, u = tf.reshape(tf.range(8), [8, 1]), tf.range(12)
    assert units_of((x, u), 2, "parts") == 4
    half = cut((x, u, tf.constant(3), None), 2, 4, 4, 2)
    assert half[0][:, 0].numpy().tolist() == [4, 5, 6, 7] and half[1].numpy().tolist() == [6, 7, 8, 9, 10, 11]
    assert int(half[2]) == 3 and half[3] is None
    ragged, sparse = tf.ragged.constant([[1], [2, 3], [], [4]]), tf.sparse.from_dense([[1], [0], [2], [3]])
    part = cut({"r": ragged, "s": sparse}, 2, 4, 4, 2)
    assert part["r"].to_list() == [[], [4]] and tf.sparse.to_dense(part["s"]).numpy().tolist() == [[2], [3]]
    assert spec_of((x, None))[1] == tf.NoneTensorSpec()


# ---- The size of the build trace -----------------------------------------------------------------------------------


class Groups(keras.layers.Layer):
    """The spread within groups of four rows, as a minibatch statistic of GANs."""

    def call(self, x):
        spread = tf.math.reduce_std(tf.reshape(x, [4, -1, x.shape[-1]]), 0)
        return tf.concat([x, tf.tile(tf.reduce_mean(spread, -1, keepdims=True), [4, 1])], -1)


class Grouped(keras.Model):
    def __init__(self):
        super().__init__()
        self.groups, self.dense = Groups(), keras.layers.Dense(1)

    def call(self, x):
        return self.dense(self.groups(x))


def test_the_trace_has_the_size_of_the_first_batch():
    dataset = tf.data.Dataset.from_tensor_slices((X[:24], Y[:24])).batch(8)  # [None, 3]

    def trained(how):
        keras.utils.set_random_seed(0)
        trainer = Trainer(Grouped(), "mse", optimizers="sgd")
        if how == "train":
            return train(trainer, dataset, 3)["loss"]
        return trainer.evaluate(dataset)["loss"] if how == "evaluate" else trainer.predict(dataset)

    keras.utils.set_random_seed(0)
    model = Grouped()
    model.compile("sgd", "mse")
    assert trained("evaluate") == pytest.approx(model.evaluate(dataset, verbose=0), rel=1e-5)
    np.testing.assert_allclose(trained("predict"), model.predict(dataset, verbose=0), atol=1e-5)
    assert trained("train") == pytest.approx(model.fit(dataset, verbose=0).history["loss"][0], rel=1e-5)


@pytest.mark.parametrize("strategy, size", [("default", 8), ("mirrored", 4)])
def test_a_static_batch_is_that_of_a_replica(strategy, size):
    x = R.normal(size=(16, 5, 2)).astype(np.float32)

    def make(batch):
        with make_strategy(strategy).scope():
            layers = [keras.Input(batch_shape=(batch, 5, 2)), keras.layers.GRU(3, stateful=True), keras.layers.Dense(1)]
            return Trainer(keras.Sequential(layers), "mse", optimizers="sgd")

    source = data.from_arrays((x, Y[:16]), 8)
    trainer = make(size)
    assert np.isfinite(train(trainer, source, 2)["loss"])
    with pytest.raises(
        ValueError, match=rf"batch_shape=\(16, .*batch of 8 .* gets {size}.*batches of {16 * 8 // size}"
    ):
        make(16).distribute(source)
