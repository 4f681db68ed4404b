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
CORE = ("main.py", "experiment.py", "trainer.py", "replicas/distribution.py", "data.py", "saving/checkpoints.py")
# Top to bottom. A room is a file of trainer/ or a wing (a folder); it imports from the rooms below it only.
FLOORS = (
    ("sweep",),
    ("check", "compare", "configs", "report", "runs", "launch", "trials"),
    ("main",),
    ("experiment",),
    ("trainer",),
    ("diagnosis",),
    ("outer_loop", "saving"),
    ("step", "hooks"),
    ("histograms", "loggers", "views"),
    ("replicas",),
    ("data",),
    ("inputs",),
    ("history",),
    ("config",),
    ("console",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
WINGS = sorted(path.parent.name for path in (ROOT / "trainer").glob("*/__init__.py") if path.parent.name != "methods")
PACKAGES = ("trainer", "layers", "losses", "optimizers", "configs")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
# The loop in one piece is what people read and copy.
LONG = {"trainer/trainer.py": 450, "trainer/experiment.py": 420}
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
    assert sum(_lines(ROOT / "trainer" / name) for name in CORE) <= 1500


def test_budgets_of_parameters_and_flags():
    assert len(inspect.signature(trainer.Trainer.__init__).parameters) - 1 <= 10
    assert len(inspect.signature(trainer.run).parameters) <= 25
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


def _room(path):
    """The room of a file of trainer/: its wing, or its own name; None for the package itself and the methods."""
    parts = path.relative_to(ROOT / "trainer").parts
    name = parts[0].removesuffix(".py")
    return None if name in ("__init__", "methods") else name


def _imported_from_trainer(path, typing=True):
    """[(room, name in it or None)] of all imports of trainer in a file, also inside functions; `typing`: for tools."""
    tree, found = ast.parse(path.read_text()), []
    for_tools = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    hidden = {id(node) for block in for_tools for node in ast.walk(block)}
    for node in ast.walk(tree):
        if not typing and id(node) in hidden:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "trainer":
            for alias in node.names:
                first, *rest = [*node.module.split(".")[1:], alias.name]
                found.append((first, ".".join(rest) or None))
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found += [(name[1], ".".join(name[2:]) or None) for name in names if name[0] == "trainer" and name[1:]]
    return found


ROOMS = [path for path in SOURCES if path.is_relative_to(ROOT / "trainer") and _room(path)]


def test_every_room_has_a_floor_and_every_wing_a_docstring():
    assert {_room(path) for path in ROOMS} == set(FLOOR)
    assert WINGS == ["config", "diagnosis", "inputs", "outer_loop", "replicas", "saving", "step"]


@pytest.mark.parametrize("path", ROOMS, ids=_relative)
def test_rooms_import_from_the_floors_below_only(path):
    own = _room(path)
    for room, name in _imported_from_trainer(path, typing=False):
        if room in FLOOR and room != own:
            assert FLOOR[room] > FLOOR[own], f"{own} imports {room}.{name}"


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_lists_what_others_use(wing):
    """Its docstring says what lives there, and lists each module and name that another room imports."""
    text = ast.get_docstring(ast.parse((ROOT / "trainer" / wing / "__init__.py").read_text()))
    assert "Not here:" in text
    if wing == "config":  # its names are in __init__ itself
        return
    listed = set()
    for line in text.partition("Used from outside:\n")[2].replace("\n        ", " ").splitlines():
        module, _, names = line.strip().partition(": ")
        listed |= {module if name == "(the module)" else f"{module}.{name}" for name in names.split(", ")}
    used = set()
    for path in SOURCES:
        if _room_or_none(path) != wing:
            used |= {name for room, name in _imported_from_trainer(path) if room == wing and name}
    assert listed == used


# Private names of libraries that are used, each in one function with a test of its own; and Python's own.
LIBRARY_PRIVATES = {
    *("_replace", "_asdict", "_fields", "_exit", "_getframe"),  # namedtuple, os, sys
    *(
        "_CONFIG",
        "_OPERATIVE_CONFIG",
        "_REGISTRY",
        "_CONSTANTS",
        "_SINGLETONS",
        "_inverse_lookup",
    ),  # gin: config/registry.py
    *("_save_state", "_flatten_layers", "_get_variable_index", "_use_weight_decay"),  # Keras
    *("_get_function", "_inputs", "_functions"),  # TensorFlow: diagnosis/graph_walk.py, inputs/pipelines.py
}


def _place(path):
    parts = path.relative_to(ROOT).parts
    return parts[1].removesuffix(".py") if parts[0] == "trainer" else parts[0]


def test_private_names_stay_in_the_room_that_defines_them():
    trees = {path: ast.parse(path.read_text()) for path in SOURCES if path.relative_to(ROOT).parts[0] != "configs"}
    defined, outside = {}, []
    for path, tree in trees.items():
        names = defined.setdefault(_place(path), set())
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, (ast.Attribute, ast.Name)) and isinstance(node.ctx, ast.Store):
                names.add(node.attr if isinstance(node, ast.Attribute) else node.id)
    for path, tree in trees.items():
        for node in ast.walk(tree):
            used = [node.attr] if isinstance(node, ast.Attribute) else []
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
                used = [alias.name for alias in node.names]
            for name in used:
                if name.startswith("_") and not name.startswith("__") and name not in LIBRARY_PRIVATES:
                    if isinstance(node, ast.ImportFrom) or name not in defined[_place(path)]:
                        outside.append(f"{_relative(path)}:{node.lineno} {name}")
    assert not outside


def test_the_imports_of_the_trainer_stay_within_a_budget():
    """Whoever reads trainer.py may meet these modules; 36 with 6,082 lines before trainer/ had wings."""
    program = (
        "import sys, trainer.trainer; print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('trainer.')))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [pathlib.Path(file) for file in done.stdout.split()]
    assert len(files) <= 55 and sum(map(_lines, files)) <= 7_650, (len(files), sum(map(_lines, files)))


def _room_or_none(path):
    return _room(path) if path.is_relative_to(ROOT / "trainer") else None


def test_the_top_level_is_what_it_was_meant_to_be():
    tracked = {"trainer", "layers", "losses", "optimizers", "configs", "tests", ".ci", ".gitignore", "pyproject.toml",
               "setup.py", "README.md", "WORKSPACE.md", "CHANGELOG.md", "LICENSE"}  # fmt: skip
    made = {
        ".git",
        ".venv",
        ".pytest_cache",
        ".ruff_cache",
        ".hypothesis",
        "runs",
        "build",
        "gradloom.egg-info",
        "__pycache__",
    }
    present = {entry.name for entry in ROOT.iterdir()}
    assert tracked <= present
    assert present - tracked <= made
    assert not [path for path in SOURCES if path.stem in ("utils", "util", "helpers", "common", "misc")]


def test_public_names_are_there_and_a_wrong_one_is_told():
    for name in trainer.__all__:
        assert getattr(trainer, name) is not None
    with pytest.raises(AttributeError, match="public names are"):
        trainer.nothing  # noqa: B018


@pytest.mark.parametrize("module", ["trainer", "trainer.main", "trainer.compare", "trainer.report", "trainer.runs"])
def test_importing_it_imports_no_tensorflow(module):
    program = f"import sys, {module}; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
