"""Editors and type checkers see every public name, though two packages load their names on first use."""

import ast
import pathlib

import jedi
import pytest

import layers
import losses
import optimizers
import trainer

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = {"trainer": trainer, "layers": layers, "losses": losses, "optimizers": optimizers}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_completes_and_leads_to_its_definition(package):
    project = jedi.Project(ROOT, smart_sys_path=False, added_sys_path=[str(ROOT)])
    script = jedi.Script(f"import {package}\n{package}.", project=project)
    completed = {found.name for found in script.complete(2, len(package) + 1)}
    for name in PACKAGES[package].__all__:
        assert name in completed
        script = jedi.Script(f"from {package} import {name}", project=project)
        (found,) = script.goto(1, len(f"from {package} import {name}"), follow_imports=True)
        assert found.name == name and pathlib.Path(found.module_path).is_relative_to(ROOT)
        assert pathlib.Path(found.module_path) != ROOT / package / "__init__.py"  # not the `__getattr__` there


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_that_it_is_typed(package):
    assert (ROOT / package / "py.typed").exists()


@pytest.mark.parametrize("package", ["trainer", "losses"])
def test_the_names_for_tools_are_the_names_that_load(package):
    tree = ast.parse((ROOT / package / "__init__.py").read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in guarded.body for alias in node.names}
    homes = {name: home or package for name, home in PACKAGES[package]._HOME.items()}
    assert seen == homes and set(PACKAGES[package].__all__) == set(homes)
