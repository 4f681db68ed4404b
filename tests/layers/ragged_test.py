"""Ragged layers against loops in NumPy, with rows of length 0 and masks that let nothing through."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import layers
from tests.layers.contract_test import check_gradients
from tests.runs import arrays_of
from trainer import Trainer
from trainer.replicas.distribution import make_strategy

L = keras.layers
LENGTHS = [3, 0, 1, 5, 0, 2]
RNG = np.random.default_rng(0)


def _rows(*inner):
    return [RNG.normal(size=(n, *inner)).astype("float32") - 2.0 for n in LENGTHS]  # mostly below 0: a 0 is no maximum


def _ragged(rows, dtype=tf.float32):
    values = tf.cast(np.concatenate(rows), dtype)
    return tf.RaggedTensor.from_row_lengths(values, [len(row) for row in rows])


@pytest.mark.parametrize("inner", [(), (2,), (2, 3)])
def test_to_dense_pads_and_masks(inner):
    rows = _rows(*inner)
    y = layers.RaggedToDense()(_ragged(rows))
    assert y.shape == (6, 5, *inner)
    for row, values, mask in zip(rows, np.array(y), np.array(y._keras_mask)):
        np.testing.assert_array_equal(values[: len(row)], row)
        np.testing.assert_array_equal(values[len(row) :], 0)
        np.testing.assert_array_equal(mask, np.arange(5) < len(row))


def test_to_dense_keeps_ids_and_rows_that_are_all_empty():
    ids = layers.RaggedToDense()(tf.ragged.constant([[3, 4], [5]]))
    assert ids.dtype == tf.int32 and ids.numpy().tolist() == [[3, 4], [5, 0]]
    empty = layers.RaggedToDense()(_ragged([np.zeros((0, 2), "float32")] * 3))
    assert empty.shape == (3, 0, 2) and empty._keras_mask.shape == (3, 0)


@pytest.mark.parametrize("inner", [(), (2,), (2, 3)])
@pytest.mark.parametrize("mode", ["mean", "max", "sum"])
def test_a_pool_is_a_loop_over_rows(mode, inner):
    rows = _rows(*inner)
    wanted = np.stack([getattr(row, mode)(0) if len(row) else np.zeros(inner) for row in rows])
    np.testing.assert_allclose(layers.RaggedPool(mode)(_ragged(rows)), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "mode, wanted", [("mean", [1 / 3, 1 / 3, 1 / 3, 1]), ("max", [0, 1, 0, 1]), ("sum", [1, 1, 1, 1])]
)
def test_the_gradient_of_a_pool(mode, wanted):
    values = tf.constant([1.0, 5.0, 2.0, -7.0])
    with tf.GradientTape() as tape:
        tape.watch(values)
        pooled = layers.RaggedPool(mode)(tf.RaggedTensor.from_row_lengths(values, [3, 0, 1]))
    np.testing.assert_allclose(tape.gradient(pooled, values), wanted, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("mode", ["mean", "max", "sum"])
def test_half_precision_is_summed_in_float32(mode, dtype):
    layer = layers.RaggedPool(mode, dtype=dtype)
    rows = [np.full(n, 300.0, np.float32) for n in (1000, 0, 1)]  # 300,000 is no float16
    pooled = layer(_ragged(rows, layer.compute_dtype))
    most = {"mean": 300.0, "max": 300.0, "sum": 65504.0 if dtype == "mixed_float16" else 300_000.0}[mode]
    assert pooled.dtype == tf.as_dtype(layer.compute_dtype)
    np.testing.assert_allclose(tf.cast(pooled, tf.float32), [most, 0, 300], rtol=1e-2)


def test_masked_mean_is_a_loop_over_rows():
    x, mask = RNG.normal(size=(6, 5, 2)), np.arange(5) < np.array(LENGTHS)[:, None]
    x[~mask] = np.nan
    wanted = np.stack([row[keep].mean(0) if keep.any() else np.zeros(2) for row, keep in zip(x, mask)])
    layer = layers.MaskedMean(dtype="float64")
    np.testing.assert_allclose(layer(x, mask=mask), wanted, rtol=1e-10)
    assert np.isnan(L.GlobalAveragePooling1D(dtype="float64")(x, mask=tf.constant(mask))).any()
    x[~mask] = 0
    check_gradients(layer, x, mask=tf.constant(mask))
    np.testing.assert_allclose(layer(x), x.mean(1), rtol=1e-10)
    assert np.isfinite(layer(np.zeros((2, 0, 3)))).all()


def test_masked_mean_takes_keras_masks_and_ends_them():
    ids = np.array([[1, 2, 0], [3, 0, 0], [0, 0, 0]])
    embed = L.Embedding(4, 2, mask_zero=True)
    y = layers.MaskedMean()(embed(ids))
    table = embed.embeddings.numpy()
    np.testing.assert_allclose(y, [table[[1, 2]].mean(0), table[3], [0, 0]], rtol=1e-6)
    assert getattr(y, "_keras_mask", None) is None
    tokens = keras.Input((None,), dtype="int32")
    model = keras.Model(tokens, layers.MaskedMean()(embed(tokens)))
    assert model.output_shape == (None, 2)
    np.testing.assert_allclose(model(ids), y, rtol=1e-6)


def _model(kind):
    words = keras.Input((None,), dtype="int32", ragged=True)
    if kind == "dense":
        x = layers.MaskedMean()(layers.RaggedToDense()(L.Embedding(9, 3)(words)))
    elif kind == "lstm":
        x = L.LSTM(3)(layers.RaggedToDense()(L.Embedding(9, 3)(words)))
    else:
        x = layers.RaggedPool(kind)(L.Embedding(9, 3)(words))
    return keras.Model(words, L.Dense(1)(x))


IDS = tf.RaggedTensor.from_row_lengths(tf.constant(RNG.integers(1, 9, sum(LENGTHS)), tf.int32), LENGTHS)


@pytest.mark.parametrize("kind", ["dense", "lstm", "max"])
def test_functional_models_train_alike_on_two_replicas_and_come_back(kind, tmp_path):
    results = []
    for strategy in ("default", "mirrored"):
        keras.utils.set_random_seed(1)
        with make_strategy(strategy).scope():
            trainer = Trainer(_model(kind), "mse", optimizers=keras.optimizers.SGD(0.1))
        data = tf.data.Dataset.from_tensors((IDS, np.arange(6, dtype="float32")[:, None])).repeat()
        iterator = iter(trainer.distribute(data))
        start = arrays_of(trainer.trainable_variables)
        trainer.train(iterator, 3)
        results.append(arrays_of(trainer.trainable_variables))
        assert all(not np.array_equal(results[-1][n], start[n]) for n in start)
    for name, one in results[0].items():
        np.testing.assert_allclose(results[1][name], one, rtol=1e-5, atol=2e-6, err_msg=name)
    trainer.model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(loaded(IDS), trainer.model(IDS), rtol=1e-6)


def test_a_row_counts_the_same_alone_and_in_a_longer_batch():
    model = _model("lstm")
    np.testing.assert_allclose(model(IDS[2:3]), model(IDS)[2:3], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("old", [lambda: L.Dense(2), lambda: L.LSTM(2)], ids=["Dense", "LSTM"])
def test_the_old_form_fails_on_a_ragged_tensor(old):
    with pytest.raises(Exception, match="(?i)ragged|shape|rank|convert"):
        np.array(old()(_ragged(_rows(4))))
    np.array(old()(layers.RaggedToDense()(_ragged(_rows(4)))))


def test_configs_bring_them_back():
    for layer in (layers.RaggedToDense(name="a"), layers.RaggedPool("max", name="b")):
        again = type(layer).from_config(layer.get_config())
        assert again.get_config() == layer.get_config()


def test_a_graph_is_traced_once_for_rows_of_any_length():
    pool, dense, traces = layers.RaggedPool(), layers.RaggedToDense(), []

    @tf.function(input_signature=[tf.RaggedTensorSpec([None, None, 2], tf.float32, ragged_rank=1)])
    def both(x):
        traces.append(x)
        return pool(x), dense(x)

    for scale in (1, 2):
        rows = [np.ones((n * scale, 2), "float32") for n in LENGTHS]
        pooled, padded = both(_ragged(rows))
        np.testing.assert_array_equal(pooled[:, 0], np.sign(LENGTHS))
        assert padded.shape == (6, 5 * scale, 2)
    assert len(traces) == 1


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: layers.RaggedPool("median"), "`mode` must be one of mean, max, sum, got 'median'"),
        (lambda: layers.RaggedPool()(tf.ones([2, 3])), "`RaggedPool` needs a ragged .* got one that is dense"),
        (lambda: layers.RaggedToDense()(tf.ones([2, 3])), "`RaggedToDense` needs a ragged .* Use keras.Input"),
        (lambda: layers.RaggedPool()(tf.ragged.constant([[[1.0], [2.0, 3.0]]])), "got one that is ragged of rank 2"),
        (lambda: layers.MaskedMean()(tf.ones([2])), "`MaskedMean` needs inputs .B, T, ....*Add the axis"),
        (
            lambda: layers.MaskedMean()(tf.ones([2, 3]), mask=tf.ones([2, 4], tf.bool)),
            r"`mask` must be .* got the shape \(2, 4\)",
        ),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
