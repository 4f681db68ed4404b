"""R1, R2, R3: for the same global batches one replica and two give the same numbers; where Keras does not, a guard."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from optimizers import OptimizerGroup, clip_by_global_norm, clip_by_norm, clip_by_value
from tests.runs import slow, train
from trainer import Trainer, weighted
from trainer.replicas.distribution import make_strategy, replica_values

SGD, L = keras.optimizers.SGD, keras.layers
STEPS = 20


class Custom(Trainer):
    """A Trainer whose losses are `function(model, batch)`."""

    def __init__(self, function, **arguments):
        super().__init__(**arguments)
        self.function = function

    def compute_losses(self, batch, training):
        return self.function(self.model, batch, training)


class Scalar(keras.Model):
    """One trainable scalar `w`."""

    def __init__(self, value=0.0):
        super().__init__()
        self.w = self.add_weight(name="w", shape=(), initializer=keras.initializers.Constant(value))

    def call(self, x):
        return x


def _data(n, weights=False, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 3)).astype(np.float32), rng.normal(size=(n, 1)).astype(np.float32)
    arrays = (x, y, rng.uniform(0, 2, size=n).astype(np.float32)) if weights else (x, y)
    return tf.data.Dataset.from_tensor_slices(arrays)


def _mlp(regularizer=None, normalize=False):
    layers = [L.Dense(5, "tanh", kernel_regularizer=regularizer)]
    if normalize:
        layers.append(L.BatchNormalization(synchronized=True, momentum=0.5))
    return keras.Sequential([keras.Input((3,)), *layers, L.Dense(1, kernel_regularizer=regularizer)])


def _train(name, make, data, steps=STEPS, loops=2):
    """Returns (metrics of the last loop, {name: [variable on each replica]}, trainer)."""
    keras.utils.set_random_seed(0)
    strategy = make_strategy(name)
    with strategy.scope():
        trainer = make()
    iterator = iter(trainer.distribute(data))
    for _ in range(loops):
        metrics = trainer.train(iterator, steps // loops)
    assert int(trainer.global_step.numpy()) == steps
    copies = {n: [np.array(x) for x in replica_values(strategy, v.value)] for n, v in trainer.variables.items()}
    return metrics, copies, trainer


def _assert_same(make, data, tolerance=2e-6, evaluate=True):
    one, weights, alone = _train("default", make, data)
    two, copies, both = _train("mirrored", make, data)
    for name, (value,) in weights.items():
        if "seed" in name:
            continue
        for copy in copies[name]:
            np.testing.assert_allclose(copy, value, atol=tolerance, err_msg=name)
    assert one.keys() == two.keys()
    for tag, value in one.items():
        assert two[tag] == pytest.approx(value, rel=2e-5, abs=2e-6), tag
    if evaluate:
        evaluated = [t.evaluate(data.take(3)) for t in (alone, both)]
        assert evaluated[1] == pytest.approx(evaluated[0], rel=2e-5, abs=2e-6)
    return one, two


def _default(**arguments):
    def make():
        model = _mlp(arguments.get("regularizer"), arguments.get("normalize", False))
        given = {k: v for k, v in arguments.items() if k not in ("regularizer", "normalize")}
        given["optimizers"] = arguments.get("optimizers", lambda: keras.optimizers.Adam(0.02))()
        return Trainer(
            model,
            "mse",
            [keras.metrics.MeanAbsoluteError("mae"), weighted(keras.metrics.MeanSquaredError("mse"))],
            **given,
        )

    return make


def _group(transform):
    return lambda: OptimizerGroup(optimizer=keras.optimizers.Adam(0.02), transforms=[transform])


EVEN, UNEVEN = (8 * STEPS, 8), (8 * (STEPS - 1) + 3, 8)
CASES = {
    "plain": {},
    "clip_by_value": {"optimizers": _group(clip_by_value(0.05))},
    "clip_by_norm": {"optimizers": _group(clip_by_norm(0.3))},
    "clip_by_global_norm": {"optimizers": _group(clip_by_global_norm(0.3))},
    "keras_global_clipnorm": {"optimizers": lambda: keras.optimizers.Adam(0.02, global_clipnorm=0.3)},
    "micro_batches": {"micro_batches": 3},
    "regularizer": {"regularizer": keras.regularizers.L2(0.1)},
    "regularizer_micro_batches": {"regularizer": keras.regularizers.L2(0.1), "micro_batches": 3},
    "synchronized_batch_norm": {"normalize": True},
}


# Alone, each of these shows what a case that runs by default shows together with something else.
PARTIAL = ("clip_by_value", "clip_by_norm", "micro_batches", "regularizer")


@pytest.mark.parametrize("sizes", [slow(EVEN), UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("case", [slow(case) if case in PARTIAL else case for case in CASES])
def test_one_and_two_replicas_give_the_same(case, sizes):
    _assert_same(_default(**CASES[case]), _data(sizes[0]).batch(sizes[1]))


@pytest.mark.parametrize("parts", [slow(1), 3])
def test_sample_weights_give_the_same(parts):
    _assert_same(_default(micro_batches=parts), _data(UNEVEN[0], weights=True).batch(8))


def test_a_last_batch_smaller_than_the_number_of_replicas_gives_the_same():
    _assert_same(_default(regularizer=keras.regularizers.L2(0.1)), _data(8 * (STEPS - 1) + 1).batch(8))


def _weighted_values(model, batch, training):
    x, y, w = batch
    error = tf.square(model(x, training=training) - y)[:, 0]
    return {"l": (error, w), "plain": 0.5 * error}


def _every_form(model, batch, training):
    x, y, w = batch
    error = tf.square(model(x, training=training) - y)
    return {
        "values": 0.5 * error[:, 0],
        "weighted": (error[:, 0], w),
        "scalar": tf.reduce_mean(error),
        "matrix": (tf.tile(error, [1, 4]), tf.stack([w, 2 * w, 0 * w, w], 1)),
    }


@pytest.mark.parametrize("parts, sizes", [slow(1, UNEVEN), (3, UNEVEN), slow(1, EVEN), slow(3, EVEN)])
def test_losses_of_every_form_give_the_same(parts, sizes):
    def make():
        return Custom(_every_form, model=_mlp(), optimizers=keras.optimizers.Adam(0.02), micro_batches=parts)

    _assert_same(make, _data(sizes[0], weights=True).batch(sizes[1]))


def test_micro_batches_equal_the_whole_batch():
    def run(parts):
        make = lambda: Custom(_every_form, model=_mlp(), optimizers=SGD(0.1), micro_batches=parts)  # noqa: E731
        return _train("default", make, _data(UNEVEN[0], weights=True).batch(8))

    whole, weights, _ = run(1)
    for parts in (2, 5):
        metrics, micro, _ = run(parts)
        for name, (value,) in weights.items():
            np.testing.assert_allclose(micro[name][0], value, atol=2e-6, err_msg=f"{parts} parts, {name}")
        assert metrics == pytest.approx(whole, rel=2e-5)


@pytest.mark.parametrize("parts, clip", [(3, 0.2), slow(1, 0.2), slow(1, None), slow(3, None)])
def test_embeddings_with_duplicate_ids_give_the_same(parts, clip):
    """The gradient is IndexedSlices: its norm is that of the dense one, where ids repeat within and across replicas."""
    rng = np.random.default_rng(3)
    ids, y = rng.integers(0, 5, size=(8 * STEPS, 4)), rng.normal(size=(8 * STEPS, 1)).astype(np.float32)

    def make():
        model = keras.Sequential([keras.Input((4,), dtype="int32"), L.Embedding(7, 3), L.Flatten(), L.Dense(1)])
        group = OptimizerGroup(optimizer=SGD(0.1), transforms=[clip_by_global_norm(clip)] if clip else (), name="main")
        return Trainer(model, "mse", optimizers=group, micro_batches=parts)

    one, _ = _assert_same(make, tf.data.Dataset.from_tensor_slices((ids, y)).batch(8))
    if clip:
        assert one["clipped/main"] > 0
    # the first step by hand, dense
    keras.utils.set_random_seed(0)
    trainer = make()
    model = trainer.model
    with tf.GradientTape() as tape:
        table = model.layers[0].embeddings.value
        tape.watch(table)
        h = tf.reshape(tf.gather(tf.identity(table), ids[:8]), [8, 12])
        kernel, bias = model.layers[2].kernel.value, model.layers[2].bias.value
        loss = tf.reduce_mean(tf.square(h @ kernel + bias - y[:8]))
    gradients = [tf.convert_to_tensor(g) for g in tape.gradient(loss, [table, kernel, bias])]
    iterator = iter(trainer.distribute(tf.data.Dataset.from_tensor_slices((ids, y)).batch(8)))
    metrics = trainer.train(iterator, 1)
    assert metrics["grad_norm/main"] == pytest.approx(float(tf.linalg.global_norm(gradients)), rel=1e-5)


@pytest.mark.parametrize("guard", ["skip", slow("stop"), slow("off")])
def test_several_groups_give_the_same(guard):
    def make():
        return Trainer(
            _mlp(keras.regularizers.L2(0.01)),
            "mse",
            guard=guard,
            optimizers=[
                OptimizerGroup(
                    "dense/.*", optimizer=keras.optimizers.Adam(0.02), every=2, transforms=[clip_by_global_norm(0.5)]
                ),
                OptimizerGroup("dense_1/.*", optimizer=SGD(0.05, momentum=0.9), start=3, stop=15, sequential=True),
            ],
        )

    _assert_same(make, _data(UNEVEN[0]).batch(8))


def test_masked_sequences_of_different_lengths_give_the_same():
    rng = np.random.default_rng(0)
    x = rng.integers(1, 6, size=(8 * STEPS, 5)).astype(np.int32)
    for row, length in enumerate(rng.integers(1, 6, size=len(x))):
        x[row, length:] = 0
    y = rng.normal(size=(len(x), 5, 1)).astype(np.float32)

    def make():
        inputs = keras.Input((5,), dtype="int32")
        model = keras.Model(inputs, L.Dense(1)(L.Embedding(6, 4, mask_zero=True)(inputs)))
        return Trainer(model, "mse", [keras.metrics.MeanAbsoluteError("mae")], SGD(0.1))

    _assert_same(make, tf.data.Dataset.from_tensor_slices((x, y)).batch(8))


# ---- closed forms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [slow("default"), "one_device", "mirrored"])
@pytest.mark.parametrize("clip", [clip_by_value, clip_by_norm, clip_by_global_norm])
def test_gradients_3_and_minus_1_clipped_at_1_move_the_weight_by_minus_1(name, clip):
    """Replica gradients 3 and -1 mean 1: clipped before the sum it would be 0."""

    def make():
        group = OptimizerGroup(optimizer=SGD(1.0), transforms=[clip(1.0)])
        return Custom(lambda m, x, training: {"l": m.w * x[:, 0]}, model=Scalar(), optimizers=group)

    _, copies, _ = _train(name, make, tf.data.Dataset.from_tensors(np.array([[3.0], [-1.0]], np.float32)), 1, 1)
    assert all(value == -1.0 for value in copies["w"])


@pytest.mark.parametrize("name", [slow("default"), "mirrored"])
@pytest.mark.parametrize("argument", ["clipvalue", "clipnorm", "global_clipnorm"])
def test_clips_set_on_a_keras_optimizer_act_after_the_sum(name, argument):
    def make():
        optimizer = SGD(1.0, **{argument: 1.0})
        return Custom(lambda m, x, training: {"l": m.w * x[:, 0]}, model=Scalar(), optimizers=optimizer)

    _, copies, _ = _train(name, make, tf.data.Dataset.from_tensors(np.array([[6.0], [-2.0]], np.float32)), 1, 1)
    assert all(value == -1.0 for value in copies["w"])


@pytest.mark.parametrize("name, parts", [("default", 1), ("mirrored", 2), slow("default", 2), slow("mirrored", 1)])
def test_reduction_by_hand(name, parts):
    """R2 on an uneven batch: values mean over elements, weighted ones over all weights, scalars count by examples."""
    x, w = np.array([1, 2, 3, 4, 10], np.float32), np.array([1, 0, 2, 0, 1], np.float32)

    def losses(m, batch, training):
        x, w = batch
        return {
            "values": m.w * x,
            "weighted": (m.w * x, w),
            "scalar": m.w * tf.reduce_mean(x),
            "matrix": m.w * tf.stack([x, 3 * x], 1),
        }

    def make():
        return Custom(losses, model=Scalar(1.0), optimizers=SGD(1.0), micro_batches=parts)

    metrics, copies, trainer = _train(name, make, tf.data.Dataset.from_tensors((x, w)), 1, 1)
    wanted = {"values": 4.0, "weighted": 17 / 4, "scalar": 4.0, "matrix": 8.0}
    for loss, value in wanted.items():
        assert metrics[f"losses/{loss}"] == pytest.approx(value, rel=1e-6), loss
    assert metrics["loss"] == pytest.approx(sum(wanted.values()), rel=1e-6)
    assert metrics["grad_norm/main"] == pytest.approx(sum(wanted.values()), rel=1e-6)
    assert all(v == pytest.approx(1 - sum(wanted.values()), rel=1e-6) for v in copies["w"])


@pytest.mark.parametrize("name", ["default", "mirrored"])
def test_a_regularizer_counts_once(name):
    def make():
        model = keras.Sequential(
            [
                keras.Input((1,)),
                L.Dense(1, use_bias=False, kernel_initializer="ones", kernel_regularizer=keras.regularizers.L2(0.25)),
            ]
        )
        return Trainer(model, "mse", optimizers=SGD(1.0))

    x = np.zeros([5, 1], np.float32)
    metrics, copies, _ = _train(name, make, tf.data.Dataset.from_tensors((x, x)), 1, 1)
    assert metrics["losses/regularization"] == pytest.approx(0.25) and metrics["loss"] == pytest.approx(0.25)
    assert all(v == pytest.approx(0.5) for v in copies["dense/kernel"])


@pytest.mark.parametrize("name", ["default", "mirrored"])
def test_zero_total_weight_gives_no_update_and_no_nan(name):
    def make():
        return Custom(
            lambda m, x, training: {"l": (m.w * x[:, 0], 0 * x[:, 0])}, model=Scalar(1.0), optimizers=SGD(1.0)
        )

    metrics, copies, _ = _train(name, make, tf.data.Dataset.from_tensors(np.ones([4, 1], np.float32)), 1, 1)
    assert metrics["losses/l"] == 0.0 and metrics["skipped_steps"] == 0 and all(v == 1.0 for v in copies["w"])


# ---- R3: state that replicas change by themselves ------------------------------------------------------------------


class LazyNorm(keras.Model):
    def __init__(self):
        super().__init__()
        self.norm, self.head = L.BatchNormalization(momentum=0.5), L.Dense(1)

    def call(self, x, training=False):
        return self.head(self.norm(x, training=training))


def _functional_norm():
    return keras.Sequential(
        [keras.Input((3,)), L.BatchNormalization(momentum=0.5, name="norm"), L.Dense(1, name="head")]
    )


@pytest.mark.parametrize("model", [LazyNorm, _functional_norm], ids=["lazy", "functional"])
def test_moving_statistics_are_the_mean_of_all_replicas_for_reads_and_evaluation(model):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(1.0, 1.0, (4, 3)), rng.normal(5.0, 3.0, (4, 3))]).astype(np.float32)
    data = tf.data.Dataset.from_tensors((x, np.zeros([8, 1], np.float32)))

    def make():
        return Trainer(model(), "mse", optimizers=SGD(0.0))

    _, _, trainer = _train("mirrored", make, data, 1, 1)
    halves = x[:4], x[4:]
    mean = 0.5 * np.mean([h.mean(0) for h in halves], 0)
    variance = 0.5 + 0.5 * np.mean([h.var(0) for h in halves], 0)
    np.testing.assert_allclose(trainer.variables["norm/moving_mean"].numpy(), mean, rtol=1e-5)
    np.testing.assert_allclose(trainer.variables["norm/moving_variance"].numpy(), variance, rtol=1e-5)
    kernel, bias = (trainer.variables[f"head/{n}"].numpy() for n in ("kernel", "bias"))
    predictions = (x - mean) / np.sqrt(variance + 1e-3) @ kernel + bias
    np.testing.assert_allclose(trainer.predict(data), predictions, atol=1e-5)
    assert trainer.evaluate(data)["loss"] == pytest.approx(float(np.mean(predictions**2)), rel=1e-5)


def test_dropout_differs_between_replicas():
    class Keeping(Trainer):
        def compute_losses(self, batch, training):
            return {"l": self.model(batch, training=training)}, self.model.layers[0](batch, training=True)

        def update_metrics(self, batch, outputs):
            self.kept.assign(outputs[:1])

    strategy = make_strategy("mirrored")
    with strategy.scope():
        model = keras.Sequential([keras.Input((32,)), L.Dropout(0.5), L.Dense(1)])
        trainer = Keeping(model)
        trainer.kept = tf.Variable(
            tf.zeros([1, 32]),
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM,
        )
    train(trainer, tf.data.Dataset.from_tensors(np.ones([2, 32], np.float32)), 1)
    seen = [np.array(v) for v in strategy.experimental_local_results(trainer.kept)]
    assert all(set(np.unique(v)) == {0.0, 2.0} for v in seen)
    assert not np.array_equal(seen[0], seen[1])


@pytest.mark.parametrize("row", [0, 3])
def test_a_step_that_is_bad_on_one_replica_is_skipped_on_both(row):
    x = np.ones([4, 1], np.float32)
    x[row] = np.inf

    def make():
        return Custom(
            lambda m, x, training: {"l": m.w * x[:, 0]}, model=Scalar(1.0), optimizers=keras.optimizers.Adam(0.1)
        )

    metrics, copies, trainer = _train("mirrored", make, tf.data.Dataset.from_tensors(x).repeat(4), 4, 1)
    assert metrics["skipped_steps"] == 4 and copies["w"] == [1.0, 1.0] and metrics["updates/main"] == 0
    assert int(trainer.global_step.numpy()) == 4


# ---- how often replicas talk ---------------------------------------------------------------------------------------


def _calls_per_step(make, monkeypatch, weights=False):
    """all_reduce calls of each replica in the one trace of the step."""
    calls = []
    original = tf.distribute.ReplicaContext.all_reduce

    def counting(self, reduce_op, value, options=None):
        calls.append(value)
        return original(self, reduce_op, value, options)

    monkeypatch.setattr(tf.distribute.ReplicaContext, "all_reduce", counting)
    strategy = make_strategy("mirrored")
    with strategy.scope():
        trainer = make()
    iterator = iter(trainer.distribute(_data(16, weights=weights).batch(8)))
    calls.clear()
    trainer.train(iterator, 2)
    return len(calls) / strategy.num_replicas_in_sync


@pytest.mark.parametrize(
    "make, weights, wanted",
    [
        (_default(), False, 1),
        (_default(regularizer=keras.regularizers.L2(0.1)), False, 1),
        (_default(optimizers=_group(clip_by_global_norm(0.1))), False, 1),
        (_default(micro_batches=2), False, 1),
        (_default(), True, 1),
        (lambda: Custom(_weighted_values, model=_mlp()), True, 2),
        (lambda: Custom(_weighted_values, model=_mlp(), micro_batches=2), True, 2),
        (
            lambda: Trainer(_mlp(), "mse", optimizers=[OptimizerGroup("dense/.*"), OptimizerGroup("dense_1/.*")]),
            False,
            1,
        ),
        (
            lambda: Trainer(
                _mlp(), "mse", optimizers=[OptimizerGroup("dense/.*"), OptimizerGroup("dense_1/.*", sequential=True)]
            ),
            False,
            2,
        ),
    ],
    ids=[
        "plain",
        "regularizer",
        "clipping",
        "micro_batches",
        "sample_weights",
        "own_weights",
        "own_weights_micro",
        "joint",
        "sequential",
    ],
)
def test_all_reduce_calls_per_step(make, weights, wanted, monkeypatch):
    assert _calls_per_step(make, monkeypatch, weights) == wanted


# ---- where Keras differs: the day one of these fails, a remedy of ours can go --------------------------------------


def _keras_step(strategy, make_optimizer, gradients):
    """The weight on replica 0 after Keras' own `apply` of a gradient per replica, from 0."""
    with strategy.scope():
        w, optimizer = keras.Variable(0.0), make_optimizer()
        optimizer.build([w])

    @tf.function
    def step():
        def replica():
            index = tf.distribute.get_replica_context().replica_id_in_sync_group
            optimizer.apply([tf.gather(tf.constant(gradients), index)], [w])

        strategy.run(replica)

    step()
    return float(w.numpy())


