"""Position as a function of the step: epochs are permutations, any start and any chunk gives the same batches."""

import collections
import json

import numpy as np
import pytest
import tensorflow as tf

from trainer import data
from trainer.inputs import array_source
from trainer.inputs.batches import batch_size_of, spec_from_json, spec_to_json

N, B = 10, 4


def _arrays(n=N):
    return {"x": np.arange(n * 6, dtype=np.float32).reshape(n, 2, 3), "y": np.arange(n, dtype=np.int32)}


def _indices(dataset, count):
    return np.concatenate([batch["y"].numpy() for batch in dataset.take(count)])


def _noise(example, seed):
    return {**example, "x": example["x"] + tf.random.stateless_normal([2, 3], seed)}


def _assert_equal(left, right):
    left, right = list(left.as_numpy_iterator()), list(right.as_numpy_iterator())
    assert len(left) == len(right) > 0
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert one[key].dtype == other[key].dtype
            np.testing.assert_array_equal(one[key], other[key])


def test_each_epoch_is_a_permutation_and_epochs_are_joined():
    source = data.from_arrays(_arrays(), B)
    indices = _indices(source.batches(), 5 * 20).reshape(-1, N)  # 100 batches of 4 are 40 epochs of 10
    np.testing.assert_array_equal(np.sort(indices, axis=1), np.tile(np.arange(N), (40, 1)))
    assert source.steps_per_epoch == 2.5
    assert source.infinite and source.cardinality is None and source.exact


def test_rows_of_all_arrays_stay_together():
    for batch in data.from_arrays(_arrays(), B).batches().take(5):
        np.testing.assert_array_equal(batch["x"][:, 0, 0], batch["y"].numpy() * 6)


def test_epochs_differ_from_each_other():
    # With the epoch number itself as the key of the kernel, 400 epochs had 256 orders.
    indices = _indices(data.from_arrays(_arrays(64), 64).batches(), 400).reshape(400, 64)
    assert len({tuple(row) for row in indices}) == 400
    # Every example visits every quarter of the epoch about equally often: expected 100 each, standard deviation 8.7.
    where = np.argsort(indices, axis=1) // 16
    counts = np.stack([(where == quarter).sum(0) for quarter in range(4)])
    assert counts.min() > 55 and counts.max() < 145


