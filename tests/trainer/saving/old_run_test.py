"""A run folder written before trainer/ was divided into wings still resumes.

old_run/ was written by commit 585d564, stopped after step 40 of 60 between two reports; old_run_end/ holds the tensors
that the same run had at step 60.
"""

import pathlib
import shutil
import subprocess
import sys

import numpy as np
import tensorflow as tf

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]


def test_an_old_run_folder_resumes_and_ends_with_the_old_weights(tmp_path):
    shutil.copytree(HERE / "old_run", tmp_path / "run")
    overrides = {
        "train_steps": 60,
        "checkpoint_interval": 40,
        "eval_interval": 40,
        "summary_interval": 25,
        "steps_per_loop": 20,
    }
    command = [sys.executable, "-m", "trainer.main", "--gin_file=configs/friedman_huber.gin"]
    command += [f"--gin_param=run.{name} = {value}" for name, value in overrides.items()]
    done = subprocess.run(
        [*command, f"--model_dir={tmp_path / 'run'}", "--resume=must"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Resuming from" in done.stdout and "step_000000040" in done.stdout
    old = tf.train.load_checkpoint(str(HERE / "old_run_end" / "variables"))
    new = tf.train.load_checkpoint(str(tmp_path / "run" / "checkpoints" / "step_000000060" / "variables"))
    names = [name for name in old.get_variable_to_dtype_map() if not name.startswith("report/")]
    assert len(names) > 20
    for name in names:  # to rounding: bit for bit holds for one type of machine only
        np.testing.assert_allclose(new.get_tensor(name), old.get_tensor(name), rtol=1e-5, atol=1e-6, err_msg=name)
