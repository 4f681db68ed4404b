"""`python -m trainer.sweep`: the trials, their processes, resume, failures, the ranking, sweep.csv and HParams."""

import csv
import json
import os
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

from tests.runs import read_last_rows
from trainer import sweep
from trainer.config import run_folder
from trainer.config.paths import ROOT
from trainer.config.search_space import read_axes, trials_of

MODULE = """
import keras
import numpy as np
from trainer import configurable
from trainer.data import from_arrays

X = np.random.default_rng(0).normal(size=[16, 3]).astype("float32")


@configurable
def data(batch_size=8, repeat=True):
    return from_arrays((X, X.sum(1, keepdims=True)), batch_size, repeat=repeat)


@configurable
def held_out():
    return data(repeat=False)


@configurable
def net(units: int = 4):
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(units), keras.layers.Dense(1)])
"""
CONFIG = """
import {module}
SEED = 7
run.trainer = @Trainer
run.train_data = @{module}.data
run.eval_data = @{module}.held_out
run.train_steps = 4
run.seed = %SEED
Trainer.model = @{module}.net()
Trainer.loss = 'mse'
Trainer.optimizers = @SGD()
SGD.learning_rate = 0.1
"""
# Stands for `trainer.main`: rate 3 fails, 4 is killed, 5 is interrupted with the whole sweep the first time.
FAKE = """
import json, os, pathlib, signal, sys
folder, rate, seed = pathlib.Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
print("begins")
if rate == 3:
    sys.exit("ValueError: first\\n  at a.py:1\\nKeyError: 'boom'\\n  at b.py:2")
if rate == 4:
    os.kill(os.getpid(), signal.SIGKILL)
if rate == 5 and not (folder / "half").exists():
    (folder / "half").touch()
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    os.kill(os.getppid(), signal.SIGINT)
    signal.pause()
row = {"split": "validation", "step": 4, "time": 0, "loss": "NaN" if rate == 6 else 10 * rate + seed}
(folder / "metrics.jsonl").write_text(json.dumps({**row, "split": "train", "loss": 1}) + "\\n" + json.dumps(row))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    name = f"swept_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / "a.gin").write_text(CONFIG.format(module=name))
    return tmp_path


@pytest.fixture
def fake(folder, monkeypatch):
    def command(run):
        return [sys.executable, "-c", FAKE, str(run.folder), str(run.values["SGD.learning_rate"]), str(run.seed)]

    monkeypatch.setattr(sweep, "command_of", command)
    monkeypatch.setattr(sweep, "_first_look", lambda runs: 0)
    return folder


def call(*arguments):
    return sweep.sweep(["sweep", "--gin_file=a.gin", "--model_dir=s", *arguments])


def begun(run):
    """How often the process of a run has begun."""
    return (run / "log.txt").read_text().count("begins")


def test_all_points_of_a_grid_and_reproducible_draws():
    axes = read_axes(["A.x=[1, 2]", "B.y=['u', @f()]"], [])
    assert [[repr(v) for v in trial.values()] for trial in trials_of(axes, None)] == [
        ["1", "'u'"], ["1", "@f()"], ["2", "'u'"], ["2", "@f()"]
    ]  # fmt: skip
    axes = read_axes(["A.x=[1, 2]"], ["B.y=log_uniform(1e-4, 1e-1)", "C.z=randint(3, 5)", "D.w=uniform(0, 0.9)"])
    trials = trials_of(axes, 200)
    assert trials == trials_of(axes, 400)[:200]
    assert [trial["A.x"] for trial in trials[:4]] == [1, 2, 1, 2]
    assert all(1e-4 <= t["B.y"] <= 1e-1 and 0 <= t["D.w"] <= 0.9 and type(t["D.w"]) is float for t in trials)
    assert {trial["C.z"] for trial in trials} == {3, 4, 5}
    # Half of the draws are below the geometric mean: 5 standard deviations of the fraction are .18.
    assert abs(sum(trial["B.y"] < 10**-2.5 for trial in trials) / 200 - 0.5) < 0.18
    assert len(trials_of(read_axes([], ["A.x=[1, 2]"]), 50)) == 2


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--grid=SGD.learning_rat=[1, 2]"], ["--grid 'SGD.learning_rat=[1, 2]': ", "`learning_rate`"]),
        (["--grid=SGD.learning_rate=[0.1, 'x']"], ["--grid", "must be a number", "'x'"]),
        (["--grid=SGD.learning_rate=0.1"], ["needs a list of values", "0.1"]),
        (["--grid=SGD.learning_rate=[]"], ["needs a list of values"]),
        (["--grid=Trainer.guard=[skip]"], ["`skip` is not a value", "--grid=\"Trainer.guard=['skip']\""]),
        (["--grid=SGD.learning_rate"], ["--grid SGD.learning_rate: "]),
        (["--grid=run.seed=[1, 2]"], ["--seeds=N"]),
        (["--grid=SGD.momentum=[0.9]", "--random=SGD.momentum=uniform(0, 1)"], ["has values already"]),
        (["--random=SGD.momentum=unifrm(0, 1)"], ["`unifrm` is not a distribution", "`uniform`"]),
        (["--random=SGD.momentum=uniform(1, 0)"], ["low < high", "(1, 0)"]),
        (["--random=SGD.momentum=uniform(0)"], ["two numbers"]),
        (["--random=SGD.momentum=log_uniform(0, 1)"], ["low > 0"]),
        (["--random=Dense.units=randint(1, 2.5)"], ["two ints"]),
        (["--random=SGD.momentum=0.9"], ["a distribution: uniform(low, high)"]),
        (["--random=SGD.momentum=uniform(0, 1)"], ["needs `--trials`"]),
        (["--grid=SGD.momentum=[0, 1]", "--random=SGD.learning_rate=uniform(0, 1)", "--trials=1"], ["2 points"]),
        (["--grid=SGD.momentum=[0.0, 0.9]", "--trials=5"], ["2 trials"]),
        (["--grid=SGD.momentum=[0.9]", "--monitor=validation/metrics/accuracy"], ["--monitor_mode=max"]),
        (["--grid=SGD.momentum=[0.9]", "--mode=eval"], ["`--mode`"]),
        (["--grid=SGD.momentum=[0.9]", "--parallell=2"], ["parallel"]),
        (["--gird=SGD.momentum=[0.9]"], ["gird"]),
        ([], ["`--grid` or `--random` is missing"]),
    ],
)  # fmt: skip
def test_mistakes_are_answered_before_any_run(folder, capsys, arguments, words):
    assert call(*arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and not [word for word in words if word not in shown], shown
    assert not (folder / "s").exists()


def test_mistakes_of_all_trials_are_on_one_screen(folder, capsys):
    assert call("--grid=SGD.learning_rate=['x', 'y']", "--grid=Trainer.guard=['ship']") == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: 3 mistakes:") and "'x'" in shown and "'y'" in shown and shown.count("'ship'") == 2


def test_failures_do_not_stop_a_sweep_and_are_tried_again(fake, capsys):
    assert call("--grid=SGD.learning_rate=[1, 2, 3, 4, 6]", "--seeds=2", "--parallel=2") == 1
    shown = capsys.readouterr().out
    assert "5 trials, 10 runs, 0 of them done before" in shown
    assert (
        "trial_002/seed_7 failed: KeyError: 'boom'" in shown and "trial_003/seed_8 failed: killed by SIGKILL" in shown
    )
    table = [line.split() for line in shown.splitlines() if line.startswith("trial_") and " of " in line]
    assert [row[0] for row in table] == ["trial_000", "trial_001", "trial_004", "trial_002", "trial_003"]
    assert table[0] == ["trial_000", "1", "17.50", "0.7071", "2", "of", "2"]  # 17 and 18
    rows = list(csv.DictReader((fake / "s/sweep.csv").open()))
    assert [row["trial"] for row in rows if row["status"] == "failed"] == ["trial_002", "trial_003"] * 2
    assert [float(row["validation/loss"]) for row in rows if row["trial"] == "trial_001"] == [27, 28]

    # Done runs stay, with a changed script as well; a further value gets the next folder, its seeds run too.
    assert call("--grid=SGD.learning_rate=[1, 3, 8]", "--seeds=3") == 1
    assert [begun(fake / f"s/trial_00{i}/seed_7") for i in (0, 1, 2, 3, 5)] == [1, 1, 2, 1, 1]
    assert (
        begun(fake / "s/trial_000/seed_9") == 1
        and (fake / "s/trial_005/trial.gin").read_text() == "SGD.learning_rate = 8\n"
    )


def test_ctrl_c_ends_the_runs_and_the_same_command_continues(fake, capsys):
    arguments = ("--grid=SGD.learning_rate=[1, 5, 2]", "--monitor_mode=max")
    assert call(*arguments) == 130
    assert "The same command continues." in capsys.readouterr().out
    outcomes = [fake / f"s/trial_00{i}/seed_7/outcome.json" for i in range(3)]
    assert [json.loads(o.read_text())["status"] for o in outcomes[:2]] == ["done", "stopped"]
    assert not outcomes[2].exists()
    assert call(*arguments) == 0
    shown = capsys.readouterr().out
    assert "3 trials, 3 runs, 1 of them done before" in shown
    assert [begun(o.parent) for o in outcomes] == [1, 2, 1]
    ranking = [line.split()[0] for line in shown.splitlines() if line.endswith("1 of 1")]
    assert ranking == ["trial_001", "trial_002", "trial_000"]


def test_a_changed_config_and_a_second_sweep_are_refused(fake, capsys):
    assert call("--grid=SGD.learning_rate=[1]") == 0
    assert call("--grid=SGD.learning_rate=[1]", "--gin.run.train_steps=5") == 2
    shown = capsys.readouterr().err
    assert "config has changed" in shown and "-run.train_steps = 4" in shown and "+run.train_steps = 5" in shown
    with sweep._lock(fake / "s"):
        assert call("--grid=SGD.learning_rate=[1]") == 2
    assert "in use by another sweep" in capsys.readouterr().err


def test_gpus_are_divided_or_refused(fake, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    assert [e["CUDA_VISIBLE_DEVICES"] for e in sweep._deal_gpus(2)] == ["4,6", "5"] and sweep._deal_gpus(1) == [{}]
    assert call("--grid=SGD.learning_rate=[1]", "--parallel=4") == 2
    assert "`--parallel=4` must be at most 3" in capsys.readouterr().err


def test_help(capsys):
    assert call("--help") == 0
    shown = capsys.readouterr().out
    assert all(f"  --{name} " in shown for name in set(sweep.FLAGS) - {"flagfile", "undefok"})


def hparams_of(folder):
    """Returns the experiment and {name: session group} of TensorBoard's HParams page."""
    multiplexer = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(folder))
    context, request = backend_context.Context(base_plugin.TBContext(data_provider=provider)), RequestContext()
    found = context.experiment_from_metadata(request, "", True, context.hparams_metadata(request, ""), [])
    asked = api_pb2.ListSessionGroupsRequest(
        col_params=[api_pb2.ColParams(metric=info.name) for info in found.metric_infos],
        allowed_statuses=[api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE],
        aggregation_type=api_pb2.AGGREGATION_AVG,
        slice_size=10,
    )
    groups = list_session_groups.Handler(request, context, "", asked).run().session_groups
    return found, {group.name: group for group in groups}


