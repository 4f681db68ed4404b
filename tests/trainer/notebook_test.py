"""run() in a notebook: one live line, a readable result, no traces of a failed cell; and without a folder."""

import os
import signal
import threading

import keras
import numpy as np
import pytest

from tests.runs import random_arrays
from trainer import Trainer, load, run
from trainer.data import from_arrays

X, Y = random_arrays(40)

SETUP = """
import os, signal, threading
import keras, numpy as np, pandas as pd
from trainer import Trainer, load, run
from trainer.data import from_arrays

random = np.random.default_rng(0)
x, y = random.normal(size=(40, 3)).astype("float32"), random.normal(size=(40, 1)).astype("float32")
make = lambda: Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]), "mse", ["mae"], "adam")
data, held_out = lambda: from_arrays((x, y), 8), lambda: from_arrays((x, y), 8, repeat=False)
every = dict(steps_per_loop=5, summary_interval=5, checkpoint_interval=10, eval_interval=10, strategy="default")

def traces():
    opened = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    ours = {"progress", "summaries", "signals", "lock", "checkpoint"}
    threads = [thread.name for thread in threading.enumerate() if thread.name in ours]
    return threads, [path for path in opened if FOLDER in path], signal.getsignal(signal.SIGINT)
"""
RUN = "result = run(FOLDER, make, data, held_out, train_steps=20, **every)\nresult"
FAILING = """
before = traces()
def hook(trainer, step, metrics):
    raise {error}("in a hook")
run(FOLDER + "{error}", make, data, held_out, train_steps=20, hooks=[hook], **every)
"""


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """{cell: its outputs} of an executed notebook."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    pytest.importorskip("pandas")
    folder = tmp_path_factory.mktemp("notebook") / "run"
    cells = {
        "setup": f"FOLDER = {str(folder)!r}\n{SETUP}",
        "run": RUN,
        "history": "frame = pd.DataFrame(result.history())\n"
        "print(len(frame), *frame.split.unique(), frame.loss.max() > 0)",
        "again": RUN,
        "error": FAILING.format(error="ZeroDivisionError"),
        "after error": "assert traces() == before, traces()\nprint('no traces')",
        "interrupt": FAILING.format(error="KeyboardInterrupt"),
        "after interrupt": "assert traces() == before, traces()\nprint('no traces')",
        "load": "print(load(FOLDER, trainer=make).global_step.numpy())",
    }
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells.values()])
    nbclient.NotebookClient(book, timeout=300, allow_errors=True, kernel_name="python3").execute()
    return dict(zip(cells, (cell["outputs"] for cell in book.cells)))


def _printed(outputs):
    return "".join(
        output["text"] for output in outputs if output["output_type"] == "stream" and output["name"] == "stdout"
    )


def _displayed(outputs):
    return [o["data"]["text/plain"] for o in outputs if o["output_type"] in ("display_data", "execute_result")]


def test_one_live_line_and_a_readable_result(notebook):
    line, result = _displayed(notebook["run"])
    assert "step 20/20" in line and "loss" in line and "\x1b" not in line + _printed(notebook["run"])
    assert (
        result.startswith("<Result: done at step 20, train loss ")
        and "validation metrics/mean_absolute_error" in result
    )
    assert "step      10  validation" in _printed(notebook["run"])


def test_the_history_is_what_pandas_takes(notebook):
    assert _printed(notebook["history"]) == "6 train validation True\n"


def test_the_same_cell_again_says_what_it_resumed(notebook):
    assert "Resuming from" in _printed(notebook["again"]) and "step_000000020" in _printed(notebook["again"])


@pytest.mark.parametrize("cell, error", [("error", "ZeroDivisionError"), ("interrupt", "KeyboardInterrupt")])
def test_a_failed_cell_leaves_nothing(notebook, cell, error):
    assert [output["ename"] for output in notebook[cell] if output["output_type"] == "error"] == [error]
    assert _printed(notebook[f"after {cell}"]) == "no traces\n"


def test_a_run_is_loaded(notebook):
    assert _printed(notebook["load"]).splitlines()[-1] == "20"


# ---- without a notebook --------------------------------------------------------------------------------------------


def _make():
    return Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]), "mse", ["mae"], "adam")


def _run(folder, **arguments):
    every = {
        "steps_per_loop": 5,
        "summary_interval": 5,
        "checkpoint_interval": 10,
        "eval_interval": 10,
        "train_steps": 20,
    }
    data, held_out = lambda: from_arrays((X, Y), 8), lambda: from_arrays((X, Y), 8, repeat=False)
    return run(folder, _make, data, held_out, strategy="default", **every, **arguments)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return _run(tmp_path_factory.mktemp("plain"))


def test_without_a_folder_nothing_is_written_and_the_results_are_the_same(plain, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    result = _run(None)
    assert result.status == "done" and list(tmp_path.iterdir()) == []
    assert "resume" not in capsys.readouterr().out
    timed = ("time", "step_milliseconds", "examples_per_second", "input_wait_fraction")
    rows, wanted = ([{k: v for k, v in row.items() if k not in timed} for row in r.history()] for r in (result, plain))
    assert rows == wanted and len(rows) == 6


@pytest.mark.parametrize("mode", ["eval", "export"])
def test_other_modes_need_a_folder(mode):
    with pytest.raises(ValueError, match="`model_dir` must be given"):
        _run(None, mode=mode)


def test_loading_a_run_beside_its_training_does_not_disturb_it(plain, tmp_path):
    def hook(trainer, step, metrics):
        if step == 15:
            while not list(tmp_path.glob("checkpoints/step_*")):
                pass  # it is written in the background
            seen.append(int(load(tmp_path, trainer=_make).global_step.numpy()))

    seen = []
    result = _run(tmp_path, hooks=[hook])
    assert result.status == "done" and seen == [10]
    for name, variable in result.trainer.variables.items():
        np.testing.assert_array_equal(variable, plain.trainer.variables[name])


def test_a_failed_run_leaves_no_thread_and_no_handler(tmp_path):
    before = threading.active_count(), signal.getsignal(signal.SIGTERM), len(os.listdir("/proc/self/fd"))

    def hook(trainer, step, metrics):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path, hooks=[hook])
    assert (threading.active_count(), signal.getsignal(signal.SIGTERM)) == before[:2]
    assert len(os.listdir("/proc/self/fd")) <= before[2]
