"""Metrics report what Keras' `evaluate` reports, on any number of replicas, over loops, with uneven batches.

All metric classes of Keras, with default and other arguments, with and without
sample weights; the learning rate is 0, so that training measures what an
evaluation measures.
"""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.runs import slow
from trainer import Trainer, data, weighted
from trainer.replicas.distribution import make_strategy

M = keras.metrics
RNG = np.random.default_rng(0)
X = RNG.normal(size=(23, 4)).astype("float32")
WEIGHT = RNG.uniform(0.5, 2.0, 23).astype("float32")
IDS = RNG.integers(0, 3, 23).astype("int32")
BATCH = 10  # 10, 10 and 3: a replica has 5, 5, and 1 or 2


def _halved(y, p):
    return tf.abs(y - p) / 2


# task: (last activation, units, targets, metrics); a metric is a class, or (class, arguments)
TASKS = {
    "binary": (
        "sigmoid",
        1,
        (X[:, :1] > 0).astype("float32"),
        [
            M.AUC,
            (M.AUC, {"curve": "PR", "num_thresholds": 30, "summation_method": "majoring"}),
            (M.AUC, {"from_logits": True}),
            M.BinaryAccuracy,
            (M.BinaryAccuracy, {"threshold": 0.7}),
            M.BinaryCrossentropy,
            (M.BinaryCrossentropy, {"label_smoothing": 0.1}),
            M.BinaryIoU,
            (M.BinaryIoU, {"target_class_ids": [0], "threshold": 0.6}),
            M.FalseNegatives,
            (M.FalseNegatives, {"thresholds": [0.3, 0.6]}),
            M.FalsePositives,
            (M.FalsePositives, {"thresholds": [0.3, 0.6]}),
            M.TrueNegatives,
            (M.TrueNegatives, {"thresholds": [0.3, 0.6]}),
            M.TruePositives,
            (M.TruePositives, {"thresholds": [0.3, 0.6]}),
            M.Precision,
            (M.Precision, {"thresholds": [0.3, 0.6]}),
            M.Recall,
            (M.Recall, {"thresholds": [0.3, 0.6]}),
            (M.PrecisionAtRecall, {"recall": 0.5}),
            (M.RecallAtPrecision, {"precision": 0.5}),
            (M.SensitivityAtSpecificity, {"specificity": 0.5}),
            (M.SpecificityAtSensitivity, {"sensitivity": 0.5, "num_thresholds": 20}),
            M.Hinge,
            M.SquaredHinge,
            M.Accuracy,
        ],
    ),
    "regression": (
        "softplus",
        3,
        np.abs(X[:, :3]),
        [
            M.MeanAbsoluteError,
            M.MeanAbsolutePercentageError,
            M.MeanSquaredError,
            M.MeanSquaredLogarithmicError,
            M.RootMeanSquaredError,
            M.LogCoshError,
            M.Poisson,
            M.CosineSimilarity,
            (M.CosineSimilarity, {"axis": 0}),
            M.PearsonCorrelation,
            (M.PearsonCorrelation, {"axis": 0}),
            M.ConcordanceCorrelation,
            (M.ConcordanceCorrelation, {"axis": 0}),
            M.R2Score,
            (M.R2Score, {"class_aggregation": None}),
            (M.R2Score, {"class_aggregation": "variance_weighted_average"}),
            (M.MeanMetricWrapper, {"fn": _halved}),
        ],
    ),
    "one_hot": (
        "softmax",
        3,
        np.eye(3, dtype="float32")[IDS],
        [
            M.CategoricalAccuracy,
            M.CategoricalCrossentropy,
            (M.CategoricalCrossentropy, {"label_smoothing": 0.1}),
            M.CategoricalHinge,
            M.KLDivergence,
            (M.TopKCategoricalAccuracy, {"k": 2}),
            M.F1Score,
            (M.F1Score, {"average": "macro"}),
            (M.FBetaScore, {"beta": 2.0, "average": "micro", "threshold": 0.4}),
            (M.FBetaScore, {"average": "weighted"}),
            (M.OneHotIoU, {"num_classes": 3, "target_class_ids": [0, 2]}),
            (M.OneHotMeanIoU, {"num_classes": 3}),
            (M.Precision, {"top_k": 2}),
            (M.Recall, {"class_id": 1}),
            (M.AUC, {"multi_label": True, "num_labels": 3}),
            (M.AUC, {"multi_label": True, "num_labels": 3, "label_weights": [0.2, 0.3, 0.5]}),
        ],
    ),
    "ids": (
        "softmax",
        3,
        IDS,
        [
            M.SparseCategoricalAccuracy,
            M.SparseCategoricalCrossentropy,
            (M.SparseTopKCategoricalAccuracy, {"k": 2}),
            (M.IoU, {"num_classes": 3, "target_class_ids": [1], "sparse_y_pred": False}),
            (M.MeanIoU, {"num_classes": 3, "sparse_y_pred": False}),
        ],
    ),
}
# Not for a batch of targets and predictions: the base class, and those of values.
NOT_OF_A_TASK = {M.Metric, M.Mean, M.Sum}