def test_a_first_trial_that_cannot_be_built_starts_nothing(folder, monkeypatch, capfd):
    monkeypatch.setattr(sweep.subprocess, "run", lambda command, stdout: subprocess.CompletedProcess(command, 2))
    assert call("--grid=SGD.learning_rate=[1]") == 2
    assert "no run was started" in capfd.readouterr().err and not (folder / "s").exists()


def test_a_sweep_trains(folder):
    """A trial that trains and one that the guard stops, in processes of their own, as a user starts them."""
    command = [
        sys.executable, "-m", "trainer.sweep", "--gin_file=a.gin", "--model_dir=s", "--parallel=2", "--monitor=loss",
        "--grid=SGD.learning_rate=[0.1, 1e30]", "--gin.run.train_steps=20", "--gin.Trainer.guard='stop'",
    ]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "trial_001/seed_7 failed: error: " in done.stdout and "non-finite" in done.stdout
    table = [line.split()[0] for line in done.stdout.splitlines() if " of 1" in line]
    assert table == ["trial_000", "trial_001"]
    trained = folder / "s/trial_000/seed_7"
    config = run_folder.config_of(trained).read_text()
    assert "trainer.run.seed = 7" in config and "SGD.learning_rate = 0.1" in config and "train_steps = 20" in config

    experiment, groups = hparams_of(folder / "s")
    assert [info.name for info in experiment.hparam_infos] == ["SGD.learning_rate"]
    assert [(info.name.group, info.name.tag) for info in experiment.metric_infos] == [("train", "loss")]
    assert sorted(groups) == ["trial_000", "trial_001"]
    assert groups["trial_000"].hparams["SGD.learning_rate"].number_value == 0.1
    loss = read_last_rows(trained)["train"]["loss"]
    assert groups["trial_000"].metric_values[0].value == pytest.approx(loss, rel=1e-6)
    assert groups["trial_001"].sessions[0].status == api_pb2.STATUS_FAILURE
