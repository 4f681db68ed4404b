"""A checkpoint is whole or ignored: after a kill during a save, or damage on disk, the last good one is used."""

import json
import os
import pathlib
import shutil
import threading

import keras
import numpy as np

from tests.trainer import faults
from tests.trainer.nursery import Nursery
from trainer import Trainer, run
from trainer.data import from_arrays
from trainer.outer_loop import summaries
from trainer.saving.checkpoints import Checkpoints

FILES = ["checkpoint", "manifest.json", "variables.data-00000-of-00001", "variables.index"]


def _state(step):
    rng = np.random.default_rng(step)
    return {"dense/kernel": rng.normal(size=(30, 10)).astype(np.float32), "global_step": np.asarray(step, np.int64)}


def _open(folder):
    return Checkpoints(keep=2, monitor="loss").open(folder)


def _save(checkpoints, step, loss, **arguments):
    checkpoints.save(step, _state(step), {}, {"loss": loss}, wait=True, **arguments)


def _assert_is(checkpoint, step):
    found, expected = checkpoint.read(), _state(step)
    assert checkpoint.step == step and found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def _prepare(folder):
    """Two checkpoints to keep, one to delete, a damaged one of the next step, a leftover of an earlier kill."""
    checkpoints = _open(folder)
    for step, loss in ((10, 0.1), (20, 0.5), (30, 0.4), (40, 0.3)):
        _save(checkpoints, step, loss)
    assert checkpoints.steps() == [10, 30, 40]
    shutil.copytree(checkpoints.directory / "step_000000040", checkpoints.directory / ".writing-step_000000050")
    shutil.copytree(checkpoints.directory / "step_000000040", checkpoints.directory / "step_000000050")
    (checkpoints.directory / "step_000000050" / "variables.index").unlink()


def save_and_die(folder, die_at):
    """In a process of its own: saves step 50; dies at a change, or tells of all of them."""
    changes = faults.Changes(die_at)
    _save(_open(folder), 50, 0.2)
    print("changes:", *changes.seen, sep=";")


def test_death_at_every_change_that_a_save_makes(tmp_path, capsys):
    _prepare(tmp_path / "before")
    saved = []
    with Nursery("tests.trainer.faults_test") as nursery:
        for die_at in range(1, 100):
            folder = tmp_path / str(die_at)
            shutil.copytree(tmp_path / "before", folder)
            nursery.start("save_and_die", str(folder), die_at)
            code = nursery.end()
            checkpoints = _open(folder)
            listed = set(checkpoints.steps()) - {50}
            assert all(checkpoints.at(step) is not None for step in listed), "a step_* folder was whole once"
            assert {10, 40} <= listed  # the best and the last good one
            saved.append(checkpoints.latest().step)
            _assert_is(checkpoints.latest(), saved[-1])
            for step in (50, 60):  # started again
                _save(checkpoints, step, 0.2)
                _assert_is(checkpoints.latest(), step)
            assert sorted(p.name for p in checkpoints.directory.iterdir()) == [f"step_{s:09d}" for s in (10, 50, 60)]
            if code == 0:
                break
            assert code == -9, nursery.said
    changes = next(line for line in nursery.said if line.startswith("changes:")).split(";")[1:]
    assert len(changes) == die_at - 1 and {
        "os.mkdir",
        "SaveV2",
        "SaveV2, half way",
        "open",
        "os.rename",
        "os.remove",
        "os.rmdir",
    } == set(changes)
    assert changes.count("os.rename") == 3  # the damaged one goes, the new one comes, the old one goes
    assert saved == sorted(saved) and set(saved) == {40, 50}
    with capsys.disabled():
        print(
            f"\nfaults: {len(changes)} deaths, one before each change that a save makes; "
            f"{saved[:-1].count(40)} left the old checkpoint, {saved[:-1].count(50)} the new one"
        )


def _damages(path, count, rng):
    """Yields (what, bytes or None): flipped bits, lost ends, a deleted file."""
    data = path.read_bytes()
    yield "deleted", None
    yield "empty", b""
    for number in range(count - 2):
        if number % 2:
            length = int(rng.integers(len(data)))
            yield f"cut to {length}", data[:length]
        else:
            bit = int(rng.integers(8 * len(data)))
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            yield f"bit {bit}", bytes(flipped)


def test_a_hundred_damages_and_always_the_previous_one(tmp_path, capsys):
    checkpoints, rng = _open(tmp_path), np.random.default_rng(0)
    for step in (10, 20):
        _save(checkpoints, step, 0.1)
    newest, cases = checkpoints.directory / "step_000000020", 0
    assert sorted(path.name for path in newest.iterdir()) == FILES
    for path in (newest / name for name in FILES):
        whole = path.read_bytes()
        for what, data in _damages(path, 25, rng):
            path.unlink(missing_ok=True)
            if data is not None:
                path.write_bytes(data)
            _assert_is(checkpoints.latest(), 10)
            said = capsys.readouterr().err
            assert "step_000000020 is damaged" in said and path.name in said, (path.name, what)
            cases += 1
        path.write_bytes(whole)
        _assert_is(checkpoints.latest(), 20)
    assert cases == 100
    with capsys.disabled():
        print(f"\nfaults: {cases} damages in {len(FILES)} files, each found; the previous checkpoint was taken")


def test_everything_is_on_disk_before_a_checkpoint_counts(tmp_path, monkeypatch):
    """What a power cut would spare: reports, files and folder are synced before the rename, the parent after it."""
    log, fsync, rename = [], os.fsync, os.rename

    def noted_fsync(descriptor):
        log.append(pathlib.Path(f"/proc/self/fd/{descriptor}").resolve().name)
        fsync(descriptor)

    def noted_rename(source, target):
        log.append(("rename", pathlib.Path(target).name))
        rename(source, target)

    monkeypatch.setattr("trainer.saving.checkpoints.os.fsync", noted_fsync)
    monkeypatch.setattr("trainer.saving.checkpoints.os.rename", noted_rename)
    _save(_open(tmp_path), 10, 0.1, flush=lambda: log.append("reports"))
    at = log.index(("rename", "step_000000010"))
    assert sorted(log[:at]) == sorted([tmp_path.name, *FILES, ".writing-step_000000010", "reports"])
    assert log[at + 1 :] == ["checkpoints"]


def test_no_report_is_lost_between_it_and_the_checkpoint(tmp_path, monkeypatch):
    """A slow row is there before the checkpoint of its step counts: a resumed run would not write it again."""
    late, early = threading.Event(), []
    write, rename, flush = summaries._AppendFile.write, os.rename, summaries.Summaries.flush

    def slow_write(self, data):
        if data.startswith(b'{"step"'):
            assert late.wait(60)  # until the save waits for it, or has overtaken it
            early.extend({json.loads(data)["step"]} & set(Checkpoints().open(tmp_path).steps()))
            late.clear()
        write(self, data)

    monkeypatch.setattr("trainer.saving.checkpoints.os.rename", lambda *paths: (rename(*paths), late.set()))
    monkeypatch.setattr(summaries.Summaries, "flush", lambda self: (late.set(), flush(self)))
    monkeypatch.setattr(summaries._AppendFile, "write", slow_write)
    make = lambda: Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]), "mse", compile="eager")  # noqa: E731
    x = np.ones((8, 3), np.float32)
    run(tmp_path, make, lambda: from_arrays((x, x[:, :1]), 8), train_steps=4, steps_per_loop=2, summary_interval=2,
        checkpoint_interval=2, strategy="default")  # fmt: skip
    assert Checkpoints().open(tmp_path).steps() == [2, 4] and early == []
