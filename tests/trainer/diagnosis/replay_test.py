"""`python -m trainer.check replay`: from the run folder back to the operation that was not finite."""

import gin
import pytest

from trainer import check, main
from trainer.outer_loop.bad_steps import BadSteps
from trainer.saving.checkpoints import Checkpoints

MODULE = """
import keras
import numpy as np
import tensorflow as tf

from trainer import Trainer, configurable
from trainer.data import from_arrays


@configurable
def replayed_data():
    x = np.random.default_rng(0).uniform(0.5, 1.5, [400, 3]).astype("float32")
    x[17 * 4 + 2] = 0.0  # one example of batch 17
    return from_arrays((x, np.ones([400, 1], np.float32)), 4, shuffle=False)


@configurable
def replayed_net():
    return keras.Sequential([keras.Input((3,)), keras.layers.Dropout(0.2), keras.layers.Dense(1, use_bias=False)])


@configurable
class Logarithm(Trainer):
    def compute_losses(self, batch, training):
        x, y = batch
        distance = tf.norm(self.model(x, training=training) * x)
        share = tf.math.log(tf.reduce_sum(x, 1))
        return {"main": tf.square(self.model(x, training=training)[:, 0] - share) + 0.0 * distance}
"""

CONFIG = """
import replayed_module
run.trainer = @replayed_module.Logarithm
run.train_data = @replayed_module.replayed_data
run.train_steps = 40
run.steps_per_loop = 5
run.checkpoint_interval = 10
run.summary_interval = 10
Trainer.model = @replayed_module.replayed_net()
Trainer.optimizers = 'adam'
run.checkpoints = @Checkpoints()
Checkpoints.keep = 1
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "replayed_module.py").write_text(MODULE)
    (tmp_path / "a.gin").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    gin.clear_config()


def _train(*params):
    return main.main(
        ["main", "--gin_file=a.gin", "--model_dir=run", "--strategy=default", *(f"--gin_param={p}" for p in params)]
    )


def _replay(*arguments):
    return check.check(["check.py", "replay", *arguments])


def test_skipped_and_stopped_steps_are_found_again(folder, capsys):
    """One test, since one module of the user's is imported once per process."""
    line = MODULE.splitlines().index("        share = tf.math.log(tf.reduce_sum(x, 1))") + 1
    assert _train() == 0
    (row,) = BadSteps("run", Checkpoints().open("run")).rows()
    assert (row["first"], row["last"], row["checkpoint"]) == (17, 17, 10)
    assert f"trainer.check replay {folder / 'run'} --step=17` shows the operation" in capsys.readouterr().out
    before = {path: path.read_bytes() for path in folder.glob("run/**/*") if path.is_file()}
    for arguments in (["run", "--step=17"], ["run"]):
        assert _replay(*arguments) == 1
        said = capsys.readouterr().out
        assert "From the checkpoint of step 10: 7 steps to step 17." in said and f"replayed_module.py:{line}" in said
    assert _replay("run", "--step=16") == 0
    assert before == {path: path.read_bytes() for path in folder.glob("run/**/*") if path.is_file()}
    gin.clear_config()
    (folder / "run").rename("skipped")
    assert _train("Trainer.guard = 'stop'") == 3
    row = BadSteps("run", Checkpoints().open("run")).rows()[-1]
    assert (row["first"], row["last"], row["checkpoint"]) == (15, 20, 10) and row["stopped"]
    capsys.readouterr()
    assert _replay("run") == 1
    said = capsys.readouterr().out
    assert "Step 17, as the run took it" in said and f"replayed_module.py:{line}" in said


@pytest.mark.parametrize("arguments, text", [
    ([], "needs one run folder with a config.gin, got none"),
    (["nowhere"], "needs one run folder with a config.gin, got nowhere"),
    ([".", "--step=x"], "`--step` must be a whole number, got 'x'"),
])  # fmt: skip
def test_mistakes_exit_2_in_one_sentence(folder, capsys, arguments, text):
    (folder / "config.gin").write_text(CONFIG)
    assert _replay(*arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and text in said and "Traceback" not in said
