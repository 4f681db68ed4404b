"""Writes reports: TensorBoard events per split and one metrics.jsonl, in a background thread.

Event files are written record by record, without `tf.summary`: its writers cannot mark where a run restarted, and
TensorBoard would draw the steps before and after a crash on top of each other.
"""

import collections
import itertools
import json
import math
import os
import pathlib
import queue
import socket
import sys
import threading
import time
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.histogram.summary_v2 import histogram_pb
from tensorboard.plugins.image.metadata import create_summary_metadata
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util import tensor_util

from trainer import console

_MAX_GRAPH = 50_000_000  # bytes; TensorBoard does not show larger ones
_MAX_PENDING = 10_000  # records kept while the disk is full; the oldest are dropped first


class Summaries:
    """Writes the reports of loops and hooks. All methods are eager; all but `flush` and `close` return immediately.

    metrics.jsonl holds one JSON object per `scalars` call: {"step", "split", "time", tag: value, ...}, time in seconds
    since 1970. NaN and infinities, which JSON lacks, are the strings "NaN", "Infinity", "-Infinity": `float(row[tag])`
    reads them all.

    A run that starts at `start_step` supersedes the reports of later steps by an earlier run: their rows and points
    are removed from the files, and a running TensorBoard discards them.
    """

    def __init__(self, model_dir, start_step=0, supersede=True):
        """Opens the reports of a run folder.

        Args:
          model_dir: the run folder, or None to write nothing (dry runs, workers other than the chief).
          start_step: the global step that was restored; rows of later steps are removed.
          supersede: False keeps them, because another process may be writing.
        """
        self.step = int(start_step)  # the step of the hooks' reports; set by the loop
        self.listeners = []  # functions (split, step, {tag: float}), called with each report
        self.folder = model_dir and pathlib.Path(model_dir)
        self._dir = model_dir and os.fspath(model_dir)
        if not self._dir:
            return
        self._start_step = self.step
        self._files = {}
        self._pending = collections.deque(maxlen=_MAX_PENDING)
        self._failing = False
        os.makedirs(self._dir, exist_ok=True)
        if supersede and not self.step:
            _move_aside(pathlib.Path(self._dir))
        if supersede:
            _supersede(self._dir, self.step or -1)  # a run from step 0 also writes the graph again
        self._queue = queue.Queue()
        self._thread = threading.Thread(target=self._write_all, name="summaries", daemon=True)
        self._thread.start()

    def scalars(self, split: str, step: int, metrics: dict[str, float]) -> None:
        """Writes a report, a dict tag -> number, of the split "train", "validation" or "validation_NAME"."""
        now, step, metrics = time.time(), int(step), {tag: float(value) for tag, value in metrics.items()}
        for listener in self.listeners:
            listener(split, step, metrics)
        if not self._dir:
            return
        row = {"step": step, "split": split, "time": round(now, 3)}
        row.update((tag, _legal(value)) for tag, value in metrics.items())
        self._put("metrics.jsonl", json.dumps(row, allow_nan=False).encode() + b"\n")
        values = [value for tag, number in metrics.items() for value in scalar_pb(tag, number).value]
        self._event(split, step, now, summary=summary_pb2.Summary(value=values))

    def scalar(self, name: str, value: float) -> None:
        """Writes a number at the current step, for hooks."""
        self._summary(lambda: scalar_pb(name, float(value)))

    def histogram(self, name: str, values: Any) -> None:
        """Writes the distribution of numbers of any shape at the current step, for hooks."""
        self._summary(lambda: histogram_pb(name, np.asarray(values, np.float64)))

    def text(self, name: str, text: str) -> None:
        """Writes a text (Markdown) at the current step, for hooks."""
        self._summary(lambda: text_pb(name, str(text)))

    def image(self, name: str, images: Any) -> None:
        """Writes images at the current step, for hooks: [k, height, width, 1 to 4], float in [0, 1] or uint8."""
        self._summary(lambda: _image_pb(name, images))

    def proto(self, summary: summary_pb2.Summary) -> None:
        """Writes a summary of TensorBoard's plugins at the current step."""
        self._summary(lambda: summary)

    def graph(self, graph):
        """Writes a `tf.Graph`, or that of a concrete function, to the training events; prints a line if that fails."""
        if not self._dir:
            return
        try:
            graph_def = getattr(graph, "graph", graph).as_graph_def().SerializeToString()
            if len(graph_def) > _MAX_GRAPH:
                raise ValueError(f"with its constants it has {len(graph_def) / 1e6:,.0f} MB")
        except Exception as error:  # a graph that cannot be shown must not stop a run
            console.line(f"TensorBoard has no graph of this run: {error}.")
            return
        self._event("train", self.step, time.time(), graph_def=graph_def)

    def flush(self) -> None:
        """Waits until all reports are on disk, or writing them has failed again."""
        if self._dir:
            reached = threading.Event()
            self._queue.put(reached)
            reached.wait()
            for file in list(self._files.values()):
                file.flush()

    def close(self):
        """Writes the pending reports and ends the thread. No report may follow; a second call has no effect."""
        if self._dir:
            self._queue.put(None)
            self._thread.join()
            self._dir = None

    def _summary(self, make):
        if self._dir:  # serialized in the caller's thread, because the next step may change the values
            self._event("train", self.step, time.time(), summary=make())

    def _event(self, split, step, now, **what):
        self._put(split, event_pb2.Event(step=step, wall_time=now, **what).SerializeToString())

    def _put(self, name, data):
        self._queue.put((name, data))

    def _write_all(self):  # the thread
        while (item := self._queue.get()) is not None:
            if isinstance(item, threading.Event):  # pending records are tried again
                self._write_pending()
                item.set()
            else:
                self._pending.append(item)
                self._write_pending()
        self._write_pending()
        if self._pending:
            print(f"warning: {len(self._pending)} reports to {self._dir} are lost.", file=sys.stderr, flush=True)
        for file in self._files.values():
            file.close()

    def _write_pending(self):
        try:
            while self._pending:
                name, data = self._pending[0]
                self._file(name).write(data)
                self._pending.popleft()
            self._failing = False
        except Exception as error:  # A failed report must not end a run: warn once, and try again at the next report.
            if not self._failing:
                print(
                    f"warning: cannot write reports to {self._dir}: {error}. Training continues; the reports are "
                    "kept in memory and written as soon as possible.",
                    file=sys.stderr,
                    flush=True,
                )
            self._failing = True

    def _file(self, name):
        if name not in self._files:
            path = os.path.join(self._dir, name)
            self._files[name] = (
                _AppendFile(path) if name == "metrics.jsonl" else _event_file(path, self._start_step + 1)
            )
        return self._files[name]


