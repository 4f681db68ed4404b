"""run(): what is due when, what a run folder holds, how a run ends, resumes and is refused."""

import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.runs import read_rows, slow
from trainer import STOP, Trainer, experiment, load, run
from trainer.config.files import ROOT
from trainer.data import from_arrays
from trainer.saving.checkpoints import Checkpoints

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(40, 3)).astype(np.float32), RNG.normal(size=(40, 1)).astype(np.float32)


def _trainer(units=4, **arguments):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(units, "tanh"), keras.layers.Dense(1)])
    return Trainer(model, "mse", ["mae"], arguments.pop("optimizers", None) or keras.optimizers.Adam(0.01), **arguments)


def _data():
    return from_arrays((X, Y), 8)


def _held_out(n=13):
    return lambda: from_arrays((X[:n], Y[:n]), 5, repeat=False)


def _run(folder, trainer=_trainer, data=_data, eval_data=None, request=None, **arguments):
    given = {
        "train_steps": 20,
        "steps_per_loop": 5,
        "summary_interval": 5,
        "checkpoint_interval": 10,
        "strategy": "default",
    }
    given = experiment.arguments_of_run(folder, trainer, data, eval_data, **{**given, **arguments})
    return experiment.start(request or experiment.Request(), given)


def _weights(result):
    return [v.numpy() for v in result.trainer.variables.values()]


# ---- the folder and the reports ------------------------------------------------------------------------------------


def test_a_run_folder_holds_what_the_design_lists(tmp_path):
    result = _run(tmp_path, eval_data=_held_out())
    assert result.status == "done" and set(result.metrics) == {"train", "validation"}
    present = {entry.name for entry in tmp_path.iterdir()}
    assert present == {
        "config.gin",
        "operative_config.gin",
        "resolved_config.gin",
        "command.txt",
        "metrics.jsonl",
        "starts.jsonl",
        "train",
        "validation",
        "checkpoints",
    }
    rows = read_rows(tmp_path, "train")
    assert [row["step"] for row in rows] == [5, 10, 15, 20]
    always = {
        "loss",
        "losses/main",
        "metrics/mean_absolute_error",
        "grad_norm/main",
        "learning_rate/main",
        "updates/main",
        "skipped_steps",
        "examples_per_second",
        "step_milliseconds",
        "input_wait_fraction",
    }
    assert set(rows[-1]) == always | {"step", "split", "time"}
    assert rows[-1]["updates/main"] == 20 and rows[-1]["learning_rate/main"] == pytest.approx(0.01)


