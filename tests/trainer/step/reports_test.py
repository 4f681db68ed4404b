"""Reports add up over steps, loops and replicas."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from layers.internals import Collector
from trainer.replicas.distribution import make_strategy
from trainer.step.internals import Internals
from trainer.step.reports import MetricStates, Report, Reports, Tally, means


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
    assert not tally.read().numpy().any()


def test_reports_of_two_loops_add_up_to_the_report_of_both():
    def report(scalar, sums, metric, largest, last):
        return Report(np.array([scalar]), np.array(sums), np.array([metric]), np.array(largest), np.array(last))

    # of `last`, the first was said in the later loop, the second in the earlier one only
    first = report(1.0, [[2.0], [1.0]], 3.0, [1.0, -np.inf], [[7.0, 8.0], [1.0, 1.0]])
    both = first.then(report(5.0, [[4.0], [2.0]], 1.0, [-2.0, 3.0], [[9.0, 0.0], [2.0, 0.0]]))
    assert both.scalars[0] == 5.0 and means(["a"], both.sums) == {"a": 2.0} and both.metrics[0] == 4.0
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
    reports = Reports({"s": lambda: tf.constant(1.0)}, ["l"], MetricStates(made), Internals(Collector(), {}, []))
    total = None
    for row in range(4):
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
    assert states.results(states.read().numpy()) == {"metrics/m": 2.0}
    states.reset()
    assert not states.read().numpy().any()
