"""R1 to R3, resume and the digits job on whatever accelerators are attached: `pytest -m gpu`, `pytest -m tpu`.

They run in a process of their own, since the tests' own sees two CPU devices
and no GPU. Without the hardware each one skips and says so.
"""

import os
import subprocess
import sys

import pytest

from tests.runs import read_rows
from trainer.config.files import ROOT

COUNT = "import tensorflow as tf; print('found', len(tf.config.list_physical_devices('GPU')))"
# On one GPU, 1 and 2 replicas cannot be compared on it: it stands for itself against the CPU.
REPLICAS = """
import keras, numpy as np, sys, tensorflow as tf
from optimizers import OptimizerGroup, clip_by_global_norm
from trainer import Trainer, data
from trainer.distribution import make_strategy

def train(strategy):
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)).astype("float32"), rng.normal(size=(40, 1)).astype("float32")
    with strategy.scope():
        dense = keras.layers.Dense(8, "tanh", kernel_regularizer="l2")
        layers = [dense, keras.layers.BatchNormalization(synchronized=True)]
        model = keras.Sequential([keras.Input((3,)), *layers, keras.layers.Dense(1)])
        adam = keras.optimizers.Adam(0.01)
        group = OptimizerGroup(optimizer=adam, transforms=[clip_by_global_norm(0.1)], name="main")
        trainer = Trainer(model, "mse", ["mae"], group)
    metrics = trainer.train(iter(trainer.distribute(data.from_arrays((x, y), 8))), 200)
    evaluated = trainer.evaluate(data.from_arrays((x[:13], y[:13]), 5, repeat=False))
    return metrics, evaluated, arrays_of(trainer.variables)

with tf.device("CPU:0"):
    one = train(tf.distribute.OneDeviceStrategy("CPU:0"))
many = train(make_strategy(sys.argv[1]))
for a, b in zip(one, many):
    for name in a:
        if "seed" not in name:
            np.testing.assert_allclose(b[name], a[name], rtol=2e-3, atol=2e-4, err_msg=name)
print("replicas", make_strategy(sys.argv[1]).num_replicas_in_sync)
"""


def _run(program, *arguments, timeout=900):
    env = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return subprocess.run(
        [sys.executable, *program, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout
    )


@pytest.fixture(scope="module")
def gpus():
    found = _run(["-c", COUNT])
    count = int(found.stdout.split("found ")[1]) if "found " in found.stdout else 0
    if not count:
        pytest.skip("no GPU is attached, or TensorFlow was installed without CUDA (pip install '.[gpu]')")
    return count


@pytest.fixture(scope="module")
def tpu():
    if not (os.environ.get("TPU_NAME") or os.path.exists("/dev/accel0")):
        pytest.skip("no TPU is attached: TPU_NAME is not set and this is not a TPU VM")
    return "tpu"


def _same_numbers(strategy):
    ran = _run(["-c", REPLICAS, strategy])
    assert ran.returncode == 0, ran.stderr[-4000:]
    return int(ran.stdout.split("replicas ")[1])


def _digits(folder, strategy):
    """Trains to 300 steps and, by the same command, on to 600; returns the last accuracy."""
    for steps in (300, 600):
        flags = [
            "--gin_file=configs/digits.gin",
            f"--gin_param=run.train_steps = {steps}",
            f"--model_dir={folder}",
            f"--strategy={strategy}",
        ]
        ran = _run(["-m", "trainer.main", *flags])
        assert ran.returncode == 0, ran.stderr[-4000:]
    assert "Resuming from" in ran.stdout
    return read_rows(folder, "validation")[-1]["metrics/accuracy"]


@pytest.mark.gpu
def test_replicas_on_gpus_give_the_numbers_of_the_cpu(gpus):
    assert _same_numbers("auto") == gpus


@pytest.mark.gpu
def test_digits_and_resume_on_gpus(gpus, tmp_path):
    assert _digits(tmp_path, "auto") >= 0.97


@pytest.mark.tpu
def test_replicas_on_a_tpu_give_the_numbers_of_the_cpu(tpu):
    assert _same_numbers(tpu) > 1


@pytest.mark.tpu
def test_digits_and_resume_on_a_tpu(tpu, tmp_path):
    assert _digits(tmp_path, tpu) >= 0.97
