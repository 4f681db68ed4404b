"""Resume under force (S1): a run that is killed again and again ends bit for bit like one that was never stopped.

Killed with SIGKILL at random moments of a start, of training and of saving,
before each change of a save, and ended by signals; on 1 and 2 replicas and 2
workers. The short form runs always, the long one with `-m slow`.
"""

import concurrent.futures
import json
import os
import random
import signal
import sys
import time

import pytest
from tensorboard.backend.event_processing import event_file_loader
from tensorboard.util import tensor_util

from tests.runs import TIMES, assert_same, read_rows
from tests.trainer import faults
from tests.trainer.nursery import Nursery
from trainer import launch, main
from trainer.saving.checkpoints import Checkpoints

STEPS = 60  # a disturbance, at most
ONE, TWO = [], ["--cpu_devices=2", "--strategy=mirrored"]
LIGHT = ["--mode=train", "--gin_param=Trainer.averages = None"]  # a start traces half as much


# ---- in a process of its own ---------------------------------------------------------------------------------------


def train(die_at, *flags):
    """What `python -m trainer.main` does; dies before a change of its first save."""
    if die_at is not None:
        faults.Changes(die_at)
    return main.main(["main.py", "--gin_file=tests/trainer/soak.gin", *flags])


def train_together(die_at, *flags):
    """The same by two workers, without what `trainer.launch` has to import for each."""
    addresses = [f"127.0.0.1:{port}" for port in launch.free_ports(2)]
    pids = []
    for index in range(2):
        pids.append(os.fork())
        if pids[-1] == 0:
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            os.environ["TF_CONFIG"] = json.dumps(task)
            sys.exit(train(die_at, *flags))
    print("workers", *pids, flush=True)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    return next((abs(code) for code in codes if code), 0)


# ---- the disturber -------------------------------------------------------------------------------------------------


class Soak:
    """One run folder, its starts and what ended them.

    Args:
        nursery: a Nursery for this module.
        folder: the run folder.
        flags: list of str, beside those of every start.
        workers: whether two workers train.
    """

    def __init__(self, nursery, folder, flags, workers=False):
        self._nursery, self.folder, self._flags, self._workers = (
            nursery,
            folder,
            [*flags, f"--model_dir={folder}"],
            workers,
        )
        self.kills, self.signals, self.start_seconds, self._last = 0, 0, 10.0, 0

    def start(self, die_at=None):
        self._began = time.monotonic()
        self._nursery.start("train_together" if self._workers else "train", die_at, *self._flags)
        self._pids = [self._nursery.pid]
        if self._workers:
            self._pids = list(
                map(int, next(line for line in self._nursery.lines() if line.startswith("workers")).split()[1:])
            )

    def _steps(self):
        """Yields the steps that the run says it is at."""
        for line in self._nursery.lines():
            if line.startswith("at "):
                yield int(line.split()[1])

    def _loops(self, count):
        """Waits until that many loops were run; returns the step."""
        steps = self._steps()
        found = [next(steps) for _ in range(count)]
        return found[-1]

    def _send(self, number, pids):
        for pid in pids:
            os.kill(pid, number)

    def _ended(self, *expected):
        """Looks at what was said, and at what is left on disk."""
        code, lines = self._nursery.end(), self._nursery.said
        said = "\n".join(lines)
        assert code in expected and "damaged" not in said and "NOT saved" not in said, said
        resumed = [int(line.split("step_")[1]) for line in lines if line.startswith("Resuming from")]
        if resumed or any(line.startswith("at ") for line in lines):
            assert resumed == [self._last][: self._last], "from the newest one, which is whole"
        checkpoints = Checkpoints().open(self.folder)
        assert all(checkpoints.at(step) is not None for step in checkpoints.steps())
        before, self._last = self._last, max(checkpoints.steps(), default=0)
        assert self._last >= before

    def kill_starting(self, rng):
        """At a moment before the first loop ends, most likely."""
        self.start()
        time.sleep(rng.uniform(0, self.start_seconds))
        self._kill(self._pids)

    def kill_training(self, rng, which=None):
        """At a moment after a few loops; `which` of the workers, or all."""
        self.start()
        self._loops(1)
        self.start_seconds = time.monotonic() - self._began
        self._loops(rng.randint(1, 4))
        time.sleep(rng.uniform(0, 0.1))
        self._kill(self._pids if which is None else [self._pids[which]])

    def kill_saving(self, die_at):
        """Before a change of the first save after the start; returns whether there was that change."""
        self.start(die_at)
        reached = 0
        for _ in self._steps():
            reached += 1
            if reached == 4:  # the second save is over
                self._kill(self._pids)
                return False
        self.kills += 1
        self._ended(-signal.SIGKILL)
        return True

    def stop(self, number, rng):
        """By a signal, which lets it save and say so by its exit code."""
        self.start()
        self._loops(rng.randint(1, 4))
        self._send(number, self._pids)
        self.signals += 1
        self._ended(128 + number)
        steps = [int(line.split()[1]) for line in self._nursery.said if line.startswith("at ")]
        assert self._last == steps[-1]

    def _kill(self, pids):
        self._send(signal.SIGKILL, pids)
        self.kills += 1
        self._ended(-signal.SIGKILL, *([signal.SIGKILL, 1] if self._workers else []))

    def finish(self):
        self.start()
        self._ended(0)
        return _outcome(self.folder, self._last)