@pytest.mark.parametrize("argument", ["clipvalue", "clipnorm", "global_clipnorm"])
def test_keras_clips_each_replica_before_the_sum(argument):
    # The sum is 2, clipped 1: right is -1. Keras clips 3 to 1 and -1 to -1.
    assert _keras_step(make_strategy("mirrored"), lambda: SGD(1.0, **{argument: 1.0}), [3.0, -1.0]) == 0.0


def test_keras_divides_loss_objects_by_the_replicas_but_not_functions_nor_scalars():
    strategy = make_strategy("mirrored")

    class Own(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return keras.ops.mean(keras.ops.square(y_true - y_pred))

    y, p = tf.zeros([2, 1]), tf.ones([2, 1])

    def on_two(loss):
        values = strategy.run(tf.function(lambda: tf.reduce_mean(loss(y, p))))
        return sum(float(v) for v in replica_values(strategy, values))

    with strategy.scope():
        made, own = keras.losses.MeanSquaredError(), Own()
    assert on_two(made) == pytest.approx(1.0)
    assert on_two(keras.losses.mean_squared_error) == pytest.approx(2.0)  # right: 1
    assert on_two(own) == pytest.approx(2.0)  # right: 1


@pytest.mark.parametrize("name", ["default", "mirrored"])
def test_the_trainer_is_right_for_loss_objects_functions_and_scalars(name):
    class Own(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return keras.ops.mean(keras.ops.square(y_true - y_pred))

    for loss in (keras.losses.MeanSquaredError(), keras.losses.mean_squared_error, Own()):

        def make(loss=loss):
            model = keras.Sequential([keras.Input((1,)), L.Dense(1, use_bias=False, kernel_initializer="ones")])
            return Trainer(model, loss, optimizers=SGD(0.25))

        data = tf.data.Dataset.from_tensors((np.ones([4, 1], np.float32), np.zeros([4, 1], np.float32)))
        metrics, copies, _ = _train(name, make, data, 1, 1)
        assert metrics["loss"] == pytest.approx(1.0)
        assert all(v == pytest.approx(0.5) for v in copies["dense/kernel"])
