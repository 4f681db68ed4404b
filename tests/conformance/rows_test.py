"""The table of rows: complete, and true."""

import ast
import pathlib
import re

import pytest

from tests import conformance

_REPOSITORY = pathlib.Path(__file__).parents[2]


def _tests(path):
    """Returns {name of a test: its docstring} of a file."""
    tree = ast.parse(path.read_text())
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return {node.name.removeprefix("test_"): ast.get_docstring(node) or "" for node in found}


def test_there_are_35_rows():
    assert list(conformance.ROWS) == list(range(1, 36))


@pytest.mark.parametrize("row", conformance.ROWS)
def test_each_row_has_tests_that_there_are(row):
    what, files = conformance.ROWS[row]
    assert what and files
    for file, names in files.items():
        assert names and set(names) <= set(_tests(_REPOSITORY / file)), f"row {row}: {file}"


def test_docstrings_and_table_say_the_same():
    """Each test here names its rows, "Row 3: ..." or "Rows 12 and 13: ...", and those rows name the test."""
    said, listed = set(), set()
    for path in pathlib.Path(__file__).parent.glob("s*_test.py"):
        for name, docstring in _tests(path).items():
            rows = re.match(r"Rows? ([\d, and]+)", docstring)
            assert rows, f"{path.name}: {name} names no row"
            said |= {(int(row), path.name, name) for row in re.findall(r"\d+", rows[1])}
    for row, (_, files) in conformance.ROWS.items():
        here = {file: names for file, names in files.items() if file.startswith("tests/conformance/")}
        listed |= {(row, pathlib.Path(file).name, name) for file, names in here.items() for name in names}
    assert said == listed
