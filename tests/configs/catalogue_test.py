"""The catalogue: every exported name stands in configs/ADDONS.md with what it is for, every example in configs/README.md."""

import pathlib
import re

import pytest

import configs
import layers
import losses
import optimizers

FOLDER = pathlib.Path(configs.__path__[0])


@pytest.mark.parametrize("package", [layers, losses, optimizers], ids=lambda package: package.__name__)
def test_every_exported_name_has_a_line_and_every_line_a_name(package):
    page = (FOLDER / "ADDONS.md").read_text()
    section = page.split(f"\n## {package.__name__}\n")[1].split("\n## ")[0]
    lines = re.findall(r"^- (`.+?`): \S.+$", section, re.MULTILINE)
    named = [name for line in lines for name in re.findall(r"`(\w+)`", line)]
    assert sorted(named) == sorted(package.__all__)


def test_every_example_is_in_the_table_and_is_there():
    table = (FOLDER / "README.md").read_text().split("## ")[0]
    first = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    shipped = {path.stem for path in FOLDER.glob("*.gin")} - {"base"}
    assert {name for cell in first for name in re.findall(r"`(\w+)`", cell)} == shipped


def test_what_the_pages_point_to_is_there():
    examples = {path.stem for path in FOLDER.glob("*.gin")}
    page = (FOLDER / "ADDONS.md").read_text().split("\n## layers\n")[1]
    assert {name for cell in re.findall(r"\((`\w+`(?:, `\w+`)*)\)", page) for name in re.findall(r"\w+", cell)} <= examples
    for link in re.findall(r"\]\(([\w.]+)\)", (FOLDER / "README.md").read_text()):
        assert (FOLDER / link).exists()
