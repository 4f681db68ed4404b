"""State that no checkpoint would hold is found in the traced step and named, with its line; what is saved is not."""

import inspect
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from optimizers import EMA, OptimizerGroup, zclip
from tests.runs import slow
from trainer import Trainer, run
from trainer.data import from_arrays
from trainer.diagnosis.audit import _of_pipeline, unsaved_state
from trainer.replicas.distribution import make_strategy

L = keras.layers
X, Y = np.ones((16, 4), np.float32), np.ones((16, 1), np.float32)


class Counting(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense, self.hidden = L.Dense(1), types.SimpleNamespace(count=tf.Variable(0.0, trainable=False))

    def call(self, x):
        self.hidden.count.assign_add(1.0)  # here
        return self.dense(x)


class Noisy(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = L.Dense(1)

    def call(self, x):
        return self.dense(x + tf.random.normal(tf.shape(x)))  # here


class Generating(Noisy):
    def __init__(self):
        super().__init__()
        self.draw = tf.random.Generator.from_seed(1).normal  # a generator in an attribute is found and saved

    def call(self, x):
        return self.dense(x + self.draw(tf.shape(x)))  # here


class Remembering(Noisy):
    def __init__(self):
        super().__init__()
        self.table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, -1)

    def call(self, x):
        self.table.insert(tf.constant([1], tf.int64), tf.constant([2], tf.int64))  # here
        return self.dense(x)


class Queueing(Noisy):
    def __init__(self):
        super().__init__()
        self.queue = tf.queue.FIFOQueue(99, [tf.float32], [()])

    def call(self, x):
        self.queue.enqueue(1.0)  # here
        return self.dense(x)


class MovingLoss:
    def __init__(self):
        self.scale = tf.Variable(1.0, trainable=False)

    def __call__(self, targets, predictions):
        self.scale.assign(0.9 * self.scale + 0.1)  # here
        return self.scale * tf.square(targets - predictions)[:, 0]


def _findings(make, strategy="default", **arguments):
    strategy = make_strategy(strategy)
    with strategy.scope():
        trainer = Trainer(make(), **{"loss": "mse", "optimizers": "adam", **arguments})
    iterator = iter(trainer.distribute(from_arrays((X, Y), 8)))
    graph = trainer.loop_graph(iterator)
    found = unsaved_state(trainer, graph)
    trainer.train(iterator, 1)
    assert trainer.built.loop.experimental_get_tracing_count() == 1  # it was traced ahead, not once more
    return found


def _line_of(cls):
    lines, first = inspect.getsourcelines(cls)
    return f"audit_test.py:{first + next(i for i, line in enumerate(lines) if '# here' in line)}"


@pytest.mark.parametrize(
    "make, text",
    [
        (Counting, "(float32 ()) is changed in each step (AssignAddVariableOp)"),
        (Noisy, "RandomStandardNormal draws from its own generator"),
        (Generating, "tf.random.Generator is changed in each step"),
        (Remembering, "A table is changed in each step"),
        (Queueing, "A queue is changed in each step"),
    ],
)
def test_state_that_no_checkpoint_holds_is_named_with_its_line(make, text):
    found = _findings(make)
    assert found and all(text in sentence and _line_of(make) in sentence for sentence in found), found


def test_a_loss_with_state_is_named():
    (found,) = _findings(lambda: keras.Sequential([L.Dense(1)]), loss=MovingLoss())
    assert "is changed in each step" in found and _line_of(MovingLoss) in found


def test_two_replicas_give_one_sentence():
    (found,) = _findings(Generating, "mirrored")
    assert "tf.random.Generator" in found


class Everything(keras.Model):
    """State of every kind that checkpoints hold, or that lives no longer than a report."""

    def __init__(self):
        super().__init__()
        self.stack = [L.Dense(4), L.BatchNormalization(), L.Dropout(0.1)]
        self.heads = {"a": L.Dense(1), "b": {"c": L.GaussianNoise(0.1)}}
        self.seen, self.mean = tf.Variable(0.0, trainable=False), keras.metrics.Mean()
        self.table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer([1], [2.0]), 0.5)
        self.constant = tf.Variable([1.0], trainable=False)

    def call(self, x, training=False):
        for layer in [*self.stack, self.heads["b"]["c"]]:
            x = layer(x, training=training) if not isinstance(layer, L.Dense) else layer(x)
        self.seen.assign_add(1.0)
        self.mean.update_state(tf.reduce_mean(x))
        return self.heads["a"](x) * self.table.lookup(tf.constant([1])) * self.constant