def test_tensorboard_has_the_same_tags_and_steps(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _run(tmp_path, eval_data={"a": _held_out(), "b": _held_out(7)}, eval_interval=10)
    for split in ("train", "validation_a", "validation_b"):
        events = EventAccumulator(str(tmp_path / split)).Reload()
        rows = read_rows(tmp_path, split)
        tags = set(rows[0]) - {"step", "split", "time"}
        shown = {"config", "resolved_config", "unused_bindings", "environment", "custom_scalars__config__"}
        assert tags == {tag for tag in events.Tags()["tensors"] if not tag.startswith(("final/", "_hparams_"))} - shown
        points = [(e.step, float(tf.make_ndarray(e.tensor_proto))) for e in events.Tensors("loss")]
        assert [step for step, _ in points] == [row["step"] for row in rows]
        np.testing.assert_allclose([value for _, value in points], [row["loss"] for row in rows], rtol=1e-6)
    assert EventAccumulator(str(tmp_path / "train")).Reload().Tags()["graph"]


def test_a_report_is_the_mean_over_its_steps_whatever_the_loops_are(tmp_path):
    """Loops of 2 steps and one loop of 10 report the same, over 10 steps."""
    for name, steps in (("short", 2), ("long", 10)):
        _run(tmp_path / name, steps_per_loop=steps, summary_interval=10)
    short, long = (read_rows(tmp_path / name, "train") for name in ("short", "long"))
    assert [row["step"] for row in short] == [row["step"] for row in long] == [10, 20]
    for tag in ("loss", "grad_norm/main", "metrics/mean_absolute_error"):
        np.testing.assert_allclose([r[tag] for r in short], [r[tag] for r in long], rtol=1e-6)


def test_the_reported_loss_is_what_numpy_says(tmp_path):
    result = _run(
        tmp_path, trainer=lambda: _trainer(optimizers=keras.optimizers.SGD(0.0)), train_steps=5, eval_data=_held_out()
    )
    model = result.trainer.model
    errors = (model(X).numpy() - Y) ** 2
    assert result.metrics["train"]["loss"] == pytest.approx(errors.mean(), rel=1e-5)  # 5 batches of 8: the whole epoch
    assert result.metrics["validation"]["loss"] == pytest.approx(errors[:13].mean(), rel=1e-5)  # 5, 5, 3: each once
    mae = np.abs(model(X[:13]).numpy() - Y[:13]).mean()
    assert result.metrics["validation"]["metrics/mean_absolute_error"] == pytest.approx(mae, rel=1e-5)


def test_loops_end_at_the_next_multiple_of_any_interval(tmp_path):
    seen = []
    _run(
        tmp_path,
        hooks=[lambda t, step, m: seen.append(step)],
        steps_per_loop=6,
        summary_interval=4,
        checkpoint_interval=9,
        eval_interval=None,
    )
    assert seen == [4, 6, 8, 9, 12, 16, 18, 20]


# ---- where it ends -------------------------------------------------------------------------------------------------


def test_epochs(tmp_path):
    result = _run(tmp_path, train_steps=None, epochs=2.5)
    assert int(result.trainer.global_step.numpy()) == 13  # 5 batches an epoch, rounded up


def test_the_run_ends_when_the_data_end(tmp_path, capsys):
    data = lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)  # noqa: E731
    result = _run(tmp_path, data=data, train_steps=None)
    assert result.status == "done" and int(result.trainer.global_step.numpy()) == 5
    result = _run(tmp_path / "b", data=data, train_steps=100, steps_per_loop=3)
    assert int(result.trainer.global_step.numpy()) == 5 and "ended at step 5" in capsys.readouterr().out


@pytest.mark.parametrize("steps_per_loop", [5, 3])
def test_data_that_ends_with_a_loop_ends_with_a_report_and_an_evaluation(tmp_path, steps_per_loop):
    """Of 5 steps: the end is noticed in a loop that takes none, or two."""
    data = lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)  # noqa: E731
    seen = []
    for name, interval in (("a", None), ("b", 5)):
        result = _run(
            tmp_path / name,
            data=data,
            eval_data=_held_out(),
            train_steps=None,
            steps_per_loop=steps_per_loop,
            summary_interval=interval,
            eval_interval=interval,
            checkpoint_interval=interval,
            checkpoints=Checkpoints(monitor="validation/loss"),
            hooks=[lambda t, s, m: seen.append(s)],
        )
        assert result.status == "done"
        for split in ("train", "validation"):
            assert [row["step"] for row in read_rows(tmp_path / name, split)] == [5]
        assert load(tmp_path / name, "best", _trainer).global_step.numpy() == 5
    assert set(seen) <= {3, 5} and len(seen) == 2 * len(set(seen))


def test_a_hook_writes_and_stops(tmp_path):
    def hook(trainer, step, metrics):
        assert metrics["loss"] > 0
        trainer.summaries.text("note", f"at {step}")
        return STOP if step == 10 else None

    result = _run(tmp_path, hooks=hook)
    assert result.status == "done" and int(result.trainer.global_step.numpy()) == 10
    assert (tmp_path / "checkpoints" / "step_000000010").is_dir()


def test_every_compile_mode_runs_the_same(tmp_path):
    reference = _run(tmp_path / "graph", eval_interval=10)
    for compile in ("eager", "xla_step", "xla_loop"):
        result = _run(tmp_path / compile, trainer=lambda compile=compile: _trainer(compile=compile), eval_interval=10)
        for a, b in zip(_weights(result), _weights(reference), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5, err_msg=compile)


