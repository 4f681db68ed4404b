"""The state of a Trainer in a checkpoint, its names, and how it is restored."""

import tensorflow as tf

from trainer import console
from trainer.step.replica_state import seed_replicas
from trainer.step.variables import is_variable, name_layers, raw


def state_of(trainer, hooks=()):
    """Returns {name: variable} of all state that a step of `trainer` depends on, and of the state of `hooks`."""
    state = dict(trainer.variables)
    for group in trainer.groups:
        for name, slot in group.slots.items():
            state[f"optimizers/{group.name}/{name}"] = slot
        for index, transform in enumerate(group.transforms):
            for name, value in vars(transform).items():
                if is_variable(value):
                    state[f"transforms/{group.name}/{index}_{type(transform).__name__}/{name}"] = value
    if trainer.averages is not None:
        state.update({f"averages/{name}": slot for name, slot in trainer.averages.state.items()})
    for index, hook in enumerate(hooks):
        for name, variable in getattr(hook, "state", {}).items():
            state[f"hooks/{index}_{type(hook).__name__}/{name}"] = variable
    state["global_step"] = trainer.global_step
    state.update({f"guard/{name}": variable for name, variable in trainer.built.guard.state.items()})
    return state


def copy_state(trainer, hooks=()):
    """Returns {name: tensor} of `state_of`, copied once to host memory that no step writes to."""
    with tf.device("CPU:0"):
        return {
            name: tf.raw_ops.DeepCopy(x=raw(variable).read_value())
            for name, variable in state_of(trainer, hooks).items()
        }


def optimizer_classes(trainer):
    """Returns {group: class name of its optimizer}. Two classes may use one slot name for different quantities."""
    return {group.name: type(getattr(group.optimizer, "inner", group.optimizer)).__name__ for group in trainer.groups}


def learning_rates(trainer):
    """Returns {slot name: configured value} of the constant learning rates."""
    return {
        f"optimizers/{group.name}/learning_rate": group.learning_rate
        for group in trainer.groups
        if group.learning_rate is not None
    }


def restore(trainer, checkpoint, hooks=(), allow=("report/", "data/")):
    """Assigns a checkpoint to a built trainer and its hooks; eager. On an error, nothing is assigned.

    Hooks may differ from those of the checkpoint: the differing ones are
    printed and start with their initial state.

    A constant learning rate that changed in the config takes effect; one that a
    hook changed is restored.

    Returns:
        {name: array} of the tensors whose names start with one of `allow`.

    Raises:
        ValueError: with the names of all variables that are missing in the checkpoint or the program.
    """
    state, tensors = state_of(trainer, hooks), checkpoint.read()
    extra = {name: value for name, value in tensors.items() if name.startswith(tuple(allow))}
    tensors = {name: value for name, value in tensors.items() if name not in extra}
    lone = sorted(name for name in set(state) ^ set(tensors) if name.startswith("hooks/"))
    if lone and hooks:
        console.line(f"The hooks differ from those of the checkpoint. Reset or dropped: {', '.join(lone)}")
    state, tensors = ({name: value for name, value in each.items() if name not in lone} for each in (state, tensors))
    _check_optimizers(trainer, checkpoint)
    _check_partners(checkpoint, state, tensors)
    then, now = checkpoint.manifest.get("learning_rates", {}), learning_rates(trainer)
    for name, variable in state.items():
        if name in now and then.get(name) != now[name]:
            console.line(
                f"{name}: {then.get(name)} in the checkpoint, {now[name]} configured; the configured one is used."
            )
        else:
            variable.assign(tensors[name])
    settle(trainer)
    return extra


def settle(trainer):
    """Updates the state that depends on variables, after they were assigned; eager."""
    for layer in name_layers(trainer.held()):
        if hasattr(layer, "finalize_state"):  # Normalization and similar layers compute with copies of their variables
            layer.finalize_state()
    seed_replicas(trainer.strategy, trainer.variables.values())


def _check_optimizers(trainer, checkpoint):
    then, now = checkpoint.manifest.get("optimizers", {}), optimizer_classes(trainer)
    changed = [
        f"group {name!r}: {then[name]} in the checkpoint, {now[name]} now"
        for name in now
        if then.get(name, now[name]) != now[name]
    ]
    if changed:
        raise ValueError(
            f"{checkpoint.path} was written with other optimizers, whose slot variables are not compatible: "
            f"{'; '.join(changed)}. Start a "
            "new --model_dir, with --init_from for the weights; nothing was changed."
        )


def _check_partners(checkpoint, state, tensors):
    problems = {}
    # Model variables first: if one is missing, its slot variables need no line.
    for name in sorted(
        set(state) | set(tensors), key=lambda name: (name.startswith(("optimizers/", "averages/")), name)
    ):
        problem = _problem(state.get(name), tensors.get(name))
        if problem and not any(f"/{other}/" in f"{name}/" for other in problems):
            problems[name] = f"{name}: {problem}"
    if problems:
        shown = list(problems.values())[:40] + ([f"... and {len(problems) - 40} more"] if len(problems) > 40 else [])
        raise ValueError(
            f"{checkpoint.path} holds a different model than this program:\n  "
            + "\n  ".join(shown)
            + "\nUse another --model_dir, or --resume=never with an empty folder; nothing was changed."
        )


def _problem(variable, tensor):
    if tensor is None:
        return "not in the checkpoint"
    if variable is None:
        return "in the checkpoint only"
    if tuple(variable.shape) != tensor.shape:
        return f"{list(tensor.shape)} in the checkpoint, {list(variable.shape)} in the program"
    return None
