"""Reports add up over steps, loops and replicas."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from layers.internals import Collector
from trainer.replicas.distribution import make_strategy
from trainer.step.internals import Internals
from trainer.step.metric_states import MetricStates
from trainer.step.reports import Report, Reports, Tally, means


def test_a_tally_reports_the_quotient_of_sums_and_starts_anew(strategy):
    with strategy.scope():
        tally = Tally(["a", "b", "never"])

    @tf.function
    def step(x):
        strategy.run(lambda: tally.add({"a": (x, 1.0), "b": (2.0 * x, x)}))

    for x in (1.0, 3.0):
        step(tf.constant(x))
    sums = tally.read().numpy()
    replicas = strategy.num_replicas_in_sync
    np.testing.assert_allclose(sums, np.array([[4, 8, 0], [2, 4, 0]]) * replicas)
    assert means(tally.names, sums) == {"a": 2.0, "b": 2.0}
    tally.start()
    assert not tally.read().numpy().any()


def test_reports_of_two_loops_add_up_to_the_report_of_both():
    def report(scalar, sums, metric, largest, last):
        fields = [[scalar], sums, [metric], largest, last, [10.0 * metric]]
        return Report(*map(np.array, fields))

    # of `last`, the first was said in the later loop, the second in the earlier one only
    first = report(1.0, [[2.0], [1.0]], 3.0, [1.0, -np.inf], [[7.0, 8.0], [1.0, 1.0]])
    both = first.then(report(5.0, [[4.0], [2.0]], 1.0, [-2.0, 3.0], [[9.0, 0.0], [2.0, 0.0]]))
    assert both.scalars[0] == 5.0 and means(["a"], both.sums) == {"a": 2.0} and both.metrics[0] == 4.0
    assert both.carried[0] == 10.0  # of the later loop
    np.testing.assert_array_equal(both.largest, [1.0, 3.0])
    np.testing.assert_array_equal(both.last, [[9.0, 8.0], [2.0, 1.0]])


def test_metrics_of_loops_that_were_added_up_equal_one_pass():
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 2, size=(4, 8)), rng.uniform(size=(4, 8)).astype(np.float32)
    made = {
        "auc": keras.metrics.AUC(num_thresholds=20),
        "mae": keras.metrics.MeanAbsoluteError(),
        "hits": keras.metrics.TruePositives(),
    }
    whole = {
        "auc": keras.metrics.AUC(num_thresholds=20),
        "mae": keras.metrics.MeanAbsoluteError(),
        "hits": keras.metrics.TruePositives(),
    }
    reports = Reports({"s": lambda: tf.constant(1.0)}, {"l": ""}, MetricStates(made), Internals(Collector(), {}, []))
    total = None
    for row in range(4):
        reports.start(tf.distribute.get_strategy())
        reports.tally.add({"l": (1.0, 1.0)})
        for metrics in (made, whole):
            for metric in metrics.values():
                metric.update_state(y[row], p[row])
        report = reports.split(reports.read(tf.distribute.get_strategy()).numpy())
        total = report if total is None else total.then(report)
    results = reports.results(total)
    for name, metric in whole.items():
        assert results[f"metrics/{name}"] == pytest.approx(float(metric.result()), rel=1e-6)
    assert results["s"] == 1.0


def test_metric_states_are_summed_over_replicas():
    strategy = make_strategy("mirrored")
    with strategy.scope():
        metric = keras.metrics.Mean(name="m")
        states = MetricStates({"m": metric})

    @tf.function
    def step():
        def replica():
            index = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.float32)
            metric.update_state(tf.fill([2], 1.0 + 2.0 * index))

        strategy.run(replica)

    step()
    step()
    sums, carried = states.read()
    assert states.results(sums.numpy(), carried.numpy()) == {"metrics/m": 2.0}
    states.start()
    assert not states.read()[0].numpy().any()


def _reports(losses, metrics, said=None):
    return Reports(
        {"s": lambda: tf.constant(1.0)}, losses, MetricStates(metrics), Internals(said or Collector(), {}, [])
    )


def _filled(reports):
    """A report in which the numbers are 1, 2, 3, ... and the arrays of a checkpoint."""
    size = reports.read(tf.distribute.get_strategy()).shape[0]
    report = reports.split(np.arange(1.0, size + 1))
    return report, report._asdict()


def test_pending_sums_go_to_another_program_by_name_and_kind():
    mae, mse, mape = (
        getattr(keras.metrics, name)(name="m")
        for name in ("MeanAbsoluteError", "MeanSquaredError", "MeanAbsolutePercentageError")
    )
    before = _reports({"loss": "", "losses/a": "mse", "losses/b": "mse"}, {"x": mae, "y": mse})
    report, arrays = _filled(before)
    same, dropped = before.adopt(arrays, before.layout)
    assert not dropped and all(np.array_equal(a, b) for a, b in zip(same, report))
    after = _reports({"loss": "", "losses/c": "mse", "losses/b": "mse", "losses/a": "mae"}, {"y": mse, "x": mape})
    new, dropped = after.adopt(arrays, json.loads(json.dumps(before.layout)))
    assert dropped == ["losses/a", "x"]  # exchanged for others
    np.testing.assert_array_equal(new.sums, report.sums[:, [0, 2, 2, 2]] * [1, 0, 1, 0])
    np.testing.assert_array_equal(new.metrics, [*report.metrics[2:], 0, 0])


def test_old_checkpoints_without_names_are_taken_where_sizes_agree():
    reports = _reports({"loss": ""}, {"x": keras.metrics.Mean(name="x")})
    report, arrays = _filled(reports)
    del arrays["carried"]
    new, dropped = reports.adopt(arrays)
    assert not dropped and np.array_equal(new.metrics, report.metrics)
    arrays["metrics"] = np.ones(3)
    new, dropped = reports.adopt(arrays)
    assert dropped == ["x"] and not new.metrics.any() and np.array_equal(new.sums, report.sums)
