"""Wrong data: exceptions in the pipeline, inputs that are not finite, corrupt records."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.runs import read_rows
from tests.trainer.experiment_test import _run, _trainer
from trainer import Trainer, main
from trainer.data import as_source, from_arrays, from_tfrecords
from trainer.diagnosis import explain
from trainer.diagnosis.inputs import located
from trainer.inputs.batches import not_finite
from trainer.inputs.record_source import find_records

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
Y = X.sum(1, keepdims=True)
BAD = 26  # the element that cannot be made


def _check(index):
    if index == BAD:
        raise ValueError("negative age")
    return index


def look(index, x, y):
    index = tf.py_function(_check, [index], tf.int64)
    return tf.ensure_shape(x + 0 * tf.cast(index, tf.float32), [3]), y


def ratio(index, x, y):
    return tf.debugging.check_numerics(x / tf.cast(index != BAD, tf.float32), "bad ratio"), y


def _dataset(function):
    return tf.data.Dataset.from_tensor_slices((np.arange(40), X, Y)).map(function).batch(4, drop_remainder=True)


# ---- exceptions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["default", "mirrored"])
@pytest.mark.parametrize(
    ("function", "text", "frame"),
    [
        (look, "ValueError: negative age", 'raise ValueError("negative age")'),
        (ratio, "bad ratio : Tensor had Inf values", "def ratio"),
    ],
)
def test_an_exception_of_a_map_function_says_which_element(function, text, frame, strategy, tmp_path):
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        _run(tmp_path, data=lambda: _dataset(function), train_steps=10, steps_per_loop=4, strategy=strategy)
    assert str(caught.value).startswith(f"{text}\n  in batch 6 of the training data (epoch 0), at element 26 of .map")
    screen = explain.explain(caught.value)
    assert frame in screen and "inputs_test.py" in screen and len(screen.splitlines()) < 14


class WithIndex(Trainer):
    def compute_losses(self, batch, training):
        return {"main": tf.square(self.model(batch[1]) - batch[2])}

    def predict_step(self, batch):
        return self.model(batch[1], training=False)


def augment(example, seed):
    index, x, y = example
    return index, *ratio(index, x, y)


def test_an_example_that_cannot_be_augmented_is_named_as_the_user_counts(tmp_path):
    source = from_arrays((np.arange(40), X, Y), 8, augment=augment)
    order = np.concatenate([b[0] for b in from_arrays((np.arange(40), X, Y), 8).batches(0).take(5)])  # as it is without
    batch, row = divmod(int(np.flatnonzero(order == BAD)[0]), 8)

    def trainer():
        return WithIndex(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]), optimizers="sgd")

    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        _run(tmp_path, trainer, lambda: source, train_steps=5)
    text = (
        "bad ratio : Tensor had Inf values\n"
        f"  in batch {batch} of the training data (epoch 0), row {row}: example 26 of the arrays"
    )
    assert str(caught.value) == text
    assert "def augment" in explain.explain(caught.value)


def test_the_first_batch_evaluation_and_generators(tmp_path):
    def generator():
        yield from zip(X[:6], Y)
        raise KeyError("nope")

    def dataset():
        signature = (tf.TensorSpec([3], tf.float32), tf.TensorSpec([1], tf.float32))
        return tf.data.Dataset.from_generator(generator, output_signature=signature).batch(4)

    with pytest.raises(
        tf.errors.UnknownError, match=r"KeyError: 'nope'\n  in batch 1 of the validation data, at element 6 of"
    ) as caught:
        _run(tmp_path, eval_data=lambda: dataset(), train_steps=5)
    assert 'raise KeyError("nope")' in explain.explain(caught.value)
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="in batch 0 of the training data .epoch 0., at element 0 of .map"
    ):
        _run(tmp_path / "b", data=lambda: _dataset(lambda i, x, y: ratio(BAD + i, x, y)), train_steps=5)
    assert not (tmp_path / "b").exists()  # looked at before anything is written


def test_an_error_that_does_not_come_again_says_so(tmp_path):
    """As with data that somebody mends, or that a random number decides."""
    calls = []

    def once(index):
        calls.append(int(index))
        if calls.count(BAD) == 1 and index == BAD:
            raise ValueError("the network is down")
        return index

    def flaky(index, x, y):
        index = tf.py_function(once, [index], tf.int64)
        return tf.ensure_shape(x + 0 * tf.cast(index, tf.float32), [3]), y

    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        _run(tmp_path, data=lambda: _dataset(flaky), train_steps=10, steps_per_loop=5)
    text = (
        "ValueError: the network is down\n"
        "  in batches 5 to 9 of the training data, which gave no error when they were read again"
    )
    assert str(caught.value) == text
    assert "the network is down" in explain.explain(caught.value) and "in once" in explain.explain(caught.value)


def _raised(data, error=tf.errors.InvalidArgumentError):
    """Returns the exception of ten batches, without a run around them."""
    source = as_source(data)
    with pytest.raises(error) as caught, located(source, stop=10):
        list(source.batches(0).take(10))
    return caught.value


def test_the_first_transformation_that_fails_is_named():
    indexed = tf.data.Dataset.from_tensor_slices((np.arange(40), X, Y))
    assert "batch 5 of the training data (epoch 0), at element 26 of .map" in str(
        _raised(indexed.map(ratio).prefetch(3).batch(5).prefetch(1))
    )
    assert "at element 26 of .map" in str(
        _raised(indexed.map(ratio, num_parallel_calls=2).shuffle(8).repeat().batch(5))
    )
    shuffled = str(_raised(indexed.shuffle(40).repeat().map(ratio).batch(5)))
    assert "at an element of .map" in shuffled  # another one at each reading


def test_an_exception_of_the_step_is_left_alone(tmp_path):
    def loss(y, p):
        return tf.debugging.check_numerics(tf.reduce_mean(p, -1) / 0.0, "own loss")

    with pytest.raises(tf.errors.InvalidArgumentError, match="own loss") as caught:
        _run(
            tmp_path, lambda: Trainer(keras.Sequential([keras.layers.Dense(1)]), loss, optimizers="sgd"), train_steps=5
        )
    assert "training data" not in str(caught.value)


# ---- TFRecord files ------------------------------------------------------------------------------------------------


def parse(record, seed):
    x = tf.io.parse_single_example(record, {"x": tf.io.FixedLenFeature([3], tf.float32)})["x"]
    return x, tf.reduce_sum(x)[tf.newaxis]


def _write(path, rows, short=None):
    """Writes a record for each row of X; that of `short` lacks a number."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for row in rows:
            numbers = tf.train.Feature(float_list=tf.train.FloatList(value=X[row][: 2 if row == short else 3]))
            writer.write(tf.train.Example(features=tf.train.Features(feature={"x": numbers})).SerializeToString())
    return path


