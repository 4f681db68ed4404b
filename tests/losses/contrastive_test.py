"""Contrastive losses against hand numbers and NumPy loops."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import losses
from tests.losses.contract_test import fit_and_train
from tests.runs import train
from trainer import Trainer


def _normal(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _nt_xent_loop(first, second, t):
    views, n = _normal(np.concatenate([first, second])), len(first)
    values = []
    for i in range(2 * n):
        others = [views[i] @ views[k] / t for k in range(2 * n) if k != i]
        values.append(np.log(np.sum(np.exp(others))) - views[i] @ views[(i + n) % (2 * n)] / t)
    return (np.array(values[:n]) + values[n:]) / 2


def _sup_con_loop(labels, z, t):
    z, n, values = _normal(z), len(z), []
    for i in range(n):
        log_sum = np.log(sum([np.exp(z[i] @ z[a] / t) for a in range(n) if a != i] or [1.0]))
        terms = [log_sum - z[i] @ z[p] / t for p in range(n) if p != i and labels[p] == labels[i]]
        values.append(np.mean(terms) if terms else 0.0)
    return values


@pytest.mark.parametrize("n, t", [(4, 0.5), (2, 0.1), (8, 1.0)])
def test_orthonormal_pairs_give_the_closed_form(n, t):
    wanted = np.log(1 + (2 * n - 2) * np.exp(-1 / t))
    np.testing.assert_allclose(losses.nt_xent(np.eye(n), 3 * np.eye(n), t), np.full(n, wanted), rtol=1e-9)
    if (n, t) == (4, 0.5):
        assert wanted == pytest.approx(0.5944377, abs=1e-7)
    # InfoNCE has n - 1 negatives, all orthogonal
    wanted = np.log(1 + (n - 1) * np.exp(-1 / t))
    for symmetric in (False, True):
        np.testing.assert_allclose(losses.info_nce(np.eye(n), np.eye(n), t, symmetric), np.full(n, wanted), rtol=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.floats(0.05, 2), st.integers(0, 2**31))
def test_against_loops(n, size, t, seed):
    rng = np.random.default_rng(seed)
    first, second, labels = rng.normal(size=(n, size)), rng.normal(size=(n, size)), rng.integers(0, 3, n)
    np.testing.assert_allclose(losses.nt_xent(first, second, t), _nt_xent_loop(first, second, t), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(losses.sup_con(labels, first, t), _sup_con_loop(labels, first, t), rtol=1e-6, atol=1e-9)
    s = _normal(first) @ _normal(second).T / t
    to_keys = [np.log(np.exp(s[i]).sum()) - s[i, i] for i in range(n)]
    to_queries = [np.log(np.exp(s[:, i]).sum()) - s[i, i] for i in range(n)]
    np.testing.assert_allclose(losses.info_nce(first, second, t), to_keys, rtol=1e-6, atol=1e-9)
    both = np.mean([to_keys, to_queries], 0)
    np.testing.assert_allclose(losses.info_nce(first, second, t, symmetric=True), both, rtol=1e-6, atol=1e-9)


def test_sup_con_with_one_positive_each_is_nt_xent():
    first, second = np.random.default_rng(0).normal(size=(2, 5, 3))
    twice = losses.sup_con(np.tile(np.arange(5), 2), np.concatenate([first, second]), 0.5).numpy()
    np.testing.assert_allclose((twice[:5] + twice[5:]) / 2, losses.nt_xent(first, second, 0.5), rtol=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**31))
def test_n_pairs_against_loops(n, classes, seed):
    rng = np.random.default_rng(seed)
    pairs, labels = rng.normal(size=(n, 2, 3)), rng.integers(0, classes, n)
    s = pairs[:, 0] @ pairs[:, 1].T
    # TensorFlow Addons: crossentropy with the equal labels, each of the same probability.
    log_p = s - np.log(np.exp(s).sum(1, keepdims=True))
    wanted = [-np.mean([log_p[i, j] for j in range(n) if labels[j] == labels[i]]) for i in range(n)]
    np.testing.assert_allclose(losses.n_pairs(labels, pairs), wanted, rtol=1e-7, atol=1e-9)
    # Distinct labels: the paper's form, a sum over the other pairs' positives.
    alone = [np.log(1 + sum(np.exp(s[i, j] - s[i, i]) for j in range(n) if j != i)) for i in range(n)]
    np.testing.assert_allclose(losses.n_pairs(np.arange(n), pairs), alone, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("labels", [[0], [7, 8, 9], [1, 1, 2]])
def test_what_has_nothing_to_compare_with_is_zero_and_no_nan(labels):
    z = tf.constant(np.random.default_rng(0).normal(size=(len(labels), 3)))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(z)
        by_class = losses.sup_con(labels, z)
        alone = (
            losses.nt_xent(z[:1], 2 * z[:1]),
            losses.info_nce(z[:1], -z[:1], symmetric=True),
            losses.n_pairs([3], tf.stack([z[:1], -z[:1]], 1)),
        )
    assert [float(value[0]) for value in alone] == [0.0] * 3
    for i, label in enumerate(labels):
        assert (float(by_class[i]) == 0) == (labels.count(label) == 1)
    for values in (by_class, *alone):
        assert np.isfinite(tape.gradient(values, z)).all()


def test_a_vector_of_zeros_is_no_nan():
    z = tf.zeros([3, 4])
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = losses.nt_xent(z, z) + losses.sup_con([0, 0, 1], z)
    assert np.isfinite(value).all() and np.isfinite(tape.gradient(value, z)).all()


def test_a_temperature_can_be_trained():
    log_scale = tf.Variable(np.log(1 / 0.5))
    first, second = np.random.default_rng(0).normal(size=(2, 5, 3))
    with tf.GradientTape() as tape:
        value = tf.reduce_mean(losses.info_nce(first, second, tf.exp(-tf.cast(log_scale, tf.float64))))
    assert float(value) == pytest.approx(float(np.mean(losses.info_nce(first, second, 0.5))), rel=1e-6)
    assert float(tape.gradient(value, log_scale)) != 0


def test_pairs_by_hand():
    pairs = np.array([[[0.0, 0], [3, 4]], [[0, 0], [3, 4]], [[0, 0], [0.3, 0.4]], [[1, 1], [1, 1]]])
    np.testing.assert_allclose(losses.contrastive_pairs([1, 0, 0, 1], pairs, 1.0), [25, 0, 0.25, 0], rtol=1e-9)
    same = tf.constant(pairs[3:])
    with tf.GradientTape() as tape:
        tape.watch(same)
        value = losses.contrastive_pairs([0], same)  # equal, but should not be: a distance of 0 under a root
    np.testing.assert_array_equal(value, [1.0])
    np.testing.assert_array_equal(tape.gradient(value, same), np.zeros((1, 2, 2)))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: losses.NTXent(temperature=0), "`temperature` must be > 0, got 0"),
        (lambda: losses.Contrastive(margin=-1), "`margin` must be > 0, got -1"),
        (lambda: losses.nt_xent(np.zeros((2, 3, 4)), np.zeros((2, 3, 4))), "`first` must be .B, D."),
        (lambda: losses.info_nce(np.zeros((2, 3)), np.zeros((3, 3))), r"one shape, got \(2, 3\) and \(3, 3\)"),
        (lambda: losses.NTXent()(np.zeros(2), np.zeros((2, 3))), "`predictions` must be .B, 2, D."),
        (lambda: losses.n_pairs([0, 1], np.zeros((2, 3))), "`predictions` must be .B, 2, D."),
        (lambda: losses.sup_con([0, 1], np.zeros((3, 3))), "`labels` of shape .2,. do not fit embeddings"),
        (lambda: losses.sup_con(np.eye(3), np.zeros((3, 3))), "`labels` of shape .3, 3. do not fit embeddings"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_fit_and_the_trainer_agree():
    rng = np.random.default_rng(2)
    x, ids = rng.normal(size=(6, 3)).astype(np.float32), np.array([0, 1, 1, 0, 2, 0])
    function = losses.sup_con
    fitted, trained = fit_and_train(function, x, ids, outputs=3)
    np.testing.assert_allclose(trained, fitted, rtol=1e-5, atol=1e-6)
    keras.utils.set_random_seed(4)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.5), losses.SupCon())
    model.fit(x, ids, batch_size=6, epochs=3, verbose=0, shuffle=False)
    np.testing.assert_allclose(np.concatenate([w.numpy().ravel() for w in model.weights]), fitted, rtol=1e-5, atol=1e-6)


def test_two_views_in_compute_losses():
    class Contrast(Trainer):
        def compute_losses(self, batch, training):
            x, again = batch
            return {"nt_xent": losses.nt_xent(self.model(x), self.model(again))}

    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 4)).astype(np.float32)
    again = x + 0.1 * rng.normal(size=x.shape).astype(np.float32)
    trainer = Contrast(
        keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]), optimizers=keras.optimizers.Adam(0.05)
    )
    iterator = iter(trainer.distribute(tf.data.Dataset.from_tensors((x, again)).repeat()))
    first, last = (
        trainer.train(iterator, 1)["loss"],
        [trainer.train(iterator, 40), trainer.train(iterator, 1)][1]["loss"],
    )
    assert last < first - 0.05


def test_a_loss_of_two_views_needs_no_targets_in_the_batch():
    views = tf.random.stateless_normal([8, 2, 4], [0, 1])
    batches = tf.data.Dataset.from_tensor_slices((views,)).batch(4)
    trainer = Trainer(keras.Sequential([keras.Input((2, 4)), keras.layers.Dense(3)]), losses.NTXent(), optimizers="sgd")
    assert train(trainer, batches, 2)["loss"] > 0
    rows = [losses.nt_xent(out[:, 0], out[:, 1]) for out in tf.split(tf.constant(trainer.predict(batches)), 2)]
    assert trainer.evaluate(batches)["loss"] == pytest.approx(float(tf.reduce_mean(rows)), rel=1e-5)
    with pytest.raises(ValueError, match="The batch has no targets for main"):
        Trainer(trainer.model, "mse").distribute(batches)