def test_intervals_that_xla_loop_cannot_keep_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`summary_interval` \(7\) must be a multiple of `steps_per_loop`"):
        _run(tmp_path, trainer=lambda: _trainer(compile="xla_loop"), summary_interval=7, eval_interval=None)


# ---- again ---------------------------------------------------------------------------------------------------------


def _noisy():
    layers = [
        keras.layers.Dense(8),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(1),
    ]
    return Trainer(keras.Sequential([keras.Input((3,)), *layers]), "mse", ["mae"], keras.optimizers.Adam(0.01))


def _augmented():
    return from_arrays((X, Y), 8, augment=lambda e, seed: (e[0] + tf.random.stateless_normal([3], seed), e[1]))


@pytest.mark.parametrize("strategy", ["default", slow("mirrored")])  # resume_test.py has two replicas
def test_the_same_command_resumes_bit_for_bit(tmp_path, strategy):
    """With shuffling, dropout, augmentation and BatchNorm; stopped between two reports."""
    arguments = {
        "trainer": _noisy,
        "data": _augmented,
        "strategy": strategy,
        "summary_interval": 10,
        "eval_interval": None,
    }
    whole = _run(tmp_path / "whole", **arguments)
    _run(tmp_path / "parts", hooks=lambda t, step, m: STOP if step == 15 else None, **arguments)
    again = _run(tmp_path / "parts", **arguments)
    for a, b in zip(_weights(whole), _weights(again), strict=True):
        np.testing.assert_array_equal(a, b)
    rows, resumed = (read_rows(tmp_path / name, "train", times=False) for name in ("whole", "parts"))
    assert [row["step"] for row in rows] == [10, 20]
    # The stop at 15 wrote no line of its own: the report of steps 11 to 20 is that of the run that never stopped.
    assert resumed == rows


@pytest.mark.parametrize("data", [_data, lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)])
def test_a_finished_run_started_again_changes_nothing_and_returns_the_last_reports(tmp_path, data):
    """One that came to `train_steps`, and one whose data ended: no rows without a loss, and no empty metrics."""
    first = _run(tmp_path, data=data, eval_data=_held_out())
    before = (tmp_path / "metrics.jsonl").read_text()
    second = _run(tmp_path, data=data, eval_data=_held_out())
    assert second.status == "done" and (tmp_path / "metrics.jsonl").read_text() == before
    assert second.metrics == first.metrics
    for a, b in zip(_weights(first), _weights(second), strict=True):
        np.testing.assert_array_equal(a, b)


def test_changed_data_are_reported_in_one_line_on_resume(tmp_path, capsys):
    _run(tmp_path, train_steps=5)
    _run(tmp_path, train_steps=6)
    assert "The data changed" not in capsys.readouterr().out
    _run(tmp_path, train_steps=7, data=lambda: from_arrays((X[:30], Y[:30]), 10, seed=3))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "The data changed" in line]
    assert "batch size 8 -> 10, examples 40 -> 30, seed 0 -> 3" in line and "batch 6 of the new order" in line
    _run(tmp_path, train_steps=8, data=lambda: from_arrays((X[1:31], Y[1:31]), 10, seed=3))
    assert "The data changed since the checkpoint: checksum of the first example" in capsys.readouterr().out
    _run(tmp_path, train_steps=9, data=lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(4).repeat())
    assert "batch size 10 -> 4" in capsys.readouterr().out


def test_a_second_run_in_the_folder_is_refused_and_an_evaluation_is_not(tmp_path):
    _run(tmp_path, train_steps=5)
    seen = []

    def hook(trainer, step, metrics):
        seen.append(_run(tmp_path, trainer=_trainer, mode="eval", eval_data=_held_out()).status)
        with pytest.raises(ValueError, match="`model_dir` .* is in use: process"):
            _run(tmp_path)

    assert _run(tmp_path, train_steps=10, hooks=hook).status == "done" and seen == ["done"]
    assert _run(tmp_path, train_steps=15).status == "done"


