"""README's table of research loops: its lines are counted, and every loop with a plain one is in it."""

import ast
import pathlib
import re

import configs

FOLDER = pathlib.Path(configs.__path__[0])
TESTS = pathlib.Path(__file__).parent


def lines_of_code(path, wanted):
    """Returns the lines of the first top-level definition that `wanted` accepts, without comments and docstrings."""
    text = path.read_text()
    definition = next(node for node in ast.parse(text).body if wanted(node))
    documented = set()
    for node in ast.walk(definition):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            documented |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    numbers = set(range(definition.lineno, definition.end_lineno + 1)) - documented
    lines = (text.splitlines()[number - 1].strip() for number in numbers)
    return sum(bool(line) and not line.startswith("#") for line in lines)


def is_trainer(node):
    return isinstance(node, ast.ClassDef) and "Trainer" in [getattr(base, "id", None) for base in node.bases]


def is_plain(node):
    return isinstance(node, ast.FunctionDef) and node.name == "plain"


def test_the_lines_are_counted():
    rows = re.findall(
        r"^\| `(\w+)` \| (\d+) \| (\d+) \| \S.* \|$", (FOLDER.parent / "README.md").read_text(), re.MULTILINE
    )
    compared = {
        path.stem.removesuffix("_test") for path in TESTS.glob("*_test.py") if "\ndef plain(" in path.read_text()
    }
    found = {
        name: (lines_of_code(FOLDER / f"{name}.py", is_trainer), lines_of_code(TESTS / f"{name}_test.py", is_plain))
        for name in compared
    }
    assert {name: (int(ours), int(plain)) for name, ours, plain in rows} == found
