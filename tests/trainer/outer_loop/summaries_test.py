"""Reports: what TensorBoard and metrics.jsonl read back, also after a crash and a full disk."""

import json
import logging
import math

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator as PlainAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.histogram import metadata as histogram_metadata

from tests.runs import read_rows
from trainer.outer_loop import summaries as summaries_module
from trainer.outer_loop.summaries import Summaries


def _events(folder, accumulator=EventAccumulator):
    events = accumulator(str(folder), {"tensors": 0})
    events.Reload()
    return events


def _points(folder, tag, accumulator=EventAccumulator):
    return [(e.step, float(tf.make_ndarray(e.tensor_proto))) for e in _events(folder, accumulator).Tensors(tag)]


def _report(folder, steps, value, start_step=0):
    summaries = Summaries(folder, start_step)
    for step in steps:
        summaries.scalars("train", step, {"loss": value + step})
    summaries.close()


def test_scalars_reach_tensorboard_and_metrics_jsonl(tmp_path):
    summaries = Summaries(tmp_path / "run")
    summaries.scalars("train", 100, {"loss": np.float32(0.5), "metrics/accuracy": 0.25})
    summaries.scalars("validation_small", 100, {"loss": tf.constant(2.0)})
    summaries.flush()
    rows = read_rows(tmp_path / "run")
    assert all(row.pop("time") > 1.6e9 for row in rows)
    assert rows == [
        {"step": 100, "split": "train", "loss": 0.5, "metrics/accuracy": 0.25},
        {"step": 100, "split": "validation_small", "loss": 2.0},
    ]
    assert _points(tmp_path / "run/train", "metrics/accuracy") == [(100, 0.25)]
    assert _points(tmp_path / "run/validation_small", "loss") == [(100, 2.0)]
    summaries.close()
    summaries.close()


def test_nan_and_inf_are_written_as_strings_that_float_reads(tmp_path):
    summaries = Summaries(tmp_path)
    summaries.scalars("train", 1, {"a": math.nan, "b": math.inf, "c": -math.inf})
    summaries.close()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert (row["a"], row["b"], row["c"]) == ("NaN", "Infinity", "-Infinity")
    assert math.isnan(float(row["a"])) and float(row["b"]) == math.inf and float(row["c"]) == -math.inf


@pytest.mark.parametrize("accumulator", [EventAccumulator, PlainAccumulator])
def test_a_restart_supersedes_later_steps(tmp_path, accumulator, caplog):
    _report(tmp_path, [10, 20, 30, 40], 0.5)
    with caplog.at_level(logging.ERROR):
        _report(tmp_path, [30], 100.5, start_step=20)
        # Step 40 of the first run was not reported again: a point that no run stands for must not be shown.
        assert _points(tmp_path / "train", "loss", accumulator) == [(10, 10.5), (20, 20.5), (30, 130.5)]
    assert [(row["step"], row["loss"]) for row in read_rows(tmp_path)] == [(10, 10.5), (20, 20.5), (30, 130.5)]


def test_restarts_within_one_second_are_read_in_order(tmp_path):
    _report(tmp_path, [10, 20, 30], 0)
    for attempt in (1, 2, 3):
        _report(tmp_path, [20, 30], attempt, start_step=10)
    assert _points(tmp_path / "train", "loss") == [(10, 10.0), (20, 23.0), (30, 33.0)]


def test_a_tensorboard_that_is_watching_forgets_superseded_points(tmp_path):
    _report(tmp_path, [10, 20, 30, 40], 0.5)
    events = _events(tmp_path / "train")
    _report(tmp_path, [30], 100.5, start_step=20)
    events.Reload()
    assert [event.step for event in events.Tensors("loss")] == [10, 20, 30]


def test_a_torn_event_file_is_repaired_on_open(tmp_path):
    _report(tmp_path, [10, 20], 0.5)
    (path,) = (tmp_path / "train").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:30])
    Summaries(tmp_path, start_step=20).close()
    assert path.read_bytes() == whole


def test_a_torn_line_is_repaired_on_open(tmp_path):
    _report(tmp_path, [10, 20], 0.5)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 30, "split": "tr')
    _report(tmp_path, [30], 0.5, start_step=20)
    assert [row["step"] for row in read_rows(tmp_path)] == [10, 20, 30]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "train"]  # no temporary is left