class _OfDicts(Trainer):
    def compute_losses(self, batch, training):
        return {"mse": tf.reduce_mean(tf.square(self.model(batch["x"], training=training) - batch["y"]), -1)}


def test_a_trainer_for_batches_of_its_own_runs_and_has_a_graph(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = lambda: keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, name="seen")])  # noqa: E731
    data = lambda: from_arrays({"x": X, "y": Y}, 8)  # noqa: E731
    assert _run(tmp_path, lambda: _OfDicts(model(), optimizers="sgd"), data, train_steps=5).status == "done"
    assert "seen" in str(EventAccumulator(str(tmp_path / "train")).Reload().Graph())


def test_resume_never_and_must(tmp_path):
    with pytest.raises(ValueError, match="no whole checkpoint"):
        _run(tmp_path, resume="must")
    _run(tmp_path)
    with pytest.raises(ValueError, match="`resume` is 'never'"):
        _run(tmp_path, resume="never")


def test_a_folder_of_another_model_is_refused_and_left_as_it_was(tmp_path):
    _run(tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="holds a different model") as raised:
        _run(tmp_path, trainer=lambda: _trainer(units=7), train_steps=40)
    assert "dense/kernel: [3, 4] in the checkpoint, [3, 7] in the program" in str(raised.value)
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_newly_configured_learning_rate_takes_effect(tmp_path):
    _run(tmp_path)
    result = _run(tmp_path, trainer=lambda: _trainer(optimizers=keras.optimizers.Adam(0.5)), train_steps=25)
    assert result.metrics["train"]["learning_rate/main"] == pytest.approx(0.5)


# ---- the guard -----------------------------------------------------------------------------------------------------


def _poisoned():
    x = X.copy()
    x[17] = np.nan
    return from_arrays((x, Y), 8, shuffle=False)


def test_a_run_stopped_by_the_guard_says_so_and_whether_it_will_fail_again(tmp_path, capsys):
    result = _run(tmp_path, trainer=lambda: _trainer(guard="stop"), data=_poisoned, checkpoint_interval=2)
    assert result.status == "stopped_nonfinite"
    assert "Not finite" in capsys.readouterr().err
    again = _run(tmp_path, trainer=lambda: _trainer(guard="stop"), data=_poisoned, checkpoint_interval=2)
    said = capsys.readouterr().err
    assert again.status == "stopped_nonfinite" and "The same step will fail again" in said and "guard = 'skip'" in said
    cured = _run(tmp_path, trainer=lambda: _trainer(guard="skip"), data=_poisoned, checkpoint_interval=2)
    assert cured.status == "done" and "will fail again" not in capsys.readouterr().err
    assert all(np.isfinite(w).all() for w in _weights(cured))


def test_skipped_steps_are_counted_and_too_many_in_a_row_stop(tmp_path, capsys):
    result = _run(tmp_path / "some", data=_poisoned)
    assert result.status == "done" and result.metrics["train"]["skipped_steps"] == 4
    everything = lambda: from_arrays((np.full_like(X, np.inf), Y), 8)  # noqa: E731
    result = _run(tmp_path / "all", data=everything)
    said = capsys.readouterr().err
    assert result.status == "stopped_nonfinite" and "10 steps in a row" in said and "dense/kernel" in said


# ---- the other modes -----------------------------------------------------------------------------------------------


def test_eval_load_and_predict_agree(tmp_path):
    trained = _run(tmp_path, eval_data=_held_out())
    evaluated = _run(tmp_path, eval_data=_held_out(), mode="eval")
    assert evaluated.metrics["validation"] == pytest.approx(trained.metrics["validation"])
    loaded = load(tmp_path, trainer=_trainer)
    assert loaded.evaluate(_held_out()) == pytest.approx(trained.metrics["validation"])
    np.testing.assert_array_equal(loaded.predict(_held_out()), trained.trainer.predict(_held_out()))
    early = load(tmp_path, step=10, trainer=_trainer)
    assert int(early.global_step.numpy()) == 10
    with pytest.raises(ValueError, match="steps there"):
        load(tmp_path / "none", trainer=_trainer)


