"""run.loop_seconds: calls of the compiled loop are as long as asked, end for signals, and change no result."""

import os
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.runs import arrays_of, assert_same, random_arrays, read_checkpoint, read_rows
from trainer import Trainer, data, experiment, hooks, run
from trainer.outer_loop import pace
from trainer.outer_loop.progress import Progress
from trainer.outer_loop.signals import Signals
from trainer.saving.checkpoints import Checkpoints


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


def _model():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)]
    return keras.Sequential([keras.Input((3,)), *layers, keras.layers.Dense(1)])


def _source():
    return data.from_arrays(random_arrays(40), 8, seed=0)


def _trainer(strategy):
    with strategy.scope():
        return Trainer(_model(), "mse", ["mae", keras.metrics.RootMeanSquaredError()])


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(pace, "time", Clock())
    return pace.time


def test_no_result_depends_on_the_size_of_calls(strategy):
    """Reports, moving statistics, dropout and weights are equal bit for bit, and nothing is traced again."""
    found = []
    for size in (int, lambda left: 1, lambda left: 3):
        trainer = _trainer(strategy)
        iterator = iter(trainer.distribute(_source()))
        reports = [trainer.train(iterator, steps, call_size=size) for steps in (7, 4)]
        found.append((reports, arrays_of(trainer.variables)))
        assert trainer.built.loop.experimental_get_tracing_count() == 1
    for reports, variables in found[1:]:
        assert reports == found[0][0]
        assert_same(variables, found[0][1])


def test_calls_when_the_data_ends_first():
    trainer = Trainer(_model(), "mse", ["mae"])
    arrays = random_arrays(40)
    report = trainer.train(
        iter(trainer.distribute(data.from_arrays(arrays, 8, repeat=False))), 9, call_size=lambda n: 2
    )
    assert trainer.global_step.numpy() == 5 and report["updates/main"] == 5


class Timed(Trainer):
    """A Trainer whose calls of `train_loop` take the seconds that `times` gives for a number of elements."""

    sizes, times = (), None

    def train_loop(self, iterator, num_elements, begins, ends):
        def pass_time(number):
            self.sizes.append(int(number))
            pace.time.now += self.times(int(number))

        tf.numpy_function(pass_time, [num_elements], [])
        return super().train_loop(iterator, num_elements, begins, ends)

    def calls(self, paced, iterator, num_steps, times):
        """Returns the sizes of the calls of a loop."""
        self.sizes, self.times = [], times
        paced.train(iterator, num_steps, None)
        return self.sizes


def _timed(**arguments):
    trainer = Timed(_model(), "mse", **arguments)
    return trainer, iter(trainer.distribute(_source(), chunk=5))


def test_the_first_call_takes_one_step_and_later_ones_what_fits(clock, capsys):
    trainer, iterator = _timed()
    progress = Progress(clock=clock.perf_counter)
    paced = pace.Pace(5.0, trainer, [], Signals(), progress)
    with progress.phase("compiling"):
        sizes = trainer.calls(paced, iterator, 40, lambda n: 20.0 if len(trainer.sizes) == 1 else 0.5 * n)
    assert sizes == [1, 1, 10, 10, 10, 8]  # compiling is no part of a step's time
    clock.now += 60.0  # nor is an evaluation
    assert trainer.calls(paced, iterator, 40, lambda n: 0.01 * n) == [10, 30]
    assert trainer.calls(paced, iterator, 40, lambda n: 0.01 * n) == [40] and not paced.ended_early
    assert progress.seconds["compile"] == 20.0
    assert capsys.readouterr().out == "Compiled in 20.0 s.\n"


def test_a_call_takes_whole_chunks(clock):
    trainer, iterator = _timed(compile="xla_loop")
    paced = pace.Pace(5.0, trainer, [], Signals(), Progress())
    assert trainer.calls(paced, iterator, 20, lambda n: 2.0 * n) == [1, 1, 2]  # of 5 batches each


def test_a_signal_ends_a_loop_that_would_go_on_for_more_than_2_seconds(clock):
    (trainer, iterator), signals = _timed(), Signals()
    paced = pace.Pace(2.0, trainer, [], signals, Progress())
    assert trainer.calls(paced, iterator, 2, lambda n: 0.5 * n) == [1, 1]
    signals.received = "SIGTERM"
    assert trainer.calls(paced, iterator, 8, lambda n: 0.5 * n) == [4, 4] and not paced.ended_early  # 2 s were left
    assert trainer.calls(paced, iterator, 9, lambda n: 0.5 * n) == [4]  # 2.5 s; the first call is always taken
    assert paced.ended_early and trainer.global_step.numpy() == 14


class Overriding(Trainer):
    def train_begin(self):
        pass


def test_loops_are_not_ended_where_that_could_change_results(strategy):
    def may(trainer_class=Trainer, monitors=()):
        with strategy.scope():
            trainer = trainer_class(_model(), "mse")
        trainer.distribute(_source())
        return pace.Pace(5.0, trainer, monitors, Signals(), Progress()).may_end_early

    averages = strategy.num_replicas_in_sync > 1  # statistics of BatchNormalization
    assert may() is not averages
    if not averages:
        assert may(monitors=[hooks.EarlyStopping("validation/loss"), Checkpoints(), None])
        assert not may(monitors=[hooks.EarlyStopping("loss")])
        assert not may(monitors=[Checkpoints(monitor="loss")])
        assert not may(Overriding)


def _run(folder, **arguments):
    return run(folder, lambda: Trainer(_model(), "mse", ["mae"]), _source, train_steps=20, steps_per_loop=10,
               summary_interval=10, strategy="default", **arguments)  # fmt: skip


def test_a_run_that_a_signal_stopped_inside_a_loop_goes_on_bit_for_bit(tmp_path, monkeypatch):
    class Signalled(pace.Pace):
        def __call__(self, left):
            if left == 7:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__call__(left)

    whole = _run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(pace, "_PROMPT", 0.0)
        patch.setattr(experiment, "Pace", Signalled)
        stopped = _run(tmp_path / "stopped", loop_seconds=1e-9)
    assert stopped.status == "SIGTERM" and stopped.trainer.global_step.numpy() == 3
    assert not (tmp_path / "stopped/metrics.jsonl").exists()
    again = _run(tmp_path / "stopped")
    assert whole.status == again.status == "done"
    assert_same(arrays_of(again.trainer.variables), arrays_of(whole.trainer.variables))
    assert_same(read_checkpoint(tmp_path / "stopped"), read_checkpoint(tmp_path / "whole"))
    for found, expected in zip(
        *(read_rows(tmp_path / name, times=False) for name in ("stopped", "whole")), strict=True
    ):
        assert found.keys() == expected.keys()
        for tag, value in expected.items():  # the sums of a loop that was stopped are float32 in two parts
            assert found[tag] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6))


@pytest.mark.parametrize("value", [0, -1.0, "5", None])
def test_wrong_seconds(tmp_path, value):
    with pytest.raises(ValueError, match="`loop_seconds` must be a number > 0, got"):
        _run(tmp_path, loop_seconds=value)
    assert not np.any(list(tmp_path.iterdir()))
