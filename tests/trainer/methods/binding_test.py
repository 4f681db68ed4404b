"""Methods in gin: by their short names, with the bindings of Trainer."""

import gin
import pytest

from trainer import config, methods

PARAMS = {
    "SAM": {"rho": 0.2},
    "ASAM": {"rho": 1.0},
    "PCGrad": {},
    "PenalizedGAN": {"generator": None, "discriminator": None, "penalty": "r1"},
    "UncertaintyWeighting": {"tasks": {"main": "regression"}},
}


def test_every_method_is_tried():
    assert set(PARAMS) == set(methods.__all__)


@pytest.mark.parametrize("name", PARAMS)
def test_a_binding_replaces_the_trainer(name):
    own = [f"{name}.{parameter} = {value!r}" for parameter, value in PARAMS[name].items()]
    config.read(params=[f"run.trainer = @{name}", "Trainer.guard = 'stop'", *own])
    config.bind()
    assert gin.get_bindings(name)["guard"] == "stop"
    built = config.injected(name)()
    assert type(built) is getattr(methods, name) and built.guard == "stop"
    for parameter, value in PARAMS[name].items():
        assert getattr(built, parameter) == value


def test_an_unknown_parameter_of_a_method_is_reported():
    with pytest.raises(config.ConfigError, match="`SAM` has no parameter `radius`"):
        config.read(params=["run.trainer = @SAM", "SAM.radius = 0.1"])