def _damage(path, byte):
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)


@pytest.fixture
def files(tmp_path):
    """Ten records in each of two files; all records have one size."""
    _write(tmp_path / "a.tfrecord", range(10)), _write(tmp_path / "b.tfrecord", range(10, 20))
    return tmp_path, (tmp_path / "a.tfrecord").stat().st_size // 10


def _rows(source, batches, start=0):
    """Which rows of X the batches hold."""
    found = np.concatenate([x.numpy() for x, _ in source.batches(start).take(batches)])
    return [int(np.flatnonzero((X == row).all(1))[0]) for row in found]


def test_records_come_like_arrays(files):
    folder, _ = files
    source = from_tfrecords(f"{folder}/*.tfrecord", parse, 4, seed=3)
    arrays = from_arrays((X[:20], X[:20].sum(1, keepdims=True)), 4, seed=3)
    assert _rows(source, 12) == _rows(arrays, 12) and sorted(_rows(source, 5)) == list(range(20))
    assert _rows(source, 4, start=7) == _rows(source, 11)[28:]
    assert source.element_spec == arrays.element_spec and source.steps_per_epoch == 5 and source.num_examples == 20
    np.testing.assert_array_equal(next(iter(source.batches(3, chunk=2)))[0], next(iter(arrays.batches(3, chunk=2)))[0])
    once = from_tfrecords([folder / "b.tfrecord", folder / "a.tfrecord"], parse, 8, repeat=False)
    assert _rows(once, -1) == [*range(10, 20), *range(10)]
    parts = [next(iter(source.shards(2, i, i + 1, 2))) for i in range(2)]
    np.testing.assert_array_equal(np.concatenate([x for (x, _), _ in parts]), next(iter(source.batches(2)))[0])
    assert "20 examples" in source.describe() and "2 TFRecord files" in source.describe()


