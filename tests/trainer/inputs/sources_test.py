"""Data that can be read once, data without batches, passes over data; other people's data as sources."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import Trainer, data, run
from trainer.inputs.pipelines import runs_python
from trainer.replicas.distribution import make_strategy

X = np.arange(32, dtype=np.float32).reshape(16, 2)
Y = X.sum(1, keepdims=True)
SIGNATURE = (tf.TensorSpec([None, 2], tf.float32), tf.TensorSpec([None, 1], tf.float32))
EVERY = {
    "steps_per_loop": 3,
    "eval_interval": 3,
    "checkpoint_interval": 3,
    "summary_interval": 3,
    "strategy": "default",
}


def _trainer():
    return Trainer(
        keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]), "mse", optimizers=keras.optimizers.SGD(1e-4)
    )


def _once(n=8):
    """A dataset of n batches of 2 that can be read once."""
    stream = iter([(X[2 * i : 2 * i + 2], Y[2 * i : 2 * i + 2]) for i in range(n)])
    return tf.data.Dataset.from_generator(lambda: stream, output_signature=SIGNATURE)


def _x(dataset):
    return np.concatenate([x.numpy() for x, *_ in dataset])


def test_a_look_at_the_first_batch_takes_nothing_away():
    for start in (0, 3):
        source = data.as_source(_once())
        assert source.first()[0].numpy().tolist() == X[:2].tolist()
        assert source.first(start)[0].numpy().tolist() == X[2 * start : 2 * start + 2].tolist()
        np.testing.assert_array_equal(_x(source.batches(start)), X[2 * start :])
    source = data.as_source(_once())
    source.first()
    chunks = data.as_source(_once().map(lambda x, y: (tf.ensure_shape(x, [2, 2]), tf.ensure_shape(y, [2, 1]))))
    chunks.first()
    np.testing.assert_array_equal(np.concatenate([x.numpy() for x, _ in chunks.batches(0, 4)]).reshape(-1, 2), X)
    assert source.element_spec == SIGNATURE and len(list(source.batches(0))) == 8 and not list(source.batches(0))


def test_which_pipelines_run_python():
    """A change of TensorFlow's private methods shows here."""
    plain = tf.data.Dataset.from_tensor_slices(X)
    assert not runs_python(
        plain.shuffle(4).map(lambda x: x + 1).interleave(lambda x: tf.data.Dataset.from_tensors(x)).batch(2)
    )
    assert runs_python(_once().prefetch(1)) and runs_python(tf.data.Dataset.zip(plain, _once()))
    iterator = iter(plain)
    for called in (
        lambda x: tf.py_function(lambda y: y, [x], tf.float32),
        lambda x: tf.numpy_function(lambda y: y, [x], tf.float32),
        lambda x: next(iterator),
    ):
        assert runs_python(plain.map(called)) and runs_python(
            plain.flat_map(lambda x, f=called: tf.data.Dataset.range(2).map(lambda _: f(x)))
        )


@pytest.mark.parametrize("strategy", ["default", "mirrored"])
def test_one_pass_over_a_stream_trains_on_all_of_it(strategy, tmp_path):
    result = run(tmp_path, _trainer, _once, **{**EVERY, "strategy": strategy})
    assert result.status == "done" and int(result.trainer.global_step.numpy()) == 8


@pytest.mark.parametrize("strategy", ["default", "mirrored"])
def test_an_evaluation_without_a_batch_is_an_error(strategy):
    with make_strategy(strategy).scope():
        trainer = _trainer()
    once, whole = _once(), data.from_arrays((X, Y), 4, repeat=False)
    source = data.as_source(once)
    assert trainer.evaluate(source)["loss"] == pytest.approx(trainer.evaluate(whole)["loss"], rel=1e-5)
    for empty in (source, lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(20, drop_remainder=True)):
        with pytest.raises(ValueError, match="evaluation has no batches: it is empty .* used up"):
            trainer.evaluate(empty)
        with pytest.raises(ValueError, match="has no batches"):
            trainer.predict(empty)


def test_evaluation_sets_without_a_batch_are_named(tmp_path):
    nothing = lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(20, drop_remainder=True)  # noqa: E731
    filtered = lambda: nothing().filter(lambda x, y: True)  # noqa: E731, of unknown size
    train = lambda: data.from_arrays((X, Y), 4)  # noqa: E731
    for empty in (nothing, filtered):
        with pytest.raises(ValueError, match="The training data has no batches"):
            run(tmp_path / "a", _trainer, empty, train_steps=3, **EVERY)
        with pytest.raises(ValueError, match="validation_small.* has no batches"):
            run(tmp_path / "b", _trainer, train, {"small": empty}, train_steps=3, **EVERY)
    once = data.as_source(_once())
    with pytest.raises(ValueError, match="The validation data has no batches.*used up"):
        run(tmp_path / "c", _trainer, train, lambda: once, train_steps=6, **EVERY)


def test_data_that_ends_before_a_resumed_run_goes_on(tmp_path, capsys):
    batches = lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)  # noqa: E731
    run(tmp_path, _trainer, batches, **EVERY)
    rows = (tmp_path / "metrics.jsonl").read_text()
    assert '"step": 4' in rows and all('"loss"' in row for row in rows.splitlines())
    capsys.readouterr()
    assert run(tmp_path, _trainer, batches, train_steps=9, **EVERY).status == "done"
    assert "ends before step 4" in capsys.readouterr().err
    assert (tmp_path / "metrics.jsonl").read_text() == rows


