"""Resume through `run` (S1 to S3): what is restored, kept and reported, and what changes the course of a run."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.runs import assert_same, read_rows, slow
from trainer import Trainer, load, run
from trainer.config.files import ROOT
from trainer.data import from_arrays
from trainer.hooks import EarlyStopping, ReduceOnPlateau, Rollback, SpikeRecovery
from trainer.saving.checkpoints import Checkpoints

L = keras.layers
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(64, 3)).astype(np.float32), RNG.normal(size=(64, 1)).astype(np.float32)


def _trainer(optimizer=None, **arguments):
    model = keras.Sequential(
        [keras.Input((3,)), L.Dense(4, "tanh"), L.BatchNormalization(), L.Dropout(0.3), L.Dense(1)]
    )
    return Trainer(model, "mse", optimizers=optimizer or keras.optimizers.Adam(0.01), **arguments)


def _augment(example, seed):
    x, y = example
    return x + 0.1 * tf.random.stateless_normal(x.shape, seed), y


def _data(augment=_augment):
    return from_arrays((X, Y), 8, augment=augment)


def _held_out():
    return from_arrays((X[:13], Y[:13]), 5, repeat=False)


def _run(folder, trainer=_trainer, data=_data, **arguments):
    given = {
        "train_steps": 20, "steps_per_loop": 5, "summary_interval": 10, "checkpoint_interval": 10, "eval_interval": 10,
        "strategy": "default",
    }  # fmt: skip
    return run(folder, trainer, data, **{**given, **arguments})


def _tensors(folder, step):
    return Checkpoints().open(folder).at(step).read()


class Stop:
    """Ends a run at a step, as a signal would."""

    def __init__(self, at):
        self.at = at

    def __call__(self, trainer, step, metrics):
        return "stop" if step == self.at else None


@pytest.mark.parametrize("strategy", [slow("default"), "mirrored"])
def test_a_stopped_and_resumed_run_equals_one_that_never_stopped(tmp_path, strategy):
    """Bitwise: weights, slots, seeds, averages, hooks, reports; with shuffling, dropout and micro-batches."""
    from optimizers import EMA

    make = lambda: _trainer(micro_batches=2, averages=EMA(0.9))  # noqa: E731
    hooks = lambda: [EarlyStopping(patience=50), SpikeRecovery(window=2)]  # noqa: E731
    common = {"strategy": strategy, "eval_data": _held_out}
    _run(tmp_path / "whole", make, hooks=hooks(), **common)
    for at in (5, 15, None):
        _run(tmp_path / "parts", make, hooks=[*hooks(), *([Stop(at)] if at else [])], **common)
    assert_same(_tensors(tmp_path / "whole", 20), _tensors(tmp_path / "parts", 20))
    assert read_rows(tmp_path / "whole", times=False) == read_rows(tmp_path / "parts", times=False)


def test_the_best_is_kept_evaluated_and_loaded(tmp_path):
    values = iter([3.0, 1.0, 2.0, 4.0])

    class Judged(Trainer):
        def eval_end(self, metrics):
            return {**metrics, "metrics/score": next(values)}

    make = lambda: Judged(_trainer().model, "mse")  # noqa: E731
    checkpoints = Checkpoints(keep=1, monitor="validation/metrics/score", mode="min")
    _run(tmp_path, make, eval_data=_held_out, eval_interval=5, checkpoint_interval=None, checkpoints=checkpoints)
    kept = Checkpoints().open(tmp_path)
    assert kept.steps() == [10, 20] and kept.best().step == 10
    trainer = load(tmp_path, step="best", trainer=make)
    assert int(trainer.global_step.numpy()) == 10
    with pytest.raises(ValueError, match="none of step 15; steps there: .10, 20."):
        load(tmp_path, step=15, trainer=make)


def test_checkpoints_at_multiples_are_kept_for_ever(tmp_path):
    _run(tmp_path, train_steps=30, checkpoint_interval=5, checkpoints=Checkpoints(keep=1, keep_every=10))
    assert Checkpoints().open(tmp_path).steps() == [10, 20, 30]


def test_early_stopping_ends_a_run_once(tmp_path):
    """With a learning rate of 0 nothing improves; the same command again does nothing more."""
    make = lambda: _trainer(keras.optimizers.SGD(0.0))  # noqa: E731
    for _ in range(2):
        common = {"eval_data": _held_out, "eval_interval": 5, "train_steps": 100}
        result = _run(tmp_path, make, hooks=[EarlyStopping("loss", min_delta=100.0, patience=2)], **common)
        assert result.status == "done" and int(result.trainer.global_step.numpy()) == 15


def test_a_lowered_learning_rate_comes_back(tmp_path):
    hooks = lambda: [ReduceOnPlateau("loss", min_delta=100.0, patience=1, factor=0.5)]  # noqa: E731
    make = lambda: _trainer(keras.optimizers.SGD(0.1))  # noqa: E731
    _run(tmp_path, make, hooks=hooks(), train_steps=10)
    result = _run(tmp_path, make, hooks=hooks(), train_steps=15)
    rate = float(result.trainer.groups[0].optimizer.learning_rate.numpy())
    assert rate == pytest.approx(0.1 * 0.5**2)  # after loops 2 and 3


class Back:
    """Goes back once at a step."""

    def __init__(self, at):
        self.at = at

    def __call__(self, trainer, step, metrics):
        if step == self.at:
            self.at = None
            return Rollback("as told")


def test_a_rollback_leaves_out_the_batches_since_the_checkpoint(tmp_path):
    """The run that went back is the run on data without those 5 batches, also when it is stopped and resumed later."""

    class Without:
        exact, infinite = True, True

        def batches(self, start=0, chunk=None):
            return _data().batches(start).take(10 - start).concatenate(_data().batches(15))

    _run(tmp_path / "expected", data=Without, train_steps=30)
    _run(tmp_path / "back", hooks=[Back(at=15)], train_steps=25)
    _run(tmp_path / "back", hooks=[Back(at=None)], train_steps=30)
    expected, got = _tensors(tmp_path / "expected", 30), _tensors(tmp_path / "back", 30)
    assert got.pop("data/skipped_batches") == 5 and expected.pop("data/skipped_batches") == 0
    assert_same(expected, got)
    assert [row["step"] for row in read_rows(tmp_path / "back", times=False)] == [10, 20, 25, 30]


def test_a_spike_is_recovered_from(tmp_path):
    """Batches 12 and 13 hold huge targets; they lie between the checkpoint of step 10 and the loop's end at 15."""

    class Spiked:
        exact, infinite = True, True

        def batches(self, start=0, chunk=None):
            clean = _data(None).batches(start).enumerate(start)
            return clean.map(lambda i, b: (b[0], tf.where((i == 12) | (i == 13), b[1] * 1e6, b[1])))

    hook = SpikeRecovery(window=2)
    result = _run(tmp_path, data=Spiked, hooks=[hook], train_steps=20)
    assert result.status == "done" and result.metrics["train"]["loss"] < 10 and int(hook.state["times"].numpy()) == 1
    assert all(row["loss"] < 10 for row in read_rows(tmp_path, times=False))


