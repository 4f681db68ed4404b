"""The types of parameters, from declarations, annotations and defaults; and the check of values against them."""

import ast
import collections.abc
import dataclasses
import difflib
import math
import re
import textwrap
import types
import typing
from typing import Annotated, Any, Literal, NamedTuple, Union

from trainer.config.paths import folder_path
from trainer.config.statements import Opaque

REQUIRED = object()  # the default of a parameter without one


@dataclasses.dataclass(frozen=True)
class Computed:
    """A default that is not a literal; `text` is its source."""

    text: str = "..."

    def __repr__(self):
        return self.text


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter of a function or class.

    Attributes:
        default: its value if it is a literal, else Computed; REQUIRED if there is none.
        annotation: a type, or None if it has no annotation of known types.
        meaning: its documentation in the docstring, or "".
    """

    name: str
    default: Any = Computed()
    annotation: Any = None
    meaning: str = ""

    @property
    def is_required(self) -> bool:
        return self.default is REQUIRED


class Signature(NamedTuple):
    """The named parameters, the required ones, whether other names are accepted, the number of positional ones."""

    parameters: dict[str, Parameter]
    required: list[str]
    takes_any: bool
    positional: float


@dataclasses.dataclass(frozen=True)
class Range:
    """A range of numbers, as in Annotated[int, Range(1)]; bounds are inclusive, `above` and `below` exclusive."""

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def __contains__(self, value) -> bool:
        return self.low <= value <= self.high and self.above < value < self.below

    def __str__(self) -> str:
        shown = ((">=", self.low), (">", self.above), ("<=", self.high), ("<", self.below))
        return " and ".join(f"{sign} {bound}" for sign, bound in shown if math.isfinite(bound))


@dataclasses.dataclass(frozen=True)
class Object:
    """A parameter that takes an object, in gin `@f()`, or a function of `arguments` positional arguments."""

    arguments: int | None = None


class Maker:
    """A parameter that takes an uncalled function or class, in gin `@f`."""


class Folder:
    """A parameter that takes the path of a local folder, which need not exist."""


_COUNT, _FROM_0 = Annotated[int, Range(1)], Annotated[int, Range(0)]
_SHARE = Annotated[float, Range(0, below=1)]
_MODES = ("train_and_eval", "train", "eval", "export", "fast_dev_run")
_STRATEGIES = ("auto", "default", "one_device", "mirrored", "multi_worker_mirrored", "tpu")

# Definition -> {parameter: its type}. Constructors check the same values; these checks need no TensorFlow.
DECLARED = {
    "trainer.experiment.run": {
        "model_dir": Folder(),
        "trainer": Maker(),
        "train_data": Maker(),
        "eval_data": Maker(),
        "train_steps": _COUNT | None,
        "epochs": Annotated[float, Range(above=0)] | None,
        "steps_per_loop": _COUNT,
        "loop_seconds": Annotated[float, Range(above=0)],
        **dict.fromkeys(("eval_interval", "checkpoint_interval", "summary_interval"), _COUNT | None),
        "seed": Annotated[int, Range(0, 2**32 - 1)],
        "deterministic": bool,
        "strategy": Literal[_STRATEGIES],
        "checkpoints": Object(),
        "hooks": Object(3),
        "mode": Literal[_MODES],
        "resume": Literal["auto", "never", "must"],
        "overfit_batches": _COUNT | None,
        "sanity_eval_batches": _FROM_0,
        "limit_eval_batches": _COUNT | None,
        "progress": Literal["auto", "plain", "none"],
    },
    "trainer.trainer.Trainer": {
        "model": Object(),
        "loss": Object(2),
        "metrics": Object(2),
        "optimizers": Object(),
        "guard": Literal["skip", "stop", "off"],
        "compile": Literal["graph", "eager", "xla_step", "xla_loop"],
        "micro_batches": _COUNT,
        "averages": Object(),
        "max_skipped": _COUNT,
    },
    "optimizers.groups.OptimizerGroup": {
        "optimizer": Object(),
        "transforms": Object(3),
        "every": _COUNT,
        "start": _FROM_0,
        "sequential": bool,
    },
    "optimizers.averages.EMA": {"decay": _SHARE},
    "trainer.saving.checkpoints.Checkpoints": {"keep": _COUNT},
    "keras.src.models.sequential.Sequential": {"layers": Object()},
}
_LEARNING_RATE = Object(0)

_KNOWN = {
    **{t.__name__: t for t in (bool, int, float, str, list, tuple, dict, set)},
    **{name: getattr(typing, name) for name in ("Any", "Optional", "Union", "Literal", "Annotated")},
    **{name: getattr(collections.abc, name) for name in ("Sequence", "Iterable", "Mapping", "Callable")},
    **{"List": list, "Tuple": tuple, "Dict": dict, "Range": Range},
}


def annotation(node) -> Any:
    """Returns the type of an annotation's syntax node, or None if there is none or it has unknown names."""
    if node is None:
        return None
    if isinstance(node, ast.Constant) and isinstance(node.value, str):  # a string, or a forward reference
        try:
            node = ast.parse(node.value, mode="eval").body
        except SyntaxError:
            return None
    allowed = (ast.Name, ast.Load, ast.Subscript, ast.Tuple, ast.List, ast.Constant, ast.BinOp, ast.BitOr, ast.Call)
    allowed += (ast.keyword, ast.UnaryOp, ast.USub, ast.Attribute)
    names = _WithoutModules().visit(ast.fix_missing_locations(ast.Expression(node)))
    inner = list(ast.walk(names.body))
    if not all(isinstance(n, allowed) and (not isinstance(n, ast.Name) or n.id in _KNOWN) for n in inner):
        return None
    try:
        return eval(compile(names, "annotation", "eval"), {"__builtins__": {}}, _KNOWN)
    except Exception:  # not a valid type
        return None


