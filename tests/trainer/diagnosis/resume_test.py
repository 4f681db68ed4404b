"""`check resume`: equal where resume is exact; where it is not, the first step, the variables and the cause."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import Trainer, run
from trainer.config.files import ROOT
from trainer.data import as_source, from_arrays
from trainer.diagnosis.resume import Runs, add_causes
from trainer.saving.checkpoints import Checkpoints

L = keras.layers
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(48, 3)).astype(np.float32), RNG.normal(size=(48, 1)).astype(np.float32)


class Noisy(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = L.Dense(1)

    def call(self, x):
        return self.dense(x + tf.random.normal(tf.shape(x)))


class Forgetful:
    """A hook that counts in Python."""

    def __init__(self):
        self.calls = 0

    def __call__(self, trainer, step, metrics):
        self.calls += 1
        trainer.groups[0].optimizer.learning_rate = 0.1 / self.calls


class Misplaced:
    """A source that says it is exact and begins at the beginning."""

    exact, infinite, batch_size = True, True, 4

    def batches(self, start=0, chunk=None):
        return from_arrays((X, Y), 4).batches(0, chunk)


class _Here(Runs):
    """The runs in this process, which is not started anew: what the tests need, in less time."""

    def __init__(self, folder, model, data, hooks):
        super().__init__([], folder, 4)
        self._made = model, data, hooks

    def train(self, name, *ends):
        model, data, hooks = self._made
        for end in ends:
            run(
                self._folder / name,
                lambda: Trainer(model(), "mse", optimizers=keras.optimizers.SGD(0.1)),
                data,
                hooks=[hook() for hook in hooks],
                train_steps=end,
                steps_per_loop=1,
                checkpoint_interval=1,
                summary_interval=1,
                checkpoints=Checkpoints(9),
                strategy="default",
            )
        return self._folder / name

    def explained(self):
        model, data, hooks = self._made
        comparison = self.compare()
        if not comparison.ok:
            built, source = Trainer(model(), "mse"), as_source(data)
            built.build(source.element_spec)
            add_causes(comparison, self, built, source, [hook() for hook in hooks], deterministic=True)
        return comparison


def _model():
    return keras.Sequential([keras.Input((3,)), L.Dense(4, "tanh"), L.Dropout(0.2), L.BatchNormalization(), L.Dense(1)])


def _arrays():
    return from_arrays((X, Y), 4)


def _shuffled():
    return tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(48).repeat().batch(4)


def test_an_exact_resume_is_equal(tmp_path):
    comparison = _Here(tmp_path, _model, _arrays, []).explained()
    assert comparison.ok and "all equal" in str(comparison) and "bit for bit" in str(comparison)


@pytest.mark.parametrize(
    "model, data, hooks, cause",
    [
        (Noisy, _arrays, [], "RandomStandardNormal draws from its own generator"),
        (_model, Misplaced, [], "batches(2) of Source"),
        (_model, _arrays, [Forgetful], "Forgetful has attributes, but no `state`"),
    ],
)
def test_what_differs_is_named_with_its_step_and_cause(tmp_path, model, data, hooks, cause):
    comparison = _Here(tmp_path, model, data, hooks).explained()
    assert comparison.step == 3 and any(cause in sentence for sentence in comparison.causes), comparison
    text = str(comparison)
    assert "at step 3, 1 after the stop" in text and " apart" in text and "does NOT equal" in text


def test_a_program_that_is_not_reproducible_is_told_from_a_bad_resume(tmp_path):
    def drifting():
        return from_arrays((X + np.random.default_rng().normal(), Y), 4)

    comparison = _Here(tmp_path, _model, drifting, []).explained()
    assert comparison.step == 2 and "before the stop" in str(comparison) and "not reproducible" in comparison.causes[0]


def test_a_run_that_ends_early_says_so(tmp_path):
    short = lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(16)  # noqa: E731
    with pytest.raises(ValueError, match="ended before step 4.*smaller --steps"):
        _Here(tmp_path, _model, short, []).compare()


MODULE = '''
import keras
import numpy as np

from trainer import Trainer, configurable
from trainer.data import from_arrays


@configurable
def data():
    return from_arrays((np.eye(8, 3, dtype=np.float32), np.ones([8, 1], np.float32)), 4)


@configurable
class Counting(Trainer):
    """Counts in Python: a new process does not know it."""

    calls = 0

    def train_begin(self):
        type(self).calls += 1
        self.groups[0].optimizer.learning_rate = 0.1 / type(self).calls


@configurable
def net():
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
'''

CONFIG = """
import counting_module
run.trainer = @counting_module.Counting
run.train_data = @counting_module.data
run.epochs = 10
run.strategy = 'default'
Trainer.model = @counting_module.net()
Trainer.loss = 'mse'
Trainer.optimizers = @keras.optimizers.SGD()
"""


@pytest.mark.slow
def test_state_that_only_the_process_holds_is_found(tmp_path):
    """Through the command, with real processes: what a test in one process cannot see."""
    (tmp_path / "counting_module.py").write_text(MODULE)
    (tmp_path / "counting.gin").write_text(CONFIG)
    command = [sys.executable, "-m", "trainer.check", "resume", "--gin_file=counting.gin", "--steps=2"]
    ended = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "at step 2, 1 after the stop" in ended.stdout and "kernel" in ended.stdout
    assert "cause: Neither the step nor the data explains it" in ended.stdout
