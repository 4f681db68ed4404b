"""A lock that allows one training run per folder. It names the process that holds it."""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import subprocess
import threading
import time

from trainer import console
from trainer.replicas import cluster

BEAT = 5.0  # seconds between two heartbeats
_KEYS = {"host", "pid", "space", "started", "since"}
SILENCE = 30.0  # seconds without a heartbeat after which a holder on another host is considered dead


@contextlib.contextmanager
def held(model_dir, strategy):
    """A context in which no other run trains in `model_dir`, if it is not None; the chief holds it for all workers.

    Raises:
        ValueError: on every worker, if another run holds the folder, or it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        refused = None
        if cluster.is_chief(strategy) and model_dir is not None:
            try:
                stack.enter_context(FolderLock(model_dir))
            except ValueError as error:
                refused = error
        if cluster.exchange(strategy, [refused is not None]).any():
            raise refused or ValueError("`model_dir` cannot be used; see the output of the chief.")
        yield


class FolderLock:
    """A context that holds a run folder by DIR/.lock, a file with the holder; its modification time is the heartbeat.

    A holder on this host is dead if its process has ended, even if its pid is in use again. One on another host is dead
    if it has no heartbeat for `silence` seconds. A dead holder's lock is replaced.

    Args:
        model_dir: pathlib.Path; the folder is created, and removed again if it stays empty.
        beat, silence: seconds.

    Raises:
        ValueError: on entering, if another run holds the folder, or it cannot be written.
    """

    def __init__(self, model_dir, beat=BEAT, silence=SILENCE):
        self._folder, self._path, self._beat, self._silence = model_dir, model_dir / ".lock", beat, silence
        self._made, self._released, self._thread = [], threading.Event(), None
        self._holder = {"host": socket.gethostname(), "pid": os.getpid(), "space": _process_space(),
                        "started": _start_of(os.getpid()), "since": time.time()}  # fmt: skip

    def __enter__(self):
        try:
            self._made = [path for path in (self._folder, *self._folder.parents) if not path.exists()]
            self._folder.mkdir(parents=True, exist_ok=True)
            other = self._take(dead=None)
            while other is not None:
                self._check_dead(other)
                other = self._take(dead=other)
        except OSError as error:
            self._remove_empty()
            raise ValueError(f"`model_dir` {str(self._folder)!r} cannot be written: {error.strerror}.") from error
        self._thread = threading.Thread(target=self._show_life, name="lock", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._released.set()
        self._thread.join()
        with contextlib.suppress(OSError), self._open() as file:
            if _holder_in(file) in (None, self._holder):
                os.remove(self._path)
        self._remove_empty()

    def _take(self, dead):
        """Writes this process as the holder, unless there is one other than `dead`; returns that one, or None."""
        with self._open() as file:
            other = _holder_in(file)
            if other not in (None, dead):
                return other
            file.truncate(0)
            file.write(json.dumps(self._holder))
            file.flush()
            os.fsync(file.fileno())
        return None

    def _check_dead(self, holder):
        """Raises ValueError if the holder is alive."""
        if (holder["host"], holder["space"]) == (self._holder["host"], self._holder["space"]):
            is_alive = _start_of(holder["pid"]) == holder["started"]
        else:
            is_alive = self._gives_sign_of_life(holder)
        if is_alive:
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder["since"]))
            raise ValueError(
                f"`model_dir` {str(self._folder)!r} is in use: process {holder['pid']} on host {holder['host']} trains "
                f"in it since {since}. Use another folder, or end that process first."
            )

    def _gives_sign_of_life(self, holder):
        console.line(
            f"Process {holder['pid']} on host {holder['host']} held {self._folder}; waiting {self._silence:.0f} s "
            "for a heartbeat."
        )
        before, until = self._last_sign(), time.monotonic() + self._silence
        while time.monotonic() < until:
            time.sleep(min(1.0, self._silence / 10))
            if (sign := self._last_sign()) != before:
                return sign is not None  # None: it was released
        return False

    def _last_sign(self):
        try:
            with open(self._path) as file:  # opening makes network file systems ask the server
                return os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return None

    def _show_life(self):  # the thread
        while not self._released.wait(self._beat):
            with contextlib.suppress(OSError):
                os.utime(self._path)
                with open(self._path) as file:
                    if _holder_in(file) not in (None, self._holder):
                        console.warning(
                            f"Another run replaced the lock of {self._folder}, because this one had no heartbeat. End "
                            "one of them."
                        )
                        return

    @contextlib.contextmanager
    def _open(self):
        """Opens the file, for one process at a time."""
        while True:
            with open(self._path, "a+") as file:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(file, fcntl.LOCK_EX)
                if self._is_current(file):
                    yield file
                    return

    def _is_current(self, file):
        """True if an open file is still the one of that name: a holder removes it when it ends."""
        try:
            return os.path.samestat(os.fstat(file.fileno()), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _remove_empty(self):
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _holder_in(file):
    """Returns the holder that a file names; None if it is empty or incomplete."""
    file.seek(0)
    try:
        holder = json.loads(file.read())
    except ValueError:
        return None
    return holder if isinstance(holder, dict) and holder.keys() >= _KEYS else None


def _process_space():
    """Returns the pid namespace of this process: containers have their own."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def _start_of(pid):
    """Returns the start time of a process of this host as text, which tells reused pids apart; None: it has ended."""
    if not os.path.exists("/proc/self/stat"):  # no Linux
        shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True)
        return shown.stdout.strip() or None
    try:
        state, *rest = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    return None if state in "ZX" else f"{boot} {rest[18]}"
