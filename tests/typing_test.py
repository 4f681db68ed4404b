"""Editors and type checkers see every public name, though two packages load their names on first use."""

import ast
import inspect
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


@pytest.mark.parametrize(
    ("expression", "attributes"),
    [
        ("trainer.run('runs/a', trainer.Trainer, None)", {"status", "metrics", "trainer"}),
        ("trainer.load('runs/a')", {"train", "evaluate", "predict", "compute_losses"}),
        ("trainer.Trainer().train(None, 1)", {"items", "values"}),
        ("trainer.load('runs/a').evaluate(None)", {"items", "values"}),
        ("trainer.Trainer().current_pass", {"batch", "examples", "groups"}),
        ("trainer.data.from_arrays(None, 8)", {"batches", "element_spec", "describe"}),
        ("trainer.data.as_source(None)", {"batches", "element_spec", "describe"}),
    ],
)
def test_the_type_of_a_result_is_known(expression, attributes):
    project = jedi.Project(ROOT, smart_sys_path=False, added_sys_path=[str(ROOT)])
    script = jedi.Script(f"import trainer\n{expression}.", project=project)
    assert attributes <= {found.name for found in script.complete(2, len(expression) + 1)}


@pytest.mark.parametrize("package", PACKAGES)
def test_public_functions_and_constructors_have_annotations(package):
    """Each argument but those with a default that tells its type, and Keras' own."""
    bare = []
    for name in PACKAGES[package].__all__:
        value = getattr(PACKAGES[package], name)
        if not callable(value) or value.__module__.split(".")[0] not in PACKAGES:
            continue
        function = value.__init__ if inspect.isclass(value) else value
        if inspect.isclass(value) and "__init__" not in vars(value):
            continue
        for parameter in inspect.signature(function).parameters.values():
            untyped = parameter.annotation is parameter.empty and parameter.default in (parameter.empty, None)
            if untyped and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                bare.append(f"{name}.{parameter.name}")
    assert not [name for name in bare if name.split(".")[1] not in ("self", "dtype", "target")]


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
