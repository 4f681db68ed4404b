"""The wheel holds what a user needs, and nothing else: it runs a trainer of the user's own from a foreign folder."""

import json
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

MY_TRAINER = """
import numpy as np
import keras
from trainer import Trainer, configurable, data


class MyTrainer(Trainer):
    def __init__(self, power=2, **kwargs):
        super().__init__(**kwargs)
        self.power = power

    def compute_losses(self, batch, training):
        x, y = batch
        return {"distance": abs(self.model(x, training=training)[:, 0] - y) ** self.power}


@configurable
def line():
    return keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])


@configurable
def points(count=64):
    x = np.linspace(-1, 1, count, dtype="float32")
    return data.from_arrays((x[:, None], 3 * x), batch_size=16)
"""

MY_GIN = """
include 'base.gin'
import my_trainer

run.trainer = @my_trainer.MyTrainer
run.train_data = @my_trainer.points
run.train_steps = 200
Trainer.model = @my_trainer.line()
Trainer.optimizers = @Adam()
Adam.learning_rate = 0.1
my_trainer.MyTrainer.power = 2
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy: building writes into the tree
    for name in ("trainer", "layers", "losses", "optimizers", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(source),
    ]
    subprocess.run(build, check=True, capture_output=True)
    return next(folder.glob("gradloom-*.whl"))


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """A fresh virtual environment with the wheel; TensorFlow and the like come from the environment of the tests."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=True)
    interpreter = folder / "bin" / "python"
    subprocess.run(
        [interpreter, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel], check=True, capture_output=True
    )
    purelib = subprocess.check_output(
        [interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    )
    pathlib.Path(purelib.strip(), "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return interpreter


def test_the_wheel_has_the_five_packages_and_the_gin_files_and_no_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    packages = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert packages == {"trainer", "layers", "losses", "optimizers", "configs"}
    assert {"configs/base.gin", "configs/digits.gin", "configs/digits.py", "trainer/methods/sam.py"} <= set(names)


def test_a_trainer_of_the_users_own_runs_from_a_foreign_folder(python, tmp_path):
    (tmp_path / "my_trainer.py").write_text(MY_TRAINER)
    (tmp_path / "my.gin").write_text(MY_GIN)
    command = [python, "-m", "trainer.main", "--gin_file=my.gin", "--model_dir=run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["losses/distance"] < 1e-2 * rows[0]["losses/distance"]


def test_a_layers_folder_of_the_users_own_is_named_with_its_path(python, tmp_path):
    (tmp_path / "my_trainer.py").write_text(MY_TRAINER)
    (tmp_path / "my.gin").write_text(MY_GIN)
    (tmp_path / "layers").mkdir()
    (tmp_path / "layers" / "__init__.py").write_text("")
    command = [python, "-m", "trainer.main", "--gin_file=my.gin", "--model_dir=run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert str(tmp_path / "layers") in done.stderr
    assert not (tmp_path / "run").exists()