def test_passes_over_data(tmp_path):
    batches = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    unknown = batches.filter(lambda x, y: True)
    for number, (dataset, epochs, steps) in enumerate(
        [(batches, 1.5, 6), (batches, 2, 8), (unknown, 2, 8), (unknown, 1, 4)]
    ):
        result = run(tmp_path / str(number), _trainer, lambda d=dataset: d, epochs=epochs, **EVERY)
        assert int(result.trainer.global_step.numpy()) == steps
    with pytest.raises(ValueError, match="`epochs` must be a whole number of passes .* got 1.5"):
        run(tmp_path / "c", _trainer, lambda: unknown, epochs=1.5, **EVERY)


def test_predict_and_evaluate_take_arrays():
    trainer = _trainer()
    trainer.build(data.from_arrays((X, Y), 4).element_spec)
    expected = trainer.model.predict(X, verbose=0)
    frozen = tf.data.Dataset.from_tensor_slices(X).batch(5)
    for given in (X, tf.constant(X), (X, Y), [X, Y], (X, None), frozen, data.from_arrays((X, Y), 3, repeat=False)):
        np.testing.assert_allclose(trainer.predict(given), expected, atol=1e-6)
    assert trainer.evaluate((X, Y))["loss"] == pytest.approx(np.mean((expected - Y) ** 2), rel=1e-5)
    for endless in (data.from_arrays((X, Y), 4), frozen.repeat()):
        for method in (trainer.predict, trainer.evaluate):
            with pytest.raises(ValueError, match="never ends"):
                method(endless)
    inputs = {"a": keras.Input((2,), name="a"), "b": keras.Input((1,), name="b")}
    named = Trainer(keras.Model(inputs, keras.layers.Add()([keras.layers.Dense(1)(inputs["a"]), inputs["b"]])), "mse")
    named.build(data.from_arrays(({"a": X, "b": Y}, Y), 4).element_spec)
    np.testing.assert_allclose(
        named.predict({"a": X, "b": Y}), named.model.predict({"a": X, "b": Y}, verbose=0), atol=1e-6
    )


# ---- Other people's data -------------------------------------------------------------------------------------------


class Sequence(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return X[4 * index : 4 * index + 4], Y[4 * index : 4 * index + 4]


class Loader:
    """What a torch DataLoader is like: iterable again and again, sized, lists of things that NumPy can read."""

    def __len__(self):
        return 4

    def __iter__(self):
        for i in range(4):
            yield [memoryview(X[4 * i : 4 * i + 4]), Y[4 * i : 4 * i + 4]]


def _generator():
    yield from (Sequence()[i] for i in range(4))


@pytest.mark.parametrize(
    "given, steps, exact",
    [
        (Sequence(), 4, True),
        (Loader(), 4, False),
        (_generator, None, False),
        (lambda: _generator(), None, False),
        (_generator(), None, False),
    ],
    ids=["PyDataset", "loader", "generator_function", "function", "iterator"],
)
def test_common_forms_of_data_become_a_source(given, steps, exact):
    source = data.as_source(given)
    assert (source.cardinality, source.exact) == (steps, exact)
    assert source.element_spec[0].shape.as_list() == [None, 2]
    source.first()
    np.testing.assert_array_equal(_x(source.batches(0)), X)
    if not hasattr(given, "__next__"):
        np.testing.assert_array_equal(_x(source.batches(1)), X[4:])
        twice = data.as_source(given, epochs=2)
        np.testing.assert_array_equal(_x(twice.batches(3)), np.concatenate([X[12:], X]))
    trainer = _trainer()
    if not hasattr(given, "__next__"):
        expected = trainer.evaluate(data.from_arrays((X, Y), 4, repeat=False))["loss"]
        assert trainer.evaluate(given)["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_dataset_of_examples_is_not_taken_for_one_of_batches():
    class HuggingFace:
        def with_format(self, name):
            assert name == "numpy"
            return self

        def iter(self, batch_size):
            return ({"x": X[i : i + batch_size], "y": Y[i : i + batch_size]} for i in range(0, 16, batch_size))

        def __iter__(self):
            return ({"x": x, "y": y} for x, y in zip(X, Y))

    source = data.as_source(HuggingFace(), batch_size=5)
    np.testing.assert_array_equal(np.concatenate([batch["x"] for batch in source.batches(1)]), X[5:])
    with pytest.raises(ValueError, match="yields examples, not batches"):
        data.as_source(HuggingFace())


def test_arrays_need_a_size_of_batches_to_train():
    trainer = _trainer()
    iterator = iter(trainer.distribute((X, Y), batch_size=8))
    assert np.isfinite(trainer.train(iterator, 5)["loss"])
    with pytest.raises(ValueError, match=r"got arrays \(tuple\).*from_arrays"):
        trainer.distribute((X, Y))


def test_paths_of_any_kind(tmp_path):
    folder = tmp_path / "a [x] b%"
    folder.mkdir()
    with tf.io.TFRecordWriter(str(folder / "one.tfrecord")) as writer:
        writer.write(b"1.5")
    parse = lambda record, seed: tf.strings.to_number(record)  # noqa: E731
    for files in (
        folder / "one.tfrecord",
        str(folder / "one.tfrecord"),
        folder / "*.tfrecord",
        [pathlib.Path(folder / "o*")],
    ):
        assert data.from_tfrecords(files, parse, 1, repeat=False).num_examples == 1
