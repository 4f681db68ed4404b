"""The compiled step against hand-written loops, Keras' `fit` and closed forms; what a Trainer refuses, and how."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from optimizers import EMA, OptimizerGroup
from tests.runs import random_arrays, slow, train
from trainer import Trainer, weighted
from trainer.data import from_arrays
from trainer.replicas.distribution import make_strategy
from trainer.step.guard import NonFiniteError

MODES = ("eager", "graph", "xla_step", "xla_loop")
SGD = keras.optimizers.SGD


class Scalars(keras.Model):
    """One trainable scalar per keyword."""

    def __init__(self, **values):
        super().__init__()
        for name, value in values.items():
            setattr(self, name, self.add_weight(name=name, shape=(), initializer=keras.initializers.Constant(value)))

    def call(self, x):
        return x


class Custom(Trainer):
    """A Trainer whose losses are `function(model, batch)`."""

    def __init__(self, function, **arguments):
        super().__init__(**arguments)
        self.function = function

    def compute_losses(self, batch, training):
        return self.function(self.model, batch)


def _mlp():
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)])


def _batches(arrays, size=4):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(size)


def _copies(strategy, variable):
    """The variable on each replica."""
    return [np.array(x) for x in strategy.experimental_local_results(variable.value)]


def _x_only(n=8, size=4):
    return _batches(np.ones([n, 1], np.float32), size)


# ---- the step -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_each_compile_mode_equals_a_hand_written_loop(mode):
    x, y = random_arrays(40)
    model = _mlp()
    by_hand = keras.models.clone_model(model)
    by_hand.set_weights(model.get_weights())
    optimizer = keras.optimizers.Adam(0.05)
    losses = []
    for step in range(10):
        rows = slice(4 * step, 4 * step + 4)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(by_hand(x[rows]) - y[rows]))
        gradients = tape.gradient(loss, [v.value for v in by_hand.trainable_variables])
        optimizer.apply(gradients, by_hand.trainable_variables)
        losses.append(float(loss))
    trainer = Trainer(model, "mse", optimizers=keras.optimizers.Adam(0.05), compile=mode)
    source = from_arrays((x, y), 4, shuffle=False)
    iterator = iter(trainer.distribute(source, chunk=5 if mode == "xla_loop" else None))
    first, second = trainer.train(iterator, 5), trainer.train(iterator, 5)
    assert int(trainer.global_step.numpy()) == 10
    np.testing.assert_allclose(first["loss"], np.mean(losses[:5]), rtol=1e-5)
    np.testing.assert_allclose(second["loss"], np.mean(losses[5:]), rtol=1e-5)
    for ours, theirs in zip(model.get_weights(), by_hand.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_grad_norm_and_learning_rate_are_reported():
    x, y = random_arrays(4)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    metrics = train(Trainer(model, "mse", optimizers=SGD(0.25)), _batches((x, y)), 1)
    gradient = np.concatenate([(-2 * x * y).mean(0), (-2 * y).mean(0)])  # of mean (xw + b - y)^2 at zero
    np.testing.assert_allclose(metrics["grad_norm/main"], np.linalg.norm(gradient), rtol=1e-5)
    assert metrics["learning_rate/main"] == 0.25
    assert metrics["updates/main"] == 1 and metrics["skipped_steps"] == 0
    np.testing.assert_allclose(metrics["losses/main"], (y**2).mean(), rtol=1e-6)


def _masked_model():
    inputs = keras.Input((5,), dtype="int32")
    h = keras.layers.Embedding(6, 4, mask_zero=True)(inputs)
    return keras.Model(inputs, keras.layers.Dense(1)(h))


def _fit_case(case):
    rng = np.random.default_rng(1)
    if case.startswith("masked"):
        x = rng.integers(1, 6, size=(12, 5)).astype(np.int32)
        for row, length in enumerate(rng.integers(1, 6, size=12)):
            x[row, length:] = 0
        model, arrays = _masked_model(), (x, rng.normal(size=(12, 5, 1)).astype(np.float32))
    else:
        model, arrays = _mlp(), random_arrays(12)
    if case.endswith("weighted"):
        weights = np.array([1, 0, 3, 0.5, 2, 2, 0, 1, 4, 1, 1, 0.25], np.float32)
        # Keras fails on a mask [B, T] beside weights [B]
        arrays += (np.tile(weights[:, None], [1, 5]) if case.startswith("masked") else weights,)
    return model, arrays


@pytest.mark.parametrize("case", [slow("plain"), "weighted", slow("masked"), "masked_weighted"])
def test_the_default_trainer_equals_fit(case):
    model, arrays = _fit_case(case)
    theirs = keras.models.clone_model(model)
    theirs.set_weights(model.get_weights())
    # Not Adam beside an embedding: Keras squares the parts of a repeated row one by one (groups_test.py).
    optimizer = SGD if case.startswith("masked") else keras.optimizers.Adam
    theirs.compile(
        optimizer(0.05),
        keras.losses.MeanSquaredError(),
        metrics=[keras.metrics.MeanAbsoluteError("mae")],
        weighted_metrics=[keras.metrics.MeanAbsoluteError("weighted_mae")],
        jit_compile=False,
    )
    history = theirs.fit(_batches(arrays), epochs=1, verbose=0).history
    metrics = [keras.metrics.MeanAbsoluteError("mae"), weighted(keras.metrics.MeanAbsoluteError("weighted_mae"))]
    trainer = Trainer(model, keras.losses.MeanSquaredError(), metrics, optimizer(0.05))
    ours = train(trainer, _batches(arrays), 3)
    np.testing.assert_allclose(ours["loss"], history["loss"][0], rtol=1e-5)
    np.testing.assert_allclose(ours["metrics/mae"], history["mae"][0], rtol=1e-5)
    np.testing.assert_allclose(ours["metrics/weighted_mae"], history["weighted_mae"][0], rtol=1e-5)
    for a, b in zip(model.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("micro_batches", [slow(2), 3])
def test_micro_batches_of_masked_sequences_change_neither_losses_nor_metrics(micro_batches):
    results = []
    for parts in (1, micro_batches):
        keras.utils.set_random_seed(0)
        model, arrays = _fit_case("masked_weighted")
        trainer = Trainer(model, "mse", [keras.metrics.MeanAbsoluteError("mae")], SGD(0.1), micro_batches=parts)
        metrics = train(trainer, _batches(arrays), 3)
        results.append((metrics, model.get_weights()))
    (whole, weights), (parts, micro_weights) = results
    for a, b in zip(weights, micro_weights, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert parts == pytest.approx(whole, rel=1e-5)


def test_names_of_metrics_do_not_depend_on_what_the_process_made_before():
    for _ in range(2):
        metrics = [keras.metrics.AUC(), keras.metrics.AUC(curve="PR"), keras.metrics.MeanAbsoluteError(name="mine")]
        found = train(
            Trainer(_mlp(), "mse", metrics), _batches((np.ones([4, 3], np.float32), np.ones([4, 1], np.float32))), 1
        )
        assert [tag for tag in found if tag.startswith("metrics/")] == ["metrics/auc", "metrics/auc_1", "metrics/mine"]


def test_dict_outputs_with_their_own_losses_and_metrics_equal_fit():
    x, y = random_arrays(12)
    ids = (np.arange(12) % 3).astype(np.int32)
    inputs = keras.Input((3,), name="x")
    h = keras.layers.Dense(4, "tanh")(inputs)
    outputs = {"value": keras.layers.Dense(1, name="value")(h), "kind": keras.layers.Dense(3, name="kind")(h)}
    model = keras.Model({"x": inputs}, outputs)
    theirs = keras.models.clone_model(model)
    theirs.set_weights(model.get_weights())
    loss = {"value": "mse", "kind": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
    theirs.compile("sgd", loss, metrics={"value": ["mae"], "kind": ["accuracy"]}, jit_compile=False)
    data = _batches(({"x": x}, {"value": y, "kind": ids}))
    history = theirs.fit(data, verbose=0).history
    ours = train(Trainer(model, loss, {"value": ["mae"], "kind": ["accuracy"]}, "sgd"), data, 3)
    np.testing.assert_allclose(ours["loss"], history["loss"][0], rtol=1e-5)
    np.testing.assert_allclose(ours["losses/value"] + ours["losses/kind"], ours["loss"], rtol=1e-6)
    np.testing.assert_allclose(ours["metrics/kind_accuracy"], history["kind_accuracy"][0], rtol=1e-5)
    mae = [value for name, value in ours.items() if name.startswith("metrics/value_")]
    np.testing.assert_allclose(mae, history["value_mae"], rtol=1e-5)
    for a, b in zip(model.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_nested_outputs_take_nested_losses_and_targets():
    x, y = random_arrays(4)
    inputs = keras.Input((3,))
    dense = [keras.layers.Dense(1, kernel_initializer="zeros", name=f"d{i}") for i in range(3)]
    model = keras.Model(inputs, {"a": {"b": dense[0](inputs), "c": dense[1](inputs)}, "d": dense[2](inputs)})
    targets = {"a": {"b": y, "c": 2 * y}, "d": 3 * y}
    trainer = Trainer(model, {"a": {"b": "mse", "c": "mae"}, "d": "mse"}, optimizers=SGD(0.1))
    metrics = train(trainer, _batches((x, targets)), 1)
    np.testing.assert_allclose(metrics["losses/a/b"], np.mean(y**2), rtol=1e-6)
    np.testing.assert_allclose(metrics["losses/a/c"], np.mean(np.abs(2 * y)), rtol=1e-6)
    np.testing.assert_allclose(metrics["losses/d"], np.mean(9 * y**2), rtol=1e-6)


def test_two_outputs_with_one_name_are_refused():
    inputs = keras.Input((3,))
    other = keras.layers.Lambda(lambda x: -x)(inputs)
    shared = keras.layers.Dense(1, name="head")
    trainer = Trainer(keras.Model(inputs, [shared(inputs), shared(other)]), "mse")
    x, y = random_arrays(4)
    with pytest.raises(ValueError, match="several outputs named head"):
        trainer.distribute(_batches((x, (y, y))))


def test_names_serve_as_optimizer_loss_and_metrics():
    x, _ = random_arrays(12)
    ids = (np.arange(12) % 4).astype(np.int32)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "softmax")])
    trainer = Trainer(model, "sparse_categorical_crossentropy", ["accuracy"], "adam")
    assert isinstance(trainer.groups[0].optimizer, keras.optimizers.Adam)
    scores = model(x[:4]).numpy()
    metrics = train(trainer, _batches((x, ids)), 1)
    np.testing.assert_allclose(metrics["losses/main"], -np.log(scores[np.arange(4), ids[:4]]).mean(), rtol=1e-5)
    assert metrics["metrics/accuracy"] == np.mean(scores.argmax(1) == ids[:4])


def test_accuracy_of_one_score_is_binary():
    x = np.array([[3.0], [-3.0], [2.0], [1.0]], np.float32)
    y = np.array([1, 1, 1, 0], np.float32)[:, None]
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, "sigmoid", kernel_initializer="ones")])
    metrics = train(Trainer(model, "binary_crossentropy", ["accuracy"], SGD(0.1)), _batches((x, y)), 1)
    assert metrics["metrics/accuracy"] == 0.5


def test_compute_losses_may_return_losses_alone():
    trainer = Custom(lambda m, x: {"l": x[:, 0] * m.u}, model=Scalars(u=2.0), optimizers=SGD(0.5))
    metrics = train(trainer, _x_only(4), 1)
    assert metrics["losses/l"] == 2.0
    assert float(trainer.model.u.numpy()) == 1.5


def test_compute_losses_beside_a_given_sparse_loss_may_return_losses_alone():
    trainer = Custom(
        lambda m, batch: {"l": batch[0][:, 0] * m.u},
        model=Scalars(u=2.0),
        optimizers=SGD(0.5),
        loss="sparse_categorical_crossentropy",
    )
    data = _batches((np.ones([4, 1], np.float32), np.zeros([4], np.int32)))
    assert train(trainer, data, 1)["losses/l"] == 2.0


def test_compute_losses_is_always_in_replica_context(strategy):
    contexts = []

    def losses(model, x):
        contexts.append(tf.distribute.get_replica_context() is not None)
        return {"l": x[:, 0] * model.u}

    with strategy.scope():
        trainer = Custom(losses, model=Scalars(u=2.0), optimizers=SGD(0.5))
    train(trainer, _x_only(4), 1)
    assert contexts and all(contexts)


# ---- the loop -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2])
def test_global_step_rises_once_per_step(strategy, groups):
    with strategy.scope():
        optimizers = [OptimizerGroup(v, optimizer=SGD(0.1)) for v in ("u", "v")] if groups == 2 else SGD(0.1)
        trainer = Custom(lambda m, x: {"l": x[:, 0] * (m.u + m.v)}, model=Scalars(u=1.0, v=1.0), optimizers=optimizers)
    iterator = iter(trainer.distribute(_x_only(32)))
    trainer.train(iterator, 3)
    assert int(trainer.global_step.numpy()) == 3
    metrics = trainer.train(iterator, 4)
    assert int(trainer.global_step.numpy()) == 7
    assert {value for tag, value in metrics.items() if tag.startswith("updates/")} == {7.0}


@pytest.mark.parametrize("name", ["default", "mirrored"])
def test_nothing_is_traced_again_after_the_first_loop_and_the_first_evaluation(name):
    traces = []

    class Counting(Trainer):
        def compute_losses(self, batch, training):
            traces.append(training)
            return super().compute_losses(batch, training)

    strategy = make_strategy(name)
    with strategy.scope():
        trainer = Counting(_mlp(), "mse", ["mae"], "adam")
    iterator = iter(trainer.distribute(from_arrays(random_arrays(40), 4)))
    trainer.train(iterator, 2)
    trained = len(traces)
    assert trained - 1 == strategy.num_replicas_in_sync  # one trace is build's
    for steps in (1, 3, 2):
        trainer.train(iterator, steps)
    train(trainer, from_arrays(random_arrays(40), 4), 2, start=7)
    assert len(traces) == trained
    ragged = from_arrays(random_arrays(11), 4, repeat=False)
    trainer.evaluate(ragged)
    evaluated = len(traces)
    assert evaluated - trained - 1 == strategy.num_replicas_in_sync  # one finds the names that an evaluation reports
    for _ in range(3):
        trainer.evaluate(ragged)
        trainer.train(iterator, 2)
    assert len(traces) == evaluated


@pytest.mark.parametrize("mode", MODES)
def test_data_that_ends_early_leaves_global_step_at_the_number_of_batches(mode):
    trainer = Custom(lambda m, x: {"l": x[:, 0] * m.u}, model=Scalars(u=1.0), optimizers=SGD(1.0), compile=mode)
    data = _x_only(24) if mode != "xla_loop" else tf.data.Dataset.from_tensors(np.ones([4, 1], np.float32)).repeat(6)
    iterator = iter(trainer.distribute(data, chunk=2 if mode == "xla_loop" else None))
    metrics = trainer.train(iterator, 10)
    assert int(trainer.global_step.numpy()) == 6
    assert float(trainer.model.u.numpy()) == -5.0
    np.testing.assert_allclose(metrics["losses/l"], np.mean([1, 0, -1, -2, -3, -4]))
    trainer.train(iterator, 10)
    assert int(trainer.global_step.numpy()) == 6


def test_xla_loop_asks_for_its_chunk():
    """A default of 1 was slower than every other mode, in silence."""
    trainer = Custom(lambda m, x: {"l": x[:, 0] * m.u}, model=Scalars(u=1.0), compile="xla_loop")
    with pytest.raises(ValueError, match=r"`chunk`.* must be given with compile='xla_loop', got None.*chunk=100"):
        trainer.distribute(_x_only())


def test_data_that_ends_early_on_two_replicas():
    strategy = make_strategy("mirrored")
    with strategy.scope():
        trainer = Custom(lambda m, x: {"l": x[:, 0] * m.u}, model=Scalars(u=1.0), optimizers=SGD(1.0))
    metrics = train(trainer, _x_only(23), 10)  # five batches of 4 and one of 3
    assert int(trainer.global_step.numpy()) == 6
    assert _copies(strategy, trainer.model.u) == [-5.0, -5.0]
    np.testing.assert_allclose(metrics["losses/l"], np.mean([1, 0, -1, -2, -3, -4]))


def test_num_steps_must_be_a_whole_number_of_steps():
    trainer = Custom(lambda m, x: {"l": x[:, 0] * m.u}, model=Scalars(u=1.0))
    iterator = iter(trainer.distribute(_x_only()))
    for num_steps in (0, -1, 7.5, "3", None, True):
        with pytest.raises(ValueError, match=f"`num_steps` must be a whole number >= 1, got {num_steps!r}"):
            trainer.train(iterator, num_steps)


@pytest.mark.parametrize("arguments, message", [
    ({"metrics": "acuracy"}, "`metrics` must be a name that .* knows, got 'acuracy'. Did you mean 'accuracy'"),
    ({"metrics": ["accuracy", 5]}, "`metrics` must hold Keras metrics, functions or names, got 5"),
    ({"frozen": ["dense/.*", "("]}, r"`frozen` '\(' is not a regular expression"),
])  # fmt: skip
def test_invalid_arguments_are_errors_of_the_constructor(arguments, message):
    with pytest.raises(ValueError, match=message):
        Trainer(keras.Sequential([keras.layers.Dense(1)]), "mse", **arguments)


def test_metrics_are_of_the_state_before_each_update_and_reset_every_loop():
    x = np.ones([8, 1], np.float32)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="ones", use_bias=False)])
    trainer = Trainer(model, "mse", ["mae"], SGD(0.25))  # w: 1 -> .5 -> .25 for target 0
    iterator = iter(trainer.distribute(_batches((x, 0 * x)).repeat()))
    metrics = trainer.train(iterator, 2)
    (tag,) = [t for t in metrics if t.startswith("metrics/")]
    assert metrics[tag] == pytest.approx((1 + 0.5) / 2)
    assert trainer.train(iterator, 1)[tag] == pytest.approx(0.25)


# ---- groups -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [slow("default"), "mirrored"])
@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("guard", ["skip", slow("off")])
def test_sequential_groups_recompute_and_joint_groups_do_not(name, sequential, guard):
    rate, u, v = 0.25, 1.0, -0.5
    with make_strategy(name).scope():
        trainer = Custom(
            lambda m, x: {"l": 0.5 * tf.square(m.u + 3.0 * m.v - x[:, 0])},
            model=Scalars(u=u, v=v),
            guard=guard,
            optimizers=[
                OptimizerGroup("u", optimizer=SGD(rate), name="a"),
                OptimizerGroup("v", optimizer=SGD(0.1 * rate), name="b", sequential=sequential),
            ],
        )
    train(trainer, _x_only(12), 3)
    for _ in range(3):
        before = u
        u = u - rate * (u + 3 * v - 1)
        v = v - 0.1 * rate * 3 * ((u if sequential else before) + 3 * v - 1)
    np.testing.assert_allclose(trainer.model.u.numpy(), u, rtol=1e-5)
    np.testing.assert_allclose(trainer.model.v.numpy(), v, rtol=1e-5)
    assert int(trainer.global_step.numpy()) == 3


@pytest.mark.parametrize("sequential", [False, True])
def test_a_group_moves_by_its_own_losses_only(sequential):
    trainer = Custom(
        lambda m, x: {"one": x[:, 0] * (m.u + 5.0 * m.v), "two": x[:, 0] * (7.0 * m.u + 2.0 * m.v)},
        model=Scalars(u=0.0, v=0.0),
        optimizers=[  # not in alphabetical order, in which tf.nest would put their gradients
            OptimizerGroup("u", ["one"], SGD(1.0), name="z"),
            OptimizerGroup("v", {"two": 0.25}, SGD(1.0), sequential=sequential, name="a"),
        ],
    )
    metrics = train(trainer, _x_only(4), 1)
    assert float(trainer.model.u.numpy()) == -1.0
    assert float(trainer.model.v.numpy()) == -0.5
    assert metrics["loss"] == 0.0 and metrics["grad_norm/z"] == 1.0 and metrics["grad_norm/a"] == 0.5


class Counting(keras.optimizers.schedules.LearningRateSchedule):
    """1, 2, 3, ..."""

    def __call__(self, step):
        return 1.0 + tf.cast(step, tf.float32)


def test_a_learning_rate_schedule_counts_the_groups_own_updates(strategy):
    with strategy.scope():
        groups = [
            OptimizerGroup("u", optimizer=SGD(Counting()), every=2, name="slow"),
            OptimizerGroup("v", optimizer=SGD(Counting()), start=4, name="late"),
        ]
        trainer = Custom(lambda m, x: {"l": x[:, 0] * (m.u + m.v)}, model=Scalars(u=0.0, v=0.0), optimizers=groups)
    metrics = train(trainer, _x_only(24), 6)
    assert float(trainer.model.u.numpy()) == -(1 + 2 + 3)  # at steps 0, 2, 4
    assert float(trainer.model.v.numpy()) == -(1 + 2)  # at steps 4, 5
    assert (metrics["updates/slow"], metrics["updates/late"]) == (3, 2)
    assert (metrics["learning_rate/slow"], metrics["learning_rate/late"]) == (4.0, 3.0)  # of the next update


def test_a_loss_weight_may_be_a_schedule_of_the_step():
    group = OptimizerGroup(losses={"l": lambda step: tf.cast(step, tf.float32)}, optimizer=SGD(1.0))
    trainer = Custom(lambda m, x: {"l": x[:, 0] * m.u}, model=Scalars(u=0.0), optimizers=group)
    train(trainer, _x_only(16), 4)
    assert float(trainer.model.u.numpy()) == -(0 + 1 + 2 + 3)


@pytest.mark.parametrize("name", ["default", slow("mirrored")])
@pytest.mark.parametrize(
    "rule, expected",
    [
        ({}, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ({"every": 3}, [0, 3, 6, 9]),
        ({"every": 3, "offset": 1}, [1, 4, 7]),
        ({"every": 3, "offset": -1}, [2, 5, 8]),
        ({"every": 3, "offset": 4}, [1, 4, 7]),
        ({"start": 4}, [4, 5, 6, 7, 8, 9]),
        ({"stop": 2}, [0, 1]),
        ({"start": 2, "stop": 8, "every": 4}, [4]),
        ({"start": 2, "stop": 9, "every": 2, "offset": 1}, [3, 5, 7]),
    ],
)
def test_a_group_is_updated_at_exactly_the_steps_that_are_due(name, rule, expected):
    with make_strategy(name).scope():
        trainer = Custom(
            lambda m, x: {"l": x[:, 0] * (m.u + m.v)},
            model=Scalars(u=0.0, v=0.0),
            optimizers=[OptimizerGroup("u", optimizer=SGD(1.0)), OptimizerGroup("v", optimizer=SGD(1.0), **rule)],
        )
    iterator, steps, last = iter(trainer.distribute(_x_only(40))), [], 0.0
    for step in range(10):
        metrics = trainer.train(iterator, 1)
        now = float(trainer.model.v.numpy())
        if now != last:
            steps.append(step)
        last = now
    assert steps == expected
    assert float(trainer.model.u.numpy()) == -10.0
    assert metrics["updates/group_1"] == len(expected) and metrics["updates/group_0"] == 10


def test_variables_frozen_by_pattern_keep_their_bytes():
    x, y = random_arrays(12)
    model = _mlp()
    before = model.get_weights()
    trainer = Trainer(model, "mse", optimizers="adam", frozen=["dense/.*"])
    train(trainer, _batches((x, y)), 3)
    after = model.get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(before[:2], after[:2], strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(before[2:], after[2:], strict=True))


# ---- the guard ----------------------------------------------------------------------------------------------------


def _state(trainer):
    values = {}
    for name, variable in trainer.variables.items():
        values[name] = _copies(trainer.strategy, variable)
    for group in trainer.groups:
        for name, slot in group.slots.items():
            values[f"{group.name}/{name}"] = _copies(trainer.strategy, slot)
    return values


@pytest.mark.parametrize(
    "name, lazy, row",
    [
        ("default", False, 0),
        ("mirrored", False, 0),
        ("mirrored", True, 3),
        slow("default", True, 0),
        slow("mirrored", False, 3),
        slow("mirrored", True, 0),
    ],
)
def test_a_bad_batch_changes_no_weight_no_slot_and_no_moving_statistic(name, lazy, row):
    class Lazy(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = [keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dense(1)]

        def call(self, x, training=False):
            for layer in self.inner:
                x = layer(x, training=training) if layer is self.inner[1] else layer(x)
            return x

    x, y = random_arrays(16)
    x[4 + row, 0] = np.nan
    strategy = make_strategy(name)
    with strategy.scope():
        layers = [keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dense(1)]
        model = Lazy() if lazy else keras.Sequential([keras.Input((3,)), *layers])
        trainer = Trainer(model, "mse", ["mae"], "adam")
    iterator = iter(trainer.distribute(_batches((x, y))))
    trainer.train(iterator, 1)
    before = _state(trainer)
    metrics = trainer.train(iterator, 1)
    after = _state(trainer)
    assert any("moving_mean" in key for key in before) and any("momentum" in key for key in before)
    for key, values in before.items():
        for a, b in zip(values, after[key], strict=True):
            np.testing.assert_array_equal(a, b, err_msg=key)
    assert metrics["skipped_steps"] == 1 and int(trainer.global_step.numpy()) == 2
    assert not any(np.isnan(value) for value in metrics.values())
    metrics = trainer.train(iterator, 2)
    assert metrics["skipped_steps"] == 1 and int(trainer.global_step.numpy()) == 4
    assert np.isfinite(metrics["loss"])
    final = _state(trainer)
    assert all(np.isfinite(v).all() for values in final.values() for v in values)
    assert not np.array_equal(final[next(iter(final))][0], after[next(iter(after))][0])


def _linear(m, x):
    return {"l": x[:, 0] * m.u + m.v}


@pytest.mark.parametrize("name", [slow("default"), "mirrored"])
def test_too_many_bad_steps_in_a_row_end_the_run_and_name_the_variable(name):
    with make_strategy(name).scope():
        trainer = Custom(_linear, model=Scalars(u=1.0, v=1.0), optimizers=SGD(1.0), max_skipped=3)
    x = np.ones([28, 1], np.float32)
    x[4:12] = np.nan  # steps 1 and 2: a row of two, which is allowed
    x[16:28] = np.nan  # steps 4, 5, 6
    iterator = iter(trainer.distribute(_batches(x)))
    assert trainer.train(iterator, 4)["skipped_steps"] == 2
    with pytest.raises(NonFiniteError, match="3 steps in a row.* u") as raised:
        trainer.train(iterator, 3)
    assert raised.value.variables == ["u"]
    assert float(trainer.model.v.numpy()) == -1.0  # steps 0 and 3
    assert int(trainer.global_step.numpy()) == 7


def test_training_goes_on_after_a_caught_stop():
    trainer = Custom(_linear, model=Scalars(u=1.0, v=1.0), optimizers=SGD(1.0), max_skipped=2)
    bad, good = _batches(np.full([8, 1], np.nan, np.float32)), _x_only(8)
    with pytest.raises(NonFiniteError):
        train(trainer, bad, 2)
    assert train(trainer, good, 2)["skipped_steps"] == 2
    assert float(trainer.model.v.numpy()) == -1.0


def test_a_sequential_round_that_is_always_bad_ends_the_run():
    def losses(m, x):
        return {"bad": x[:, 0] * m.u * np.nan, "good": x[:, 0] * m.v}

    trainer = Custom(
        losses,
        model=Scalars(u=1.0, v=1.0),
        max_skipped=3,
        optimizers=[
            OptimizerGroup("u", ["bad"], SGD(1.0)),
            OptimizerGroup("v", ["good"], SGD(1.0), sequential=True),
        ],
    )
    with pytest.raises(NonFiniteError) as raised:
        train(trainer, _x_only(40), 10)
    assert raised.value.variables == ["u"]


def test_guard_stop_raises_at_the_end_of_the_loop():
    trainer = Custom(_linear, model=Scalars(u=1.0, v=1.0), optimizers=SGD(1.0), guard="stop")
    x = np.ones([16, 1], np.float32)
    x[4] = np.nan
    with pytest.raises(NonFiniteError, match="loop that ended at step 4.*grad_norm/main"):
        train(trainer, _batches(x), 4)
    assert int(trainer.global_step.numpy()) == 4


def test_guard_off_goes_on():
    trainer = Custom(_linear, model=Scalars(u=1.0, v=1.0), optimizers=SGD(1.0), guard="off")
    metrics = train(trainer, _batches(np.full([8, 1], np.nan, np.float32)), 2)
    assert np.isnan(metrics["loss"]) and np.isnan(trainer.model.u.numpy())


def test_only_a_deciding_guard_puts_a_condition_into_the_graph():
    def conditions(**arguments):
        trainer = Custom(_linear, model=Scalars(u=1.0, v=1.0), optimizers=SGD(1.0), **arguments)
        iterator = iter(trainer.distribute(_x_only(8)))
        graph = trainer.loop_graph(iterator)
        definition = graph.as_graph_def()
        nodes = [node for function in definition.library.function for node in function.node_def]
        return sum(node.op in ("If", "StatelessIf") for node in nodes)

    assert conditions(guard="stop") == conditions(guard="off")
    assert conditions(guard="skip") == conditions(guard="off") + 1


# ---- what is refused, and how -------------------------------------------------------------------------------------


def _refuses(match, trainer, data=None, error=ValueError):
    with pytest.raises(error, match=match):
        trainer.distribute(_x_only() if data is None else data)
        train(trainer, _x_only() if data is None else data, 1)


def test_a_variable_without_a_gradient_is_named():
    _refuses(
        r"(?s)'main'.*without a gradient.*\n\s+v:\n\s+The losses of its group do not depend on it.*Connect them",
        Custom(lambda m, x: {"l": x[:, 0] * m.u}, model=Scalars(u=1.0, v=1.0)),
    )


def test_an_unknown_loss_of_a_group_is_refused_with_the_nearest_name():
    group = OptimizerGroup(losses=["mian"], name="g")
    _refuses(
        "'g' names 'mian'.*Did you mean 'main'", Trainer(_mlp(), "mse", optimizers=group), _batches(random_arrays(12))
    )


def test_a_loss_that_no_group_minimizes_is_refused():
    trainer = Custom(
        lambda m, x: {"a": x[:, 0] * m.u, "b": x[:, 0] * m.u},
        model=Scalars(u=1.0),
        optimizers=OptimizerGroup(losses=["a"]),
    )
    _refuses("No group minimizes b", trainer)


def test_a_model_without_variables_is_refused():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Activation("tanh")])
    _refuses("no trainable variables", Trainer(model, "mse"), _batches((random_arrays(12)[0],) * 2))


@pytest.mark.parametrize("loss, shape", [("mse", (4, 3)), ("mae", (4, 3, 1))])
def test_targets_that_would_broadcast_are_refused(loss, shape):
    data = _batches((np.ones([4, 3], np.float32), np.ones(shape, np.float32)))
    _refuses("would broadcast", Trainer(_mlp(), loss), data)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bad", [12, slow(-1)])
def test_class_ids_out_of_range_are_found_on_the_first_batch(mode, bad):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    data = from_arrays((np.ones([4, 3], np.float32), np.array([0, 9, bad, 1], np.int32)), 4)
    with pytest.raises(ValueError, match=f"10 scores.* {bad}"):
        Trainer(model, loss, compile=mode).distribute(data, chunk=2 if mode == "xla_loop" else None)


def test_a_batch_smaller_than_the_number_of_replicas_is_refused():
    with make_strategy("mirrored").scope():
        trainer = Trainer(_mlp(), "mse")
    _refuses("1 examples for 2 replicas", trainer, _batches(random_arrays(12), 1))


class PlainError(Exception):
    pass


class OwnError(Exception):
    def __init__(self, code, text):
        super().__init__(f"{code}: {text}")


@pytest.mark.parametrize("name", [slow("default"), "mirrored"])
@pytest.mark.parametrize(
    "error", [PlainError("my own"), OwnError(7, "my own"), KeyError("my own"), OSError(2, "my own")]
)
@pytest.mark.parametrize("late", [False, True], ids=["in_build", "in_train"])
def test_an_exception_of_the_users_keeps_its_type_and_text(name, error, late):
    ready = []

    def losses(model, x):
        if ready or not late:
            raise error
        return {"l": x[:, 0] * model.u}

    with make_strategy(name).scope():
        trainer = Custom(losses, model=Scalars(u=1.0))
    with pytest.raises(type(error), match="my own"):
        iterator = iter(trainer.distribute(_x_only()))
        ready.append(True)
        trainer.train(iterator, 1)


@pytest.mark.parametrize(
    "arguments, match",
    [
        ({"loss": "msee"}, "`loss`.*'msee'"),
        ({"loss": keras.losses.MeanSquaredError(reduction="sum")}, "reduction='sum'"),
        ({"loss": keras.losses.MeanSquaredError(reduction=None)}, "reduction"),
        ({"loss": keras.losses.MeanSquaredError}, "class MeanSquaredError"),
        ({"optimizers": "adm"}, "`optimizer`.*'adm'"),
        ({"optimizers": []}, "at least one"),
        ({"guard": "skipp"}, "`guard`.*skip, stop, off"),
        ({"compile": "jit"}, "`compile`.*xla_loop"),
        ({"micro_batches": 0}, "`micro_batches` must be a whole number >= 1, got 0"),
        ({"micro_batches": 1.5}, "`micro_batches` must be a whole number >= 1, got 1.5"),
        ({"max_skipped": None}, "`max_skipped` must be a whole number >= 1, got None"),
        ({"frozen": 3}, "`frozen` must be a regular expression"),
        ({"averages": EMA}, "Call it"),
        ({"model": _mlp}, "`model` must be a Keras model"),
    ],
)
def test_arguments_are_checked_at_once(arguments, match):
    with pytest.raises(ValueError, match=match):
        Trainer(**{"model": None, "loss": "mse", **arguments})


def test_xla_is_refused_on_several_replicas():
    with make_strategy("mirrored").scope(), pytest.raises(ValueError, match="needs one replica, got 2"):
        Trainer(None, "mse", compile="xla_step")


@pytest.mark.parametrize("returned", [None, 1.0, {}, [1.0]])
def test_compute_losses_that_returns_no_dict_is_refused(returned):
    _refuses("must return a dict", Custom(lambda m, x: returned, model=Scalars(u=1.0)))


def test_an_integer_loss_is_refused_by_name():
    trainer = Custom(lambda m, x: {"count": tf.cast(x[:, 0], tf.int32), "l": x[:, 0] * m.u}, model=Scalars(u=1.0))
    _refuses("'count' must be of a floating dtype", trainer)


def test_float64_and_integer_inputs_are_cast_as_keras_casts_them():
    x = np.arange(12, dtype=np.int64).reshape(4, 3)
    metrics = train(Trainer(_mlp(), "mse", optimizers=SGD(0.0)), _batches((x, np.ones([4, 1], np.float64))), 1)
    assert np.isfinite(metrics["loss"])