@pytest.mark.parametrize("strategy", [slow("default"), "mirrored"])
def test_what_is_saved_is_not_named(strategy):
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 9)
    groups = lambda: OptimizerGroup(optimizer=keras.optimizers.Adam(schedule), transforms=[zclip()])  # noqa: E731
    with make_strategy(strategy).scope():
        arguments = {"metrics": ["mae"], "optimizers": groups(), "averages": EMA(0.9), "micro_batches": 2}
    assert _findings(Everything, strategy, **arguments) == []


def test_the_step_is_traced_after_train_begin_and_once(tmp_path):
    class Prepared(Trainer):
        factor, seen = 0.0, []

        def train_begin(self):
            self.factor = 2.0

        def train_step(self, batch):
            self.seen.append(self.factor)
            super().train_step(batch)

    run(
        tmp_path, lambda: Prepared(keras.Sequential([L.Dense(1)]), "mse"), lambda: from_arrays((X, Y), 4),
        train_steps=4, steps_per_loop=2, strategy="default",
    )  # fmt: skip
    assert Prepared.seen == [2.0]


def _noisy_data():
    noisy = lambda x, y: (x + tf.random.uniform([4]), y)  # here  # noqa: E731
    return tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(9).map(noisy).repeat().batch(4)


def test_random_numbers_of_the_input_pipeline_are_named(tmp_path, capsys):
    run(tmp_path / "a", lambda: Trainer(Noisy(), "mse"), _noisy_data, train_steps=2, strategy="default")
    said = "".join(capsys.readouterr())
    assert (
        "No checkpoint holds this" in said
        and f"its own state (RandomUniform), tests/trainer/diagnosis/{_line_of(_noisy_data)}" in said
    )
    assert "RandomStandardNormal" in said and _line_of(Noisy) in said
    plain = lambda: Trainer(keras.Sequential([L.Dense(1)]), "mse")  # noqa: E731
    run(tmp_path / "b", plain, lambda: from_arrays((X, Y), 4), train_steps=2, strategy="default")
    assert "No checkpoint" not in "".join(capsys.readouterr())


def test_every_kind_of_pipeline_is_looked_into():
    """Through TensorFlow's private methods, and without its serializer, which would copy the data."""
    flip, seeded = L.RandomFlip(), lambda x, seed: x + tf.random.stateless_uniform([4], seed)
    images = tf.data.Dataset.from_tensors(np.zeros([2, 4, 4, 3], np.float32))

    def states(dataset):
        return [sentence.partition(")")[0].partition("(")[2] for sentence in _of_pipeline(dataset)]

    assert "AssignVariableOp" in states(images.map(lambda x: flip(x, training=True)).batch(1))
    assert states(from_arrays(X, 4, augment=lambda x, seed: x + tf.random.normal([4])).batches(3)) == [
        "RandomStandardNormal"
    ]
    assert states(from_arrays(X, 4, augment=seeded).batches(0)) == []
    zipped = tf.data.Dataset.zip(
        images, images.flat_map(lambda x: tf.data.Dataset.from_tensors(x + tf.random.normal([])))
    )
    assert states(zipped.prefetch(1)) == ["RandomStandardNormal"]
    assert states(images.map(lambda x: x + 1).cache().shuffle(3).batch(2)) == []