def test_a_random_number_of_a_record_is_that_of_its_epoch(files):
    folder, _ = files

    def noisy(record, seed):
        return tf.random.stateless_uniform([], seed)

    draw = [float(x) for batch in from_tfrecords(f"{folder}/a*", noisy, 5).batches(0).take(4) for x in batch]
    again = [float(x) for batch in from_tfrecords(f"{folder}/a*", noisy, 5).batches(2).take(2) for x in batch]
    assert draw[10:] == again and len(set(draw)) == 20


def test_a_corrupt_record_stops_the_run_before_it_starts(files):
    folder, size = files
    _damage(folder / "a.tfrecord", 3 * size + 20)
    _damage(folder / "b.tfrecord", 9 * size + 20)
    text = (
        rf"a.tfrecord: record 3 \(bytes {3 * size} to {4 * size - 1}\) is corrupt\n"
        r".*b.tfrecord: record 9 .*\n.*`skip_corrupt=True`"
    )
    with pytest.raises(ValueError, match=text):
        from_tfrecords(f"{folder}/*.tfrecord", parse, 4)


def test_corrupt_records_are_skipped_and_counted_when_asked(files, capsys):
    folder, size = files
    _damage(folder / "a.tfrecord", 3 * size + 20)  # the data of one
    _damage(folder / "b.tfrecord", 6 * size + 2)  # the length of one: where the next begins is unknown
    source = from_tfrecords(f"{folder}/*.tfrecord", parse, 4, skip_corrupt=True)
    whole = [row for row in range(20) if row != 3 and row < 16]
    assert source.corrupt_records == 2 and source.num_examples == 15
    assert sorted(_rows(source, 15)) == sorted(4 * whole)  # four epochs, each record once in each
    said = capsys.readouterr().err
    assert (
        "2 in each epoch" in said
        and "record 3" in said
        and f"record 6 (byte {6 * size})" in said
        and "rest of the file" in said
    )
    assert "without 2 corrupt ones" in source.describe()
    assert source.origin(0, 0).startswith("record ") and source.example(0, 0)[0].shape == [1, 3]


def test_what_is_corrupt_is_found_record_by_record(files):
    folder, size = files
    path = folder / "a.tfrecord"
    for byte, record in (
        (5 * size + 12, 5),
        (5 * size + 16, 5),
        (6 * size - 1, 5),
        (0 * size + 13, 0),
        (10 * size - 2, 9),
    ):
        _damage(path, byte)
        whole, corrupt = find_records(str(path))
        assert list(whole) == [row for row in range(10) if row != record] and len(corrupt) == 1, byte
        assert list(whole.values()) == [(row * size + 12, (row + 1) * size - 4) for row in whole]
        _damage(path, byte)
    for byte in (5 * size, 5 * size + 8):  # length, checksum of the length
        _damage(path, byte)
        assert list(find_records(str(path))[0]) == list(range(5)), byte
        _damage(path, byte)
    path.write_bytes(path.read_bytes()[:-7])  # a copy that was cut off
    whole, corrupt = find_records(str(path))
    assert list(whole) == list(range(9)) and "truncated" in corrupt[0]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"files": "nowhere*"}, "nothing matches nowhere"),
        ({"parse": None}, "`parse` must be a function"),
        ({"batch_size": 0}, "`batch_size`"),
    ],
)
def test_mistakes_are_reported(files, arguments, text):
    with pytest.raises(ValueError, match=text):
        from_tfrecords(**{"files": f"{files[0]}/a*", "parse": parse, "batch_size": 4, **arguments})


def test_compressed_and_empty_files_are_reported(tmp_path):
    with tf.io.TFRecordWriter(str(tmp_path / "z.tfrecord"), tf.io.TFRecordOptions(compression_type="GZIP")) as writer:
        writer.write(b"a")
    with pytest.raises(ValueError, match="z.tfrecord is compressed"):
        from_tfrecords(f"{tmp_path}/z*", parse, 4)
    (tmp_path / "empty.tfrecord").touch()
    with pytest.raises(ValueError, match="no whole record"):
        from_tfrecords(f"{tmp_path}/e*", parse, 4)