class _WithoutModules(ast.NodeTransformer):
    """Replaces `typing.Literal` by `Literal`."""

    def visit_Attribute(self, node):
        return ast.copy_location(ast.Name(node.attr, ast.Load()), node)


def meanings(docstring: str | None) -> dict[str, str]:
    """Returns {parameter: its text} of the section Args of a docstring."""
    section = re.search(r"^(?:Args|Arguments):\n((?:[ \t]+.*\n?|\n)*)", docstring or "", re.MULTILINE)
    found = {}
    for entry in re.split(r"\n(?=\S)", textwrap.dedent(section[1])) if section else ():
        names, _, text = entry.partition(":")
        for name in names.split(","):
            found[name.split("(")[0].strip(" `*\n")] = " ".join(text.split())
    return found


def takes(parameter: Parameter) -> Object | Maker | None:
    """Returns whether a parameter takes `@f` (Maker) or `@f()` (Object); None: either."""
    if isinstance(parameter.annotation, Object | Maker):
        return parameter.annotation
    return _LEARNING_RATE if parameter.name == "learning_rate" else None


def rule(parameter: Parameter) -> str:
    """Returns the rule for a parameter in words; "" if there is none."""
    wanted = takes(parameter)
    if isinstance(parameter.annotation, Folder):
        return "the path of a local folder"
    if isinstance(wanted, Maker):
        return "an uncalled function or class: `@f`, not `@f()`"
    return (
        "an object: `@f()`, not `@f`"
        if wanted
        else ""
        if parameter.annotation is None
        else _words(parameter.annotation)
    )


def fitted(parameter: Parameter, value: Any, label: str) -> tuple[Any, str | None]:
    """Returns (the value, with ints and whole floats converted to the parameter's type; the problem or None)."""
    wanted, default = parameter.annotation, parameter.default
    if isinstance(wanted, Object | Maker):
        is_wrong = isinstance(wanted, Maker) and isinstance(value, str | int | float)
        return value, f"`{label}` must be an uncalled function or class, `@f`, got {value!r}." if is_wrong else None
    if isinstance(wanted, Folder):
        try:
            if value is not None and not isinstance(value, Opaque):
                folder_path(label, value)
        except ValueError as error:
            return value, str(error)
        return value, None
    if wanted is not None:
        fits, value = _fit(wanted, value)
        near = _nearest(wanted, value) if not fits else ""
        return value, None if fits else f"`{label}` must be {_words(wanted)}, got {value!r}.{near}"
    if isinstance(value, str) and isinstance(default, int | float):
        rule = "True or False" if isinstance(default, bool) else "a number"
        return value, f"`{label}` must be {rule}, like its default {default!r}, got {value!r}."
    # The default shows which type the parameter accepts.
    if type(default) in (int, float) and type(value) in (int, float):
        return _fit(type(default), value)[1], None
    return value, None


def _fit(wanted, value) -> tuple[bool, Any]:
    """Returns whether a value has a type, and the converted value. Values that gin builds later fit every type."""
    origin, args = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is Annotated:
        fits, value = _fit(args[0], value)
        ranges = [r for r in args[1:] if isinstance(r, Range)]
        return fits and (isinstance(value, Opaque) or all(value in r for r in ranges)), value
    if origin in (Union, types.UnionType):
        tried = [_fit(arg, value) for arg in args]
        return next((result for result in tried if result[0]), (False, value))
    if isinstance(value, Opaque) or wanted is Any:
        return True, value
    if origin is Literal:
        return value in args, value
    kind = origin or wanted
    if kind in (None, type(None)):
        return value is None, value
    if kind is float:
        is_number = type(value) in (int, float)
        return is_number, float(value) if is_number else value
    if kind is int:
        is_whole = type(value) is int or (type(value) is float and value.is_integer())
        return is_whole, int(value) if is_whole else value
    if kind in (bool, str):
        return isinstance(value, kind), value
    if kind in (dict, collections.abc.Mapping):
        return isinstance(value, dict), value
    if kind in (list, tuple, set, collections.abc.Sequence, collections.abc.Iterable):
        if not isinstance(value, list | tuple):
            return False, value
        item = args[0] if args and (kind is not tuple or args[-1] is ... or len(args) == 1) else Any
        results = [_fit(item, v) for v in value]
        return all(fits for fits, _ in results), type(value)(v for _, v in results)
    if kind is collections.abc.Callable:
        return False, value  # a reference is opaque
    return True, value


def _words(wanted) -> str:
    """Returns a type in words."""
    origin, args = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is Annotated:
        return " ".join([_words(args[0]), *map(str, args[1:])])
    if origin in (Union, types.UnionType):
        return " or ".join(map(_words, args))
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}" if len(args) > 1 else repr(args[0])
    simple = {int: "an int", float: "a number", bool: "True or False", str: "a string", type(None): "None"}
    if wanted in simple:
        return simple[wanted]
    name = getattr(origin or wanted, "__name__", str(wanted)).lower()
    items = [_words(a).removeprefix("an ").removeprefix("a ") for a in args[:1] if a is not Any]
    return f"a {name}" + (f" of {items[0]}" if items and name != "callable" else "")


def _nearest(wanted, value) -> str:
    choices = [
        a
        for part in (wanted, *typing.get_args(wanted))
        if typing.get_origin(part) is Literal
        for a in typing.get_args(part)
    ]
    near = difflib.get_close_matches(str(value), [c for c in choices if isinstance(c, str)], n=1, cutoff=0.5)
    return f" Did you mean `{near[0]}`?" if near else ""
