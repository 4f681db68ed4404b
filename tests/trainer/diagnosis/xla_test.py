"""What XLA cannot compile is refused in one sentence before it is asked to; all else trains.

All in one process: TensorFlow itself ends it at the first compilation after one that met strings.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.runs import train
from trainer import Trainer
from trainer.data import from_arrays
from trainer.diagnosis import xla_graph
from trainer.experiment import arguments_of_run, start
from trainer.outer_loop.arguments import Request

L = keras.layers
RNG = np.random.default_rng(0)
X, Y = RNG.random((16, 4)).astype("float32"), np.zeros((16, 1), "float32")
IMAGES, WORDS, IDS = (
    RNG.random((16, 8, 8, 1)).astype("float32"),
    np.array(["a", "b", "c", "d"] * 4),
    np.ones((16, 4), "int64"),
)


class Apply(keras.Model):
    """A function of the user's own between two layers."""

    def __init__(self, function):
        super().__init__()
        self.function, self.first, self.last = function, L.Dense(4), L.Dense(1)

    def call(self, x):
        return self.last(self.function(self.first(x)))


def _sequential(shape, *layers, dtype="float32"):
    return keras.Sequential([keras.Input(shape, dtype=dtype), *layers, L.Flatten(), L.Dense(1)])


def _scan(x):
    _, states = keras.ops.scan(
        lambda state, row: (state * row, state * row), keras.ops.ones((8,)), keras.ops.transpose(x)
    )
    return keras.ops.transpose(states)


def _while(x, **bound):
    return keras.ops.while_loop(lambda i, v: i < 3, lambda i, v: (i + 1, v * v), (0, x), **bound)[1]


def _python(x):
    doubled = tf.numpy_function(lambda v: 2 * v, [x], tf.float32)
    return x + tf.ensure_shape(doubled, x.shape)


def _asserted(x):
    tf.debugging.assert_less(tf.reduce_max(x), 1e9, message="too large")
    return x + tf.cast(tf.strings.length(tf.constant("abc")), tf.float32)  # computed before the compilation


def _printed(x):
    tf.print("mean", tf.reduce_mean(x))
    return x


def _train(model, x, compile="xla_step", data=None):
    trainer = Trainer(model, "mse", (), "sgd", compile=compile)
    return train(trainer, data or from_arrays((x, Y), 8), 1)


REFUSED = {
    "words": (
        lambda: _sequential((), L.StringLookup(vocabulary=["a"]), L.Embedding(4, 2), dtype="string"),
        WORDS,
        r"batch\[0\] holds strings; XLA has no LookupTableFindV2, in a library \(.*string_lookup.*\).*input pipeline",
    ),
    "lookup": (
        lambda: _sequential((4,), L.IntegerLookup(vocabulary=[1, 2]), L.Embedding(4, 2), dtype="int64"),
        IDS,
        "XLA has no LookupTableFindV2",
    ),
    "hashing": (lambda: _sequential((4,), L.Hashing(3), L.Embedding(3, 2), dtype="int64"), IDS, "XLA has no AsString"),
    "rotation": (
        lambda: _sequential((8, 8, 1), L.RandomRotation(0.1)),
        IMAGES,
        "XLA has no ImageProjectiveTransformV3.*augment",
    ),
    "zoom": (lambda: _sequential((8, 8, 1), L.RandomZoom(0.1)), IMAGES, "XLA has no ImageProjectiveTransformV3"),
    "scan": (lambda: Apply(_scan), X, r"through a loop without a bound, .*xla_test.py:\d+.*maximum_iterations"),
    "while": (lambda: Apply(_while), X, r"a gradient through a loop without a bound, .*xla_test.py:\d+"),
    "python": (lambda: Apply(_python), X, r"XLA has no PyFunc, .*xla_test.py:\d+"),
    "print": (lambda: Apply(_printed), X, r"XLA has no StringFormat, .*xla_test.py:\d+"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_xla_has_not_is_named_before_it_compiles(name):
    make, x, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"`compile` 'xla_step' cannot compile this step: .*{message}") as raised:
        _train(make(), x)
    assert "compile='graph'" in str(raised.value) and len(str(raised.value)) < 700 and "\n" not in str(raised.value)


def test_a_dry_run_refuses_it_too():
    def make():
        return Trainer(Apply(_scan), "mse", (), "sgd", compile="xla_step")

    arguments = arguments_of_run(
        model_dir=None, trainer=make, train_data=from_arrays((X, Y), 8), train_steps=1, strategy="default"
    )
    with pytest.raises(ValueError, match="cannot compile this step: a gradient through a loop without a bound"):
        start(Request(dry_run=True), arguments)


def test_ragged_values():
    class Bag(keras.Model):
        def __init__(self):
            super().__init__()
            self.embed, self.out = L.Embedding(10, 4), L.Dense(1)

        def call(self, x):
            return self.out(tf.reduce_mean(self.embed(x.to_tensor()), 1))

    tokens = tf.ragged.constant([[1, 2], [3], [4, 5, 6], [1]] * 4, dtype=tf.int64)
    data = tf.data.Dataset.from_tensor_slices((tokens, Y)).batch(8)
    with pytest.raises(ValueError, match=r"XLA has no RaggedTensorToTensor, .*xla_test.py:\d+.*to_tensor"):
        _train(Bag(), None, data=data)


@pytest.mark.parametrize("compile", ["xla_step", "xla_loop"])
def test_strings_that_the_model_does_not_use(compile):
    class Named(Trainer):
        def compute_losses(self, batch, training):
            return {"main": tf.square(self.model(batch["x"]) - batch["y"])}

        def update_metrics(self, batch, outputs):
            pass

    trainer = Named(_sequential((4,)), optimizers="sgd", compile=compile)
    data = trainer.distribute(from_arrays({"x": X, "y": Y, "id": WORDS}, 8), chunk=2)
    with pytest.raises(ValueError, match=r"batch\['id'\] holds strings"):
        trainer.train(iter(data), 2)


@pytest.mark.parametrize(
    "make, x",
    [
        (lambda: _sequential((8, 8, 1), L.RandomFlip(), L.RandomContrast(0.1), L.RandomCrop(6, 6)), IMAGES),
        (lambda: _sequential((8, 8, 1), L.Resizing(4, 4), L.Dropout(0.1), L.BatchNormalization()), IMAGES),
        (lambda: Apply(lambda x: _while(x, maximum_iterations=3)), X),
        (lambda: Apply(_asserted), X),
        (lambda: Apply(lambda x: x + tf.reduce_sum(tf.boolean_mask(x, x > 0))), X),
        (lambda: _sequential((4, 1), L.LSTM(3)), X[..., None]),
    ],
    ids=["random images", "images", "bounded loop", "assert", "mask", "lstm"],
)
def test_what_xla_has_trains(make, x):
    assert np.isfinite(_train(make(), x)["loss"])


def test_tensorflow_says_what_its_xla_has():
    """Notices when the private list of kernels changes: without it nothing would be refused."""
    assert xla_graph._takes("AddV2", {"T": tf.float32}) and not xla_graph._takes("AddV2", {"T": tf.string})
    assert not xla_graph._takes("PyFunc", {}) and not xla_graph._takes("StringLength", {})


def test_other_modes_are_left_alone():
    make, x, _ = REFUSED["rotation"]
    assert np.isfinite(_train(make(), x, "graph")["loss"])
