"""README's two commands are there, first, where .ci/run finds them; its examples run as pasted."""

import json
import pathlib
import sys

import gin

from trainer import main

README = (pathlib.Path(__file__).resolve().parent.parent / "README.md").read_text()


def test_readme_opens_with_one_command_that_trains_and_one_that_tests():
    blocks = [block.split("```")[0].strip() for block in README.split("```bash\n")[1:]]
    assert len(blocks) == 2
    train, test = blocks
    assert "\n" not in train + test
    assert "configs/digits.gin" in train and "pip install" in train
    assert "-m pytest" in test and "pip install" in test


def _blocks(language):
    return [block.split("```")[0] for block in README.split(f"```{language}\n")[1:]]


def test_the_gan_trains_as_pasted(tmp_path, monkeypatch):
    program = next(block for block in _blocks("python") if block.startswith("# my_trainer.py"))
    config = next(block for block in README.split("```\n") if block.startswith("# my.gin"))
    (tmp_path / "my_trainer.py").write_text(program)
    (tmp_path / "my.gin").write_text(config)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    short = ["--gin_param=run.train_steps = 20", "--gin_param=run.steps_per_loop = 10"]
    try:
        assert main.main(["main", "--gin_file=my.gin", "--model_dir=run", "--strategy=default", *short]) == 0
    finally:
        gin.clear_config()
        sys.modules.pop("my_trainer", None)
    row = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert row["step"] == 20 and row["losses/generator"] > 0 and row["losses/discriminator"] > 0
    # `every = 2`: the generator's optimizer took half of the steps.
    assert (row["updates/generator"], row["updates/discriminator"]) == (10, 20)


def test_the_plain_objects_train_as_pasted():
    program = next(block for block in _blocks("python") if "trainer.train(" in block)
    program, load, _ = program.partition("digits = load(")  # of a run that this test does not make
    assert load
    names = {}
    exec(program.replace("1000", "20"), names)
    assert int(names["trainer"].global_step.numpy()) == 20
