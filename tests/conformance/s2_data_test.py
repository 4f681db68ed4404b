"""S2 and S4, data: sparse, ragged and string batches, arrays, sets, queues, images, signals, and what leaves."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import layers
from tests.conformance.training import digits, learns, numbers, sequential, train
from trainer import Trainer
from trainer.data import from_arrays
from trainer.replicas.distribution import make_strategy
from trainer.saving.export import export

L, SGD = keras.layers, keras.optimizers.SGD
LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def test_sparse_batches():
    """Row 23: SparseTensor inputs train, as the dense ones do, also where a replica gets no row."""
    x = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32) * (np.arange(40).reshape(5, 8) % 3 == 0)
    y, kernels = x.sum(1, keepdims=True), []

    def made(is_sparse):
        return Trainer(keras.Sequential([keras.Input((8,), sparse=is_sparse), L.Dense(1)]), "mse", (), SGD(0.02))

    for convert, strategy in ((tf.sparse.from_dense, "mirrored"), (tf.constant, "default")):
        data = tf.data.Dataset.from_tensor_slices((convert(x), y)).batch(4)  # batches of 4 and of 1
        trainer = learns(lambda: made(convert is tf.sparse.from_dense), data, 7, strategy)  # noqa: B023
        kernels.append(trainer.variables["dense/kernel"].numpy())
    np.testing.assert_allclose(*kernels, rtol=1e-5, atol=1e-7)


def test_a_sparse_batch_without_rows_breaks_a_replica():
    """Row 23, the old form: TensorFlow's own split leaves a replica without a row, which cannot be handed over."""
    strategy = make_strategy("mirrored")
    dataset = tf.data.Dataset.from_tensor_slices(tf.sparse.from_dense(tf.eye(1, 4))).batch(2)
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="Serialized sparse should have at least 1 serialized tensor"
    ):
        next(iter(strategy.experimental_distribute_dataset(dataset)))


IDS = tf.RaggedTensor.from_row_lengths(
    tf.constant(np.random.default_rng(0).integers(1, 9, 16), tf.int32), [3, 0, 5, 1, 4, 3]
)


def test_ragged_batches():
    """Row 24: ragged ids train through an embedding and a pool, or made dense; a row counts the same in any batch."""
    inputs = keras.Input((None,), ragged=True, dtype="int32")
    with pytest.raises(Exception, match="(?i)ragged|shape|rank|convert"):
        np.array(L.LSTM(2)(L.Embedding(9, 4)(IDS)))

    def made():
        inputs = keras.Input((None,), ragged=True, dtype="int32")
        x = L.Embedding(9, 4)(inputs)
        pooled = L.Concatenate()([layers.RaggedPool("mean")(x), L.LSTM(3)(layers.RaggedToDense()(x))])
        return Trainer(keras.Model(inputs, L.Dense(1)(pooled)), "mse", (), SGD(0.1))

    assert inputs.ragged
    learns(made, (IDS, np.arange(6, dtype=np.float32)[:, None] / 5))


TEXTS = np.array(["good fine good", "bad", "fine good", "bad bad awful", "awful", "good"])
MOODS = np.array([[1.0], [0.0], [1.0], [0.0], [0.0], [1.0]], np.float32)


@pytest.mark.parametrize("where, strategy", [("model", "mirrored"), ("data", "default")])
def test_string_batches(where, strategy):
    """Row 25: strings are looked up inside the model, or (for XLA's sake) in tf.data; both train."""
    words = L.TextVectorization(output_mode="multi_hot", vocabulary=["good", "fine", "bad", "awful"])
    text = tf.data.Dataset.from_tensor_slices((TEXTS, MOODS)).batch(6)
    model = [keras.Input((), dtype="string"), words] if where == "model" else [keras.Input((5,))]
    data = text if where == "model" else text.map(lambda x, y: (words(x), y))
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    trainer = learns(
        lambda: Trainer(keras.Sequential([*model, L.Dense(1)]), loss, ["accuracy"], SGD(1.0)), data, 5, strategy
    )
    scores = trainer.predict(text if where == "model" else data)
    np.testing.assert_array_equal(scores > 0, MOODS > 0)


class Structures(L.Layer):
    """A running sum by a TensorArray, and the number of features that are among the first two, by a set."""

    def call(self, x):
        steps = tf.TensorArray(x.dtype, x.shape[-1])
        total = tf.zeros_like(x[:, 0])
        for i in range(x.shape[-1]):
            total += x[:, i]
            steps = steps.write(i, total)
        signs = tf.cast(tf.sign(x), tf.int32)
        common = tf.sets.size(tf.sets.intersection(signs[:, :2], signs[:, 2:]))
        result = tf.concat([tf.transpose(steps.stack()), tf.cast(common, x.dtype)[:, None]], -1)
        return tf.ensure_shape(result, [x.shape[0], x.shape[1] + 1])


def test_tensor_arrays_and_sets():
    """Row 26: both inside a layer that trains, eager and compiled alike, with values by NumPy."""
    x, y = numbers()
    signs = np.sign(x)
    common = [len(set(row[:2]) & set(row[2:])) for row in signs]
    np.testing.assert_allclose(
        Structures()(x), np.concatenate([np.cumsum(x, 1), np.array(common)[:, None]], 1), rtol=1e-5, atol=1e-6
    )
    kernels = []
    for mode in ("eager", "graph"):
        make = lambda: Trainer(sequential(Structures(), L.Dense(1)), "mse", (), SGD(0.01), compile=mode)  # noqa: B023, E731
        kernels.append(learns(make, (x, y)).variables["dense/kernel"].numpy())
    np.testing.assert_allclose(*kernels, rtol=1e-5)