def test_the_table_has_all_metrics_of_keras():
    known = {entry[0] if isinstance(entry, tuple) else entry for *_, metrics in TASKS.values() for entry in metrics}
    there = {x for x in vars(keras.metrics).values() if isinstance(x, type) and issubclass(x, keras.metrics.Metric)}
    assert there - known == NOT_OF_A_TASK


def _metrics(task, prefix):
    made = []
    for number, entry in enumerate(TASKS[task][3]):
        cls, arguments = entry if isinstance(entry, tuple) else (entry, {})
        if prefix == "w" and arguments.get("axis") == 0:  # Keras cannot weigh these
            continue
        made.append(cls(name=f"{prefix}{number}_{cls.__name__}", **arguments))
    return made


def _model(task):
    keras.utils.set_random_seed(1)
    activation, units, *_ = TASKS[task]
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(units, activation)])


def _loss(task):
    return "sparse_categorical_crossentropy" if task == "ids" else "mse"


@functools.cache
def _by_keras(task):
    """Returns {tag: value} of `evaluate` on the same batches."""
    model = _model(task)
    model.compile("sgd", _loss(task), metrics=_metrics(task, "m"), weighted_metrics=_metrics(task, "w"))
    return model.evaluate(X, TASKS[task][2], BATCH, sample_weight=WEIGHT, verbose=0, return_dict=True)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", [slow("default"), "mirrored"])
def test_metrics_are_those_of_keras(kind, task):
    right = {}
    for name, value in _by_keras(task).items():
        if name != "loss":
            value = np.asarray(value)
            right.update(
                {f"metrics/{name}/{i}": x for i, x in enumerate(value.ravel())}
                if value.ndim
                else {f"metrics/{name}": value}
            )
    with make_strategy(kind).scope():
        metrics = [*_metrics(task, "m"), *map(weighted, _metrics(task, "w"))]
        trainer = Trainer(_model(task), _loss(task), metrics, keras.optimizers.SGD(0.0))
    source = data.from_arrays((X, TASKS[task][2], WEIGHT), BATCH, repeat=False)

    def check(found, what):
        found = {tag: value for tag, value in found.items() if tag.startswith("metrics/")}
        assert sorted(found) == sorted(right)
        wrong = {
            tag: (found[tag], float(right[tag]))
            for tag in right
            if not np.isclose(found[tag], right[tag], 1e-4, 1e-5, equal_nan=True)
        }
        assert not wrong, f"{what}: {wrong}"

    trainer.distribute(source)
    sums, no_sums = trainer.built.reports.metrics.layout
    assert sums and not no_sums  # some are coupled across the batch, but every state is a sum over batches
    assert bool(trainer.built.reports.metrics.gathered) == (kind == "mirrored" and task == "regression")
    if kind == "mirrored" and task != "ids":  # the smallest table takes the longer way too
        return check(trainer.evaluate(source), "evaluate")
    iterator, report = iter(trainer.distribute(source)), None
    for steps in (2, 1):
        trainer.train(iterator, steps, since=report)
        report = report.then(trainer.report) if report else trainer.report
    check(trainer.summarize(report), "loops")


# ---- metrics of one's own -----------------------------------------------------------------------------------------


class Largest(keras.metrics.Metric):
    """A running maximum: its state is no sum."""

    def __init__(self, name="largest"):
        super().__init__(name=name)
        self.largest = self.add_weight(shape=(), initializer="zeros", name="largest")

    def update_state(self, y, p, sample_weight=None):
        self.largest.assign(tf.maximum(self.largest.value, tf.reduce_max(tf.abs(p))))

    def result(self):
        return self.largest


class Least(Largest):
    """Begins at infinity; a dict of variables as result."""

    def reset_state(self):
        self.largest.assign(np.inf)

    def update_state(self, y, p, sample_weight=None):
        self.largest.assign(tf.minimum(self.largest.value, tf.reduce_min(p)))

    def result(self):
        return {"least": self.largest}


class Batches(Largest):
    """Counts global batches, and examples from 100 on."""

    def __init__(self, name="batches"):
        super().__init__(name)
        self.examples = self.add_variable((), "zeros", dtype="int32", name="examples")

    def reset_state(self):
        self.largest.assign(0.0)
        self.examples.assign(100)

    def update_state(self, y, p, sample_weight=None):
        self.largest.assign_add(1.0)
        self.examples.assign_add(tf.shape(y)[0])

    def result(self):
        return [self.largest, self.examples]


