"""A trained Trainer from its run folder, and weights from another run."""

import pathlib

from trainer import config, console, specs
from trainer.checkpoints import Checkpoints
from trainer.replica_state import fork_seeds
from trainer.state import restore


def load(model_dir, step="latest", trainer=None):
    """Returns the trained Trainer of a run folder; eager.

    Args:
        model_dir: a folder that `run` wrote.
        step: "latest"; "best", the one that `Checkpoints.monitor` rated best; or the int step of one that is kept.
        trainer: a function that returns the Trainer, where the run had no gin config.
    """
    found = Checkpoints().open(model_dir)
    checkpoint = {"latest": found.latest, "best": found.best}.get(step, lambda: found.at(step))()
    if checkpoint is None:
        which = {"latest": "no whole checkpoint", "best": "no rated checkpoint (bind Checkpoints.monitor)"}.get(step, f"none of step {step!r}")
        raise ValueError(f"`model_dir` {str(model_dir)!r} has {which}; steps there: {found.steps()}.")
    if trainer is None:
        with config.isolated():
            config.read([str(pathlib.Path(model_dir) / "config.gin")])
            config.bind()
            made = config.bound_value("trainer.run", "trainer")()
    else:
        made = trainer()
    made.build(specs.spec_from_json(checkpoint.manifest["element_spec"]))
    restore(made, checkpoint)
    return made


def init_from(trainer, path):
    """Gives a built trainer those weights of the newest checkpoint below `path` whose names and shapes fit; eager."""
    checkpoint = Checkpoints().open(path).latest()
    if checkpoint is None:
        raise ValueError(f"`init_from` {path!r} is not a run folder with a whole checkpoint.")
    tensors, loaded = checkpoint.read(), []
    for name, variable in trainer.variables.items():
        if name in tensors and tensors[name].shape == tuple(variable.shape):
            variable.assign(tensors[name])
            loaded.append(name)
    fork_seeds(trainer.strategy, trainer.variables.values())
    left = [name for name in trainer.variables if name not in loaded]
    if not loaded:
        raise ValueError(f"{checkpoint.path} has no variable that fits this model.")
    rest = f"; as initialised: {', '.join(left)}" if left else ""
    console.line(f"Weights from {checkpoint.path}: {len(loaded)} of {len(trainer.variables)} variables{rest}")
