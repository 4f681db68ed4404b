"""runs: the table of run folders and of checkpoints, against what was written by hand."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from trainer import runs
from trainer.saving.checkpoints import Checkpoints


def _write(folder, values, ended=None, age=0.0, metric="metrics/accuracy"):
    folder.mkdir(parents=True)
    now = time.time() - age
    rows = [{"step": 10 * i, "split": "train", "time": now, "loss": 1.0} for i in range(1, len(values) + 1)]
    rows += [{"step": 10 * i, "split": "validation", "time": now, metric: v} for i, v in enumerate(values, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    starts = [{"time": now, "step": 0, "command": "", "texts": {}}] + ([{"ended": ended}] if ended else [])
    (folder / "starts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in starts))


@pytest.fixture
def folders(tmp_path):
    _write(tmp_path / "a/one", [0.5, 0.9, 0.7], "done", age=100)
    _write(tmp_path / "a/two", [0.6, 0.8], age=50)
    _write(tmp_path / "b", [3.0, 2.0, 1.0], "SIGINT", age=4000, metric="loss")
    _write(tmp_path / "c", [0.1], age=0)
    (tmp_path / "c/.lock").write_text("{}")
    (tmp_path / "c/earlier_1").mkdir()
    (tmp_path / "c/earlier_1/metrics.jsonl").write_text("")
    _write(tmp_path / "d", [0.1], age=7000)
    (tmp_path / "d/metrics.jsonl").write_text("not a report\n")
    for path in (tmp_path / "d").iterdir():
        os.utime(path, (time.time() - 9000,) * 2)
    return tmp_path


def _table(capsys, *arguments):
    assert runs.list_runs(["runs", *map(str, arguments)]) == 0
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_the_table(folders, capsys):
    header, *rows, end = _table(capsys, folders, "--sort=name")
    assert header == ["run", "state", "step", "best", "of", "at", "step", "age", "size"]
    assert [row[:6] for row in rows[:4]] == [
        ["a/one", "done", "30", "0.9000", "validation/metrics/accuracy", "20"],
        ["a/two", "stopped", "20", "0.8000", "validation/metrics/accuracy", "20"],
        ["b", "SIGINT", "30", "1.000", "validation/loss", "30"],
        ["c", "running", "10", "0.1000", "validation/metrics/accuracy", "10"],
    ]
    assert rows[0][6:8] == ["1:40", "min"] and rows[4][:3] == ["d", "damaged", "0"] and end[:2] == ["5", "runs"]


def test_sorted_and_filtered(folders, capsys):
    accuracy = "--metric=validation/metrics/accuracy"
    assert [row[0] for row in _table(capsys, folders, "--sort=best", accuracy)[1:4]] == ["a/one", "a/two", "c"]
    assert [row[0] for row in _table(capsys, folders)[1:5]] == ["c", "a/two", "a/one", "b"]
    assert [row[0] for row in _table(capsys, folders, "--filter=a/|SIGINT", "--sort=name")[1:-1]] == [
        "a/one",
        "a/two",
        "b",
    ]


def test_checkpoints_with_metrics_best_pinned_and_damaged(tmp_path, capsys):
    checkpoints = Checkpoints(keep=9, monitor="validation/loss").open(tmp_path)
    for step, loss in ((10, 3.0), (20, 1.0), (30, 2.0)):
        checkpoints.save(step, {"x": np.arange(1000.0)}, {}, {"validation/loss": loss}, wait=True)
    checkpoints.pin(10)
    data = tmp_path / "checkpoints/step_000000030/variables.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-8] + b"\xff" * 8)
    header, *rows = _table(capsys, "--checkpoints", tmp_path)
    assert header == ["step", "size", "monitored", "state"]
    assert [row[0] for row in rows] == ["10", "20", "30"]
    assert rows[0][3:] == ["validation/loss", "3.000", "pinned", "whole"] and rows[0][2] == "kB"
    assert rows[1][3:] == ["validation/loss", "1.000", "best", "whole"]
    assert "changed" in rows[2] and "whole" not in rows[2]


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["none"], ["--sort=x", "."], ["--filter=(", "."]])
def test_mistakes_are_one_sentence(arguments, capsys):
    assert runs.list_runs(["runs", *arguments]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_it_imports_no_tensorflow(folders):
    program = "import sys, trainer.runs as r; r.list_runs(['runs', sys.argv[1]]); sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", program, str(folders)], check=True, capture_output=True)


def test_a_run_counts_as_dead_as_early_as_for_its_lock():
    """runs.py imports no TensorFlow, and so not the lock."""
    from trainer.outer_loop import folder_lock

    assert runs._BEAT == folder_lock.SILENCE