@pytest.mark.parametrize("strategy", ["default", "mirrored"])
def test_a_record_that_cannot_be_parsed_is_named(files, strategy):
    folder, _ = files
    _write(folder / "b.tfrecord", range(10, 20), short=17)
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        _run(
            folder / "run",
            data=lambda: from_tfrecords(f"{folder}/*.tfrecord", parse, 4),
            train_steps=5,
            strategy=strategy,
        )
    assert f"record 7 of {folder}/b.tfrecord" in str(caught.value) and "Can't parse serialized Example" in str(
        caught.value
    )
    assert "def parse" in explain.explain(caught.value)


def test_a_file_that_is_cut_off_while_the_run_reads_is_named(files):
    folder, size = files
    source = from_tfrecords(f"{folder}/*.tfrecord", parse, 4)
    path = folder / "a.tfrecord"
    path.write_bytes(path.read_bytes()[: 9 * size])
    text = str(_raised(source, tf.errors.OpError))
    assert f"{path} has been truncated since the start of the run" in text and f"record 9 of {path}" in text


def _own(folder):
    return (
        tf.data.TFRecordDataset([f"{folder}/a.tfrecord", f"{folder}/b.tfrecord"])
        .map(lambda record: parse(record, None))
        .batch(4)
    )


def _interleaved(folder):
    paths = tf.data.Dataset.from_tensor_slices([f"{folder}/a.tfrecord", f"{folder}/b.tfrecord"])
    return paths.interleave(tf.data.TFRecordDataset, cycle_length=2).map(lambda record: parse(record, None)).batch(4)


@pytest.mark.parametrize("data", [_own, _interleaved])
def test_files_of_the_user_s_own_dataset(data, files):
    folder, size = files
    _write(folder / "b.tfrecord", range(10, 20), short=17)
    named = {_own: f"element 17 of .map, record 7 of file {folder}/b.tfrecord",
             _interleaved: f"element 15 of .map, file {folder}/b.tfrecord"}  # fmt: skip
    assert named[data] in str(_raised(data(folder)))
    _damage(folder / "a.tfrecord", 3 * size + 20)
    found = str(_raised(data(folder), tf.errors.DataLossError))
    assert f"file {folder}/a.tfrecord: record 3 (bytes {3 * size} to {4 * size - 1}) is corrupt" in found


def _load(path):
    return tf.io.decode_jpeg(tf.io.read_file(path), channels=3)


def _folder(folder):
    return keras.utils.image_dataset_from_directory(folder, image_size=(4, 4), batch_size=2, seed=1, verbose=False)


def _labeled(folder):
    paths = sorted(map(str, folder.glob("*/*.jpg")))
    return tf.data.Dataset.from_tensor_slices((paths, np.arange(6))).map(lambda path, y: (_load(path), y)).batch(2)


def _zipped(folder):
    paths = tf.data.Dataset.from_tensor_slices(sorted(map(str, folder.glob("*/*.jpg"))))
    return tf.data.Dataset.zip(tf.data.Dataset.range(6), paths.map(tf.io.read_file).map(tf.io.decode_jpeg)).batch(2)


def _nested(folder):
    paths = tf.data.Dataset.list_files(f"{folder}/*/*.jpg")
    return paths.interleave(lambda path: tf.data.Dataset.from_tensors(path).map(_load), cycle_length=3).batch(2)


@pytest.mark.parametrize("data", [_folder, _labeled, _zipped, _nested])
def test_a_corrupt_image_is_named(data, tmp_path):
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        for i in range(3):
            tf.io.write_file(str(tmp_path / kind / f"{i}.jpg"), tf.io.encode_jpeg(np.full((4, 4, 3), 9 * i, np.uint8)))
    (tmp_path / "dog" / "1.jpg").write_bytes(b"no jpeg")
    assert str(_raised(data(tmp_path))).endswith(f", file {tmp_path}/dog/1.jpg")


