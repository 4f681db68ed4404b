"""Formats an exception on one screen: the user's frames first, and the gin binding that built the object."""

import linecache
import os
import pathlib
import re
import sysconfig
from collections.abc import Mapping
from typing import Any

import gin

from trainer import config
from trainer.config import registry
from trainer.config.paths import PACKAGES, ROOT
from trainer.config.statements import shown
from trainer.diagnosis import reasons

_GIN_NOTE = re.compile(r"\n  In call to configurable '.*")
_HIDDEN = {"tensorflow", "keras", "gin", "absl", "numpy", "wrapt"}


def _frames(error: BaseException) -> list[tuple[str, int, str, Mapping[str, Any]]]:
    """Returns [(file, line, function, locals)], outermost first. AutoGraph puts the original lines into the message."""
    frames, trace = [], error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append((code.co_filename, trace.tb_lineno, code.co_name, trace.tb_frame.f_locals))
        trace = trace.tb_next
    text = "\n".join([str(error), *getattr(error, "__notes__", ())])  # notes: autograph.py
    converted = re.findall(r'^\s*File "([^"]+)", line (\d+), in (\w+)', text, re.MULTILINE)
    return frames + [(file, int(line), name, {}) for file, line, name in converted]


def _is_ours(file: str) -> bool:
    return any(pathlib.Path(file).is_relative_to(ROOT / p) for p in PACKAGES if p != "configs")


def _is_users(file: str) -> bool:
    paths = sysconfig.get_paths()
    if not os.path.isfile(file) or _is_ours(file) or "__autograph_generated_file" in file:
        return False
    for site in {paths["purelib"], paths["platlib"]}:
        if pathlib.Path(file).is_relative_to(site):
            return pathlib.Path(file).relative_to(site).parts[0] not in _HIDDEN
    return not pathlib.Path(file).is_relative_to(paths["stdlib"])


def is_teaching(error: BaseException) -> bool:
    """True if main prints only the text: for a config.ConfigError, or a ValueError raised by our code."""
    if isinstance(error, config.ConfigError):
        return True
    files = [file for file, *_ in _frames(error) if "__autograph_generated_file" not in file]
    return isinstance(error, ValueError) and bool(files) and _is_ours(files[-1])


def lesson(error: BaseException) -> str:
    """Returns the message of a teaching error, with the binding of the argument that it names first."""
    text = message(error)
    named = re.match(r"`(?:\w+\.)*(\w+)`", text)
    if isinstance(error, config.ConfigError) or named is None:
        return text
    callers = [f for f in reversed(_frames(error)) if f[2] == "gin_wrapper" and f[0] == gin.config.__file__]
    selectors = [local.get("current_selector") for *_, local in callers]
    selectors.append("trainer.run")
    # Trainer.optimizers may be one `optimizer`.
    statement = config.binding_of(selectors, named[1]) or config.binding_of(selectors, f"{named[1]}s")
    return f"{text}\n  bound at {statement.where}: {statement.text}" if statement and statement.line else text


def binding_of(error: BaseException) -> str | None:
    """Returns the binding that built the object in which `error` was raised, with file and line."""
    lookup = registry.internals().lookup
    for file, _, name, local in reversed(_frames(error)):
        selector = scope = None
        if name == "gin_wrapper" and file == gin.config.__file__:
            selector, scope = local.get("current_selector"), local.get("scope_str")
        elif "self" in local:  # any frame: traced code has lost the user's frame
            selector = getattr(lookup(type(local["self"])), "selector", None)
        if selector in (None, "gin.macro", "trainer.run"):
            continue
        for _, statement, reference in config.references():
            if reference.configurable.selector == selector and scope in (None, reference.config_key[0]):
                return f"{statement.where}: {statement.text}"
    return None


def explain(error: BaseException) -> str:
    """Returns the text for `error`: type and message, the user's frames, the binding that built the object."""
    text = message(error)
    lines = [f"{type(error).__name__}: {text}" if text else type(error).__name__]
    frames = _frames(error)
    if isinstance(error, SyntaxError) and error.filename:
        frames.append((error.filename, error.lineno, "its source", {}))
    own = [f for f in frames if _is_users(f[0])] or ([] if getattr(error, "is_nobodys_code", False) else frames[-1:])
    for file, line, name, _ in list(dict.fromkeys((f, n, w, "") for f, n, w, _ in own))[-8:]:
        lines.append(f"  {shown(file)}:{line} in {name}\n      {linecache.getline(file, line).strip()}")
    built_by = binding_of(error)
    cure = reasons.cure_of_error(error)
    return "\n".join(lines + ([f"  built by {built_by}"] if built_by else []) + ([f"  {cure}"] if cure else []))


def message(error: BaseException) -> str:
    """Returns the message of `error` without gin's notes and AutoGraph's frames, which `explain` formats itself."""
    text = _GIN_NOTE.sub("", str(error)).strip()
    if text.startswith("in user code:"):
        text = re.sub(r"\A.*?\n {4}(?=\S)(?!File )(\w+: )?", "", text, count=1, flags=re.DOTALL)
        text = text.replace("\n    ", "\n")
    return re.sub(r"\x1b\[\d+m", "", text)  # Keras' colors
