"""A full disk or a folder that cannot be written: training goes on, and the failed save is reported."""

import errno
import os
import resource
import subprocess

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.runs import read_rows
from trainer import Trainer, main, run
from trainer.data import from_arrays
from trainer.outer_loop.bad_steps import BadSteps
from trainer.outer_loop.summaries import Summaries
from trainer.saving.checkpoints import Checkpoints

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(64, 3)).astype(np.float32), RNG.normal(size=(64, 1)).astype(np.float32)


class Limited:
    """No file may grow beyond 16 KB: what a process can do to itself. Reports fit, checkpoints do not."""

    def __init__(self, folder):
        self.folder = folder

    def fill(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, resource.RLIM_INFINITY))

    def free(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    close = free


class Small:
    """A file system of 2 MB in memory, and a file that takes the rest of it."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, text=True
        )
        if mounted.returncode:
            pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")

    def fill(self):
        with open(self.folder / "filler", "wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC

    def free(self):
        (self.folder / "filler").unlink(missing_ok=True)

    def close(self):
        subprocess.run(["umount", str(self.folder)], check=True)


class Blocked:
    """A file where the folder of the checkpoints should be: not writable, also for root."""

    def __init__(self, folder):
        self.folder = folder
        self._checkpoints, self._away = folder / "run" / "checkpoints", folder / "run" / "away"

    def fill(self):
        self._checkpoints.rename(self._away)
        self._checkpoints.write_text("")

    def free(self):
        if self._away.exists():
            self._checkpoints.unlink()
            self._away.rename(self._checkpoints)

    close = free


@pytest.fixture(params=[Limited, Small, Blocked])
def disk(request, tmp_path):
    if request.param is Small and not os.access("/sbin/mount", os.X_OK) and not os.access("/bin/mount", os.X_OK):
        pytest.skip("there is no `mount` here")
    disk = request.param(tmp_path / "disk")
    yield disk
    disk.close()


def _trainer():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2000, "tanh"), keras.layers.Dense(1)])
    return Trainer(model, "mse", optimizers=keras.optimizers.Adam(0.01), compile="eager")


def _run(folder, hooks=(), checkpoints=None):
    settings = {
        "train_steps": 24,
        "steps_per_loop": 2,
        "summary_interval": 4,
        "checkpoint_interval": 4,
        "eval_interval": None,
    }
    return run(
        folder,
        _trainer,
        lambda: from_arrays((X, Y), 8),
        checkpoints=checkpoints,
        hooks=hooks,
        strategy="default",
        **settings,
    )


def _reported(folder):
    return [(row["step"], row["loss"]) for row in read_rows(folder)]


def _whole(folder):
    checkpoints = Checkpoints().open(folder)
    assert all(checkpoints.at(step) is not None for step in checkpoints.steps())
    assert not list(checkpoints.directory.glob(".*")), "what a failed save wrote gives its room back"
    return checkpoints.steps()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    keras.utils.set_random_seed(0)
    _run(folder)
    return Checkpoints().open(folder).at(24).read(), _reported(folder)


def _assert_same(folder, undisturbed):
    tensors = Checkpoints().open(folder).at(24).read()
    for name, value in undisturbed[0].items():
        np.testing.assert_array_equal(tensors[name], value, err_msg=name)
    assert _reported(folder) == undisturbed[1]


def test_training_goes_on_and_saves_again_once_there_is_room(disk, undisturbed, capsys):
    checkpoints = Checkpoints()

    def hook(trainer, step, metrics):
        if step in (10, 18):
            checkpoints.wait()  # the save before is whole, or has failed, however slow the machine is
        if step == 10:
            disk.fill()
        if step == 18:
            assert checkpoints.steps() in ([4, 8], [])  # intact, or under another name
            disk.free()

    assert _run(disk.folder / "run", [hook], checkpoints).status == "done"
    said = capsys.readouterr().err
    for step in (12, 16):
        assert f"Checkpoint of step {step} was NOT saved" in said and "the next save tries again" in said
    assert "step 20 was NOT" not in said
    assert _whole(disk.folder / "run") == [8, 20, 24]
    _assert_same(disk.folder / "run", undisturbed)


def test_a_run_whose_last_checkpoint_is_not_saved_is_not_done(disk, undisturbed, capsys):
    checkpoints = Checkpoints()

    def hook(trainer, step, metrics):
        if step == 18:
            checkpoints.wait()
            disk.fill()

    result = _run(disk.folder / "run", [hook], checkpoints)
    out, err = capsys.readouterr()
    assert result.status == "unsaved" and "unsaved at step 24" in out and int(result.trainer.global_step.numpy()) == 24
    assert err.count("Checkpoint of step 24 was NOT saved") == 2  # once more before the end, now as an error
    assert "error: Checkpoint of step 24 was NOT saved" in err and "nothing was saved since" in err
    disk.free()
    assert _whole(disk.folder / "run") == [8, 12, 16]
    assert _run(disk.folder / "run").status == "done" and "damaged" not in capsys.readouterr().err
    _assert_same(disk.folder / "run", undisturbed)


def test_a_last_save_that_works_the_second_time_is_a_success(tmp_path, monkeypatch, undisturbed):
    real, calls = tf.raw_ops.SaveV2, []

    def once_full(**arguments):
        calls.append(arguments)
        if len(calls) == 6:  # the save of step 24
            raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")
        return real(**arguments)

    monkeypatch.setattr(tf.raw_ops, "SaveV2", once_full)
    assert _run(tmp_path).status == "done" and len(calls) == 7
    _assert_same(tmp_path, undisturbed)


def test_the_exit_code_of_a_run_that_could_not_be_saved_is_1(tmp_path, monkeypatch, capsys):
    def full(**arguments):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(tf.raw_ops, "SaveV2", full)
    flags = [
        "--gin_param=run.train_steps = 5",
        "--gin_param=Trainer.compile = 'eager'",
        "--mode=train",
        f"--model_dir={tmp_path}/run",
    ]
    assert main.main(["main.py", "--gin_file=tests/trainer/soak.gin", *flags]) == 1
    assert "error: Checkpoint of step 5 was NOT saved: No space left on device" in capsys.readouterr().err


def test_reports_that_had_to_wait_are_written_before_a_checkpoint_counts(tmp_path):
    (tmp_path / "train").write_text("a file where the folder should be")
    summaries = Summaries(tmp_path)
    summaries.scalars("train", 1, {"loss": 0.5})
    summaries.flush()
    (tmp_path / "train").unlink()
    summaries.flush()
    assert [path.name.split(".")[0] for path in (tmp_path / "train").iterdir()] == ["events"]
    summaries.close()


def test_an_event_file_that_could_not_be_begun_is_not_left_behind(tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("trainer.outer_loop.summaries._AppendFile.write", full)
    summaries = Summaries(tmp_path)
    for _ in range(3):
        summaries.text("a", "b")
    summaries.close()
    assert list((tmp_path / "train").iterdir()) == []


def test_a_bad_step_that_cannot_be_noted_ends_nothing(tmp_path, capsys):
    class Full(Checkpoints):
        def pin(self, step):
            raise OSError(errno.ENOSPC, "No space left on device")

    class Guard:
        last_skipped, bad_variables = tf.constant(7), ["dense/kernel"]

    class Skipping:
        class built:
            guard = Guard

    bad = BadSteps(tmp_path, Full().open(tmp_path))
    bad.look(Skipping, 5, 1)
    assert "Steps 7 to 7 were not finite" in (said := capsys.readouterr().err) and "No space left on device" in said
    (tmp_path / "bad_steps.jsonl").write_text('{"first": 1, "la{"first": 2}\n{"first": 3}\n')
    assert bad.rows() == [{"first": 3}]  # the first line was torn