@pytest.mark.parametrize("compression", [None, "GZIP"])
def test_a_corrupt_record_in_zip_and_interleave_is_named(compression, tmp_path):
    def write(name):
        with tf.io.TFRecordWriter(str(tmp_path / name), compression or "") as writer:
            for row in range(4):
                writer.write(X[row].tobytes())
        return str(tmp_path / name)

    names = [write("a"), write("b")]
    contents = bytearray((tmp_path / "b").read_bytes())
    contents[-1 if compression is None else -9] ^= 1  # the checksum of the last record, of the whole
    (tmp_path / "b").write_bytes(contents)
    read = lambda path: tf.data.TFRecordDataset(path, compression)  # noqa: E731
    zipped = tf.data.Dataset.zip(read(names[0]), tf.data.Dataset.zip(tf.data.Dataset.range(4), read(names[1]))).batch(2)
    nested = tf.data.Dataset.from_tensor_slices(names).interleave(read, cycle_length=2).batch(2)
    for data in (zipped, nested):
        what = "record 3" if compression is None else "cannot be decompressed"
        assert f", file {names[1]}: {what}" in str(_raised(data, tf.errors.DataLossError))


def test_resume_is_exact_with_records_left_out(files):
    """S1: a run that stopped gives the weights of one that did not; the count is in the reports."""
    folder, size = files
    _damage(folder / "a.tfrecord", 3 * size + 20)

    def train(name, steps):
        data = lambda: from_tfrecords(f"{folder}/*.tfrecord", parse, 4, skip_corrupt=True)  # noqa: E731
        return _run(folder / name, data=data, train_steps=steps)

    whole = train("whole", 15)
    train("parts", 10)
    parts = train("parts", 15)
    for name, value in whole.trainer.variables.items():
        np.testing.assert_array_equal(value.numpy(), parts.trainer.variables[name].numpy(), name)
    assert [row["data/corrupt_records"] for row in read_rows(folder / "whole")] == [1, 1, 1]
    assert whole.metrics["train"]["data/corrupt_records"] == 1


# ---- inputs that are not finite ------------------------------------------------------------------------------------


def _dict_trainer(**arguments):
    inputs = {"age": keras.Input((3,), name="age"), "rank": keras.Input((), name="rank", dtype="int64")}
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs["age"]))
    return Trainer(model, "mse", optimizers="sgd", **arguments)


def _with_nan(*rows):
    ages = X.copy()
    ages[list(rows), 1] = np.nan
    return from_arrays(({"age": ages, "rank": np.arange(40)}, Y), 8, shuffle=False)


@pytest.mark.parametrize("strategy", ["default", "mirrored"])
def test_a_stop_names_the_input_that_holds_nan(strategy, tmp_path, capsys):
    data = lambda: _with_nan(27, 29)  # noqa: E731
    result = _run(tmp_path, lambda: _dict_trainer(guard="stop"), data, train_steps=10, strategy=strategy)
    assert result.status == "stopped_nonfinite"
    assert "In batch 3 of the training data x['age'] holds NaN in rows 3, 5." in capsys.readouterr().err


def test_a_skipped_step_names_it_once(tmp_path, capsys):
    result = _run(tmp_path, _dict_trainer, lambda: _with_nan(27), train_steps=10)
    assert result.status == "done" and result.metrics["train"]["skipped_steps"] == 2  # in both epochs
    said = capsys.readouterr().err
    assert said.count("holds NaN") == 1
    assert "Step 3 was skipped. In batch 3 of the training data x['age'] holds NaN in row 3." in said


def test_a_model_that_makes_nan_is_told_from_data_that_hold_it(tmp_path, capsys):
    def loss(y, p):
        return tf.reduce_mean(tf.sqrt(p - p - 1.0) * p, -1)

    model = lambda: keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])  # noqa: E731
    result = _run(tmp_path, lambda: Trainer(model(), loss, optimizers="sgd", guard="stop"), train_steps=5)
    assert result.status == "stopped_nonfinite"
    assert (
        "All inputs of its batches are finite: the model or its losses produced the non-finite values."
        in capsys.readouterr().err
    )


def test_the_first_batch_warns_and_trains(tmp_path, capsys):
    """NaN may stand for what is missing, where the model takes care of it."""

    class Filled(keras.layers.Layer):
        def call(self, x):
            return tf.where(tf.math.is_nan(x), 0.0, x)

    def trainer():
        inputs = {"age": keras.Input((3,), name="age"), "rank": keras.Input((), name="rank", dtype="int64")}
        return Trainer(keras.Model(inputs, keras.layers.Dense(1)(Filled()(inputs["age"]))), "mse", optimizers="sgd")

    result = _run(tmp_path, trainer, lambda: _with_nan(2), train_steps=5)
    said = capsys.readouterr().err
    assert result.status == "done" and result.metrics["train"]["skipped_steps"] == 0
    assert "In the first batch x['age'] holds NaN in row 2." in said and said.count("NaN") == 1


