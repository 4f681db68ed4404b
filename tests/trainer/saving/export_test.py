"""Exported models take what the model takes, and give what it gives; what stands in the way is named."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import Trainer
from trainer.data import as_source, from_arrays
from trainer.replicas.distribution import make_strategy
from trainer.saving.export import export

L = keras.layers
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(8, 4)).astype("float32"), RNG.normal(size=(8, 1)).astype("float32")


def _exported(folder, model, data, strategy="default", **arguments):
    """Exports a trainer of `model`; returns the reloaded SavedModel and the model's own output for one batch."""
    with make_strategy(strategy).scope():
        source = as_source(data)
        trainer = Trainer(model(), arguments.pop("loss", "mse"), (), "sgd", **arguments)
    trainer.build(source.element_spec)
    export(trainer, source, folder)
    return tf.saved_model.load(str(folder / "saved_model")), trainer.model


def _text_model():
    tokens = keras.Input((None,), dtype="int64")
    return keras.Model(tokens, L.Dense(1)(L.GlobalAveragePooling1D()(L.Embedding(10, 4)(tokens))))


def _images_of_any_size():
    return keras.Sequential([keras.Input((None, None, 1)), L.Conv2D(2, 3), L.GlobalAveragePooling2D(), L.Dense(1)])


@pytest.mark.parametrize("strategy", ["default", "mirrored"])
@pytest.mark.parametrize(
    "model, x, larger",
    [
        (_text_model, RNG.integers(0, 10, (8, 6)), RNG.integers(0, 10, (3, 9))),
        (
            _images_of_any_size,
            X.reshape(8, 2, 2, 1).repeat(3, 1).repeat(3, 2),
            RNG.normal(size=(2, 7, 9, 1)).astype("float32"),
        ),
    ],
    ids=["text", "images"],
)
def test_open_dimensions_of_a_functional_model_stay_open(tmp_path, model, x, larger, strategy):
    served, own = _exported(tmp_path, model, from_arrays((x, Y), 4), strategy)
    np.testing.assert_allclose(served.serve(larger), own(larger), rtol=1e-5)
    np.testing.assert_allclose(
        served.signatures["serving_default"](tf.constant(larger))["output_0"], own(larger), rtol=1e-5
    )


class Sums(keras.Model):
    def __init__(self):
        super().__init__()
        self.scale = self.add_weight(name="scale", shape=(), initializer="ones")

    def call(self, x):
        return tf.reduce_sum(x, axis=1, keepdims=True) * self.scale


def test_the_sizes_of_a_subclassed_model_are_those_of_the_element_spec(tmp_path):
    spec = (tf.TensorSpec([None], tf.float32), tf.TensorSpec([1], tf.float32))
    rows = tf.data.Dataset.from_generator(lambda: ((np.ones(2 + i), [1.0]) for i in range(4)), output_signature=spec)
    with pytest.raises(
        ValueError, match="the SavedModel is whole.*Give Sums @keras.saving.register_keras_serializable"
    ):
        _exported(tmp_path, Sums, rows.padded_batch(2))
    served = tf.saved_model.load(str(tmp_path / "saved_model"))
    np.testing.assert_allclose(served.serve(tf.ones([3, 11])), [[11.0]] * 3)
    assert not (tmp_path / "model.keras").exists()


