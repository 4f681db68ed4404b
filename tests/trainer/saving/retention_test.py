"""Which checkpoints stay: rules over manifests, and the folders that are there after a run."""

import math

import pytest

from trainer.saving.retention import Retention


def _manifests(values, monitor="validation/loss", mode="min"):
    return {
        step: {"monitored": value and {"monitor": monitor, "mode": mode, "value": value}}
        for step, value in values.items()
    }


def test_the_newest_the_multiples_and_the_best_stay():
    rule = Retention(keep=2, keep_every=40, monitor="validation/loss")
    manifests = _manifests({10: 3.0, 20: 1.0, 30: 2.0, 40: 5.0, 50: 1.0, 60: None, 70: 4.0})
    assert rule.kept(manifests) == {60, 70, 40, 20}


@pytest.mark.parametrize("mode, best", [("min", 20), ("max", 40)])
def test_the_best_is_the_earliest_of_equal_ones(mode, best):
    manifests = _manifests({10: 3.0, 20: 1.0, 30: 1.0, 40: 5.0, 50: 5.0}, "validation/metrics/auc", mode)
    assert Retention(monitor="validation/metrics/auc", mode=mode).best_step(manifests) == best
    assert Retention().best_step(manifests) == best  # as a reader who was not told the monitor


def test_changing_the_monitor_resets_the_best():
    manifests = _manifests({10: 3.0, 20: 1.0}) | _manifests({30: 0.7}, "validation/metrics/auc", "max")
    assert Retention(monitor="validation/metrics/auc", mode="max").best_step(manifests) == 30
    assert Retention(monitor="loss").best_step(manifests) is None


@pytest.mark.parametrize("value, better", [(0.5, True), (1.0, False), (2.0, False)])
def test_only_a_better_value_is_the_best(value, better):
    rule = Retention(monitor="validation/loss")
    assert rule.is_best({"validation/loss": value}, _manifests({10: 3.0, 20: 1.0})) is better
    assert rule.is_best({"validation/loss": value}, {})


def test_missing_and_nan_values_are_never_the_best():
    rule = Retention(monitor="validation/loss")
    assert rule.monitored({"loss": 1.0}) is None and rule.monitored({"validation/loss": math.nan}) is None
    assert Retention().monitored({"validation/loss": 1.0}) is None
    with pytest.raises(
        ValueError, match="`monitor` 'validation/loss' is not reported. There are: validation/metrics/auc"
    ):
        rule.monitored({"validation/metrics/auc": 0.5})


@pytest.mark.parametrize("arguments, message", [
    ({"keep": 0}, "`keep` must be an int >= 1, got 0"),
    ({"keep_every": 0}, "`keep_every` must be an int >= 1 or None .*, got 0"),
    ({"monitor": "validation/metrics/auc"}, "`mode` must be 'min' or 'max' for `monitor` 'validation/metrics/auc'"),
    ({"monitor": "loss", "mode": "best"}, "`mode` must be 'min' or 'max', got 'best'"),
    ({"monitor": 5}, "`monitor` must be a tag .*, got 5"),
    ({"monitor": ""}, "`monitor` must be a tag"),
    ({"mode": "min"}, "`mode` must be None without a `monitor`, got 'min'"),
])  # fmt: skip
def test_invalid_arguments_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        Retention(**arguments)
