"""LazyAdam: Adam in NumPy on the touched rows, nothing at all on the others."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from optimizers import OptimizerGroup
from optimizers.lazy_adam import LazyAdam
from trainer import Trainer
from trainer.replicas.distribution import make_strategy

START = np.random.default_rng(0).normal(size=(5, 2)).astype("float32")


def _sparse(values, rows):
    return tf.IndexedSlices(tf.constant(values, tf.float32), tf.constant(rows), tf.constant([5, 2]))


def _numpy(steps, rate=0.1, beta_1=0.9, beta_2=0.999, epsilon=1e-7):
    """Adam by rows: `steps` is a list of {row: gradient}; t counts steps."""
    w, m, v = START.astype("float64"), np.zeros([5, 2]), np.zeros([5, 2])
    for t, gradients in enumerate(steps, 1):
        for row, g in gradients.items():
            m[row] = beta_1 * m[row] + (1 - beta_1) * np.array(g)
            v[row] = beta_2 * v[row] + (1 - beta_2) * np.square(g)
            correction = np.sqrt(1 - beta_2**t) / (1 - beta_1**t)
            w[row] -= rate * correction * m[row] / (np.sqrt(v[row]) + epsilon)
    return w, m, v


STEPS = [{1: [1.0, -2.0], 3: [0.5, 0.5]}, {3: [2.0, 0.1]}, {1: [-1.0, 1.0], 0: [0.3, 0.3]}]


@pytest.mark.parametrize("dense", [False, True])
def test_touched_rows_are_adam_and_the_others_do_not_move_a_bit(dense):
    v, optimizer = keras.Variable(START, name="embeddings" if dense else "w"), LazyAdam(0.1)
    optimizer.build([v])
    for step in STEPS:
        gradient = _sparse(list(step.values()), list(step))
        optimizer.apply([tf.convert_to_tensor(gradient) if dense else gradient])
    for found, wanted in zip((v, optimizer._momentums[0], optimizer._velocities[0]), _numpy(STEPS)):
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(v.numpy()[[2, 4]], START[[2, 4]])


def test_rows_that_come_twice_are_added_up_first():
    once, twice = (keras.Variable(START) for _ in range(2))
    for v, gradient in ((once, _sparse([[3.0, 1.0]], [2])), (twice, _sparse([[1.0, 2.0], [2.0, -1.0]], [2, 2]))):
        LazyAdam(0.1).apply([gradient], [v])
    np.testing.assert_array_equal(once.numpy(), twice.numpy())


@pytest.mark.parametrize("sparse", [False, True])
def test_the_first_step_equals_keras_adam_on_touched_rows(sparse):
    gradient = _sparse([[3.0, 1.0], [0.2, -5.0]], [2, 0])
    gradient = gradient if sparse else tf.convert_to_tensor(gradient)
    ours, theirs = (keras.Variable(START, name="w") for _ in range(2))
    LazyAdam(0.1).apply([gradient], [ours])
    keras.optimizers.Adam(0.1).apply([gradient], [theirs])
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=1e-7)


def test_a_dense_gradient_of_another_variable_makes_it_adam():
    random = np.random.default_rng(1)
    ours, theirs = (keras.Variable(START, name="kernel") for _ in range(2))
    optimizers = LazyAdam(0.1), keras.optimizers.Adam(0.1)
    for _ in range(10):
        gradient = tf.constant(random.normal(size=(5, 2)) * [[1], [0], [1], [1], [0]], tf.float32)
        for v, optimizer in zip((ours, theirs), optimizers):
            optimizer.apply([gradient], [v])
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sparse_half_precision(dtype):
    v, optimizer = keras.Variable(np.ones([4, 2]), dtype=dtype), LazyAdam(0.1)
    optimizer.build([v])
    for _ in range(3):
        optimizer.apply(
            [tf.IndexedSlices(tf.constant([[300.0, 1e-5]] * 2, dtype), tf.constant([1, 1]), tf.constant([4, 2]))]
        )
    values = v.numpy().astype("float32")
    assert np.isfinite(values).all() and (values[1] < 1).all() and (values[[0, 2, 3]] == 1).all()


def test_a_sparse_gradient_moves_the_same_rows_on_two_replicas():
    strategy = make_strategy("mirrored")
    with strategy.scope():
        v, group = keras.Variable(START, name="w"), OptimizerGroup(optimizer=LazyAdam(0.1))
        group.build({"w": v})

    @tf.function
    def step(values, rows):
        strategy.run(lambda: group.apply([tf.IndexedSlices(values, rows, tf.constant([5, 2]))], {}))

    for gradients in STEPS:
        step(tf.constant(list(gradients.values())), tf.constant(list(gradients)))
    for copy in strategy.experimental_local_results(v.value):
        np.testing.assert_allclose(copy.numpy(), _numpy(STEPS)[0], rtol=1e-5)
        np.testing.assert_array_equal(copy.numpy()[[2, 4]], START[[2, 4]])


def _trainer(strategy, compile="graph"):
    keras.utils.set_random_seed(2)
    with make_strategy(strategy).scope():
        layers = [keras.layers.Embedding(9, 3), keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(1)]
        model = keras.Sequential([keras.Input((2,), dtype="int32"), *layers])
        return Trainer(model, "mse", optimizers=OptimizerGroup(optimizer=LazyAdam(0.01), name="main"), compile=compile)


def _table_after(trainer, steps=10):
    random = np.random.default_rng(5)
    ids = random.integers(0, 7, size=(24, 2))  # rows 7 and 8 never come
    data = tf.data.Dataset.from_tensor_slices((ids, random.normal(size=(24, 1)).astype("float32"))).batch(4).repeat()
    iterator = iter(trainer.distribute(data))
    table = trainer.variables["embedding/embeddings"]
    start = table.numpy()
    trainer.train(iterator, steps)
    np.testing.assert_array_equal(table.numpy()[7:], start[7:])
    assert (table.numpy()[:7] != start[:7]).all()
    return table.numpy()


def test_two_replicas_equal_one_and_xla_equals_graph_on_an_embedding():
    graph = _table_after(_trainer("default"))
    np.testing.assert_allclose(_table_after(_trainer("mirrored")), graph, atol=2e-6)
    np.testing.assert_allclose(_table_after(_trainer("default", "xla_step")), graph, atol=2e-6)


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: LazyAdam(beta_1=1), r"`beta_1` must be a number in \[0, 1\), got 1"),
        (lambda: LazyAdam(beta_2=-1.0), "`beta_2` must be"),
        (lambda: LazyAdam(epsilon=0), "`epsilon` must be a number > 0, got 0"),
    ],
)
def test_mistakes_are_reported(make, match):
    with pytest.raises(ValueError, match=match):
        make()
