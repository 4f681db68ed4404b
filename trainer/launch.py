"""Starts a cluster of worker processes on this machine: `python -m trainer.launch --workers=2 -- --gin_file=FILE ...`.

The arguments after `--` are passed to `trainer.main` in each worker. Workers
communicate on loopback; a prefix marks the output of each. If one worker fails,
the others are ended. The exit code is that of the first worker that failed
(128 + the number of the signal that killed it), else 0.
"""

import contextlib
import ctypes
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

from absl import flags

FLAGS = flags.FlagValues()
flags.DEFINE_integer("workers", 2, "Number of worker processes.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_string("module", "trainer.main", "The module that each worker runs.", flag_values=FLAGS)

GRACE = 15.0  # seconds for the other workers to report a lost worker themselves; TensorFlow detects it in 1 to 11
_HELP = {"--help", "-help", "-h", "--helpshort", "--helpfull"}


def launch(argv: list[str] | None = None) -> int:
    """Starts the workers, waits for them and returns the exit code."""
    argv = sys.argv if argv is None else argv
    own, rest = argv[: argv.index("--")] if "--" in argv else argv, argv[argv.index("--") + 1 :] if "--" in argv else []
    if _HELP.intersection(own[1:]):
        print(
            __doc__
            + "\n"
            + "\n".join(
                f"  --{name:<9}{FLAGS[name].help.splitlines()[0].rstrip(';')}" for name in ("workers", "module")
            )
        )
        return 0
    FLAGS.unparse_flags()
    try:
        positional = FLAGS(own)[1:]
        if positional or not rest:
            raise flags.Error(
                "Usage: `python -m trainer.launch --workers=2 -- --gin_file=FILE --model_dir=DIR`; arguments "
                "after `--` go to trainer.main."
            )
    except flags.Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return Workers(FLAGS.workers, [sys.executable, "-m", FLAGS.module, *rest]).run()


class Workers:
    """The worker processes of one launch.

    Args:
        count: int >= 1, number of workers.
        command: list of str, the command of each worker; its TF_CONFIG describes the cluster.
    """

    def __init__(self, count, command):
        self.addresses = [f"127.0.0.1:{port}" for port in free_ports(count)]
        self.processes, self._readers, self._asked = [], [], False
        for index, gpus in enumerate(deal_gpus(count)):
            task = {"cluster": {"worker": self.addresses}, "task": {"type": "worker", "index": index}}
            env = {**os.environ, "TF_CONFIG": json.dumps(task), "PYTHONUNBUFFERED": "1", **gpus}
            # Workers have their own session, so that Ctrl-C reaches them once, through `signal`.
            process = subprocess.Popen(
                command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
                start_new_session=True, preexec_fn=die_with_parent(signal.SIGKILL),
            )  # fmt: skip
            self.processes.append(process)
            for stream, to in ((process.stdout, "stdout"), (process.stderr, "stderr")):
                reader = threading.Thread(target=_prefix, args=(stream, to, index), daemon=True)
                reader.start()
                self._readers.append(reader)

    def run(self):
        """Waits for all workers, ends all if one fails, forwards signals; returns the exit code."""
        previous = {n: signal.signal(n, self._pass_on) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            return self._wait()
        finally:
            self.end()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _wait(self):
        first = deadline = None
        while any(process.poll() is None for process in self.processes):
            failed = [i for i, process in enumerate(self.processes) if process.poll()]
            if failed and first is None:
                first, deadline = failed[0], time.monotonic() + GRACE
                if not self._asked:
                    _say(
                        f"worker {first} {_how(self.processes[first].returncode)}; the others have {GRACE:.0f} s to "
                        "end."
                    )
            if deadline is not None and time.monotonic() > deadline:
                left = [f"worker {i}" for i, process in enumerate(self.processes) if process.poll() is None]
                _say(f"{', '.join(left)} did not end in time and were killed.")
                self.end()
            time.sleep(0.05)
        self.end()
        codes = [process.returncode for process in self.processes]
        code = codes[first] if first is not None else next(filter(None, codes), 0)
        return 128 - code if code < 0 else code

    def _pass_on(self, number, frame):
        self._asked = True
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def end(self):
        """Kills the remaining workers and prints the rest of their output."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()  # a frozen worker, or one that waits in a collective, handles no other signal
        for process in self.processes:
            process.wait()
        for reader in self._readers:
            reader.join(timeout=5)


def free_ports(count):
    """Returns free loopback ports."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def deal_gpus(count):
    """Returns the environment of each worker with its share of the GPUs; no GPUs if there are fewer than workers."""
    ids = os.environ.get("CUDA_VISIBLE_DEVICES")
    if ids is None and shutil.which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout.splitlines()
        ids = ",".join(str(i) for i in range(len([line for line in listed if line.startswith("GPU")])))
    ids = [i for i in (ids or "").split(",") if i and i != "-1"]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(ids[i::count]) if len(ids) >= count else "-1"} for i in range(count)]


def die_with_parent(number):
    """Returns a function for a child process to call first, so that it gets signal `number` when its parent dies.

    On Linux only, elsewhere None.
    """
    if not sys.platform.startswith("linux"):
        return None
    set_death_signal = 1  # PR_SET_PDEATHSIG of linux/prctl.h
    return functools.partial(ctypes.CDLL(None).prctl, set_death_signal, number)


def _prefix(stream, to, index):
    for line in stream:
        print(f"[{index}] {line}", end="", file=getattr(sys, to), flush=True)


def _say(text):
    print(f"[launch] {text}", file=sys.stderr, flush=True)


def _how(code):
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


if __name__ == "__main__":
    sys.exit(launch())