def test_a_kill_while_an_event_file_is_rewritten_duplicates_nothing(tmp_path, monkeypatch):
    """TensorBoard reads every file that is named like an event file, a temporary one too."""
    _report(tmp_path, [10, 20, 30], 0.5)
    replace = summaries_module.os.replace

    def die(source, target):
        if "tfevents" in str(target):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(summaries_module.os, "replace", die)
        Summaries(tmp_path, start_step=10)
    assert _points(tmp_path / "train", "loss") == [(10, 10.5), (20, 20.5), (30, 30.5)]
    _report(tmp_path, [20], 0.5, start_step=10)
    assert _points(tmp_path / "train", "loss") == [(10, 10.5), (20, 20.5)]
    assert all("tfevents" in path.name for path in (tmp_path / "train").iterdir())


def test_a_run_killed_before_its_first_checkpoint_draws_one_graph(tmp_path):
    function = tf.function(lambda x: x + 1.0).get_concrete_function(tf.TensorSpec([]))
    for _ in range(2):
        summaries = Summaries(tmp_path)
        summaries.graph(function)
        summaries.close()
    events = [e for path in (tmp_path / "train").iterdir() for e in tf.compat.v1.train.summary_iterator(str(path))]
    assert len([event for event in events if event.HasField("graph_def")]) == 1


def test_nothing_is_rewritten_without_need(tmp_path):
    _report(tmp_path, [10, 20], 0.5)
    before = (tmp_path / "metrics.jsonl").stat()
    Summaries(tmp_path, start_step=20).close()
    after = (tmp_path / "metrics.jsonl").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_hooks_write_at_the_current_step_into_train(tmp_path):
    summaries = Summaries(tmp_path, start_step=5)
    summaries.scalar("mine/scalar", tf.constant(3.0))
    summaries.step = 7
    summaries.text("mine/text", "hello")
    summaries.histogram("mine/histogram", tf.range(10))
    summaries.image("mine/image", np.linspace(0, 1, 2 * 4 * 3).reshape(2, 4, 3, 1))
    summaries.close()
    events = _events(tmp_path / "train")
    assert _points(tmp_path / "train", "mine/scalar") == [(5, 3.0)]
    (text,), (image,), (histogram,) = (events.Tensors(f"mine/{kind}") for kind in ("text", "image", "histogram"))
    assert text.step == image.step == histogram.step == 7
    assert tf.make_ndarray(text.tensor_proto).item() == b"hello"
    width, height, first, second = tf.make_ndarray(image.tensor_proto)
    assert (width, height) == (b"3", b"4")
    assert tf.io.decode_png(first).shape == tf.io.decode_png(second).shape == [4, 3, 1]
    assert tf.io.decode_png(second).numpy().max() == 255
    buckets = tf.make_ndarray(histogram.tensor_proto)  # [buckets, (left, right, count)]
    assert buckets[:, 2].sum() == 10 and buckets[0, 0] == 0 and buckets[-1, 1] == 9
    plugin = events.SummaryMetadata("mine/histogram").plugin_data.plugin_name
    assert plugin == histogram_metadata.PLUGIN_NAME


def test_values_are_those_of_the_moment_of_the_call(tmp_path):
    summaries, values = Summaries(tmp_path), np.zeros(3)
    for step in range(20):
        summaries.step = step
        summaries.histogram("values", values)
        values += 1
    summaries.close()
    lefts = [tf.make_ndarray(e.tensor_proto)[0, 0] for e in _events(tmp_path / "train").Tensors("values")]
    np.testing.assert_allclose(lefts, np.arange(20), atol=0.5)


def test_graph(tmp_path):
    function = tf.function(lambda x: tf.add(x, 1.0, name="increment")).get_concrete_function(tf.TensorSpec([]))
    summaries = Summaries(tmp_path)
    summaries.graph(function)
    summaries.close()
    graph_def = tf.compat.v1.GraphDef.FromString(_events(tmp_path / "train", PlainAccumulator)._graph)
    assert "increment" in [node.name for node in graph_def.node]


