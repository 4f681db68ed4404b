"""`python -m trainer.configs`: every shipped experiment is listed, printed and copied; names are described."""

import os
import subprocess
import sys

import pytest

from trainer import config, configs, main
from trainer.config.paths import ROOT

NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.gin") if path.stem != "base")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def answer(capsys, *arguments, code=0):
    assert configs.configs(["configs", *arguments]) == code
    shown = capsys.readouterr()
    return shown.err if code else shown.out


def test_every_experiment_is_listed_with_a_result_and_no_tensorflow():
    command = (
        "import sys; from trainer import configs; configs.configs(['configs']); sys.exit('tensorflow' in sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    listed = [name for line in lines[::2] if ":" in line for name in line.split(":")[0].split(", ")]
    assert sorted(listed) == NAMES
    assert "    accuracy .988 (10 s)" in lines


def test_an_experiment_is_printed(capsys):
    assert answer(capsys, "digits").strip() == (ROOT / "configs/digits.gin").read_text().strip()
    assert "Did you mean `digits`?" in answer(capsys, "digit", code=2)


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_names_itself_and_has_no_mistake(folder, capsys, name):
    assert "--gin_file=mine.gin" in answer(capsys, f"--copy={name}:mine")
    text = (folder / "mine.gin").read_text()
    assert "\nimport mine\n" in text
    config.read(["mine.gin"], optional=["model_dir"])
    assert f"=/tmp/{name}\n" not in text and f"configs/{name}.gin" not in text
    assert "does not overwrite files" in answer(capsys, f"--copy={name}:mine", code=2)


def test_a_copy_runs(folder, capsys):
    answer(capsys, "--copy=friedman_huber:my_experiment")
    assert main.main(["main", "--gin_file=my_experiment.gin", "--dry_run"]) == 0
    assert sys.modules["my_experiment"].__file__ == str(folder / "my_experiment.py")


def test_configurables_are_described(capsys, folder):
    shown = answer(capsys, "--configurables=clip_by_g")
    assert shown.splitlines()[:2] == [
        "clip_by_global_norm(clip_norm, over='group')",
        "    optimizers.clip_by_global_norm",
    ]
    assert len(answer(capsys, "--configurables").splitlines()) > 1500
    (folder / "named.py").write_text(
        "from trainer import configurable\n\n@configurable\ndef mine(a, b=2):\n    '''My own.'''\n"
    )
    (folder / "a.gin").write_text("import named\nmine.a = 1\n")
    assert answer(capsys, "--configurables=mine", "--gin_file=a.gin") == "mine(a, b=2)\n    named.mine\n    My own.\n"
    assert "regular expression" in answer(capsys, "--configurables=(", code=2)


def test_a_parameter_is_explained(capsys):
    shown = answer(capsys, "--explain=Trainer.optimizers", f"--gin_file={ROOT}/configs/digits.gin")
    assert (
        "OptimizerGroup" in shown
        and "default 'adam'" in shown
        and "digits.gin:25: Trainer.optimizers = @Adam()" in shown
    )
    assert "takes an int >= 1 or None" in answer(capsys, "--explain=run.train_steps")
    assert "Did you mean `train_steps`?" in answer(capsys, "--explain=run.train_step", code=2)
    assert "NAME.PARAMETER" in answer(capsys, "--explain=run", code=2)


def test_help(capsys):
    assert "--copy=digits:my" in answer(capsys, "--help")