def test_a_spike_that_always_comes_ends_the_run_at_the_last_good_checkpoint(tmp_path):
    class Rising:
        exact, infinite = True, True

        def batches(self, start=0, chunk=None):
            return (
                _data(None).batches(start).enumerate(start).map(lambda i, b: (b[0], tf.where(i < 10, b[1], b[1] * 1e6)))
            )

    result = _run(tmp_path, data=Rising, hooks=[SpikeRecovery(window=2, max_times=2)], train_steps=100)
    assert result.status == "stopped_nonfinite" and int(result.trainer.global_step.numpy()) == 10
    assert Checkpoints().open(tmp_path).steps() == [10]


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(tmp_path):
    """It would take its reports away, and everything that was trained."""
    _run(tmp_path)
    rows = (tmp_path / "metrics.jsonl").read_text()
    for file in tmp_path.glob("checkpoints/step_*/variables.index"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="no whole checkpoint.*move the damaged ones away"):
        _run(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == rows


def test_new_hooks_start_fresh_and_are_named(tmp_path, capsys):
    _run(tmp_path, hooks=[EarlyStopping("loss", patience=50)], train_steps=10)
    result = _run(tmp_path, hooks=[SpikeRecovery()], train_steps=20)
    said = capsys.readouterr().out
    assert (
        "Reset or dropped: hooks/0_EarlyStopping/best, hooks/0_EarlyStopping/waited, hooks/0_SpikeRecovery/losses"
        in said
    )
    assert int(result.trainer.global_step.numpy()) == 20


@pytest.mark.parametrize(
    "before", [["mae"], [keras.metrics.MeanAbsoluteError(name="error"), "mae"]], ids=["added", "exchanged"]
)
def test_a_metric_of_another_kind_does_not_continue_the_sums_of_the_old_one(tmp_path, capsys, before):
    """A learning rate of 0 and batches of all data: each step has the same loss and the same percentage error."""

    def make(metrics):
        model = keras.Sequential([keras.Input((3,)), L.Dense(1, kernel_initializer="ones", use_bias=False)])
        return Trainer(model, "mse", metrics, keras.optimizers.SGD(0.0))

    percentage = keras.metrics.MeanAbsolutePercentageError(name="error")
    data = lambda: from_arrays((X, Y), 64)  # noqa: E731
    _run(
        tmp_path, lambda: make(before), data, hooks=[Stop(10)], summary_interval=20
    )  # a checkpoint between two reports
    _run(tmp_path, lambda: make([percentage, "mae"]), data, summary_interval=20)
    (row,) = read_rows(tmp_path, "train")
    error = np.abs(Y - X.sum(1, keepdims=True))
    np.testing.assert_allclose(row["metrics/error"], 100 * np.mean(error / np.abs(Y)), rtol=1e-4)
    np.testing.assert_allclose(row["metrics/mean_absolute_error"], error.mean(), rtol=1e-5)
    np.testing.assert_allclose(row["loss"], np.mean(error**2), rtol=1e-5)
    assert ("metrics/error" in capsys.readouterr().out) or len(before) == 1


def test_another_optimizer_with_slots_of_the_same_names_is_refused(tmp_path):
    _run(tmp_path, lambda: _trainer(keras.optimizers.Adam(0.01)), train_steps=10)
    with pytest.raises(ValueError, match="other optimizers.*group 'main': Adam in the checkpoint, AdamW now"):
        _run(tmp_path, lambda: _trainer(keras.optimizers.AdamW(0.01)))


def test_a_skipped_step_is_noted_and_the_checkpoint_before_it_stays(tmp_path, capsys):
    class Bad:
        exact, infinite = True, True

        def batches(self, start=0, chunk=None):
            return (
                _data(None)
                .batches(start)
                .enumerate(start)
                .map(lambda i, b: (b[0], tf.where(i == 17, float("nan"), b[1])))
            )

    _run(tmp_path, data=Bad, train_steps=60, checkpoints=Checkpoints(keep=1))
    assert Checkpoints().open(tmp_path).steps() == [10, 60]
    (row,) = [json.loads(line) for line in (tmp_path / "bad_steps.jsonl").read_text().splitlines()]
    assert row["first"] == row["last"] == 17 and row["checkpoint"] == 10 and row["stopped"] == ""
    assert "dense/kernel" in row["variables"]
    assert f"python -m trainer.check replay {tmp_path} --step=17" in capsys.readouterr().out
    _run(tmp_path, data=Bad, train_steps=70)  # a restart brings the count of skipped steps, and no new one
    assert (tmp_path / "bad_steps.jsonl").read_text().count("\n") == 1
    for step in Checkpoints().open(tmp_path).steps()[1:]:
        shutil.rmtree(tmp_path / f"checkpoints/step_{step:09d}")
    capsys.readouterr()
    _run(tmp_path, data=Bad, train_steps=70)  # as after a crash: the step comes again, and is said again, not noted
    assert "--step=17" in capsys.readouterr().out and (tmp_path / "bad_steps.jsonl").read_text().count("\n") == 1


def test_an_evaluation_follows_a_growing_folder_and_writes_nothing_else(tmp_path):
    """Three checkpoints appear one by one; each is evaluated once; the training run's rows stay."""
    hooks = [lambda trainer, step, metrics: None]
    _run(tmp_path, hooks=hooks, train_steps=10)
    before = (tmp_path / "metrics.jsonl").read_text()
    seen = []

    class Growing(Checkpoints):
        def newer(self, step, ended=lambda: False):
            for train_steps in (20, 30):
                if step >= 0:
                    _run(tmp_path, hooks=hooks, train_steps=train_steps)
                    seen.append(train_steps)
                    yield self.latest()

    result = _run(tmp_path, mode="eval", eval_data=_held_out, checkpoints=Growing())
    assert seen == [20, 30] and result.status == "done"
    assert [row["step"] for row in read_rows(tmp_path, "validation")] == [10, 20, 30]
    assert (tmp_path / "metrics.jsonl").read_text().startswith(before)


def test_following_ends_when_nothing_comes(tmp_path):
    _run(tmp_path, train_steps=10)
    checkpoints = Checkpoints(follow=0.3).open(tmp_path)
    assert [c.step for c in checkpoints.newer(-1)] == [10] and list(checkpoints.newer(10)) == []


DETERMINISTIC = """
import sys, keras, numpy as np
from trainer import Trainer, run
from trainer.data import from_arrays
x, y = np.random.default_rng(0).normal(size=(2, 40, 3)).astype("float32")
def make():
    layers = [keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dropout(0.5), keras.layers.Dense(3)]
    return Trainer(keras.Sequential(layers), "mse")
for name, steps in (("whole", 20), ("parts", 5), ("parts", 20)):
    result = run(f"{sys.argv[1]}/{name}", make, lambda: from_arrays((x, y), 8), train_steps=steps,
                 steps_per_loop=5, strategy="default", deterministic=True)
assert "input_wait_fraction" not in result.metrics["train"] and result.metrics["train"]["step_milliseconds"] > 0
"""


def test_a_deterministic_run_trains_and_resumes(tmp_path):
    """In a process of its own: TensorFlow cannot be told to forget determinism. It forbids the clock inside a graph."""
    command = [sys.executable, "-c", DETERMINISTIC, str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    assert_same(_tensors(tmp_path / "whole", 20), _tensors(tmp_path / "parts", 20))


PROGRAM = """
import sys, time, keras, numpy as np
from trainer import Trainer, experiment
from trainer.data import from_arrays
rng = np.random.default_rng(0)
x, y = rng.normal(size=(40, 3)).astype("float32"), rng.normal(size=(40, 1)).astype("float32")

def say(trainer, step, metrics):
    print("at", step, flush=True)
arguments = experiment.arguments_of_run(
    sys.argv[1], lambda: Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]), "mse"),
    lambda: from_arrays((x, y), 8), train_steps=10**12, steps_per_loop=int(sys.argv[2]), summary_interval=None,
    checkpoint_interval=None, loop_seconds=float(sys.argv[3]), strategy="default", hooks=[say])
result = experiment.start(experiment.Request(owns_process=True), arguments)
print("ended", result.status, flush=True)
"""


def _start(folder, steps_per_loop, loop_seconds=5.0):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), str(steps_per_loop), str(loop_seconds)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def _until(process, start):
    for line in process.stdout:
        if line.startswith(start):
            return line
    raise AssertionError(f"the program ended without {start!r}")


def _until_it_listens(process):
    """Waits until the program has a handler for SIGUSR1, which Linux tells."""
    ends = time.monotonic() + 120
    while time.monotonic() < ends and process.poll() is None:
        caught = next(
            line
            for line in pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines()
            if line.startswith("SigCgt")
        )
        if int(caught.split()[1], 16) >> (signal.SIGUSR1 - 1) & 1:
            return
        time.sleep(0.05)
    raise AssertionError("the program never listened")


def test_a_second_signal_exits_inside_a_long_loop(tmp_path):
    """A call of 10^9 steps would take hours; the first signal is answered in it, the second ends it."""
    process = _start(tmp_path, 10**9, loop_seconds=1e9)
    try:
        _until_it_listens(process)
        process.send_signal(signal.SIGINT)
        _until(process, "SIGINT: finishing the loop")
        process.send_signal(signal.SIGINT)
        _until(process, "SIGINT again: exiting")
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()


def test_sigusr1_saves_and_continues_and_two_different_signals_exit(tmp_path):
    process = _start(tmp_path, 50)
    try:
        _until(process, "at")
        process.send_signal(signal.SIGUSR1)
        _until(process, "SIGUSR1: saving")
        _until(process, "at")
        _until(process, "at")
        process.send_signal(signal.SIGTERM)
        _until(process, "SIGTERM: finishing")
        _until(process, "resume   the same call")
        assert _until(process, "ended") == "ended SIGTERM\n" and process.wait(timeout=60) == 0
        assert len(Checkpoints().open(tmp_path).steps()) == 2
    finally:
        process.kill()
