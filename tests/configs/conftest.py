"""configs/ is on the path, as in a run: a gin file imports its module by its bare name."""

import sys

import pytest

import configs


@pytest.fixture(autouse=True)
def configs_on_the_path(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, configs.__path__[0]])