def _outcome(folder, step):
    """Everything that must not depend on what happened: tensors, rows, events as they stand in the files."""
    tensors = Checkpoints().open(folder).at(step).read()
    rows = read_rows(folder, times=False)
    events = {split: [] for split in ("train", "validation") if (folder / split).exists()}
    for split, found in events.items():
        for path in sorted((folder / split).iterdir()):
            for event in event_file_loader.EventFileLoader(str(path)).Load():
                for value in event.summary.value:
                    if value.tag.startswith("__"):  # the graph, whose bytes come in any order
                        found.append((event.step, value.tag))
                    elif value.tag not in TIMES:
                        array = tensor_util.make_ndarray(value.tensor)
                        if array.dtype.kind == "f" and array.size == 1:  # others, such as texts, depend on the starts
                            found.append((event.step, value.tag, array.item()))
    return tensors, rows, events


def _assert_same(found, expected):
    (a, rows, events), (b, expected_rows, expected_events) = found, expected
    assert rows == expected_rows and len(rows) > 5
    assert events == expected_events and len(events["train"]) > 10
    assert_same(a, b)


# ---- soaks ---------------------------------------------------------------------------------------------------------


def _soak(folder, flags, count, disturb, workers=False):
    """Runs undisturbed and disturbed (at most `count` times), and compares; returns the Soak."""
    flags = [*flags, f"--gin_param=run.train_steps = {STEPS * (count + 1)}"]
    with Nursery("tests.trainer.soak_test") as nursery:
        expected = Soak(nursery, folder / "whole", flags, workers).finish()
        soak = Soak(nursery, folder / "soaked", flags, workers)
        disturb(soak, random.Random(0))
        _assert_same(soak.finish(), expected)
    return soak


def _tell(capsys, title, soak, began):
    with capsys.disabled():
        print(
            f"\nsoak, {title}: {soak.kills} kills, {soak.signals} signals, "
            f"{time.monotonic() - began:.0f} s; equal bit for bit"
        )


def _mixed(starting, training, signals):
    """Returns how often, and what disturbs a Soak so often, in random order."""

    def disturb(soak, rng):
        plan = [soak.kill_starting] * starting + [soak.kill_training] * training
        plan += [lambda rng, number=number: soak.stop(number, rng) for number in signals]
        rng.shuffle(plan)
        for step in plan:
            step(rng)

    return starting + training + len(signals), disturb


def _workers(plan):
    """Returns how often, and what kills one worker or (None) both."""

    def disturb(soak, rng):
        for which in plan:
            soak.kill_training(rng, which)

    return len(plan), disturb


def test_killed_and_resumed_runs_equal_undisturbed_ones(tmp_path, capsys):
    """The short form: two soaks at a time, since a start keeps one core busy."""
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        soaks = {
            "1 replica": pool.submit(_soak, tmp_path / "1", ONE, *_mixed(0, 1, [signal.SIGTERM])),
            "2 workers": pool.submit(_soak, tmp_path / "3", LIGHT, *_workers([None]), workers=True),
        }
    for title, soak in soaks.items():
        _tell(capsys, title, soak.result(), began)
    assert [(soak.result().kills, soak.result().signals) for soak in soaks.values()] == [(1, 1), (1, 0)]


def _change_by_change(soak, rng):
    soak.stop(signal.SIGTERM, rng)  # after it there are checkpoints to delete
    number = 1
    while soak.kill_saving(number):
        number += 1
    assert number > 15


LONG = {
    "1 replica, long": (ONE, *_mixed(12, 40, [signal.SIGTERM, signal.SIGINT])),
    "1 replica, before every change of a save, long": (LIGHT, 40, _change_by_change),
    "2 replicas, long": ([*TWO, *LIGHT], *_mixed(5, 16, [signal.SIGTERM, signal.SIGINT])),
    "2 workers, long": (LIGHT, *_workers([None, 0, 1, None, 1, 0])),
}


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("title", LONG)
def test_runs_killed_many_times_equal_undisturbed_ones(title, tmp_path, capsys):
    began, (flags, count, disturb) = time.monotonic(), LONG[title]
    _tell(capsys, title, _soak(tmp_path, flags, count, disturb, workers="workers" in title), began)
