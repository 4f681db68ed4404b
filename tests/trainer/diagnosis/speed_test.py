"""`trainer.check speed`: settings are compared in turns, winners are kept, and a mode that cannot run says why."""

import keras
import pytest

from tests.runs import random_arrays
from trainer import Trainer, check
from trainer.config.paths import ROOT
from trainer.data import from_arrays
from trainer.diagnosis import speed


class Group:
    fused = True


class Made:
    """What `make` returns, and the seconds a step of it takes."""

    def __init__(self, changes):
        settings = {"compile": "graph", "guard": "skip", "micro_batches": 1, "fused": True, **changes}
        self.groups, self.strategy = [Group()], None
        vars(self).update(settings)
        if self.compile == "xla_loop":
            raise ValueError("`compile` 'xla_loop' cannot run.\nSecond line.")
        self.seconds = 0.010 * {"graph": 1, "xla_step": 0.5}[self.compile] * {"skip": 1, "stop": 0.99}[self.guard]


class Contestant:
    def __init__(self, trainer, source, steps_per_loop, changes):
        self.trainer, self.changes, self.steps_per_loop, self._seconds = trainer, changes, steps_per_loop, 0.0
        self._seconds = trainer.seconds * (1 + 1 / steps_per_loop)
        if source == "one batch":
            self._seconds -= 0.001

    def turn(self, seconds):
        return self._seconds


@pytest.fixture
def measured(monkeypatch):
    monkeypatch.setattr(speed, "_Contestant", Contestant)

    def time_input(self):
        self.input_seconds, self.compute_seconds = 0.002, self.fastest * 0.8

    monkeypatch.setattr(speed.Speed, "_time_input", time_input)
    return speed.Speed(Made, "data", 10, "GAN").measure()


def test_a_setting_is_kept_if_it_is_faster_than_the_best_so_far(measured):
    rows = {line: (seconds, note) for line, seconds, note in measured.rows}
    assert rows["as in the config"][0] == pytest.approx(0.011)
    assert rows["run.steps_per_loop = 1"] == (pytest.approx(0.020), "")
    assert rows["run.steps_per_loop = 100"] == (pytest.approx(0.0101), "faster, kept")
    assert rows["GAN.compile = 'xla_step'"] == (pytest.approx(0.00505), "faster, kept")
    assert rows["GAN.guard = 'stop'"] == (pytest.approx(0.00505 * 0.99), "")  # by 1 %: within the noise
    assert rows["GAN.micro_batches = 2"] == (pytest.approx(0.00505), "")
    assert measured.lines == ["run.steps_per_loop = 100", "GAN.compile = 'xla_step'"]


def test_what_it_prints(measured):
    text = str(measured)
    row = next(line for line in text.splitlines() if "xla_loop" in line)
    assert row.split(maxsplit=3)[3].split(maxsplit=1) == ["-", "`compile` 'xla_loop' cannot run."]
    assert "Second line" not in text
    assert (
        "The input alone takes 2.000 ms a batch, the fastest step without it 4.040 ms: the input is the bottl" in text
    )
    assert "it costs 20% of a step" in text
    assert text.endswith(
        "Fastest, 0.46 of the config's time a step:\n  run.steps_per_loop = 100\n  GAN.compile = 'xla_step'"
    )


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(speed, "_ROUNDS", 1)
    monkeypatch.setattr(speed, "_LOOPS", (1,))


def test_data_that_ends_is_read_again(short):
    source = from_arrays(random_arrays(40), 8, repeat=False)

    def make(changes):
        trainer = Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]), "mse", guard="stop")
        for name, value in changes.items():
            setattr(trainer if name != "fused" else trainer.groups[0], name, value)
        if trainer.compile != "graph":
            raise ValueError("one replica")
        trainer.build(source.element_spec)
        return trainer

    measured = speed.Speed(make, source, 2, seconds=0.001).measure()
    assert len(measured.rows) == 7 and all(seconds for line, seconds, _ in measured.rows if "xla" not in line)
    assert [note for line, _, note in measured.rows if "xla" in line] == ["one replica"] * 2
    assert 0 < measured.compute_seconds and 0 < measured.input_seconds


@pytest.mark.slow
def test_the_command_changes_nothing(short, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = [f"--gin_file={ROOT}/configs/friedman_huber.gin", "--seconds=0.001", "--strategy=default"]
    assert check.check(["check", "speed", *flags]) == 0
    out = capsys.readouterr().out
    assert "Trainer.compile = 'xla_step'" in out and "The input alone takes" in out
    assert not list(tmp_path.iterdir())
    assert check.check(["check", "speed", "--seconds=0"]) == 2
    assert "`--seconds`, the time of each measurement, must be a number > 0, got 0." in capsys.readouterr().err
