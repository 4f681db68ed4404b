"""The config as gin text: as given, as used, and resolved; and its files in a run folder."""

import contextlib
import difflib
import importlib
import pprint
import re
from collections.abc import Mapping
from typing import Any

import gin

from trainer.config import registry, run_folder
from trainer.config.binding import asked
from trainer.config.statements import FOLDER_MARK

_OF_A_START = {("trainer.run", arg) for arg in ("model_dir", "mode", "resume")}  # may differ between starts of a run
_OF_THE_START = re.compile(r"[+-]trainer\.run\.(model_dir|mode|resume) =")


def config_text() -> str:
    """Returns the bindings given, all files and flags merged, as one gin file for `read`."""
    copied = asked().copied.values()
    given = {
        key: {arg: value for arg, value in args.items() if (*key, arg) not in copied}
        for key, args in registry.internals().config.items()
    }
    return _text(given)


def bindings() -> dict[str, Any]:
    """Returns {"scope/module.name.parameter": value} of the bindings given, macros replaced; none of a single start."""
    return {
        f"{scope}/{name}.{arg}".removeprefix("/"): _without_macros(value)
        for (scope, name), args in registry.internals().config.items()
        for arg, value in args.items()
        if name != "gin.macro" and (name, arg) not in _OF_A_START and (scope, name, arg) not in asked().copied
    }


def operative_text() -> str:
    """Returns the values used, including defaults, without values that gin cannot write."""
    return _text(registry.internals().operative)


def resolved_text() -> str:
    """Returns the values used and those bound, macros replaced, each with its file and line or "default".

    Read again, it gives the same run. Bindings of a single start, such as `model_dir`, are omitted.
    """
    bound, operative = registry.internals()[:2]
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for key, args in [*bound.items(), *operative.items()]:
        if key[1] != "gin.macro":
            kept = {arg: _without_macros(v) for arg, v in args.items() if (*key, arg) not in asked().copied}
            merged.setdefault(key, {}).update({a: v for a, v in kept.items() if (key[1], a) not in _OF_A_START})
    return _text(merged, origin=True)


def _without_macros(value: Any) -> Any:
    """Returns a bound value with its macros replaced by their values."""
    if isinstance(value, gin.config.ConfigurableReference) and value.selector == "gin.macro":
        bound = registry.internals().config.get(value.config_key, {})
        return _without_macros(bound["value"]) if "value" in bound else value
    if isinstance(value, dict):
        return {_without_macros(k): _without_macros(v) for k, v in value.items()}
    return type(value)(map(_without_macros, value)) if type(value) in (list, tuple) else value


def _origin(scope: str, name: str, arg: str) -> str:
    """Returns where the value of a parameter comes from: the binding in the innermost scope, or "default"."""
    copied = {to: of for of, to in asked().copied.items()}
    parts = scope.split("/") if scope else []
    for i in range(len(parts), -1, -1):
        key = ("/".join(parts[:i]), name, arg)
        statement = asked().bound.get(copied.get(key, key))
        if statement:
            return statement.where
    return "default"


def _text(bindings: Mapping[tuple[str, str], Mapping[str, Any]], origin: bool = False) -> str:
    lines = [FOLDER_MARK + folder for folder in asked().folders]
    lines += sorted({f"import {_module_of(statement)}" for statement, _, _ in asked().imports})
    section = None
    for (scope, name), args in sorted(bindings.items(), key=lambda item: _order(*item[0])):
        if name == "gin.constant":
            continue
        if name != section:
            lines.append("")
            section = name
        for arg, value in sorted(args.items()):
            key = scope if name == "gin.macro" else f"{scope}/{name}.{arg}" if scope else f"{name}.{arg}"
            literal = pprint.pformat(value, width=100, sort_dicts=False)
            with contextlib.suppress(Exception):  # any exception of gin for a value that it cannot parse
                if gin.config.parse_value(literal) == value:
                    comment = f"  # {_origin(scope, name, arg)}" if origin else ""
                    lines.append(f"{key} = {literal}{comment}")
    return "\n".join(lines) + "\n"


def _module_of(statement) -> str:
    """Returns the module of a gin import; `from a import B` may name an object in it."""
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module(statement.module)
        return statement.module
    return statement.module.rpartition(".")[0]


def _order(scope: str, name: str) -> tuple:
    return name != "gin.macro", name != "trainer.run", name != "trainer.Trainer", name, scope


def save(model_dir: str, command: str | None = None) -> None:
    """Writes the config files and command.txt into a run folder; see run_folder.py."""
    command = asked().command if command is None else command
    run_folder.save(model_dir, config_text(), operative_text(), command, resolved_text())


def difference(old: str, new: str) -> str:
    """Returns the bindings that two config texts do not share, "-" the old and "+" the new; empty if none."""
    a, b = ([line for line in text.splitlines() if line and line[0] != "#"] for text in (old, new))
    lines = [line for line in difflib.unified_diff(a, b, n=0, lineterm="") if line[:2] not in ("--", "++", "@@")]
    return "\n".join(line for line in lines if not _OF_THE_START.match(line))