@keras.saving.register_keras_serializable("export_test")
class Bag(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.embed, self.out = L.Embedding(10, 4), L.Dense(1)

    def build(self, shape):
        self.embed.build(None)
        self.out.build((None, 4))

    def call(self, x):
        return self.out(tf.reduce_mean(self.embed(x.to_tensor()), 1))


def test_ragged_inputs(tmp_path):
    tokens = tf.ragged.constant([[1, 2], [3], [4, 5, 6], [1]], dtype=tf.int64)
    served, own = _exported(tmp_path, Bag, tf.data.Dataset.from_tensor_slices((tokens, Y[:4])).batch(2))
    np.testing.assert_allclose(served.serve(tokens), own(tokens), rtol=1e-5)


def test_sparse_and_nested_inputs(tmp_path):
    def model():
        inputs = {"b": keras.Input((4,), sparse=True, name="b"), "a": keras.Input((4,), name="a")}
        return keras.Model(inputs, L.Dense(1)(inputs["b"]) + L.Dense(1)(inputs["a"]))

    dense = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    data = dense.map(lambda x, y: ({"a": x, "b": tf.sparse.from_dense(x)}, y))
    served, own = _exported(tmp_path, model, data)
    x = {"a": tf.constant(X), "b": tf.sparse.from_dense(X)}
    np.testing.assert_allclose(served.serve(x), own(x), rtol=1e-5)


class Labels(keras.Model):
    """Gives a score, and the word for it."""

    def __init__(self):
        super().__init__()
        self.words = L.StringLookup(vocabulary=["low", "high"], invert=True, num_oov_indices=0)
        self.dense = L.Dense(1)

    def call(self, x):
        score = self.dense(x)
        return {"score": score, "word": self.words(tf.cast(score > 0, tf.int64)), "is_high": score > 0}


class OnScore(Trainer):
    def compute_losses(self, batch, training):
        return {"main": tf.square(self.model(batch[0])["score"] - batch[1])}

    def update_metrics(self, batch, outputs):
        pass


def test_outputs_that_are_strings_and_booleans(tmp_path):
    source = from_arrays((X, Y), 4)
    trainer = OnScore(Labels(), optimizers="sgd")
    trainer.build(source.element_spec)
    with pytest.raises(ValueError, match="the SavedModel is whole"):
        export(trainer, source, tmp_path)
    served = tf.saved_model.load(str(tmp_path / "saved_model"))
    words = served.serve(X)["word"].numpy()
    assert words.shape == (8, 1) and set(words.ravel()) <= {b"low", b"high"}


def test_a_batch_of_a_fixed_size(tmp_path):
    def model():
        return keras.Sequential([keras.Input(batch_shape=(4, 4)), L.Dense(1)])

    served, own = _exported(tmp_path, model, from_arrays((X, Y), 4))
    np.testing.assert_allclose(served.serve(X[:4]), own(X[:4]), rtol=1e-5)


class Times(L.Layer):
    """Its constructor has an argument, and there is no get_config."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def call(self, x):
        return x * self.factor


@pytest.mark.parametrize(
    "layer, message",
    [
        (lambda: Times(2.0), "Give Times @keras.saving.register_keras_serializable.*get_config"),
        (lambda: Times(tf.constant(2.0)), "Give Times a `get_config`"),
        (lambda: L.Lambda(lambda x: 2 * x), "Lambda"),
    ],
    ids=["plain", "tensor", "lambda"],
)
def test_export_names_the_layer_that_prevents_a_keras_file(tmp_path, layer, message):
    """The SavedModel is there all the same."""
    model = lambda: keras.Sequential([keras.Input((4,)), layer(), L.Dense(1)])  # noqa: E731
    with pytest.raises(ValueError, match=f"model.keras was not written; the SavedModel is whole.*{message}"):
        _exported(tmp_path, model, from_arrays((X, Y), 4))
    served = tf.saved_model.load(str(tmp_path / "saved_model"))
    assert served.serve(X).shape == (8, 1)


def test_export_refuses_a_container_without_call(tmp_path):
    class Pair(keras.Model):
        def __init__(self):
            super().__init__()
            self.generator = keras.Sequential([keras.Input((4,)), L.Dense(1)])

    class Own(Trainer):
        def compute_losses(self, batch, training):
            return {"main": tf.square(self.model.generator(batch[0]) - batch[1])}

        def update_metrics(self, batch, outputs):
            pass

    trainer = Own(Pair(), optimizers="sgd")
    trainer.build(from_arrays((X, Y), 4).element_spec)
    with pytest.raises(ValueError, match="`model` Pair has no `call`"):
        export(trainer, as_source(from_arrays((X, Y), 4)), tmp_path)
