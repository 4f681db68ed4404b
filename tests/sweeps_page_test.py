"""The examples of configs/SWEEPS.md run as pasted."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from trainer import config, main

PAGE = (pathlib.Path(__file__).resolve().parent.parent / "configs/SWEEPS.md").read_text()


def block(language, word):
    return next(text.split("```")[0] for text in PAGE.split(f"```{language}\n")[1:] if word in text.split("```")[0])


def test_the_search_with_optuna(tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    program = block("python", "optuna")
    assert len([line for line in program.splitlines() if line]) <= 22
    replaced = {"configs/digits.gin": "friedman_huber.gin", "digits.cnn.units": "friedman_huber.train_data.batch_size"}
    for old, new in {**replaced, "n_trials=20": "n_trials=2"}.items():
        assert old in program
        program = program.replace(old, new)
    monkeypatch.chdir(tmp_path)

    real = subprocess.run

    def run(command, **options):  # in this process: the start of another one takes seconds
        if command[0] != sys.executable:
            return real(command, **options)
        short = ["--gin.run.train_steps=4", "--gin.run.steps_per_loop=4", "--gin.run.limit_eval_batches=1"]
        if main.main([*command[2:], *short]):
            raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "run", run)
    names = {}
    for _ in range(2):  # the second start continues the study
        exec(program, names)
    study = names["study"]
    assert [trial.number for trial in study.trials] == [0, 1, 2, 3]
    for trial in study.trials:
        rows = (tmp_path / f"runs/search/trial_{trial.number:03}/metrics.jsonl").read_text().splitlines()
        losses = [row["loss"] for row in map(json.loads, rows) if row["split"] == "validation"]
        assert trial.value == losses[-1]
    assert study.best_value == min(trial.value for trial in study.trials)


def test_the_array_of_slurm(tmp_path, monkeypatch):
    (tmp_path / "srun").write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    (tmp_path / "srun").chmod(0o755)
    script = block("bash", "SBATCH")
    monkeypatch.setattr(sys, "path", [*sys.path])
    seen = set()
    for task in range(6):
        env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": str(task)}
        shown = subprocess.run(["bash", "-euc", script], env=env, capture_output=True, text=True, check=True).stdout
        command = json.loads(shown)
        assert command[:3] == ["python", "-m", "trainer.main"]
        main.parse(command[2:])
        config.read(main.FLAGS.gin_file, main.FLAGS.gin_param, (), {"model_dir": main.FLAGS.model_dir})
        seen.add((main.FLAGS.model_dir, *main.FLAGS.gin_param))
    assert len({folder for folder, *_ in seen}) == 6
    assert ("runs/array/rate_1e-2-1", "Adam.learning_rate = 1e-2", "run.seed = 1") in seen