def test_none_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    summaries = Summaries(None)
    summaries.scalars("train", 1, {"loss": 1.0})
    summaries.scalar("a", 1.0)
    summaries.text("a", "b")
    summaries.histogram("a", [1.0])
    summaries.image("a", np.zeros([1, 2, 2, 1]))
    summaries.graph(None)
    summaries.flush()
    summaries.close()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_reported_once_and_retried_without_a_torn_record(tmp_path, monkeypatch, capsys):
    write, full = summaries_module._AppendFile.write, True

    class FullDisk:
        """Takes half of each record, as a disk does when it fills up."""

        def __init__(self, file):
            self._file = file

        def write(self, data):
            self._file.write(data[: len(data) // 2])
            raise OSError(28, "No space left on device")

        def __getattr__(self, name):
            return getattr(self._file, name)

    def maybe_full(self, data):
        if not full:
            return write(self, data)
        real, self._file = self._file, FullDisk(self._file)
        try:
            return write(self, data)
        finally:
            self._file = real

    monkeypatch.setattr(summaries_module._AppendFile, "write", maybe_full)
    summaries = Summaries(tmp_path)
    for step in (1, 2):
        summaries.scalars("train", step, {"loss": 0.5})
    summaries.flush()
    assert read_rows(tmp_path) == []
    full = False
    summaries.scalars("train", 3, {"loss": 0.5})
    summaries.close()
    assert [row["step"] for row in read_rows(tmp_path)] == [1, 2, 3]
    assert _points(tmp_path / "train", "loss") == [(1, 0.5), (2, 0.5), (3, 0.5)]
    errors = capsys.readouterr().err
    assert errors.count("No space left on device") == 1 and str(tmp_path) in errors


def test_reports_that_never_could_be_written_are_counted(tmp_path, capsys):
    (tmp_path / "train").write_text("a file where the folder should be")
    summaries = Summaries(tmp_path)
    summaries.scalars("train", 1, {"loss": 0.5})
    summaries.close()
    assert "1 reports" in capsys.readouterr().err
    assert len(read_rows(tmp_path)) == 1


# ---- files of others, and of a run whose checkpoints are gone ------------------------------------------------------


def _foreign(folder):
    """An event file of tf.summary, one without a name of its own, and files that only look like event files."""
    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default():
        for step in range(50):
            tf.summary.scalar("epoch_loss", 1.0 / (step + 1), step=step)
    writer.close()
    (path,) = folder.iterdir()
    (folder / "events.out.tfevents.1000000000.host.1.v2").write_bytes(path.read_bytes())
    (folder / "events.out.tfevents.1000000001.host.1.v2").write_bytes(b"no events at all" * 9)
    (folder / "events.out.tfevents.1000000002.host.1.v2").write_bytes(b"")
    return {path: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("start_step", [0, 10])
def test_event_files_of_other_programs_are_kept(tmp_path, start_step):
    before = _foreign(tmp_path / "train")
    _report(tmp_path, [10, 20, 30], 0.5)
    _report(tmp_path, [20], 0.5, start_step=start_step)
    assert {path: path.read_bytes() for path in before} == before


def test_reports_without_a_checkpoint_are_moved_aside_with_a_line(tmp_path, capsys):
    _report(tmp_path, [10, 20], 0.5)
    rows, (events,) = (tmp_path / "metrics.jsonl").read_text(), (tmp_path / "train").iterdir()
    data = events.read_bytes()
    _report(tmp_path, [10], 1.5)
    assert "no checkpoint to continue from" in capsys.readouterr().out
    assert (tmp_path / "earlier_1" / "metrics.jsonl").read_text() == rows
    assert (tmp_path / "earlier_1" / "train" / events.name).read_bytes() == data
    assert _points(tmp_path / "train", "loss") == [(10, 11.5)]
    _report(tmp_path, [10], 2.5)
    assert (tmp_path / "earlier_2" / "metrics.jsonl").exists() and _points(tmp_path / "train", "loss") == [(10, 12.5)]
    assert (tmp_path / "earlier_1" / "metrics.jsonl").read_text() == rows


def test_a_graph_that_cannot_be_written_is_a_line(tmp_path, capsys):
    class Large:
        def as_graph_def(self):
            raise ValueError("Cannot serialize protocol buffer of type tensorflow.GraphDef: too large")

    summaries = Summaries(tmp_path)
    summaries.graph(Large())
    summaries.close()
    assert "TensorBoard has no graph of this run: Cannot serialize" in capsys.readouterr().out
