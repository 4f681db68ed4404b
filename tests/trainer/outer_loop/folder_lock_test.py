"""One run that trains in a folder: a living holder is an obstacle, a dead one is none."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest

from trainer.config.files import ROOT
from trainer.outer_loop.folder_lock import FolderLock

HOLD = """
import pathlib, sys
from trainer.outer_loop.folder_lock import FolderLock
with FolderLock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def _holding_process(folder):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdout.readline() == "held\n"
    return process


def _edit(folder, **changes):
    path = folder / ".lock"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_folder_is_held_by_one_and_left_as_it_was(tmp_path):
    folder = tmp_path / "runs" / "x"
    with FolderLock(folder):
        with pytest.raises(ValueError, match=f"is in use: process {os.getpid()} on host .* trains in it since 20"):
            FolderLock(folder).__enter__()
        assert [path.name for path in folder.iterdir()] == [".lock"]
    assert not list(tmp_path.iterdir())  # nothing was written, nothing stays
    folder.mkdir(parents=True)
    (folder / "mine").write_text("")
    with FolderLock(folder):
        pass
    assert [path.name for path in folder.iterdir()] == ["mine"]


def test_a_process_holds_it_until_it_ends_or_is_killed(tmp_path):
    process = _holding_process(tmp_path)
    try:
        with pytest.raises(ValueError, match=f"in use: process {process.pid} on host"):
            FolderLock(tmp_path).__enter__()
        process.send_signal(signal.SIGSTOP)  # a stopped process is alive
        with pytest.raises(ValueError, match="in use"):
            FolderLock(tmp_path).__enter__()
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is gone, but not reaped: a zombie
        with FolderLock(tmp_path):
            assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    finally:
        process.kill()
        process.wait()


def test_another_process_with_the_same_pid_is_not_the_holder(tmp_path):
    with FolderLock(tmp_path):
        held = (tmp_path / ".lock").read_text()
    (tmp_path / ".lock").write_text(held)
    _edit(tmp_path, started="long ago")
    with FolderLock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["started"] != "long ago"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null"])
def test_a_torn_lock_file_holds_nothing(tmp_path, text):
    (tmp_path / ".lock").write_text(text)
    with FolderLock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_a_holder_on_another_host_is_alive_while_it_gives_signs_of_life(tmp_path, capsys):
    with FolderLock(tmp_path, beat=0.05):
        _edit(tmp_path, host="elsewhere")  # the thread of the holder goes on

        def beat():
            while not ended.wait(0.02):
                os.utime(tmp_path / ".lock")

        ended, thread = threading.Event(), threading.Thread(target=beat)
        thread.start()
        with pytest.raises(ValueError, match="process .* on host elsewhere trains in it"):
            FolderLock(tmp_path, silence=20.0).__enter__()
        ended.set()
        thread.join()
        with FolderLock(tmp_path, silence=0.3):
            holder = json.loads((tmp_path / ".lock").read_text())
            assert holder["host"] != "elsewhere"
    assert "for a heartbeat" in capsys.readouterr().out


def test_of_many_simultaneous_starts_one_gets_the_lock(tmp_path):
    (tmp_path / ".lock").write_text("")
    locks, got = [FolderLock(tmp_path) for _ in range(8)], []

    def enter(lock):
        try:
            got.append(lock.__enter__())
        except ValueError:
            pass

    threads = [threading.Thread(target=enter, args=(lock,)) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    got[0].__exit__()


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "mkdir", refuse)
    with pytest.raises(ValueError, match="`model_dir` .* cannot be written: Permission denied"):
        FolderLock(tmp_path / "new").__enter__()
