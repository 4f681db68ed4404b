"""The house keeps its shape: budgets, the direction of imports, what lies at the top, which names are public."""

import ast
import inspect
import pathlib
import subprocess
import sys

import pytest

import trainer
from trainer import main

ROOT = pathlib.Path(__file__).resolve().parent.parent
CORE = ("main", "experiment", "trainer", "distribution", "data", "checkpoints")
PACKAGES = ("trainer", "layers", "losses", "optimizers", "configs")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
# The loop in one piece is what people read and copy.
LONG = {"trainer/trainer.py": 520}
LIMIT = 350


def _relative(path):
    return str(path.relative_to(ROOT))


def _imports(path):
    """Top-level packages that a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _lines(path):
    return len(path.read_text().splitlines())


def test_the_core_is_read_in_an_afternoon():
    assert sum(_lines(ROOT / "trainer" / f"{name}.py") for name in CORE) <= 1500


def test_budgets_of_parameters_and_flags():
    assert len(inspect.signature(trainer.Trainer.__init__).parameters) - 1 <= 10
    assert len(inspect.signature(trainer.run).parameters) <= 18
    own = {name for name in main.FLAGS} - {"flagfile", "undefok", "gin_bindings"}
    assert len(own) <= 12


@pytest.mark.parametrize("path", SOURCES, ids=_relative)
def test_no_file_outgrows_a_reading(path):
    assert _lines(path) <= LONG.get(_relative(path), LIMIT)


@pytest.mark.parametrize("path", SOURCES, ids=_relative)
def test_imports_go_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    allowed = {
        "trainer": {"trainer", "layers", "losses", "optimizers"},
        "configs": {"trainer", "layers", "losses", "optimizers"},
    }.get(package, {package})
    used = {name.split(".")[0] for name in _imports(path)}
    assert used & {*PACKAGES, "tests"} <= allowed
    if package in ("layers", "losses", "optimizers"):
        assert used - set(sys.stdlib_module_names) - {package} <= {"tensorflow", "keras", "gin", "numpy"}


@pytest.mark.parametrize("path", [p for p in SOURCES if p.parent.name == "configs"], ids=_relative)
def test_examples_use_public_names_only(path):
    """So that copying two files forks an experiment."""
    public = {f"trainer.{name}" for name in trainer.__all__}
    for name in _imports(path):
        if name.startswith("trainer."):
            assert name in public or name.startswith(("trainer.data.", "trainer.methods.")), name


def test_nothing_in_the_core_imports_the_methods():
    for path in (ROOT / "trainer").glob("*.py"):
        assert not any(name.startswith("trainer.methods") for name in _imports(path)), path


def test_the_core_does_not_import_what_examines_it():
    """Reading order: what a run needs never leads to check, compare, launch or diagnostics at import time."""
    for name in CORE:
        top = ast.parse((ROOT / "trainer" / f"{name}.py").read_text()).body
        modules = {node.module for node in top if isinstance(node, ast.ImportFrom)}
        assert not modules & {f"trainer.{room}" for room in ("check", "compare", "launch")}


def test_the_top_level_is_what_it_was_meant_to_be():
    tracked = {"trainer", "layers", "losses", "optimizers", "configs", "tests", ".ci", ".gitignore", "pyproject.toml",
               "setup.py", "README.md", "WORKSPACE.md", "CHANGELOG.md", "LICENSE"}  # fmt: skip
    made = {".git", ".venv", ".pytest_cache", ".ruff_cache", ".hypothesis", "runs", "build", "gradloom.egg-info", "__pycache__"}
    present = {entry.name for entry in ROOT.iterdir()}
    assert tracked <= present
    assert present - tracked <= made
    assert not [path for path in SOURCES if path.stem in ("utils", "util", "helpers", "common", "misc")]


def test_public_names_are_there_and_a_wrong_one_is_told():
    for name in trainer.__all__:
        assert getattr(trainer, name) is not None
    with pytest.raises(AttributeError, match="public names are"):
        trainer.nothing  # noqa: B018


@pytest.mark.parametrize("module", ["trainer", "trainer.main", "trainer.compare"])
def test_importing_it_imports_no_tensorflow(module):
    program = f"import sys, {module}; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