class Running(Largest):
    """An average over batches, each of which counts a half of what was before."""

    def update_state(self, y, p, sample_weight=None):
        self.largest.assign(0.5 * self.largest + 0.5 * tf.reduce_mean(p))


OWN = {"largest": Largest, "least": Least, "batches": Batches, "running": Running}


def _by_hand(model, names):
    """Returns {tag: value} of a plain loop over the batches."""
    right = {}
    for name in names:
        metric = OWN[name](name)
        metric.reset_state()
        for start in range(0, len(X), BATCH):
            metric.update_state(X[start : start + BATCH, :1], model(X[start : start + BATCH]))
        result = metric.result()
        result = {"": float(result)} if name in ("largest", "running") else result
        for key, value in result.items() if isinstance(result, dict) else enumerate(result):
            right["metrics/" + (f"{name}/{key}" if isinstance(key, int) else key or name)] = float(value)
    return right


class Overridden(Trainer):
    """Metrics that `update_metrics` updates; a value of the batch as the output, a matrix and a scalar beside it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.own_metrics = [Largest(), Batches()]

    def compute_losses(self, batch, training):
        predictions = self.model(batch["x"], training=training)
        return {"mse": (predictions - batch["y"]) ** 2}, {
            "p": predictions,
            "ids": batch["id"] > 3,
            "one": 1.0,
            "no": None,
        }

    def update_metrics(self, batch, outputs):
        for metric in self.own_metrics:
            metric.update_state(batch["y"], outputs["p"])


@pytest.mark.parametrize("names", [["largest"], ["least", "batches", "running"]])
def test_metric_states_that_are_not_sums(strategy, names):
    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        trainer = Trainer(model, "mse", [OWN[name](name) for name in names], keras.optimizers.SGD(0.0))
    source = data.from_arrays((X, X[:, :1]), BATCH, repeat=False)
    _check_all(trainer, source, _by_hand(model, names))


def test_metric_states_that_are_not_sums_in_an_overridden_update_metrics(strategy):
    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        trainer = Overridden(model, optimizers=keras.optimizers.SGD(0.0), guard="off")
    arrays = {"x": X, "y": X[:, :1], "id": IDS}
    _check_all(trainer, data.from_arrays(arrays, BATCH, repeat=False), _by_hand(model, ["largest", "batches"]))


def _check_all(trainer, source, right):
    """Evaluation, twice; three loops with an evaluation between them; a stale state before the first."""
    metrics = lambda found: {tag: value for tag, value in found.items() if tag.startswith("metrics/")}  # noqa: E731
    assert metrics(trainer.evaluate(source)) == pytest.approx(right, rel=1e-5)
    iterator, report = iter(trainer.distribute(source)), None
    for _ in range(3):
        trainer.train(iterator, 1, since=report)
        report = report.then(trainer.report) if report else trainer.report
        assert metrics(trainer.evaluate(source)) == pytest.approx(right, rel=1e-5)
    assert metrics(trainer.summarize(report)) == pytest.approx(right, rel=1e-5)


class Counts(keras.layers.Layer):
    """A layer that updates metrics of its own: one whose state is a sum, or one whose is not."""

    def __init__(self, metric):
        super().__init__()
        self.metric = metric

    def call(self, x):
        self.metric.update_state(x, x) if isinstance(self.metric, Largest) else self.metric.update_state(x)
        return x


def _counting(metric):
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1), Counts(metric)])
    return Trainer(inner, "mse", optimizers=keras.optimizers.SGD(0.0))


def test_a_metric_that_a_layer_updates(strategy):
    source = data.from_arrays((X, X[:, :1]), BATCH, repeat=False)
    with strategy.scope():
        trainer = _counting(M.Mean(name="mean"))
    right = {"metrics/mean": float(np.mean(trainer.model.layers[0](X)))}
    _check_all(trainer, source, right)
    with strategy.scope():
        trainer = _counting(Largest())
    if strategy.num_replicas_in_sync > 1:
        with pytest.raises(ValueError, match="Metric largest is updated inside the model, and its state is not a sum"):
            trainer.build(source.element_spec)
    else:
        _check_all(trainer, source, _by_hand(trainer.model.layers[0], ["largest"]))


def test_metrics_of_compile_and_of_fit_are_not_ours():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("adam", "mse", metrics=["mae"], weighted_metrics=["mse"])
    outer = keras.Sequential([keras.Input((4,)), model])
    outer.own = M.Mean(name="own")  # nobody updates it
    outer.compile("adam", "mse", metrics=["mae"])
    outer.fit(X, X[:, :1], verbose=0)
    found = Trainer(outer, "mse", ["mae"], "sgd").evaluate(data.from_arrays((X, X[:, :1]), BATCH, repeat=False))
    assert [tag for tag in found if tag.startswith("metrics/")] == ["metrics/mean_absolute_error"]
