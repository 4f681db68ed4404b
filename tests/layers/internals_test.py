"""Losses, metrics and taps from inside a model: values against NumPy, on 1 and 2 replicas, in every mode."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from layers.internals import Collector, add_loss, add_metric, collecting, intercept_keras_add_loss, tap
from layers.passing import ActivationMonitor, AddLoss, AddMetric
from tests.runs import slow, train
from trainer import OptimizerGroup, Trainer
from trainer.replicas.distribution import make_strategy

L, SGD = keras.layers, keras.optimizers.SGD
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(16, 3)).astype(np.float32), RNG.normal(size=(16, 1)).astype(np.float32)
W = RNG.uniform(0, 2, size=16).astype(np.float32)
STRATEGIES = ("default", "mirrored")


class Speaking(L.Layer):
    """A layer whose `call` calls `say(inputs)`."""

    def __init__(self, say, **kwargs):
        super().__init__(**kwargs)
        self.say = say

    def call(self, inputs):
        self.say(inputs)
        return inputs


def _model(say, before=(), after=()):
    return keras.Sequential(
        [keras.Input((3,)), *before, Speaking(say, name="speaking"), *after, L.Dense(1, name="head")]
    )


def _trainer(strategy, say, optimizers=None, **arguments):
    keras.utils.set_random_seed(0)
    with make_strategy(strategy).scope():
        model = arguments.pop("model", None) or _model(say)
        return Trainer(
            model() if not isinstance(model, keras.Model) else model,
            "mse",
            optimizers=optimizers or SGD(0.0),
            **arguments,
        )


def _batches(sizes=(5, 6, 5)):
    """Uneven on two replicas, and over the steps."""
    ends = np.cumsum(sizes)

    def rows():
        for size, end in zip(sizes, ends):
            yield X[end - size : end], Y[end - size : end]

    spec = tuple(tf.TensorSpec([None, n], tf.float32) for n in (3, 1))
    return tf.data.Dataset.from_generator(rows, output_signature=spec)


def _train(trainer, steps=3, sizes=(5, 6, 5)):
    return train(trainer, _batches(sizes), steps)


PARTS = [X[:5], X[5:11], X[11:]]
WAYS = [("default", 1), ("mirrored", 3), slow("default", 3), slow("mirrored", 1)]  # strategy, micro-batches

# name: (value of the inputs, how it is reduced, result of the three steps in NumPy)
METRICS = {
    "mean": (lambda x: x, "mean", X.mean()),
    "scalar": (tf.reduce_mean, "mean", X.mean()),
    "weighted": (lambda x: (x[:, 0], x[:, 1] ** 2), "mean", (X[:, 0] * X[:, 1] ** 2).sum() / (X[:, 1] ** 2).sum()),
    "sum": (lambda x: x[:, 0], "sum", X[:, 0].sum()),
    "min": (lambda x: x, "min", X.min()),
    "max": (lambda x: x, "max", X.max()),
    "last": (lambda x: x, "last", X[11:].mean()),
}


@pytest.mark.parametrize("strategy, parts", WAYS)
def test_metrics_are_reduced_over_replicas_steps_and_micro_batches(strategy, parts):
    def say(x):
        for name, (value, reduce, _) in METRICS.items():
            add_metric(value(x), name, reduce)

    trainer = _trainer(strategy, say, micro_batches=parts)
    trained, evaluated = _train(trainer), trainer.evaluate(_batches())
    for name, (*_, wanted) in METRICS.items():
        for metrics in (trained, evaluated):
            assert metrics[f"metrics/{name}"] == pytest.approx(float(wanted), rel=1e-5), name


def test_metrics_fold_over_loops_into_one_report():
    def say(x):
        for reduce in ("mean", "sum", "min", "max", "last"):
            add_metric(x, reduce, reduce)

    trainer = _trainer("mirrored", say)
    iterator, report = iter(trainer.distribute(_batches())), None
    for _ in range(3):
        trainer.train(iterator, 1)
        report = report.then(trainer.report) if report else trainer.report
    found = trainer.summarize(report)
    wanted = {"mean": X.mean(), "sum": X.sum(), "min": X.min(), "max": X.max(), "last": X[11:].mean()}
    for name, value in wanted.items():
        assert found[f"metrics/{name}"] == pytest.approx(float(value), rel=1e-5), name


# name: (loss of the inputs, the loss of a batch in NumPy)
LOSSES = {
    "values": (tf.square, lambda x: (x**2).mean()),
    "per_example": (lambda x: tf.reduce_sum(x, 1), lambda x: x.sum(1).mean()),
    "scalar": (lambda x: tf.reduce_mean(tf.square(x)), lambda x: (x**2).mean()),
    "weighted": (
        lambda x: (x[:, 0], tf.square(x[:, 1])),
        lambda x: (x[:, 0] * x[:, 1] ** 2).sum() / (x[:, 1] ** 2).sum(),
    ),
}


@pytest.mark.parametrize("strategy, parts", WAYS)
def test_losses_are_reduced_like_those_of_compute_losses(strategy, parts):
    def say(x):
        for name, (value, _) in LOSSES.items():
            add_loss(value(x), name)

    trainer = _trainer(strategy, say, micro_batches=parts)
    for metrics, batches in ((_train(trainer), PARTS), (trainer.evaluate(_batches([16])), [X])):
        for name, (_, by_hand) in LOSSES.items():
            wanted = np.mean([by_hand(x) for x in batches])
            assert metrics[f"losses/{name}"] == pytest.approx(float(wanted), rel=1e-5), name
        assert metrics["loss"] == pytest.approx(sum(metrics[f"losses/{n}"] for n in ("main", *LOSSES)), rel=1e-5)


def _deep(say):
    """The layer is two levels down, in a subclassed model."""

    class Inner(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense, self.speaking = L.Dense(3), Speaking(say)

        def call(self, x):
            return self.speaking(self.dense(x))

    class Outer(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner, self.head = Inner(), L.Dense(1)

        def call(self, x):
            return self.head(self.inner(x))

    return Outer()


@pytest.mark.parametrize("parts", [slow(1), 3])
def test_gradients_flow_and_two_replicas_equal_one(parts):
    """Activity and weights, at depth, with a further call in the same step; 20 steps."""

    def say(x):
        add_loss(0.1 * tf.square(x), "activity")
        add_loss((tf.abs(x[:, 0]), tf.square(x[:, 1])), "weighted", weight=0.5)
        add_metric(x, "h")

    class Twice(Trainer):
        def compute_losses(self, batch, training):
            x, y = batch
            first, second = self.model(x, training=training), self.model(0.5 * x, training=training)
            return {"main": tf.square(first + second - y)}

    found = []
    for strategy in STRATEGIES:
        keras.utils.set_random_seed(0)
        with make_strategy(strategy).scope():
            trainer = Twice(_deep(say), optimizers=SGD(0.05), micro_batches=parts)
        data = _batches().repeat()
        found.append((train(trainer, data, 20), trainer))
    (one, alone), (two, both) = found
    for name, variable in alone.variables.items():
        np.testing.assert_allclose(both.variables[name].numpy(), variable.numpy(), atol=2e-6)
    for tag, value in one.items():
        assert two[tag] == pytest.approx(value, rel=2e-5, abs=2e-6), tag
    # The second call of the model adds up.
    x = X[:5]
    h = [alone.model.inner.dense(scale * x).numpy() for scale in (1.0, 0.5)]
    evaluated = alone.evaluate(_batches([5]))
    assert evaluated["losses/activity"] == pytest.approx(0.1 * sum((a**2).mean() for a in h), rel=1e-5)
    weighted = sum((np.abs(a[:, 0]) * a[:, 1] ** 2).sum() / (a[:, 1] ** 2).sum() for a in h)
    assert evaluated["losses/weighted"] == pytest.approx(float(weighted), rel=1e-5)
    assert evaluated["loss"] == pytest.approx(
        evaluated["losses/main"] + evaluated["losses/activity"] + 0.5 * evaluated["losses/weighted"], rel=1e-5
    )


@pytest.mark.parametrize("mode", ["eager", "graph", "xla_step", "xla_loop"])
def test_every_compile_mode(mode):
    def say(x):
        add_loss(tf.square(x), "inner")
        add_metric(x, "top", "max")
        add_metric(x, "end", "last")

    trainer = _trainer("default", say, compile=mode)
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8, drop_remainder=True)
    iterator = iter(trainer.distribute(data, chunk=2 if mode == "xla_loop" else None))
    metrics = trainer.train(iterator, 2)
    assert metrics["losses/inner"] == pytest.approx(float((X**2).mean()), rel=1e-5)
    assert metrics["metrics/top"] == pytest.approx(float(X.max())) and metrics["metrics/end"] == pytest.approx(
        float(X[8:].mean()), rel=1e-5
    )


def test_a_weight_may_be_a_schedule_of_the_step_and_the_loss_is_reported_without_it():
    def anneal(step):
        return tf.minimum(tf.cast(step, tf.float32) / 2.0, 1.0)

    trainer = _trainer("mirrored", lambda x: add_loss(x[:, 0] * 0 + 3.0, "kl", weight=anneal))
    metrics = _train(trainer)  # weights 0, 1/2, 1
    assert metrics["losses/kl"] == pytest.approx(3.0)
    assert metrics["loss"] - metrics["losses/main"] == pytest.approx(3.0 * 0.5, rel=1e-5)
    evaluated = trainer.evaluate(_batches())
    assert evaluated["loss"] - evaluated["losses/main"] == pytest.approx(3.0, rel=1e-5)


def test_a_weight_of_zero_still_reports():
    metrics = _train(_trainer("default", lambda x: add_loss(x[:, 0] * 0 + 3.0, "kl", weight=0.0)))
    assert metrics["losses/kl"] == pytest.approx(3.0) and metrics["loss"] == pytest.approx(metrics["losses/main"])


def test_a_group_may_name_an_internal_loss():
    def say(x):
        add_loss(x, "inner")

    with make_strategy("mirrored").scope():
        groups = [OptimizerGroup("dense/.*", ["inner"], SGD(0.1)), OptimizerGroup("head/.*", ["main"], SGD(0.0))]
    model = lambda: keras.Sequential([keras.Input((3,)), L.Dense(3), Speaking(say), L.Dense(1, name="head")])  # noqa: E731
    trainer = _trainer("mirrored", say, groups, model=model)
    trainer.build(_batches().element_spec)
    before = trainer.variables["dense/kernel"].numpy()
    _train(trainer, 1)
    # d mean(x W) / dW = mean over rows of x, over 3 columns
    wanted = before - 0.1 * np.tile(X[:5].mean(0)[:, None], [1, 3]) / 3
    np.testing.assert_allclose(trainer.variables["dense/kernel"].numpy(), wanted, atol=1e-6)


# ---- what Keras offers ---------------------------------------------------------------------------------------------


class KerasLoss(L.Layer):
    def call(self, x):
        self.add_loss(keras.ops.mean(keras.ops.square(x)))
        return x


@pytest.mark.parametrize("strategy, parts", WAYS)
def test_keras_add_loss_is_collected_under_the_name_of_its_layer(strategy, parts):
    model = lambda: keras.Sequential([keras.Input((3,)), KerasLoss(), KerasLoss(name="mine"), L.Dense(1)])  # noqa: E731
    metrics = _train(_trainer(strategy, None, model=model, micro_batches=parts))
    wanted = float(np.mean([(x**2).mean() for x in PARTS]))
    assert metrics["losses/keras_loss"] == pytest.approx(wanted, rel=1e-5)
    assert metrics["losses/mine"] == pytest.approx(wanted, rel=1e-5)
    assert metrics["loss"] == pytest.approx(metrics["losses/main"] + 2 * wanted, rel=1e-5)


@pytest.mark.parametrize("strategy, parts", WAYS)
def test_activity_regularizers_mean_over_the_global_batch_and_weight_regularizers_count_once(strategy, parts):
    def dense():
        return L.Dense(
            1, activity_regularizer=keras.regularizers.L2(0.1), kernel_regularizer=keras.regularizers.L2(0.5)
        )

    model = lambda: keras.Sequential([keras.Input((3,)), dense()])  # noqa: E731
    trainer = _trainer(strategy, None, model=model, micro_batches=parts)
    trainer.build(_batches().element_spec)
    kernel = trainer.variables["dense/kernel"].numpy()
    metrics = _train(trainer)
    penalties = [0.1 * ((x @ kernel) ** 2).mean() for x in PARTS]
    assert metrics["losses/dense"] == pytest.approx(float(np.mean(penalties)), rel=1e-5)
    assert metrics["losses/regularization"] == pytest.approx(0.5 * float((kernel**2).sum()), rel=1e-5)
    assert trainer.evaluate(_batches())["losses/dense"] == pytest.approx(
        0.1 * float(((X @ kernel) ** 2).mean()), rel=1e-5
    )


def test_it_equals_fit_with_keras_losses_and_regularizers():
    def make():
        keras.utils.set_random_seed(0)
        dense = L.Dense(
            4, "tanh", activity_regularizer=keras.regularizers.L2(0.01), kernel_regularizer=keras.regularizers.L2(0.01)
        )
        return keras.Sequential([keras.Input((3,)), dense, KerasLoss(), L.Dense(1)])

    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    theirs, ours = make(), make()
    theirs.compile(SGD(0.1), "mse", jit_compile=False)
    history = theirs.fit(data, verbose=0).history
    metrics = (trainer := Trainer(ours, "mse", optimizers=SGD(0.1))).train(iter(trainer.distribute(data)), 2)
    assert metrics["loss"] == pytest.approx(history["loss"][0], rel=1e-5)
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_with_a_synchronized_batch_norm_inside_no_replica_hears_another():
    """Replicas are threads that switch at every collective, where Keras' own `model.losses` mixes them."""

    def model():
        layers = [KerasLoss(name="a"), L.BatchNormalization(synchronized=True), KerasLoss(name="b"), L.Dense(1)]
        return keras.Sequential([keras.Input((3,)), *layers])

    one, two = (_train(_trainer(strategy, None, model=model)) for strategy in STRATEGIES)
    for tag in ("losses/a", "losses/b", "loss"):
        assert two[tag] == pytest.approx(one[tag], rel=1e-5)


