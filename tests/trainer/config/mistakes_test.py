"""The corpus of mistakes: each is answered on one screen, most of them without TensorFlow."""

import json
import os
import pathlib
import subprocess
import sys

import gin
import pytest

from tests.trainer.config.mistakes import AFTER_TENSORFLOW, BEFORE_TENSORFLOW, RESEARCH, Mistake
from trainer import config, main
from trainer.config import names, registry, syntax, values
from trainer.config.syntax import ROOT

HOMES = {home.split(".")[0] for home, _, _ in registry.homes()}

# Calls main for each folder given, in one process that refuses to import TensorFlow; prints what it answered.
WORKER = """
import contextlib, io, json, os, sys, time

class Refused(BaseException):
    pass

def refuse():
    raise Refused

begin = time.perf_counter()
from trainer import config, main
config.quiet_import = refuse
imported, paths, answers = time.perf_counter() - begin, list(sys.path), {}
for case in json.load(sys.stdin):
    os.chdir(case["folder"])
    sys.path[:] = [case["folder"], *paths]  # as `python -m` does
    for name in ("research", "losses"):
        sys.modules.pop(name, None)
    with contextlib.redirect_stderr(io.StringIO()) as shown:
        begin = time.perf_counter()
        try:
            code = main.main(["main.py", *case["flags"]])
        except Refused:
            code = "finds nothing before the import"
    assert not {"tensorflow", "keras"} & set(sys.modules), case
    answers[case["name"]] = code, shown.getvalue(), time.perf_counter() - begin + imported
print(json.dumps(answers))
"""


def write(folder: pathlib.Path, mistake: Mistake) -> list[str]:
    """Writes the files of a mistake; returns the flags."""
    files = {"research.py": RESEARCH, "whole.gin": mistake.whole, "a.gin": f"include 'whole.gin'\n{mistake.gin}\n"}
    for name, text in {**files, **mistake.files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return ["--gin_file=a.gin", "--model_dir=run", *mistake.flags]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    cases = []
    for mistake in BEFORE_TENSORFLOW:
        folder = tmp_path_factory.mktemp("mistake")
        cases.append({"name": mistake.name, "folder": str(folder), "flags": write(folder, mistake)})
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", WORKER], input=json.dumps(cases), env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_corpus_is_large_and_names_are_used_once():
    names = [mistake.name for mistake in BEFORE_TENSORFLOW + AFTER_TENSORFLOW]
    assert len(names) >= 60 and len(set(names)) == len(names)


@pytest.mark.parametrize("mistake", BEFORE_TENSORFLOW, ids=lambda m: m.name)
def test_it_is_answered_without_tensorflow(answers, mistake, record_property):
    code, shown, seconds = answers[mistake.name]
    record_property("seconds", round(seconds, 3))
    assert code == 2, shown
    assert shown.startswith("error: ") and "Traceback" not in shown
    assert not [word for word in mistake.words if word not in shown], shown
    assert not shown.startswith("error: 2 mistakes") and "mistakes:" not in shown, shown  # nothing else is wrong


# Right, though a check that guesses might refuse it.
RIGHT = """
from typing import Annotated, Optional

import gin
import keras
import tensorflow as tf

from trainer import configurable


@configurable
def counts(n=8, rate=0.5, share: Annotated[float, "of all"] = 0, width: Optional[int] = None, sizes: "list[int]" = ()):
    return n, rate, share, width, sizes


@configurable("renamed", module="elsewhere")
def original(x=1):
    return x


@tf.function
def traced(x):
    return x


def loss(targets, predictions, weight=1.0):
    return targets


gin.constant("TWO", 2)
Alias = keras.layers.Dense
"""


def test_right_configs_are_read_without_a_complaint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    name = f"right_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(RIGHT)
    (tmp_path / "a.gin").write_text(
        f"import {name} as r\nimport tensorflow as tf\nN = 3\n"
        "renamed.x = 3\nr.Alias.units = 3\nr.traced.x = 3\nrun.hooks = [@tf.nn.relu, %TWO, @s/gin.singleton()]\n"
        "s/gin.singleton.constructor = @r.Alias\nTrainer.loss = {'a': @r.loss, 'b': 'mse'}\nr.loss.weight = %N\n"
        "r.counts.n = 1e3\nr.counts.rate = 1\nr.counts.share = 1\nr.counts.width = 2e1\nr.counts.sizes = [1.0, 2]\n"
        "run.strategy = @tf.distribute.MirroredStrategy()\nrun.train_steps = 1e3\nrun.eval_data = {'a': @r.counts}\n"
        "Adam.learning_rate = @r.counts\nSGD.learning_rate = @CosineDecay()\nCosineDecay.decay_steps = 1000\n"
        "CosineDecay.initial_learning_rate = 1\nDense.activation = 'relu'\nDense.kernel_initializer = @HeNormal\n"
    )  # fmt: skip
    config.read(["a.gin"])
    config.bind()
    counts = gin.get_bindings("counts")
    assert counts == {"n": 1000, "rate": 1.0, "share": 1.0, "width": 20, "sizes": [1, 2]}
    assert [type(counts[name]) for name in ("n", "rate", "share", "width")] == [int, float, float, int]
    assert type(gin.query_parameter("run.train_steps")) is int


@pytest.mark.parametrize("file", sorted(path.name for path in (ROOT / "configs").glob("*.gin")))
def test_the_shipped_configs_have_no_mistake(file, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    config.read([str(ROOT / "configs" / file)])


def test_syntax_trees_and_imports_agree_on_all_names_and_signatures():
    """Of Keras and ours: the same names, the same parameters, the same ones required."""
    registry.register()
    live = {s: entry.wrapped for s, entry in registry.internals().registry.items() if s.split(".")[0] in HOMES}
    read = {s: found for s, found in names.shipped().items() if not s.startswith("gin.")}
    assert set(read) <= set(live)
    ours = ("trainer", "layers", "losses", "optimizers")
    assert all(getattr(live[s], "__module__", "").split(".")[0] not in (*ours, "keras") for s in set(live) - set(read))
    for selector, found in read.items():
        signature, target = syntax.signature(found.definition), live[selector]
        parameters = registry.parameters(target)
        assert signature.takes_any if parameters is None else set(signature.parameters) == parameters, selector
        assert signature.required == registry.required_parameters(target), selector


def test_declared_parameters_exist():
    for path, declared in values.DECLARED.items():
        module, _, name = path.rpartition(".")
        assert set(declared) <= set(syntax.signature(syntax.module(module).get(name)).parameters), path


@pytest.mark.parametrize("mistake", AFTER_TENSORFLOW, ids=lambda m: m.name)
def test_what_only_an_import_can_tell(mistake, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for module in ("research", *(pathlib.Path(file).stem for file in mistake.files)):
        monkeypatch.delitem(sys.modules, module, raising=False)
    # gin's registry cannot be reset: each case has a module of its own.
    name = f"research_{tmp_path.name}"
    flags = write(tmp_path, mistake._replace(whole=mistake.whole.replace("research", name)))
    (tmp_path / "research.py").rename(tmp_path / f"{name}.py")
    code = main.main(["main.py", *flags])
    shown = capsys.readouterr().err
    assert code in (1, 2) and "Traceback" not in shown
    assert not [word for word in mistake.words if word not in shown], shown