def test_export_gives_the_model_that_was_trained(tmp_path):
    trained = _run(tmp_path)
    _run(tmp_path, mode="export")
    expected = trained.trainer.model(X[:5]).numpy()
    served = tf.saved_model.load(str(tmp_path / "export" / "saved_model"))  # held: its variables die with it
    np.testing.assert_allclose(served.serve(X[:5]), expected, rtol=1e-6)
    np.testing.assert_allclose(keras.models.load_model(tmp_path / "export" / "model.keras")(X[:5]), expected, rtol=1e-6)


@pytest.mark.parametrize("mode", ["eval", "export"])
def test_eval_and_export_need_a_checkpoint(tmp_path, mode):
    with pytest.raises(ValueError, match="no whole checkpoint"):
        _run(tmp_path, mode=mode, eval_data=_held_out())


@pytest.mark.parametrize(
    "arguments, match",
    [
        ({"strategy": "tpu9"}, "`strategy`.*'tpu9'"),
        ({"train_steps": None}, "data is infinite"),
        ({"eval_data": _data}, "never ends"),
        ({"trainer": lambda: 5}, "`trainer` must return a Trainer, got int"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(tmp_path, arguments, match):
    given = {"model_dir": tmp_path / "new", "trainer": _trainer, "train_steps": 20, **arguments}
    with pytest.raises(ValueError, match=match):
        run(train_data=_data, **given)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["a [x] b=50%", slow("back\\slash")])
def test_a_folder_of_any_name_trains_resumes_loads_and_exports(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _run(name, train_steps=5)
    assert int(_run(name, resume="must").trainer.global_step.numpy()) == 20
    _run(name, mode="export")
    loaded = load(name, trainer=_trainer)
    assert int(loaded.global_step.numpy()) == 20
    result = _run(name + "2", train_steps=1, request=experiment.Request(init_from=name),
                  trainer=lambda: _trainer(optimizers=keras.optimizers.SGD(0.0)))  # fmt: skip
    for a, b in zip(loaded.variables.values(), _weights(result), strict=True):
        np.testing.assert_array_equal(a.numpy(), b)
    assert {entry.name for entry in tmp_path.iterdir()} == {name, name + "2"}


def test_a_dry_run_traces_the_step_and_writes_nothing(tmp_path, capsys):
    result = _run(tmp_path / "new", request=experiment.Request(dry_run=True))
    said = capsys.readouterr().out
    assert result.status == "done" and int(result.trainer.global_step.numpy()) == 0
    assert "dense/kernel" in said and "replicas" in said and not (tmp_path / "new").exists()


def test_init_from_takes_weights_and_not_steps(tmp_path):
    trained = _run(tmp_path / "old")
    result = _run(
        tmp_path / "new",
        train_steps=1,
        trainer=lambda: _trainer(optimizers=keras.optimizers.SGD(0.0)),
        request=experiment.Request(init_from=tmp_path / "old"),
    )
    for a, b in zip(_weights(trained), _weights(result), strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(result.trainer.global_step.numpy()) == 1


# ---- signals -------------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
from tests.trainer.experiment_test import _run, _trainer
import pathlib
def hook(trainer, step, metrics):
    print("step", step, flush=True)
result = _run(pathlib.Path(sys.argv[1]), train_steps=int(sys.argv[2]), hooks=hook, checkpoint_interval=None,
              summary_interval=1000)
print("ended", result.status, flush=True)
"""


@pytest.mark.parametrize("number", [slow(signal.SIGINT), signal.SIGTERM])
def test_a_signal_ends_the_run_with_a_checkpoint(tmp_path, number):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), "1000000000"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    try:
        for line in process.stdout:
            if line.startswith("step "):
                process.send_signal(number)
                break
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert f"ended {signal.Signals(number).name}" in out, out + err
    (newest,) = (tmp_path / "checkpoints").iterdir()
    assert int(newest.name.removeprefix("step_")) % 5 == 0