class _AppendFile:
    """Appends whole records: an incomplete record, as after a full disk, is truncated."""

    def __init__(self, path):
        self._file = open(path, "ab", buffering=0)

    def write(self, data):
        size = os.fstat(self._file.fileno()).st_size
        try:
            written = self._file.write(data)
            if written != len(data):
                raise OSError(f"only {written} of {len(data)} bytes could be written to {self._file.name}")
        except OSError:
            self._file.truncate(size)
            raise

    def flush(self):
        os.fsync(self._file.fileno())

    def close(self):
        self._file.close()


def _event_file(folder, first_step):
    """Opens a new event file whose first records make TensorBoard discard earlier points from `first_step` on."""
    os.makedirs(folder, exist_ok=True)
    # TensorBoard reads the files of a folder in the order of their names, so a restart within the same second, or after
    # a clock that was set back, must still sort last.
    stamps = [name.split(".")[3] for name in os.listdir(folder) if name.startswith("events.out.tfevents.")]
    stamp = max([int(time.time()), *(int(s) + 1 for s in stamps if s.isdigit())])
    path = os.path.join(folder, f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}.v2")
    writer = RecordWriter(_AppendFile(path))
    # START events count as restarts from the second one on, so a new run writes one as well.
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    try:
        for event in (
            event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"),
            event_pb2.Event(wall_time=time.time(), step=first_step, session_log=start),
        ):
            writer.write(event.SerializeToString())
    except OSError:
        writer.close()
        os.remove(path)  # otherwise each try on a full disk would add one
        raise
    return writer


def _move_aside(folder):
    """Moves reports of a run without checkpoints to DIR/earlier_N: a new run from step 0 would overwrite them."""
    metrics = folder / "metrics.jsonl"
    if not metrics.exists() or not metrics.stat().st_size:
        return
    number = next(n for n in itertools.count(1) if not (folder / f"earlier_{n}").exists())
    aside = folder / f"earlier_{number}"
    for path in [metrics, *_event_files_of_runs(folder)]:
        target = aside / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
    console.line(f"{folder} has reports, but no checkpoint to continue from: they are moved to {aside}.")


def _event_files_of_runs(folder):
    """Returns the event files of a run folder that a run wrote: they begin with the START of `_event_file`."""
    paths = sorted(
        path for path in folder.glob("*/events.out.tfevents.*.v2") if not path.parent.name.startswith("earlier_")
    )
    return [path for path in paths if _begins_as_ours(path)]


def _begins_as_ours(path):
    with open(path, "rb") as file:
        try:
            events = list(itertools.islice(_events(file.read(1024)), 2))
        except DecodeError:
            return False
    return len(events) == 2 and events[1][0].session_log.status == event_pb2.SessionLog.START


def _supersede(folder, step):
    """Removes reports after `step`, and incomplete ends (kill -9 while writing), from the files of a run folder.

    The START event is enough for TensorBoard, but not for its EventAccumulator, which scripts use.
    """
    metrics = os.path.join(folder, "metrics.jsonl")
    if os.path.exists(metrics):
        _rewrite(metrics, lambda data: (row for row in data.splitlines(keepends=True) if _is_row_until(row, step)))
    for path in _event_files_of_runs(pathlib.Path(folder)):
        _rewrite(path, lambda data: (record for event, record in _events(data) if event.step <= step))


def _rewrite(path, keep):
    with open(path, "rb") as file:
        data = file.read()
    kept = b"".join(keep(data))
    if kept == data:
        return
    # A reader sees the old file or the new one, also after a crash. TensorBoard reads any name like an event file's.
    temporary = os.path.join(os.path.dirname(path), ".rewriting")
    with open(temporary, "wb") as file:
        file.write(kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _events(data):
    """Yields (Event, record) of an event file up to an incomplete record: uint64 length, checksum, event, checksum."""
    begin = 0
    while begin + 12 <= len(data):
        end = begin + 12 + int.from_bytes(data[begin : begin + 8], "little") + 4
        if end > len(data):
            return
        yield event_pb2.Event.FromString(data[begin + 12 : end - 4]), data[begin:end]
        begin = end


def _is_row_until(line, step):
    try:
        return line.endswith(b"\n") and json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False


def _legal(number):
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _image_pb(tag, images):
    import tensorflow as tf  # imported here, because reports need no TensorFlow otherwise

    images = tf.image.convert_image_dtype(images, tf.uint8, saturate=True)
    encoded = [tf.io.encode_png(image).numpy() for image in images]
    height, width = images.shape[1:3]
    tensor = tensor_util.make_tensor_proto([str(width).encode(), str(height).encode(), *encoded])
    metadata = create_summary_metadata(display_name=None, description=None)
    return summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=tag, tensor=tensor, metadata=metadata)])
