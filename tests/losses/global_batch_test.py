"""The global batch on each replica, its sums and means, and gradients that add up to those of one device."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import losses
from losses.global_batch import all_gather, first_row, global_mean, global_sum
from tests.runs import arrays_of, train
from trainer import Trainer
from trainer.replicas.distribution import make_strategy, replica_values

X = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
IDS = np.array([0, 1, 0, 2, 1, 0, 2])


def _run(function, *arrays, at):
    """Runs `function` on two replicas that hold the rows before and from `at`; returns what each one returned."""
    strategy = make_strategy("mirrored")

    def part(array):
        halves = [tf.constant(array[:at]), tf.constant(array[at:])]
        return strategy.experimental_distribute_values_from_function(
            lambda context: halves[context.replica_id_in_sync_group]
        )

    out = tf.function(lambda *values: strategy.run(function, args=values))(*(part(array) for array in arrays))
    return replica_values(strategy, out)


@pytest.mark.parametrize("at", [4, 2, 6])
def test_all_rows_in_replica_order_also_of_uneven_shares(at):
    def function(x, ids):
        return all_gather(x), all_gather(ids), first_row(x)

    for replica, (everyone, ids, first) in enumerate(_run(function, X, IDS, at=at)):
        np.testing.assert_array_equal(everyone, X)
        np.testing.assert_array_equal(ids, IDS)
        assert ids.dtype == tf.int64 and int(first) == (at if replica else 0)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("at", [4, 2])
def test_the_gradients_of_all_replicas_sum_to_that_of_one_device(at, dtype):
    def value(own, everyone):
        return tf.reduce_sum(tf.square(tf.matmul(own, everyone, transpose_b=True)))

    def function(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            share = value(x, all_gather(x))
        return tape.gradient(share, x)

    x = X.astype(dtype)
    whole = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(whole)
        total = value(whole, whole)
    wanted = tape.gradient(total, whole)
    got = tf.concat(_run(function, x, at=at), 0)
    assert got.dtype == wanted.dtype
    np.testing.assert_allclose(got, wanted, rtol=2e-2 if dtype == "float16" else 1e-5)


def test_without_replicas_it_is_the_tensor_itself():
    np.testing.assert_array_equal(all_gather(X), X)
    assert int(first_row(X)) == 0
    with make_strategy("mirrored").scope():  # outside `run` there is one batch
        np.testing.assert_array_equal(all_gather(X), X)
    with make_strategy("one_device").scope():
        np.testing.assert_array_equal(make_strategy("one_device").run(all_gather, args=(X,)), X)


@pytest.mark.parametrize("strategy", ["default", "mirrored"])
def test_micro_batches_are_refused_in_a_sentence(strategy):
    with pytest.raises(
        RuntimeError, match="`all_gather` needs the global batch, .* micro-batch. Use `micro_batches` = 1"
    ):
        _train(strategy, ["sup_con"], evaluate=False, micro_batches=2)


def test_a_loop_of_the_users_is_refused_in_a_sentence():
    def function(x):
        return tf.while_loop(lambda i, _: i < 2, lambda i, s: (i + 1, s + global_sum(x)), (0, tf.zeros([3])))

    with pytest.raises(RuntimeError, match="in a loop or condition inside a replica"):
        _run(function, X, at=4)


def test_sums_and_means_of_the_global_batch_and_their_gradients():
    """Also of a nest, of small dtypes, and of a loss that is the same on both replicas."""

    def function(x, ids):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            share = tf.reduce_sum(tf.square(global_sum(x))) / 2  # each replica has half of the loss
            mean = tf.reduce_sum(tf.square(global_mean(x))) / 2
        small = all_gather({"ids": tf.cast(ids, tf.int8), "even": ids % 2 == 0, "none": None})
        return global_sum(ids), global_mean(ids), small, tape.gradient(share, x), tape.gradient(mean, x)

    both = _run(function, X, IDS, at=5)
    for total, mean, small, *_ in both:
        assert int(total) == IDS.sum() and float(mean) == pytest.approx(IDS.mean())
        np.testing.assert_array_equal(small["ids"], IDS)
        np.testing.assert_array_equal(small["even"], IDS % 2 == 0)
    of_sum, of_mean = (np.concatenate([one[place] for one in both]) for place in (3, 4))
    np.testing.assert_allclose(of_sum, np.tile(2 * X.sum(0), (7, 1)), rtol=1e-5)
    np.testing.assert_allclose(of_mean, np.tile(2 * X.mean(0) / 7, (7, 1)), rtol=1e-5)


def test_a_scalar_is_refused():
    with pytest.raises(ValueError, match="`global_mean` takes a row for each example"):
        global_mean(tf.reduce_sum(X))


COUPLED = {
    "nt_xent": lambda ids, z, again: losses.nt_xent(z, again),
    "info_nce": lambda ids, z, again: losses.info_nce(z, again, 0.2),
    "clip": lambda ids, z, again: losses.info_nce(z, again, 0.2, symmetric=True),
    "sup_con": lambda ids, z, again: losses.sup_con(ids, z),
    "triplet_all": lambda ids, z, again: losses.triplet(ids, z, mining="all"),
    "triplet_hard": lambda ids, z, again: losses.triplet(ids, z, mining="hard"),
    "triplet_semi_hard": lambda ids, z, again: losses.triplet(ids, z, mining="semi_hard"),
    "lifted": lambda ids, z, again: losses.lifted_structure(ids, z),
    "n_pairs": lambda ids, z, again: losses.n_pairs(ids, tf.stack([z, again], 1)),
    "vic_reg": lambda ids, z, again: losses.vic_reg(z, again, 2.5, 2.5, 0.1),
    "barlow_twins": lambda ids, z, again: losses.barlow_twins(z, again, 0.1),
}


class Coupled(Trainer):
    """Batch-coupled losses on one encoder."""

    def compute_losses(self, batch, training):
        x, again, ids = batch
        return {name: COUPLED[name](ids, self.model(x), self.model(again)) for name in self.names}


def _train(strategy, names, evaluate=True, micro_batches=1):
    keras.utils.set_random_seed(3)
    rng = np.random.default_rng(0)
    x, ids = rng.normal(size=(22, 4)).astype(np.float32), rng.integers(0, 3, 22)
    again = x + 0.3 * rng.normal(size=x.shape).astype(np.float32)
    with make_strategy(strategy).scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "tanh")])
        trainer = Coupled(model, optimizers=keras.optimizers.SGD(0.02), micro_batches=micro_batches)
        trainer.names = names
    data = tf.data.Dataset.from_tensor_slices((x, again, ids)).batch(5)  # shards of 2 and 3, at last of 1 and 1
    metrics = train(trainer, data.repeat(), 10)
    weights = arrays_of(trainer.variables)
    return metrics, weights, trainer.evaluate(data) if evaluate else {}


def test_two_replicas_train_as_one():
    one, two = _train("default", list(COUPLED)), _train("mirrored", list(COUPLED))
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            np.testing.assert_allclose(b[name], value, rtol=2e-5, atol=3e-6, err_msg=name)
    assert all(one[0][f"losses/{name}"] > 0.1 for name in COUPLED)


def test_without_gathering_they_would_not(monkeypatch):
    monkeypatch.setattr("losses.contrastive.all_gather", tf.convert_to_tensor)
    monkeypatch.setattr("losses.contrastive.first_row", lambda x: tf.constant(0))
    one, two = (_train(strategy, ["sup_con"], evaluate=False)[0] for strategy in ("default", "mirrored"))
    assert abs(one["loss"] - two["loss"]) > 0.1