def test_names_and_rows_of_every_kind_of_input():
    ragged = tf.RaggedTensor.from_row_lengths([1.0, 2.0, np.inf, 4.0], [1, 0, 2, 1])
    deep = tf.ragged.constant([[[1.0], [2.0, 3.0]], [[np.nan]], []])
    sparse = tf.SparseTensor([[0, 1], [2, 0], [2, 1]], [1.0, np.nan, np.nan], [4, 2])
    dense = tf.constant(np.where(np.arange(40).reshape(20, 2) % 4 == 1, np.nan, 0.0))
    default, own = _trainer(), WithIndex(keras.Sequential([keras.layers.Dense(1)]))
    assert not_finite(default, ({"a": ragged, "b": deep}, tf.constant([1, 2]), tf.constant([1.0, np.nan]))) == [
        "x['a'] holds infinity in row 2", "x['b'] holds NaN in row 1", "sample_weight holds NaN in row 1"]  # fmt: skip
    assert not_finite(own, (sparse, {"c": dense, "s": tf.constant(["nan"])})) == [
        "batch[0] holds NaN in row 2", "batch[1]['c'] holds NaN in rows 0, 2, 4, 6, 8, 10 and 4 more"]  # fmt: skip
    assert not_finite(default, (tf.zeros([0, 3]), tf.constant(1.0, tf.bfloat16, [2]))) == []


# ---- from the command line -----------------------------------------------------------------------------------------

MODULE = """
import keras, numpy as np, tensorflow as tf
def model():
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
def clean(x):
    if x.numpy()[0] == 5:
        raise ValueError("negative age")
    return x
def make(x):
    return tf.ensure_shape(tf.py_function(clean, [x], tf.float32), [3])
def broken():
    x = np.arange(24, dtype=np.float32)[:, None] + np.zeros(3, np.float32)
    return tf.data.Dataset.from_tensor_slices(x).map(make).map(lambda x: (x, x[:1])).batch(4)
def parse(record, seed):
    x = tf.io.parse_single_example(record, {"x": tf.io.FixedLenFeature([3], tf.float32)})["x"]
    return x, x[:1]
"""
GIN = """
import wrong_data
run.trainer = @Trainer
run.train_steps = 5
run.strategy = 'default'
Trainer.model = @wrong_data.model()
Trainer.loss = 'mse'
Trainer.optimizers = @SGD()
from_tfrecords.files = '*.tfrecord'
from_tfrecords.parse = @wrong_data.parse
from_tfrecords.batch_size = 4
"""


def test_from_the_command_line(files, monkeypatch, capsys):
    folder, size = files
    (folder / "wrong_data.py").write_text(MODULE)
    (folder / "a.gin").write_text(GIN.replace("from_tfrecords", "# from_tfrecords"))
    (folder / "b.gin").write_text(GIN)
    monkeypatch.chdir(folder)

    def start(file, *params):
        code = main.main(
            ["main", f"--gin_file={file}", "--model_dir=run", *(f"--gin_param={param}" for param in params)]
        )
        said = capsys.readouterr()
        return code, said.out, said.err

    code, _, said = start("a.gin", "run.train_data = @wrong_data.broken")
    assert code == 1 and "in batch 1 of the training data (epoch 0), at element 5 of .map" in said
    assert (
        'raise ValueError("negative age")' in said
        and "wrong_data.py:7 in clean" in said
        and len(said.splitlines()) < 12
    )
    _damage(folder / "a.tfrecord", 3 * size + 20)
    code, _, said = start("b.gin", "run.train_data = @from_tfrecords")
    assert code == 2 and "a.tfrecord: record 3" in said and len(said.splitlines()) == 2
    code, said, _ = start("b.gin", "run.train_data = @from_tfrecords", "from_tfrecords.skip_corrupt = True")
    assert code == 0 and "without 1 corrupt ones" in said and "data/corrupt_records" in said
