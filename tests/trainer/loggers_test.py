"""Logger: the rows of metrics.jsonl as CSV, in a local MLflow store, and in fake clients, also after a resume."""

import csv
import sys
import types

import keras
import pytest

from tests.runs import random_arrays, read_rows
from trainer import Trainer, hooks, run
from trainer.data import from_arrays

X, Y = random_arrays(40)


def _run(folder, steps, to, hook=None):
    make = lambda: Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]), "mse", ["mae"], "adam")  # noqa: E731
    every = {"steps_per_loop": 5, "summary_interval": 5, "checkpoint_interval": 10, "eval_interval": 10}
    data, held_out = lambda: from_arrays((X, Y), 8), lambda: from_arrays((X, Y), 8, repeat=False)
    listed = [hooks.Logger(to), *([hook] if hook else [])]
    return run(folder, make, data, held_out, train_steps=steps, strategy="default", hooks=listed, **every)


def _killed(folder, to):
    """Trains to step 15, dies, and resumes from step 10."""

    def die(trainer, step, metrics):
        if step == 15:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _run(folder, 20, to, die)
    return _run(folder, 20, to)


def test_csv_has_the_rows_of_metrics_jsonl(tmp_path):
    _killed(tmp_path, "csv")
    with open(tmp_path / "reports.csv", newline="") as file:
        found = [{key: value for key, value in row.items() if value != ""} for row in csv.DictReader(file)]
    wanted = [{k: v for k, v in row.items() if k != "time"} for row in read_rows(tmp_path)]
    assert [(row["split"], int(row["step"])) for row in found] == [(row["split"], row["step"]) for row in wanted]
    for row, expected in zip(found, wanted, strict=True):
        assert {k: float(v) for k, v in row.items() if k != "split"} == {
            k: float(v) for k, v in expected.items() if k != "split"
        }


class FakeMLflow:
    """The methods of MlflowClient that are used, as its documentation has them."""

    runs = {}

    def create_run(self, experiment_id, run_name):
        self.runs["id"] = []
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id="id"))

    def log_param(self, run_id, key, value):
        pass

    def log_metric(self, run_id, key, value, step):
        self.runs[run_id].append((key, step, value))

    def get_run(self, run_id):
        return types.SimpleNamespace(data=types.SimpleNamespace(metrics={key: 0 for key, _, _ in self.runs[run_id]}))

    def get_metric_history(self, run_id, tag):
        return [types.SimpleNamespace(step=step) for key, step, _ in self.runs[run_id] if key == tag]

    def set_terminated(self, run_id):
        pass


def _fake_wandb(logged):
    class Run:
        id, step = "id", 0

        def log(self, metrics, step):
            logged.extend((tag, step, value) for tag, value in metrics.items())
            Run.step = max(Run.step, step + 1)

        def finish(self):
            pass

    def init(project, name, **options):
        asked.append(options)
        return Run()

    asked = []
    return types.SimpleNamespace(init=init, asked=asked)


@pytest.mark.parametrize("to", ["mlflow", "wandb"])
def test_a_tracker_gets_each_report_once(to, tmp_path, monkeypatch):
    FakeMLflow.runs, logged = {}, []
    wandb = _fake_wandb(logged)
    monkeypatch.setitem(sys.modules, "mlflow", types.SimpleNamespace(MlflowClient=FakeMLflow))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    _killed(tmp_path, to)
    points = FakeMLflow.runs["id"] if to == "mlflow" else logged
    losses = sorted((key, step) for key, step, _ in points if key.endswith("/loss"))
    assert losses == [("train/loss", s) for s in (5, 10, 15, 20)] + [("validation/loss", s) for s in (10, 20)]
    rows = {(f"{row['split']}/loss", row["step"]): row["loss"] for row in read_rows(tmp_path)}
    assert {(k, s): v for k, s, v in points if k.endswith("/loss")} == rows
    if to == "wandb":
        assert wandb.asked[1] == {"id": "id", "resume": "must"} and "config" in wandb.asked[0]


def test_a_local_store_of_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'store.db'}")
    _killed(tmp_path / "run", "mlflow")
    client, run_id = mlflow.MlflowClient(), (tmp_path / "run/mlflow.run").read_text().strip()
    assert [metric.step for metric in client.get_metric_history(run_id, "train/loss")] == [5, 10, 15, 20]


def test_mistakes(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="`to` must be one of csv, mlflow, wandb, got 'tsv'"):
        hooks.Logger("tsv")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb"):
        _run(tmp_path, 5, "wandb")
    with pytest.raises(ValueError, match="`Logger` needs a `model_dir`"):
        _run(None, 5, "csv")
