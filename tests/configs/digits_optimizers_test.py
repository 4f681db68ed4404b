"""configs/digits_optimizers: every optimizer of the table by one binding, and each learns."""

import numpy as np
import pytest

from tests.runs import read_rows, run_config

# name in gin: what three seeds reach at least, less .02
FLOORS = {"MomentumSGD": 0.935, "SGD": 0.80, "Adam": 0.935, "AdamW": 0.935, "optimizers.ScheduleFreeAdamW": 0.945}


def train(folder, *params):
    """Runs the shipped config; returns its last validation accuracy."""
    return read_rows(run_config("digits_optimizers", folder, *params), "validation")[-1]["metrics/accuracy"]


def test_one_binding_changes_the_optimizer(tmp_path):
    """Short form: chance is .1."""
    assert train(tmp_path, "Trainer.optimizers = @optimizers.ScheduleFreeAdamW()", "run.train_steps = 200") > 0.85
    assert "optimizers.ScheduleFreeAdamW" in (tmp_path / "operative_config.gin").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOORS)
def test_full_result_over_three_seeds(name, tmp_path):
    optimizer = f"Trainer.optimizers = @{name}()"
    accuracies = [train(tmp_path / str(seed), optimizer, f"run.seed = {seed}") for seed in range(3)]
    assert np.min(accuracies) > FLOORS[name]
