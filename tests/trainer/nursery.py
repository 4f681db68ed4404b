"""Starts processes that have imported everything already: `python -m tests.trainer.nursery MODULE`, orders on stdin.

An order is a line of JSON, [function of MODULE, arguments]. A process is
forked for it; TensorFlow survives that as long as no operation ran. It ends
with what the function returns. Said of each: "started PID", "ended CODE",
the code being negative where a signal ended it.
"""

import collections
import importlib
import json
import os
import signal
import subprocess
import sys

from trainer.config.files import ROOT


class Nursery:
    """The process that starts others, as seen from a test; a context."""

    def __init__(self, module):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.trainer.nursery", module], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.pid, self.said = None, []  # of the process that runs; what the last one said

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.pid is not None:  # a failed test leaves nobody behind
            os.killpg(self.pid, signal.SIGKILL)
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()

    def start(self, function, *arguments):
        """Starts a process that calls the function."""
        self.said = []
        print(json.dumps([function, *arguments]), file=self._process.stdin, flush=True)
        self.pid = int(next(line for line in self.lines() if line.startswith("started")).split()[1])

    def lines(self):
        """Yields what the process says, until it has ended."""
        for line in self._process.stdout:
            self.said.append(line.rstrip())
            yield line
            if line.startswith("ended "):
                self.pid, self._code = None, int(line.split()[1])
                return
        raise AssertionError("\n".join(self.said))

    def end(self):
        """Returns the code with which the process ended, once it has."""
        if self.pid is not None:
            collections.deque(self.lines(), maxlen=0)
        return self._code


def _serve(module):
    functions = importlib.import_module(module)
    for line in sys.stdin:
        function, *arguments = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.setsid()  # so that its own children end with it
            sys.exit(getattr(functions, function)(*arguments))
        print("started", pid, flush=True)
        status = os.waitpid(pid, 0)[1]
        print("ended", os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1])
