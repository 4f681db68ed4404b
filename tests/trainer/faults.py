"""Death at a chosen point of a save: before its n-th change of the file system, for every n."""

import os
import signal
import sys
import threading

import tensorflow as tf

_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}


class Changes:
    """Counts what the first save of this process does to the file system.

    Python tells of its calls through an audit hook; SaveV2 is TensorFlow's. A
    save is what the thread "checkpoint" does. (fsync changes nothing that a
    killed process could leave.)

    Args:
        die_at: int, the change before which the process kills itself, counted from 1; None: never.

    Attributes:
        seen: list of str, the changes so far.
    """

    def __init__(self, die_at=None):
        self.seen, self._die_at, self._thread = [], die_at, None
        self._save = tf.raw_ops.SaveV2
        tf.raw_ops.SaveV2 = self._noted_save
        sys.addaudithook(self._hear)

    def _reach(self, change, before_death=None):
        thread = threading.current_thread()
        if thread.name != "checkpoint" or (self._thread or thread) is not thread:
            return
        self._thread = thread
        self.seen.append(change)
        if len(self.seen) == self._die_at:
            if before_death is not None:
                self._thread = threading.main_thread()  # what follows is not counted
                before_death()
            os.kill(os.getpid(), signal.SIGKILL)

    def _hear(self, event, arguments):
        if event in _CHANGES or (event == "open" and str(arguments[1] or "r")[0] in "wax"):
            self._reach(event)

    def _noted_save(self, **arguments):
        self._reach("SaveV2")
        self._save(**arguments)
        data = arguments["prefix"] + ".data-00000-of-00001"
        self._reach("SaveV2, half way", before_death=lambda: os.truncate(data, os.path.getsize(data) // 2))
