"""Reports read from a run folder: numbers, the best ones, lines that are not reports."""

import math

import numpy as np
import pytest

from trainer import config, history
from trainer.outer_loop.summaries import Summaries


def test_reports_are_read_back_as_numbers(tmp_path):
    summaries = Summaries(tmp_path)
    for step, loss in ((10, 1.0), (20, math.nan), (30, 3.0)):
        summaries.scalars("train", step, {"loss": loss})
        summaries.scalars("validation", step, {"loss": -step, "a": math.inf})
    summaries.close()
    rows = history.read(tmp_path)
    assert history.last(rows) == {"train": {"loss": 3.0}, "validation": {"loss": -30.0, "a": math.inf}}
    assert math.isnan(history.last(history.read(tmp_path, 29))["train"]["loss"])
    assert history.read(tmp_path, 5) == history.read(tmp_path / "none") == []
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "split"')
    assert repr(history.read(tmp_path)) == repr(rows)  # NaN is not equal to itself
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write("\n")
    with pytest.raises(config.ConfigError, match="metrics.jsonl:7 is not a report"):
        history.read(tmp_path)


@pytest.mark.parametrize(
    "better, tags",
    [
        ("min", "loss metrics/mean_absolute_error metrics/binary_crossentropy metrics/kl_divergence"),
        ("max", "metrics/accuracy metrics/sparse_top_k_categorical_accuracy metrics/auc metrics/f1_score "
         "metrics/mean_io_u metrics/r2_score metrics/precision_1 metrics/cosine_similarity"),
        (None, "losses/main metrics/rate learning_rate/main step_milliseconds grad_norm/main examples_per_second"),
    ],
)  # fmt: skip
def test_the_names_that_tell_which_values_are_better(better, tags):
    assert {tag: history.direction(tag) for tag in tags.split()} == dict.fromkeys(tags.split(), better)


def test_the_best_is_the_first_of_the_best_and_never_nan():
    random = np.random.default_rng(0)
    values = {"loss": random.integers(0, 5, 40).astype(float), "metrics/accuracy": random.integers(0, 5, 40) / 5}
    values["loss"][3] = math.nan
    rows = [{"step": i, "split": "validation", "time": 0.0, **{t: v[i] for t, v in values.items()}} for i in range(40)]
    bests = history.Bests([*rows, {"step": 50, "split": "train", "loss": -1.0}])
    least, most = int(np.nanargmin(values["loss"])), int(values["metrics/accuracy"].argmax())
    assert bests == {
        ("validation", "loss"): (values["loss"][least], least),
        ("validation", "metrics/accuracy"): (values["metrics/accuracy"][most], most),
    }
    assert bests.add("validation", 60, {"loss": -1.0, "metrics/accuracy": 0.0, "metrics/rate": 9.0}) == ["loss"]
