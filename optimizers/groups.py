"""Optimizer groups: which optimizer trains which variables, on which losses, when, and with which transforms."""

import contextlib
import difflib
import numbers
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import gin
import keras
import tensorflow as tf

from optimizers.base import check_bool, check_count, check_number
from optimizers.fused import fuse
from optimizers.keras_optimizers import move_clipping, one_optimizer, skip_gradient_reduction, update


class OptimizerGroup:
    """A set of variables with the optimizer, losses, schedule and gradient transforms that train it.

    The group is updated at step s (`global_step` before the step) when
    `start <= s < stop` and `(s - offset) % every == 0`.

    Args:
        variables: regular expression that must match a variable's whole name
            ('encoder/.*'), a list of them, or a callable name -> bool.
        losses: names of the losses whose sum the group minimizes, or a dict
            name -> weight, a number or a schedule (a callable of the step).
            None: all losses.
        optimizer: a Keras optimizer or its name.
        transforms: gradient transforms, applied in this order.
        every: int >= 1, steps between updates.
        offset: int, shift of the updates, in steps.
        start, stop: the group is updated at steps start <= s < stop
            (None: no end).
        sequential: True computes the gradients again, on the same batch, after
            the groups listed before were updated.
        fused: True updates with fewer kernels if the optimizer is one of Keras' classes in optimizers/fused.py; False
            uses Keras' `update_step`. Results agree up to rounding.
        name: defaults to the gin scope in which the group is created.
    """

    def __init__(
        self,
        variables: str | Callable[[str], bool] | Sequence = ".*",
        losses: Sequence[str] | Mapping[str, float | Callable] | None = None,
        optimizer: keras.optimizers.Optimizer | str = "adam",
        transforms: Sequence[Callable] = (),
        every: int = 1,
        offset: int = 0,
        start: int = 0,
        stop: int | None = None,
        sequential: bool = False,
        fused: bool = True,
        name: str | None = None,
    ):
        every = check_count("every", every, 1, "1 updates the group at each step.")
        offset = check_number("offset", offset, "a whole number", lambda x: x == int(x), "It shifts `every`, in steps.")
        start = check_count("start", start, 0, "It is the first step of the group.")
        stop = stop if stop is None else check_count("stop", stop, 1, "None never stops.")
        if stop is not None and stop <= start:
            raise ValueError(f"`start` and `stop` must satisfy 0 <= start < stop, got start={start}, stop={stop}.")
        if not isinstance(name, (str, type(None))):
            raise ValueError(f"`name` must be a str, got {name!r}.")
        self.patterns = check_patterns("variables", variables)
        self.losses = _check_losses(losses)
        self.notes = []  # changes of the optimizer, for the banner
        self.optimizer = one_optimizer(optimizer, self.notes)
        self.transforms = [*move_clipping(self.optimizer, self.notes), *_check_transforms(transforms)]
        self.every, self.offset, self.start, self.stop = every, int(offset), start, stop
        self.sequential, self.fused = check_bool("sequential", sequential), check_bool("fused", fused)
        self.name = name or gin.current_scope_str().replace("/", "_") or None
        self.convert = lambda function: function  # set by the trainer: AutoGraph for users' transforms and schedules
        self.variable_names, self.variables, self.slots = [], [], {}
        self.fused_update, self.takes_dense_gradients = None, False  # dense if the update makes them dense anyway
        self.learning_rate = None

    @property
    def always_due(self) -> bool:
        """True if the group is updated at every step (no condition is needed in the graph)."""
        return self.every == 1 and self.start == 0 and self.stop is None

    def due(self, step: tf.Tensor) -> tf.Tensor:
        """Returns whether the group is updated at `step` (int64 scalar); traced, cross-replica."""
        is_due = tf.logical_and(step >= self.start, tf.math.floormod(step - self.offset, self.every) == 0)
        return is_due if self.stop is None else tf.logical_and(is_due, step < self.stop)

    def loss_weights(self, names: Iterable[str]) -> dict[str, float | Callable]:
        """Returns {loss name: weight or schedule} for the step's loss `names`; raises ValueError for unknown names."""
        if self.losses is None:
            return dict.fromkeys(names, 1.0)
        weights = self.losses if isinstance(self.losses, dict) else dict.fromkeys(_as_list(self.losses), 1.0)
        for name in weights:
            if name not in names:
                raise ValueError(
                    f"`losses` of group {self.name!r} names {name!r}, but the step has the losses {', '.join(names)}."
                    + _nearest(name, names)
                )
        return weights

    def objective(self, losses: dict[str, tf.Tensor], step: tf.Tensor) -> tf.Tensor:
        """Returns the scalar that the group minimizes; traced, per replica.

        Args:
            losses: {name: scalar}.
            step: int64 scalar, for weights that are schedules.
        """
        weights = self.loss_weights(losses)
        terms = [self._weigh(losses[name], weight, step) for name, weight in weights.items()]
        widest = max((term.dtype for term in terms), key=lambda dtype: dtype.size)
        return tf.add_n([tf.cast(term, widest) for term in terms])

    def _weigh(self, loss, weight, step):
        if callable(weight):
            return loss * tf.cast(self.convert(weight)(step), loss.dtype)
        return loss if weight == 1.0 else loss * weight

    def check_connected(self, gradients, losses, explain=lambda missing: {}):
        """Raises ValueError that names the variables for which `gradients` holds None, and why; traced.

        Args:
            explain: function of these names that returns {name: reason} for those with a known reason.
        """
        missing = [name for name, gradient in zip(self.variable_names, gradients) if gradient is None]
        if missing:
            reasons = {name: "" for name in missing}
            reasons.update({name: str(reason) for name, reason in explain(missing).items()})
            by_reason = {why: [name for name in missing if reasons[name] == why] for why in reasons.values()}
            lines = [
                f"\n    {', '.join(names)}" + (":\n" + why if why else "").replace("\n", "\n      ")
                for why, names in by_reason.items()
            ]
            raise ValueError(
                f"Group {self.name!r} trains variables that its losses ({', '.join(self.loss_weights(losses))}) do not "
                "depend on, or only through operations without a gradient:"
                + "".join(lines)
                + "\n  Connect them, or list them in `Trainer.frozen`."
            )

    def build(self, named_variables: dict[str, keras.Variable]) -> None:
        """Creates the slot variables for {name: keras.Variable} and the transforms' state; eager, in scope."""
        self.variable_names = list(named_variables)
        self.variables = list(named_variables.values())
        names = {id(variable): name for name, variable in named_variables.items()}
        if hasattr(self.optimizer, "name_variables"):  # our optimizers match their patterns against these names
            self.optimizer.name_variables(self.variable_names)
        create = self.optimizer.add_variable_from_reference
        was_built = getattr(self.optimizer, "inner", self.optimizer).built

        def record(reference_variable, name=None, *args, **kwargs):
            slot = create(reference_variable, name, *args, **kwargs)
            key = f"{names.get(id(reference_variable), reference_variable.name)}/{name or 'var'}"
            self.slots[key] = slot
            return slot

        self.optimizer.add_variable_from_reference = record
        try:
            self.optimizer.build(self.variables)
        finally:
            del self.optimizer.add_variable_from_reference
        recorded = {id(slot) for slot in self.slots.values()}
        for variable in self.optimizer.variables:
            if id(variable) not in recorded:
                self.slots[self._slot_name(variable)] = variable
        if "learning_rate" in self.slots:  # a variable only if it is a constant
            self.learning_rate = float(self.slots["learning_rate"].numpy())
        skip_gradient_reduction(self.optimizer)
        if self.fused and not was_built:  # else the names of the slots are not known
            self.fused_update = fuse(self.optimizer, self.variable_names, self.slots)
            self.takes_dense_gradients = bool(self.fused_update and self.fused_update.dense and not self.transforms)
        for transform in self.transforms:
            if hasattr(transform, "build"):
                transform.build(self.variables)

    def _slot_name(self, slot):
        """Names a slot variable that the optimizer created itself, by its name, its attribute, or the list it is in."""
        for attribute, held in vars(getattr(self.optimizer, "inner", self.optimizer)).items():
            if held is slot and re.fullmatch(r"variable(_\d+)?", slot.name):  # a name that Keras generated
                return attribute.lstrip("_")
            if (
                isinstance(held, (list, tuple))
                and len(held) == len(self.variables)
                and not attribute.endswith("variables")
            ):
                for name, item in zip(self.variable_names, held):
                    if item is slot:
                        return f"{name}/{attribute.lstrip('_')}"
        name = slot.name
        while name in self.slots:
            name += "_"
        return name

    def apply(self, gradients: list, norms: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Transforms the reduced `gradients` and updates the variables; traced, per replica.

        Returns:
            {report name: scalar} of the transforms' reports.
        """
        reports = {}
        for transform in self.transforms:
            gradients = self.convert(transform)(gradients, self.variables, norms)
            if hasattr(transform, "report"):
                for key, value in transform.report().items():
                    reports[key] = tf.maximum(reports[key], value) if key in reports else value
        pairs = [(g, v) for g, v in zip(gradients, self.variables) if g is not None]
        if pairs:
            with self.fused_update.one_update() if self.fused_update else contextlib.nullcontext():
                update(self.optimizer, [(tf.cast(g, v.dtype) if g.dtype != v.dtype else g, v) for g, v in pairs])
        return reports


def check_patterns(argument, patterns):
    """Returns `patterns` (a regular expression, a callable name -> bool, or a list of them); raises ValueError else."""
    for pattern in _as_list(patterns):
        if not callable(pattern) and not isinstance(pattern, (str, re.Pattern)):
            raise ValueError(
                f"`{argument}` must be a regular expression, a callable name -> bool, or a list of them, got "
                f"{pattern!r:.80}."
            )
        if isinstance(pattern, str):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"`{argument}` {pattern!r} is not a regular expression: {error}.") from None
    return patterns


def _check_losses(losses):
    weights = losses if isinstance(losses, dict) else dict.fromkeys(_as_list(losses), 1.0) if losses is not None else {}
    for name, weight in weights.items():
        number = isinstance(weight, numbers.Real) and not isinstance(weight, bool)
        if not isinstance(name, str) or not (number or tf.is_tensor(weight) or callable(weight)):
            raise ValueError(
                "`losses` must be names of losses, a dict name -> weight (a number, or a callable of the step), or "
                f"None for all of them, got {losses!r:.80}."
            )
    return losses


def _check_transforms(transforms):
    for transform in _as_list(transforms):
        if isinstance(transform, type) or not callable(transform):
            cure = (
                f" Call it: {transform.__name__}(...), in gin @{transform.__name__}()."
                if isinstance(transform, type)
                else ""
            )
            raise ValueError(
                "`transforms` must hold callables (gradients, variables, norms) -> gradients, got "
                f"{transform!r:.80}.{cure}"
            )
    return _as_list(transforms)


def as_groups(optimizers):
    """Returns a list of named groups from one optimizer, one group, or a list of groups."""
    listed = _as_list(optimizers)
    if not listed:
        raise ValueError("`optimizers` must hold at least one optimizer or OptimizerGroup, got none.")
    if len(listed) == 1 and not isinstance(listed[0], OptimizerGroup):
        return [OptimizerGroup(optimizer=listed[0], name="main")]
    for i, group in enumerate(listed):
        if not isinstance(group, OptimizerGroup):
            raise ValueError(
                f"`optimizers` must be one optimizer, or a list of OptimizerGroup; item {i} is {group!r:.80}. "
                "Wrap it: OptimizerGroup(variables='...', optimizer=...)."
            )
        group.name = group.name or f"group_{i}"
    names = [group.name for group in listed]
    if "all" in names:
        raise ValueError(
            "`optimizers` has a group named 'all', the name of the norm over all groups. Rename the group."
        )
    if len(set(names)) < len(names):
        raise ValueError(f"`optimizers` has two groups of one name: {', '.join(names)}. Give each its own `name`.")
    optimizer_ids = [id(group.optimizer) for group in listed]
    if len(set(optimizer_ids)) < len(optimizer_ids):
        raise ValueError("`optimizers` uses one optimizer object in two groups; make one for each (in gin: scopes).")
    return listed


def assign(groups, frozen, variables):
    """Assigns every trainable variable to exactly one group, or to a `frozen` pattern.

    Args:
        groups: list of OptimizerGroup.
        frozen: patterns of variables that do not train; they win over the groups'.
        variables: {name: trainable keras.Variable}.

    Returns:
        ({group name: {variable name: variable}}, {frozen variable name: pattern}).

    Raises:
        ValueError: with all variables in no or several groups, and all patterns without a match.
    """
    problems = []
    matched = {pattern: _matching(pattern, variables) for pattern in _as_list(frozen)}
    frozen_names = {name: pattern for pattern, names in matched.items() for name in names}
    problems += [_no_match("frozen", pattern, variables) for pattern, names in matched.items() if not names]
    owners = {name: [] for name in variables}
    for group in groups:
        for pattern in _as_list(group.patterns):
            names = _matching(pattern, variables)
            if not names:
                problems.append(_no_match(f"{group.name}/OptimizerGroup.variables", pattern, variables))
            for name in names:
                if name not in frozen_names and group not in owners[name]:
                    owners[name].append(group)
    strays = [name for name, own in owners.items() if not own and name not in frozen_names]
    if strays:
        problems.append(
            "These trainable variables belong to no group; add them to one, or to `Trainer.frozen`:\n    "
            + "\n    ".join(strays)
        )
    for name, own in owners.items():
        if len(own) > 1:
            problems.append(f"{name} belongs to {len(own)} groups: {', '.join(group.name for group in own)}.")
    for group in groups:
        if not problems and not any(group in own for own in owners.values()):
            problems.append(f"Group {group.name!r} has no variables: all that its pattern matches are frozen.")
    if problems:
        raise ValueError("`optimizers` must cover each trainable variable exactly once.\n  " + "\n  ".join(problems))
    split = {g.name: {name: variables[name] for name, own in owners.items() if g in own} for g in groups}
    return split, frozen_names


def _matching(pattern, names):
    if callable(pattern):
        return [name for name in names if pattern(name)]
    try:
        return [name for name in names if re.fullmatch(pattern, name)]
    except re.error as error:
        raise ValueError(f"`variables` must be a regular expression, got {pattern!r}: {error}.") from None


def _no_match(where, pattern, names):
    return (
        f"`{where}` {pattern!r} matches no trainable variable."
        + _nearest(str(pattern), names)
        + (f" Their names: {', '.join(list(names)[:12])}{', ...' if len(names) > 12 else ''}.")
    )


def _nearest(name, names):
    near = difflib.get_close_matches(name, list(names), 1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _as_list(value):
    return list(value) if isinstance(value, (list, tuple)) else [value]
