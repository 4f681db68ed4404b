"""Every page and file that a text names exists; no message names a promise by its code."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("trainer", "layers", "losses", "optimizers", "configs", "tests", ".ci")
FILES = sorted(
    path
    for path in [*ROOT.iterdir(), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))]
    if path.suffix in (".py", ".gin", ".md", ".toml") and path != pathlib.Path(__file__).resolve()
)
PAGES = [path for path in FILES if path.suffix == ".md"]
WORKSPACE = (ROOT / "WORKSPACE.md").read_text()


def _relative(path):
    return str(path.relative_to(ROOT))


def test_every_page_that_a_text_cites_exists():
    """By its path, or by its name alone."""
    known = {_relative(page) for page in PAGES} | {page.name for page in PAGES}
    cited = {(_relative(path), page) for path in FILES for page in re.findall(r"[\w./]+\.md\b", path.read_text())}
    assert cited and not [f"{path} cites {page}" for path, page in cited if page not in known]


def test_no_text_cites_a_numbered_fact():
    numbered = re.compile(
        r"\bfacts? \d+\b|\bdesign(?: page)? [A-Z]\d\b|\bcontract [A-Z]\d\b|\brule [A-Z]\d\b", re.IGNORECASE
    )
    assert not [f"{_relative(path)}: {found}" for path in FILES for found in numbered.findall(path.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=_relative)
def test_files_and_modules_that_a_page_names_exist(page):
    text = page.read_text()
    paths = re.findall(r"\b(?:trainer|layers|losses|optimizers|tests)/[\w/]*(?:\.py)?", text)
    assert not [path for path in paths if not (ROOT / path).exists()]
    modules = re.findall(r"python -m ((?:trainer|tests)[\w.]+)", text)
    assert not [name for name in modules if not (ROOT / f"{name.replace('.', '/')}.py").exists()]
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]


def test_workspace_defines_each_promise_that_a_test_names():
    defined = set(re.findall(r"^\| ([A-Z]\d) \|", WORKSPACE, re.MULTILINE))
    assert {"R1", "R2", "R3", "O1", "O2", "O3", "S1", "S2", "S3", "G1", "L1", "L2"} <= defined


def test_a_text_that_users_read_states_the_promise_and_not_its_code():
    code = re.compile(r"(?:^|\()[ROSGL][123](?::|\))")
    for path in FILES:
        if path.suffix == ".py" and path.is_relative_to(ROOT / "trainer"):
            texts = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
            assert not [text for text in texts if isinstance(text, str) and code.search(text)], path
