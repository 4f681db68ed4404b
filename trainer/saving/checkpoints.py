"""Atomic checkpoints, readable by tf.train.load_checkpoint under the names of the variables.

    checkpoints/step_000000200/variables.data-...      tensors, by tf.raw_ops.SaveV2
    checkpoints/step_000000200/variables.index         their offsets and the crc32c of each, verified by reading
    checkpoints/step_000000200/manifest.json           step and details; sizes and checksums of all files
    checkpoints/step_000000200/checkpoint              lets tf.train.load_checkpoint(folder) find them

A checkpoint is written to a hidden folder, synced to disk and renamed. A
deleted one is renamed to a hidden folder first, so that a folder with the name
of a checkpoint was complete once, whenever the process dies.
"""

import hashlib
import json
import os
import pathlib
import re
import shutil
import threading
import time
from typing import NamedTuple

import tensorflow as tf

from optimizers.base import check_number
from trainer import console
from trainer.config.paths import literal
from trainer.saving.retention import Retention

_STEP = re.compile(r"step_(\d+)")
_PREFIX = "variables"
_DATA = f"{_PREFIX}.data-00000-of-00001"
_PIN = "pinned"  # an empty file that pins a checkpoint


class Checkpoint(NamedTuple):
    """One verified checkpoint."""

    path: pathlib.Path
    step: int
    manifest: dict

    def read(self):
        """Returns {name: array} of all tensors; raises tf.errors.DataLossError if one differs from its checksum."""
        names = [row["name"] for row in self.manifest["variables"]]
        dtypes = [tf.as_dtype(row["dtype"]) for row in self.manifest["variables"]]
        with literal(self.path) as folder:
            tensors = tf.raw_ops.RestoreV2(
                prefix=f"{folder}/{_PREFIX}", tensor_names=names, shape_and_slices=[""] * len(names), dtypes=dtypes
            )
        return dict(zip(names, (tensor.numpy() for tensor in tensors)))