def test_seeds_differ_and_repeat():
    first, same, other = (_indices(data.from_arrays(_arrays(), B, seed=seed).batches(), 5) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
    _indices(data.from_arrays(_arrays(), B, seed=-3).batches(), 1)  # any integer will do


@pytest.mark.parametrize("augment", [None, _noise])
@pytest.mark.parametrize("start", [1, 7, 16, 23])
def test_any_start_gives_the_same_batches(start, augment):
    source = data.from_arrays(_arrays(), B, augment=augment)
    _assert_equal(source.batches(start).take(20), source.batches().skip(start).take(20))


@pytest.mark.parametrize("augment", [None, _noise])
def test_chunks_are_batches_stacked(augment):
    source = data.from_arrays(_arrays(), B, augment=augment)
    _assert_equal(source.batches(7, chunk=3).take(4), source.batches(7).batch(3).take(4))
    assert source.batches(0, 3).element_spec["x"].shape == [3, B, 2, 3]


def test_batches_do_not_depend_on_how_many_are_made_at_a_time(monkeypatch):
    source = data.from_arrays(_arrays(), B)
    grouped = source.batches(3).take(40)
    monkeypatch.setattr(array_source, "_GROUP_BYTES", 0)
    _assert_equal(grouped, source.batches(3).take(40))


def test_a_far_position_costs_no_more_than_a_near_one():
    far = next(iter(data.from_arrays(_arrays(), B).batches(10**12)))
    assert far["y"].shape == [B]


def test_without_shuffle_the_order_is_that_of_the_arrays():
    indices = _indices(data.from_arrays(_arrays(), B, shuffle=False).batches(), 4)
    np.testing.assert_array_equal(indices, [*range(10), *range(6)])


def test_a_batch_may_be_larger_than_the_data():
    np.testing.assert_array_equal(
        np.bincount(_indices(data.from_arrays(_arrays(3), 7).batches(), 3)), [7, 7, 7]
    )  # 21 examples, 3 of each kind


@pytest.mark.parametrize("augment", [None, _noise])
def test_one_pass_is_ordered_and_counts_every_example_once(augment):
    source = data.from_arrays(_arrays(), B, repeat=False, augment=augment)
    batches = [batch["y"].numpy().tolist() for batch in source.batches()]
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert source.element_spec["x"].shape.as_list() == [None, 2, 3]
    assert (source.cardinality, source.steps_per_epoch, source.infinite) == (3, 3, False)
    assert [batch["y"].numpy().tolist() for batch in source.batches(2)] == [[8, 9]]
    assert not list(source.batches(3))


def test_one_pass_of_whole_batches_is_static_and_can_be_chunked():
    source = data.from_arrays(_arrays(12), B, repeat=False)
    assert source.element_spec["x"].shape == [B, 2, 3]
    assert [chunk["y"].shape for chunk in source.batches(0, chunk=2)] == [[2, 4], [1, 4]]


def test_a_chunk_of_short_batches_is_refused():
    with pytest.raises(ValueError, match="last batch has 2 of 4 examples"):
        data.from_arrays(_arrays(), B, repeat=False).batches(0, chunk=2)


def test_augmentation_seeds_are_unique_and_differ_between_epochs():
    def keep_seed(example, seed):
        return {"y": example["y"], "seed": tf.cast(tf.bitcast(seed, tf.int64), tf.int64) + example["seed"]}

    arrays = {"y": np.arange(N), "seed": np.zeros(N, np.int64)}
    batches = [list(data.from_arrays(arrays, B, seed=seed, augment=keep_seed).batches().take(50)) for seed in (0, 1)]
    seeds = np.concatenate([batch["seed"].numpy() for batch in [*batches[0], *batches[1]]])
    assert len(set(seeds)) == 2 * 50 * B


def test_what_augment_returns_is_what_trains():
    """Structure, dtypes and shapes are those of the function's result: uint8 images divided by 255 are no zeros."""

    def scale(example, seed):
        x = tf.cast(example["x"], tf.float32) / 255.0
        if seed[0] > 0:  # any Python that AutoGraph takes
            x = x + 0.0
        return [{"a": x[:1], "weight": 2.0}, None, tf.strings.as_string(example["y"])]

    arrays = {"x": np.full([8, 2, 3], 100, np.uint8), "y": np.arange(8), "none": None}
    source = data.from_arrays(arrays, B, augment=scale, shuffle=False)
    x, nothing, y = next(iter(source.batches()))
    assert nothing is None and y.numpy().tolist() == [b"0", b"1", b"2", b"3"]
    np.testing.assert_allclose(x["a"], np.full([B, 1, 3], 100 / 255), rtol=1e-6)
    np.testing.assert_array_equal(x["weight"], np.full([B], 2.0, np.float32))
    assert source.element_spec[0]["a"] == tf.TensorSpec([B, 1, 3], tf.float32)
    assert next(iter(source.batches(0, chunk=2)))[0]["a"].shape == [2, B, 1, 3]


def test_lists_none_and_frames_as_arrays():
    x, y = np.arange(6.0).reshape(6, 1), np.arange(6)
    source = data.from_arrays([x, (y, None)], 3, shuffle=False)
    one, (two, three) = next(iter(source.batches()))
    assert one.shape == [3, 1] and two.numpy().tolist() == [0, 1, 2] and three is None

    class Frame:  # what of a pandas.DataFrame is used
        columns = ["age", "rank"]
        to_numpy = shape = None

        def __getitem__(self, name):
            return type("Series", (), {"to_numpy": lambda self: y if name == "age" else x})()

    assert next(iter(data.from_arrays(Frame(), 6, repeat=False).batches()))["age"].numpy().tolist() == [*range(6)]


def test_arrays_are_copied_and_captured_not_embedded():
    arrays = {"x": np.zeros([1000, 1000], np.float32), "y": np.arange(1000)}
    source = data.from_arrays(arrays, B, shuffle=False)
    arrays["x"][:] = 1
    dataset = source.batches()
    assert float(tf.reduce_sum(next(iter(dataset))["x"])) == 0
    counting = tf.function(lambda: dataset.reduce(np.int64(0), lambda count, _: count + 1)).get_concrete_function()
    assert counting.graph.as_graph_def().ByteSize() < 100_000  # the array has 4,000,000 bytes


def test_strings_and_tuples_and_single_arrays():
    words, numbers = next(iter(data.from_arrays((np.array(["a", "b"]), np.arange(2)), 2, repeat=False).batches()))
    assert words.numpy().tolist() == [b"a", b"b"] and numbers.numpy().tolist() == [0, 1]
    assert next(iter(data.from_arrays(np.arange(3), 3, shuffle=False).batches())).numpy().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"x": np.zeros([3, 2]), "y": np.zeros(4)}, r"arrays\['x'\]: 3, arrays\['y'\]: 4"),
        ((np.zeros([0, 2]), np.zeros(0)), r"arrays\[0\]: 0"),
        ((), "no arrays"),
        (([1, 2], np.zeros(2)), r"`arrays\[0\]` is a list.*np.asarray"),
        ({"a": np.zeros(2), "b": np.array([None, 1.0])}, r"`arrays\['b'\]` is a ndarray of dtype object.*without None"),
        ((np.float32(1), np.zeros(2)), r"arrays\[0\]"),
        (None, "no arrays"),
    ],
)
def test_bad_arrays_are_named(arrays, message):
    with pytest.raises(ValueError, match=message):
        data.from_arrays(arrays, 2)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"batch_size": 0}, "`batch_size` must be a whole number >= 1, got 0"),
        ({"batch_size": 2.5}, "got 2.5"),
        ({"batch_size": "4"}, "got '4'"),
        ({"batch_size": 2, "augment": 3}, "`augment` must be a function"),
        ({"batch_size": 2, "seed": "a"}, "`seed` must be a whole number"),
        ({"batch_size": 2, "shuffle": "no"}, "`shuffle` must be True or False, got 'no'"),
        ({"batch_size": 2, "repeat": None}, "`repeat` must be True or False, got None"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.from_arrays(_arrays(), **arguments)


def test_bad_positions_are_refused():
    for source in (data.from_arrays(_arrays(), B), data.as_source(tf.data.Dataset.range(8).batch(2))):
        for start in (-1, 1.5, "a"):
            with pytest.raises(ValueError, match="`start` must be a whole number >= 0"):
                source.batches(start)
        with pytest.raises(ValueError, match="`chunk` must be a whole number >= 1"):
            source.batches(0, chunk=0)


def test_describe():
    assert data.from_arrays(_arrays(1437), 64).describe() == "1,437 examples, batches of 64, shuffled, endless"
    assert data.from_arrays(_arrays(), 4, repeat=False).describe() == "10 examples, batches of 4, one ordered pass"


def test_a_plain_dataset_is_skipped_to_its_place_and_chunked():
    source = data.as_source(tf.data.Dataset.range(12).batch(2, drop_remainder=True), epochs=2)
    assert [b.numpy().tolist() for b in source.batches(5).take(3)] == [[10, 11], [0, 1], [2, 3]]
    assert [c.numpy().tolist() for c in source.batches(9, chunk=2)] == [[[6, 7], [8, 9]], [[10, 11]]]
    assert (source.cardinality, source.steps_per_epoch, source.infinite, source.exact) == (12, 6, False, False)
    assert source.batch_size == 2


def test_endless_datasets():
    batches = tf.data.Dataset.range(4).batch(2)
    for source in (
        data.as_source(batches.repeat()),
        data.as_source(batches.repeat(), epochs=3),
        data.as_source(batches, epochs=-1),
    ):
        assert source.infinite and source.cardinality is None
    assert data.as_source(batches.filter(lambda x: True)).cardinality is None  # unknown
    assert not data.as_source(batches.filter(lambda x: True)).infinite


def test_functions_and_foreign_sources():
    source = data.from_arrays(_arrays(), B)
    assert data.as_source(source) is source
    assert data.as_source(lambda: source) is source
    assert data.as_source(lambda: tf.data.Dataset.range(4).batch(2, drop_remainder=True)).batch_size == 2

    class Foreign:
        exact = True

        def batches(self, start=0, chunk=None):
            return tf.data.Dataset.range(start, 5).batch(1)

    foreign = data.as_source(Foreign())
    assert foreign.exact and foreign.cardinality is None
    assert foreign.element_spec.shape.as_list() == [None]
    assert len(list(foreign.batches(3))) == 2


@pytest.mark.parametrize(
    "bad, message",
    [
        (tf.data.Dataset.range(3), "scalar. Batch it"),
        (tf.data.Dataset.from_tensors({"x": tf.zeros([]), "y": tf.zeros([])}), r"batch\['y'\] is a scalar"),
        (
            tf.data.Dataset.range(3).map(lambda x: tf.py_function(lambda y: y, [x], tf.int64)),
            "rank of batch is unknown",
        ),
        ((np.zeros(3), np.zeros(3)), "got arrays .tuple.*from_arrays"),
        ("nothing", "got .nothing."),
        ([], "has no batches"),
    ],
)
def test_data_that_cannot_be_batches_is_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        data.as_source(bad)


def test_chunks_of_unequal_batches_are_refused():
    with pytest.raises(ValueError, match="drop_remainder=True"):
        data.as_source(tf.data.Dataset.range(5).batch(2)).batches(0, chunk=2)


def test_batch_size_of():
    assert batch_size_of({"a": tf.zeros([3, 2])}) == 3
    assert batch_size_of((tf.ragged.constant([[1], [2, 3]]),)) == 2
    assert int(batch_size_of(tf.sparse.from_dense([[1, 0], [0, 2], [3, 4]]))) == 3

    @tf.function(input_signature=[tf.TensorSpec([None, 2])])
    def dynamic(x):
        return batch_size_of((x, x))

    assert int(dynamic(tf.zeros([5, 2]))) == 5


def test_specs_survive_json():
    Pair = collections.namedtuple("Pair", "left right")
    spec = {
        "image": (tf.TensorSpec([None, 8, 8, 1], tf.float32), [tf.TensorSpec([4], tf.string)]),
        "words": tf.RaggedTensorSpec([None, None, 3], tf.int32, ragged_rank=1, row_splits_dtype=tf.int32),
        "bag": tf.SparseTensorSpec([None, 100], tf.bfloat16),
        "unknown": tf.TensorSpec(None, tf.bool),
        "pair": Pair(tf.TensorSpec([2], tf.int64), tf.TensorSpec([2], tf.float64)),
    }
    back = spec_from_json(json.loads(json.dumps(spec_to_json(spec))))
    assert back == {**spec, "pair": tuple(spec["pair"])}
    with pytest.raises(ValueError, match="must consist of tensors"):
        spec_to_json(tf.data.DatasetSpec(tf.TensorSpec([])))


def test_a_class_of_sources_is_made_into_a_source():
    """gin hands over `@MySource` uncalled; its `batches` is not yet bound to an object."""

    class Counting:
        def batches(self, start=0, chunk=None):
            return tf.data.Dataset.range(start, 100).batch(2)

    assert next(iter(data.as_source(Counting).batches(start=6))).numpy().tolist() == [6, 7]
    assert next(iter(data.as_source(Counting()).batches(6))).numpy().tolist() == [6, 7]