def test_half_precision_losses_are_summed_in_float32():
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    model = lambda: keras.Sequential([keras.Input((3,)), KerasLoss(), L.Dense(1, dtype="float32")])  # noqa: E731
    metrics = _train(_trainer("default", None, model=model))
    assert metrics["losses/keras_loss"] == pytest.approx(float(np.mean([(x**2).mean() for x in PARTS])), rel=5e-3)


class Counting(L.Layer):
    """A Keras metric held by a layer and updated in `call`."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.largest = keras.metrics.Mean(name="inside")

    def call(self, x):
        self.largest.update_state(x)
        return x


@pytest.mark.parametrize("strategy", [slow("default"), "mirrored"])
def test_a_metric_held_by_a_layer_counts_good_steps_only(strategy):
    bad = X.copy()
    bad[12] = np.inf  # in the last step

    def rows():
        for size, end in zip((5, 6, 5), (5, 11, 16)):
            yield bad[end - size : end], Y[end - size : end]

    data = tf.data.Dataset.from_generator(rows, output_signature=_batches().element_spec)
    trainer = _trainer(strategy, None, model=lambda: keras.Sequential([keras.Input((3,)), Counting(), L.Dense(1)]))
    metrics = train(trainer, data, 3)
    assert metrics["skipped_steps"] == 1
    assert metrics["metrics/inside"] == pytest.approx(float(X[:11].mean()), rel=1e-5)


# ---- layers --------------------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="tests")
def squared(x):
    return keras.ops.square(x)


@pytest.mark.parametrize("strategy", [slow("default"), "mirrored"])
def test_pass_through_layers_in_a_functional_model(strategy, tmp_path):
    def model():
        inputs = keras.Input((3,))
        h = AddLoss(squared, "inner", 0.5)(inputs)
        h = AddMetric(squared, "squares", "max")(h)
        h = ActivationMonitor(name="input")(L.ReLU()(h))
        return keras.Model(inputs, L.Dense(1)(h))

    trainer = _trainer(strategy, None, model=model)
    metrics = _train(trainer)
    active = np.maximum(X, 0)
    assert metrics["losses/inner"] == pytest.approx(float(np.mean([(x**2).mean() for x in PARTS])), rel=1e-5)
    assert metrics["metrics/squares"] == pytest.approx(float((X**2).max()), rel=1e-5)
    assert metrics["metrics/input/mean"] == pytest.approx(float(active.mean()), rel=1e-5)
    assert metrics["metrics/input/std"] == pytest.approx(float(active.std()), rel=1e-4)
    assert metrics["metrics/input/dead"] == 0.0
    trainer.model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(again(X), trainer.model(X), rtol=1e-6)
    assert again.layers[1].weight == 0.5 and again.layers[2].reduce == "max"


@pytest.mark.parametrize("strategy", [slow("default"), "mirrored"])
def test_a_unit_is_dead_that_no_example_of_any_replica_or_step_wakes(strategy):
    """Unit 0 wakes for one example only, unit 1 never, unit 2 always."""
    x = np.zeros([16, 3], np.float32)
    x[13, 0], x[:, 1], x[:, 2] = 1.0, -1.0, 2.0

    def rows():
        for size, end in zip((5, 6, 5), (5, 11, 16)):
            yield x[end - size : end], Y[end - size : end]

    data = tf.data.Dataset.from_generator(rows, output_signature=_batches().element_spec)
    model = lambda: keras.Sequential([keras.Input((3,)), ActivationMonitor(name="h"), L.Dense(1)])  # noqa: E731
    trainer = _trainer(strategy, None, model=model)
    assert train(trainer, data, 3)["metrics/h/dead"] == pytest.approx(1 / 3)


# ---- taps ----------------------------------------------------------------------------------------------------------


class Tapped(keras.Model):
    def __init__(self, every):
        super().__init__()
        self.dense, self.head, self.every = L.Dense(4, "relu"), L.Dense(1), every

    def call(self, x):
        return self.head(tap(self.dense(x), "h", every=self.every))


@pytest.mark.parametrize("strategy, parts", WAYS)
def test_a_tap_reports_the_activation_and_its_gradient(strategy, parts):
    trainer = _trainer(strategy, None, model=lambda: Tapped(1), micro_batches=parts)
    metrics = _train(trainer, 1)
    x, y = X[:5], Y[:5]
    h = trainer.model.dense(x).numpy()
    g = (2 / 5 * (trainer.model.head(h).numpy() - y)) @ trainer.model.head.kernel.numpy().T
    for prefix, value in (("taps/h", h), ("taps/h/gradient", g)):
        wanted = {
            "mean": value.mean(),
            "std": value.std(),
            "largest": np.abs(value).max(),
            "zeros": (value == 0).mean(),
        }
        for statistic, number in wanted.items():
            assert metrics[f"{prefix}/{statistic}"] == pytest.approx(float(number), rel=1e-4, abs=1e-6), (
                prefix,
                statistic,
            )


def test_the_gradient_of_a_tap_is_that_of_all_groups():
    groups = [OptimizerGroup("dense/.*", {"main": 0.25}, SGD(0.0)), OptimizerGroup("head/.*", {"main": 0.5}, SGD(0.0))]
    both, one = (
        _train(_trainer("default", None, groups if g else None, model=lambda: Tapped(1)), 1) for g in (True, False)
    )
    for statistic, factor in (("largest", 0.75), ("std", 0.75), ("zeros", 1.0)):
        assert both[f"taps/h/gradient/{statistic}"] == pytest.approx(
            factor * one[f"taps/h/gradient/{statistic}"], rel=1e-5
        )


def test_a_tap_looks_at_its_interval_only():
    trainer = _trainer("default", None, model=lambda: Tapped(2))
    iterator = iter(trainer.distribute(_batches()))
    seen = ["taps/h/mean" in trainer.train(iterator, 1) for _ in range(3)]
    assert seen == [True, False, True]


def test_a_tap_that_is_off_adds_no_operation():
    class Plain(Tapped):
        def call(self, x):
            return self.head(self.dense(x))

    def operations(model):
        trainer = _trainer("default", None, model=model)
        iterator = iter(trainer.distribute(_batches()))
        graph = trainer.loop_graph(iterator)
        functions = [graph, *(f.graph for f in _functions(graph))]
        return sorted(op.type for g in functions for op in g.get_operations())

    assert operations(lambda: Tapped(None)) == operations(lambda: Plain(None))


def _functions(graph):
    return [f for f in graph._functions.values() if hasattr(f, "graph")] if hasattr(graph, "_functions") else []


def test_taps_are_turned_on_by_gin():
    import gin

    from layers import internals

    gin.parse_config("layers.tap.every = 5")

    class ByGin(Tapped):
        def call(self, x):
            return self.head(internals.tap(self.dense(x), "h"))

    assert "taps/h/zeros" in _train(_trainer("default", None, model=lambda: ByGin(None)), 1)


# ---- outside of a step, and mistakes -------------------------------------------------------------------------------


def test_outside_of_a_step_nothing_happens(tmp_path):
    said = []

    def say(x):
        add_loss(x, "inner")
        add_metric(x, "m")
        said.append(tap(x, "t", every=1))

    model = _model(say)
    np.testing.assert_array_equal(model(X).shape, [16, 1])
    trainer = Trainer(model, "mse", optimizers=SGD(0.1))
    trainer.predict(_batches())
    assert model.losses == []
    model.export(str(tmp_path / "e"), verbose=False)
    model.compile("sgd", "mse")
    model.fit(X, Y, verbose=0)
    add_loss(tf.zeros([]), "alone")


def test_keras_add_loss_is_unchanged_without_a_collector():
    """Notices when Keras changes `Layer.add_loss`, which `intercept_keras_add_loss` wraps."""
    intercept_keras_add_loss()
    layer = KerasLoss()
    layer(tf.ones([2, 2]))
    assert [float(x) for x in layer.losses] == [1.0]
    with collecting() as collected:
        layer(tf.ones([2, 2]))
    assert [len(calls) for calls in collected.losses.values()] == [1] and list(collected.losses) == [layer]
    dense = L.Dense(1, activity_regularizer="l2")
    with collecting() as collected:
        dense(tf.ones([2, 2]))
    assert list(collected.losses) == [dense]


def _two(say):
    return lambda: keras.Sequential(
        [keras.Input((3,)), Speaking(say, name="one"), Speaking(say, name="two"), L.Dense(1)]
    )


def _in_cond(x):
    tf.cond(tf.reduce_sum(x) > 0, lambda: add_loss(x, "inner") or x, lambda: x)


def _in_loop(x):
    def body(i):
        add_metric(x, "inner")
        return i + 1

    tf.while_loop(lambda i: i < 2, body, [tf.constant(0)])


@pytest.mark.parametrize(
    "model, match",
    [
        (_two(lambda x: add_loss(x, "inner")), "`add_loss` 'inner' was called by layer 'one' and by layer 'two'"),
        (_two(lambda x: add_metric(x, "inner")), "`add_metric` 'inner' was called by layer 'one' and by layer 'two'"),
        (lambda: _model(_in_cond), "`add_loss` 'inner' was called inside tf.cond, tf.while_loop"),
        (lambda: _model(_in_loop), "`add_metric` 'inner' was called inside tf.cond, tf.while_loop"),
        (lambda: _model(lambda x: add_loss(x, "main")), "Two losses are named 'main'"),
        (lambda: _model(lambda x: add_loss(tf.cast(x, tf.int32), "inner")), "must be of a floating dtype"),
        (lambda: _model(lambda x: add_metric(x, "inner", "median")), "`reduce` must be one of mean, sum"),
        (lambda: _model(lambda x: add_metric((x, x), "inner", "max")), "takes no weights"),
        (lambda: _model(lambda x: add_loss(x, "a#b")), "`name` must be a string without '#'"),
    ],
)
def test_mistakes_are_one_clear_sentence(model, match):
    with pytest.raises(ValueError, match=match):
        _train(_trainer("default", None, model=model))


def test_a_keras_tensor_is_refused_with_the_layers_that_take_it():
    with pytest.raises(ValueError, match="AddLoss, AddMetric"):
        add_loss(keras.Input((3,)), "inner")


def test_the_interval_of_a_tap_must_be_positive():
    with pytest.raises(ValueError, match="`every` must be >= 1"):
        tap(tf.ones([1]), "t", every=0)


def test_one_name_with_two_weights_is_refused():
    def say(x):
        add_loss(x, "inner", 1.0)
        add_loss(x, "inner", 2.0)

    with pytest.raises(ValueError, match="with 1.0 and with 2.0"):
        _train(_trainer("default", say))


def test_collectors_nest_and_are_per_thread():
    with collecting() as outer:
        with collecting() as inner:
            add_loss(tf.zeros([]), "x")
        add_loss(tf.zeros([]), "y")
    assert list(inner.losses) == ["x"] and list(outer.losses) == ["y"] and isinstance(outer, Collector)