def test_queues():
    """Row 27: FIFO, priority and shuffling queues; what a FIFO queue holds trains."""
    fifo = tf.queue.FIFOQueue(10, ["float32", "float32"], shapes=[[3], [1]])
    x, y = numbers(10)
    fifo.enqueue_many((x, y))
    priority = tf.queue.PriorityQueue(3, ["string"], [[]])
    priority.enqueue_many(([2, 0, 1], ["c", "a", "b"]))
    assert [priority.dequeue()[1].numpy() for _ in range(3)] == [b"a", b"b", b"c"]
    shuffled = tf.queue.RandomShuffleQueue(10, 0, ["int32"], [[]], seed=1)
    shuffled.enqueue_many([tf.range(10)])
    assert sorted(shuffled.dequeue_many(10).numpy()) == list(range(10))
    batch = tf.function(lambda: fifo.dequeue_many(8))()
    np.testing.assert_array_equal(batch[0], x[:8])
    learns(lambda: Trainer(sequential(L.Dense(1)), "mse", (), SGD(0.1), compile="eager"), tuple(batch))


class Spectrum(L.Layer):
    """Magnitudes of a short-time Fourier transform, differentiable."""

    def call(self, x):
        return tf.abs(tf.signal.stft(x, frame_length=8, frame_step=4)) ** 2


def test_images_and_signals():
    """Row 28: tf.image in the pipeline, tf.signal in the model; what they give is that of NumPy, and it trains."""
    images, labels = digits(16)

    def augment(example, seed):
        return tf.image.stateless_random_flip_left_right(example[0], seed), example[1]

    source = from_arrays((images, labels), 16, augment=augment, repeat=False)
    flipped = next(iter(source.batches(0)))[0].numpy()
    kept, turned = ((flipped == other).all((1, 2, 3)) for other in (images, images[:, :, ::-1]))
    assert (kept | turned).all() and kept.any() and turned.any()
    classes = lambda: sequential(L.Flatten(), L.Dense(10), shape=(8, 8, 1))  # noqa: E731
    learns(lambda: Trainer(classes(), LOGITS, (), SGD(0.1), compile="eager"), next(iter(source.batches(0))))

    x = np.random.default_rng(0).normal(size=(6, 16)).astype(np.float32)
    window = tf.signal.hann_window(8).numpy()
    frames = np.stack([x[:, start : start + 8] for start in (0, 4, 8)], 1) * window
    np.testing.assert_allclose(Spectrum()(x), np.abs(np.fft.rfft(frames)) ** 2, rtol=1e-3, atol=1e-3)
    heard = lambda: sequential(L.Dense(16), Spectrum(), L.Flatten(), L.Dense(1), shape=(16,))  # noqa: E731
    learns(lambda: Trainer(heard(), "mse", (), SGD(1e-4), compile="eager"), (x, x[:, :1]))


def test_the_loop_under_xla():
    """Row 28: JIT: the loop as one XLA program gives the graph's losses (tf.data and autodiff are in every row)."""
    losses = []
    for mode in ("graph", "xla_loop"):
        keras.utils.set_random_seed(0)
        trainer = Trainer(sequential(L.Dense(4, "tanh"), L.Dense(1)), "mse", (), SGD(0.1), compile=mode)
        iterator = iter(
            trainer.distribute(from_arrays(numbers(), 8, shuffle=False), chunk=2 if mode == "xla_loop" else None)
        )
        losses.append([trainer.train(iterator, 4)["loss"] for _ in range(2)])
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert losses[0][1] < losses[0][0]


_ALONE = """
import sys
for ours in ("trainer", "layers", "losses", "optimizers", "configs", "tests"):
    sys.modules[ours] = None  # an import of it would fail
import numpy as np
import tensorflow as tf
served = tf.saved_model.load(sys.argv[1])
data = np.load(sys.argv[2])
got = served.serve({"text": data["text"], "x": data["x"]})
np.testing.assert_allclose(got, data["wanted"], rtol=1e-5)
print("served", got.shape)
"""


def test_an_exported_graph_runs_outside_of_our_code(tmp_path):
    """Row 29: SavedModel: another process, with TensorFlow alone, gives the same numbers, own layers and all."""
    text, x = keras.Input((), dtype="string", name="text"), keras.Input((3,), name="x")
    words = L.TextVectorization(output_mode="multi_hot", vocabulary=["good", "fine", "bad", "awful"])
    h = layers.ScaledDense(4, "tanh")(layers.PolynomialTransform(2)(x))
    model = keras.Model({"text": text, "x": x}, L.Dense(1)(L.Concatenate()([words(text), h])))
    inputs = {"text": TEXTS, "x": numbers(6)[0]}
    source = from_arrays((inputs, MOODS), 6, repeat=False)
    trainer, _, _ = train(lambda: Trainer(model, "mse", (), SGD(0.1)), next(iter(source.batches(0))))
    export(trainer, source, tmp_path)
    np.savez(tmp_path / "data.npz", wanted=trainer.predict(source), **inputs)
    command = [sys.executable, "-I", "-c", _ALONE, str(tmp_path / "saved_model"), str(tmp_path / "data.npz")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "served (6, 1)" in done.stdout


def test_a_trained_model_as_tflite():
    """Row 29: TFLite: the converted model gives the trained one's numbers. (Hub, TFX, TF.js are out of scope.)"""
    x, y = numbers()
    trainer, _, _ = train(
        lambda: Trainer(sequential(layers.ScaledDense(4, "tanh"), L.Dense(1)), "mse", (), SGD(0.1), compile="eager"),
        (x, y),
    )
    interpreter = tf.lite.Interpreter(model_content=tf.lite.TFLiteConverter.from_keras_model(trainer.model).convert())
    interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    got = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(got, trainer.model(x), rtol=1e-5, atol=1e-6)