class Checkpoints:
    """The checkpoints of a run folder, and the thread that writes them.

    Args:
        keep, keep_every, monitor, mode: the arguments of Retention.
        follow: seconds for which `mode=eval` waits for a newer checkpoint; 0: one evaluation, of the newest one.
    """

    def __init__(
        self,
        keep: int = 3,
        keep_every: int | None = None,
        monitor: str | None = None,
        mode: str | None = None,
        follow: float = 0,
    ):
        self.retention = Retention(keep, keep_every, monitor, mode)
        self.follow = check_number("follow", follow, "seconds >= 0", lambda x: x >= 0, "0 evaluates the newest only.")
        self.monitor = monitor
        self.directory = None
        self._thread, self._whole = None, {}  # {step: manifest}, verified or written here
        self._written = set()  # steps
        self._unsaved = None  # the arguments of the last save until it is on disk

    def open(self, model_dir):
        """Binds to a run folder, None: no checkpoints; leftovers of unfinished saves are removed at the first save."""
        self.directory = model_dir and pathlib.Path(model_dir) / "checkpoints"
        return self

    def steps(self):
        """Returns the steps of all checkpoints, ascending, unverified."""
        if self.directory is None or not self.directory.is_dir():
            return []
        found = (_STEP.fullmatch(entry.name) for entry in self.directory.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def latest(self):
        """Returns the newest whole Checkpoint, or None. It warns of a damaged one and tries the one before it."""
        self.wait()
        for step in reversed(self.steps()):
            checkpoint, damage = self._verify(step)
            if damage is None:
                return checkpoint
            console.warning(f"Checkpoint {self._path(step)} is damaged ({damage}); looking for the one before it.")
        return None

    def newer(self, step, ended=lambda: False):
        """Yields each whole Checkpoint after `step`, until none comes for `follow` seconds or `ended()` is true."""
        since = time.monotonic()
        while not ended() and time.monotonic() - since < self.follow:
            checkpoint = self.latest() if self.steps()[-1:] > [step] else None
            if checkpoint is None or checkpoint.step <= step:
                time.sleep(min(1.0, self.follow / 10))
                continue
            yield checkpoint
            step, since = checkpoint.step, time.monotonic()

    def best(self):
        """Returns the whole Checkpoint with the best monitored value, or None; the earliest of equal ones."""
        self.wait()
        step = self.retention.best_step(self._manifests())
        return None if step is None else self.at(step)

    def is_best(self, metrics):
        """Returns whether the monitored value of a loop's `metrics` is better than that of every checkpoint; eager."""
        if self.retention.monitored(metrics) is None:
            return False
        self.wait()
        return self.retention.is_best(metrics, self._manifests())

    def pin(self, step):
        """Pins the checkpoint of `step`, or the last one before it, so that it is kept; returns its step, or None."""
        self.wait()
        before = sorted(known for known in self._manifests() if known <= step)
        if not before:
            return None
        (self._path(before[-1]) / _PIN).touch()
        return before[-1]

    def survey(self):
        """Yields (step, path, manifest, damage, whether pinned) of each checkpoint; manifest or damage is None."""
        for step in self.steps():
            checkpoint, damage = self._verify(step)
            pinned = (self._path(step) / _PIN).exists()
            yield step, self._path(step), checkpoint and checkpoint.manifest, damage, pinned

    def at(self, step):
        """Returns the Checkpoint of exactly `step`, or None if it is missing or damaged."""
        self.wait()
        return self._verify(step)[0] if step in self.steps() else None

    def save(self, step, tensors, details, metrics=None, wait=False, flush=None):
        """Writes {name: tensor or array} as the checkpoint of `step`, in the background; at most one save is in flight.

        `metrics` are those of the loop that ended there, for `monitor`. A failure (disk full, folder not writable) is
        printed, and the next save tries again. `flush` is called before the checkpoint becomes valid, since a resumed
        run does not repeat the reports of earlier steps.
        """
        self.wait()
        details = {**details, "monitored": self.retention.monitored(metrics or {})}
        self._unsaved = (step, {name: tf.convert_to_tensor(value) for name, value in tensors.items()}, details, flush)
        self._thread = threading.Thread(target=self._save_reporting, name="checkpoint")
        self._thread.start()
        if wait:
            self.wait()

    def wait(self):
        """Returns when no save is in flight."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def finish(self, step):
        """Returns whether the save of `step`, the last one, is on disk; if it failed it is tried once more."""
        self.wait()
        if self._failed(step):
            self._save_reporting(last=True)
        return not self._failed(step)

    def _failed(self, step):
        """True if the save of `step` failed. A failed save of another step was dropped by a rollback."""
        return self._unsaved is not None and self._unsaved[0] == step

    def _save_reporting(self, last=False):
        step, hope = self._unsaved[0], "nothing was saved since" if last else "the next save tries again"
        try:
            self._write(*self._unsaved)
            self._unsaved = None
        except Exception as error:
            say = console.error if last else console.warning
            say(f"Checkpoint of step {step} was NOT saved: {error}. The previous one is intact; {hope}.")
            shutil.rmtree(self._hidden("writing", step), ignore_errors=True)  # frees space on a full disk
            return
        try:
            self._delete_old()
        except Exception as error:
            console.warning(
                f"Old checkpoints in {self.directory} could not be deleted: {error}. The next save tries again."
            )

    def _write(self, step, tensors, details, flush):
        if not self.directory.exists():
            self.directory.mkdir(parents=True)
            _sync(self.directory.parent)
        for leftover in self.directory.glob(".*-step_*"):
            shutil.rmtree(leftover)
        folder = self._hidden("writing", step)
        folder.mkdir()
        tf.raw_ops.SaveV2(
            prefix=str(folder / _PREFIX),
            tensor_names=list(tensors),
            shape_and_slices=[""] * len(tensors),
            tensors=list(tensors.values()),
        )
        (folder / "checkpoint").write_text(f'model_checkpoint_path: "{_PREFIX}"\n')
        files = {path.name: _description(path) for path in sorted(folder.iterdir())}
        rows = [{"name": n, "shape": list(v.shape), "dtype": v.dtype.name} for n, v in tensors.items()]
        manifest = {"format": 1, "step": step, **details, "files": files, "variables": rows}
        (folder / "manifest.json").write_text(json.dumps({**manifest, "sha256": _sha256_of(manifest)}))
        for path in [*folder.iterdir(), folder]:
            _sync(path)
        if flush is not None:
            flush()
        if self._path(step).exists():
            if step not in self._written and self._verify(step)[1] is None:
                raise FileExistsError(f"{self._path(step)} is there already, and this run did not write it")
            self._delete(step)  # a damaged one, or our own, now with a monitored value
        os.rename(folder, self._path(step))
        self._written.add(step)
        _sync(self.directory)
        self._whole[step] = manifest

    def _delete_old(self):
        """Deletes checkpoints that are not kept. Damaged ones do not count as kept."""
        kept = self.retention.kept(self._manifests())
        for step in self.steps():
            if step < max(kept) and step not in kept and not (self._path(step) / _PIN).exists():
                self._delete(step)

    def _delete(self, step):
        os.rename(self._path(step), self._hidden("deleting", step))
        shutil.rmtree(self._hidden("deleting", step))

    def _manifests(self):
        """Returns {step: manifest} of all whole checkpoints; each is verified once."""
        steps = self.steps()
        for step in steps:
            if step not in self._whole and (checkpoint := self._verify(step)[0]):
                self._whole[step] = checkpoint.manifest
        self._whole = {step: manifest for step, manifest in self._whole.items() if step in steps}
        return self._whole

    def _path(self, step):
        return self.directory / f"step_{step:09d}"

    def _hidden(self, why, step):
        return self.directory / f".{why}-{self._path(step).name}"

    def _verify(self, step):
        """Returns (Checkpoint, None), or (None, description of the damage)."""
        path = self._path(step)
        try:
            manifest = json.loads((path / "manifest.json").read_text())
            if manifest.pop("sha256") != _sha256_of(manifest):
                return None, "manifest.json has changed since it was written"
            for name, expected in manifest["files"].items():
                if not (path / name).exists():
                    return None, f"{name} is missing"
                if _description(path / name) != expected:
                    return None, f"{name} has changed since it was written"
            checkpoint = Checkpoint(path, manifest["step"], manifest)
            checkpoint.read()
            return checkpoint, None
        except (OSError, ValueError, KeyError, TypeError) as error:
            return None, f"manifest.json: {error}"
        except tf.errors.OpError:
            return None, f"{_DATA} has changed since it was written, or cannot be read"


def _sha256_of(manifest):
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()


def _description(path):
    """Returns size and checksum of a file; only the size for tensors, whose checksums are in the index."""
    size = {"bytes": path.stat().st_size}
    return size if path.name == _DATA else {**size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
