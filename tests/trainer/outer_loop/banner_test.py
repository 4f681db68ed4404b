"""The banner folds a table of more than 30 variables; `--dry_run` shows all of them."""

import keras

from optimizers import OptimizerGroup
from tests.runs import random_arrays
from trainer import Trainer, data
from trainer.outer_loop.banner import show


def test_a_long_table_is_folded_into_totals(capsys):
    layers = [keras.layers.Dense(3, name=f"hidden_{i}") for i in range(15)]
    model = keras.Sequential([keras.Input((3,)), *layers, keras.layers.Dense(1, name="head")])
    trainer = Trainer(model, "mse", optimizers=[OptimizerGroup("hidden_.*", name="body"), OptimizerGroup("head/.*")])
    source = data.from_arrays(random_arrays(8), 8)
    trainer.distribute(source)
    show(trainer, source, 0, 10, None)
    folded = capsys.readouterr().out.splitlines()
    assert not any(line.startswith("hidden_3/kernel") for line in folded)
    row = next(line for line in folded if line.startswith("body"))
    assert row.split()[:4] == ["body", "30", "180", "180"]  # 15 layers of 9 + 3 parameters
    assert row.split()[4:6] == ["720", "B"]
    assert folded[-1] == "--dry_run lists all 32 variables, with their groups, learning rates and transforms."
    show(trainer, source, 0, 10, None, all_variables=True)
    assert sum(line.startswith("hidden_") for line in capsys.readouterr().out.splitlines()) == 30
