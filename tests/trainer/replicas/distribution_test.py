"""How a global batch is split over replicas, and which strategies there are."""

import numpy as np
import pytest
import tensorflow as tf

from trainer.replicas import shards
from trainer.replicas.distribution import distribute, make_strategy, replica_values, sum_replicas, unpack

N = 2  # logical devices of tests/conftest.py


def _parts(dataset):
    """[[(batch, examples, global_examples) of each replica] of each global batch]."""
    strategy = make_strategy("mirrored")
    found = []
    for element in distribute(strategy, dataset):
        shards = strategy.run(lambda e: tuple(unpack(e)), args=(element,))
        batch, examples, total = shards
        found.append(list(zip(*(replica_values(strategy, x) for x in (batch, examples, total)), strict=True)))
    return found


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 10])
def test_replica_i_gets_examples_from_i_n_over_N(n):
    (replicas,) = _parts(tf.data.Dataset.range(n).batch(n))
    for i, (batch, examples, total) in enumerate(replicas):
        low, high = i * n // N, (i + 1) * n // N
        assert int(examples) == high - low and int(total) == n
        np.testing.assert_array_equal(batch, np.arange(low, high) if high > low else [0])


def test_an_empty_replica_holds_a_copy_of_the_first_example_and_counts_none():
    (replicas,) = _parts(tf.data.Dataset.from_tensors(tf.constant([[5.0, 6.0]])))
    assert [int(examples) for _, examples, _ in replicas] == [0, 1]
    for batch, _, total in replicas:
        np.testing.assert_array_equal(batch, [[5.0, 6.0]])
        assert int(total) == 1


def test_batches_stay_in_order_over_replicas_and_steps():
    joined = [np.concatenate([b for b, *_ in replicas]) for replicas in _parts(tf.data.Dataset.range(23).batch(4))]
    assert [list(batch) for batch in joined] == [list(range(s, min(s + 4, 23))) for s in range(0, 23, 4)]


def test_every_component_of_a_nest_is_split_alike():
    x = {"a": np.arange(6), "b": (np.arange(12).reshape(6, 2), np.array(list("uvwxyz")))}
    (replicas,) = _parts(tf.data.Dataset.from_tensor_slices(x).batch(6))
    for i, (batch, *_) in enumerate(replicas):
        np.testing.assert_array_equal(batch["a"], x["a"][3 * i : 3 * i + 3])
        np.testing.assert_array_equal(batch["b"][0], x["b"][0][3 * i : 3 * i + 3])
        assert [s.decode() for s in batch["b"][1].numpy()] == list("uvwxyz")[3 * i : 3 * i + 3]


@pytest.mark.parametrize("n", [1, 3, 4])
def test_ragged_features_are_split_by_rows(n):
    rows = [[1], [2, 3], [], [4, 5, 6]][:n]
    (replicas,) = _parts(tf.data.Dataset.from_tensors(tf.ragged.constant(rows, dtype=tf.int32)))
    for i, (batch, examples, _) in enumerate(replicas):
        low, high = i * n // N, (i + 1) * n // N
        assert int(examples) == high - low
        assert batch.to_list() == (rows[low:high] if high > low else rows[:1])


@pytest.mark.parametrize("n", [1, 3, 4])
def test_sparse_features_are_split_by_rows(n):
    dense = np.array([[0, 1, 0], [2, 0, 3], [0, 0, 0], [4, 5, 6]], np.float32)[:n]
    (replicas,) = _parts(tf.data.Dataset.from_tensors(tf.sparse.from_dense(dense)))
    for i, (batch, examples, _) in enumerate(replicas):
        low, high = i * n // N, (i + 1) * n // N
        assert int(examples) == high - low
        np.testing.assert_array_equal(tf.sparse.to_dense(batch), dense[low:high] if high > low else dense[:1])


def test_static_shapes_survive_where_the_batch_divides():
    spec = distribute(make_strategy("mirrored"), tf.data.Dataset.from_tensors(np.ones([6, 2]))).element_spec
    shapes = {tuple(s.shape) for s in tf.nest.flatten(spec, expand_composites=True) if s.shape.rank == 2}
    assert shapes == {(3, 2)}


@pytest.mark.parametrize("name", ["default", "one_device"])
def test_one_replica_takes_the_dataset_as_it_is(name):
    dataset = tf.data.Dataset.range(4).batch(2)
    assert distribute(make_strategy(name), dataset) is dataset
    batch, examples, total = unpack(next(iter(dataset)))
    assert int(examples) == int(total) == len(batch) == 2


def test_the_same_name_gives_the_same_strategy():
    for name in ("default", "one_device", "mirrored"):
        assert make_strategy(name) is make_strategy(name)
    assert make_strategy("mirrored").num_replicas_in_sync == 2
    assert make_strategy("auto") is make_strategy("mirrored")  # two logical devices
    given = tf.distribute.OneDeviceStrategy("CPU:0")
    assert make_strategy(given) is given


def test_an_unknown_strategy_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match="auto, default, one_device, mirrored.*'miror'"):
        make_strategy("miror")


def test_sum_replicas_sums_a_nest():
    strategy = make_strategy("mirrored")

    @tf.function
    def total():
        def replica():
            index = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.float32)
            return sum_replicas([1.0 + index, tf.fill([2], 10.0 * index)])

        return strategy.run(replica)

    first, second = total()
    assert [float(x) for x in replica_values(strategy, first)] == [3.0, 3.0]
    for x in replica_values(strategy, second):
        np.testing.assert_array_equal(x, [10.0, 10.0])


@pytest.mark.parametrize(
    "name, match",
    [
        ("multi_worker_mirrored", "needs a cluster of two processes or more.*trainer.launch"),
        ("tpu", r"There is no TPU ''.*tpu.name"),
    ],
)
def test_what_is_not_there_is_refused_with_what_to_do(name, match, monkeypatch):
    for variable in ("TF_CONFIG", "TPU_NAME", "KUBE_GOOGLE_CLOUD_TPU_ENDPOINTS", "TPU_CONFIG"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ValueError, match=match):
        make_strategy(name)


def test_autograph_does_not_convert_the_split(monkeypatch):
    """It takes 60 ms a function, and warns of those that it cannot convert."""
    seen, units_of = [], shards.units_of

    def units(*args):
        seen.append(tf.__internal__.autograph.control_status_ctx().status.name)
        return units_of(*args)

    monkeypatch.setattr(shards, "units_of", units)
    next(iter(distribute(make_strategy("mirrored"), tf.data.Dataset.range(6).batch(4))))
    assert set(seen) == {"DISABLED"}
