"""Gin: register, validate, explain, persist.

Two phases. `read` checks the files, before TensorFlow is imported. `bind` then imports Keras, Gradloom
and the user's modules, checks every name against them (registry.py) and passes the bindings to gin. Each phase
reports all the mistakes it finds at once, with file and line.
"""

import contextlib
import copy
import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gin

from trainer.config import registry
from trainer.config.registry import configurable, quiet_import
from trainer.config.statements import Asked, Macro, Reference, Statement, inside

__all__ = [
    "ConfigError", "bind", "binding_of", "bound_value", "configurable", "injected", "is_bound",
    "isolated", "quiet_import", "read", "references",
]  # fmt: skip

_asked = Asked()


class ConfigError(ValueError):
    """An error in flags, gin files or data. The message is complete: main prints it without a traceback.

    Attributes:
        problems: the lines of an error of `raise_all`.
    """

    problems: Sequence[str] = ()


def raise_all(problems: Sequence[str]) -> None:
    """Raises ConfigError with all problems, each once and sorted by file and line, if there are any."""
    problems = sorted(dict.fromkeys(problems), key=_place)
    if problems:
        head = f"{len(problems)} mistakes:\n  " if len(problems) > 1 else ""
        error = ConfigError(head + "\n  ".join(problems))
        error.problems = problems
        raise error


def _place(problem: str) -> tuple[str, int]:
    """Returns file and line of a problem, for sorting; problems without a place come first."""
    place = re.match(r"(\S+):(\d+): ", problem)
    return (place[1], int(place[2])) if place else ("", 0)


def read(
    files: Sequence[str] = (),
    params: Sequence[str] = (),
    search_paths: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    command: str = "",
    optional: Sequence[str] | None = None,
) -> None:
    """Reads gin files and checks them as far as possible without imports; `bind` must follow.

    Args:
      files: paths of gin files; later files override earlier ones, and a file overrides its includes.
      params: bindings from the command line; they override the files.
      search_paths: further folders in which files and includes are searched.
      flags: parameters of `run` given as flags (`{"mode": "eval"}`); they override everything.
      command: the command line, kept for `save`.
      optional: the parameters of `run` without a default that may stay unbound; None: all.

    Raises:
      ConfigError: with every mistake found.
    """
    from trainer.config import checks  # here, so that `import trainer.trainer` does not import the checks
    from trainer.config import files as gin_files

    global _asked
    _asked = gin_files.read(files, params, search_paths, flags or {})
    _asked.command = command
    raise_all([*_asked.problems, *checks.Checks(_asked).problems(optional)])


def asked() -> Asked:
    """Returns the results of the last `read`."""
    return _asked


def bind() -> None:
    """Imports the modules of the files, checks every statement that `read` collected, and binds it in gin.

    Raises:
      ConfigError: with every mistake found. Exceptions of a user's module at import are not changed.
    """
    from trainer.config import checks

    quiet_import()
    registry.register()
    gin.clear_config()
    for of_last_bind in (_asked.bound, _asked.copied, _asked.overridden):
        of_last_bind.clear()
    problems: list[str] = []
    tables = _import_modules(problems)
    keys = []
    for statement in _asked.statements:
        imported = {**tables[""], **tables.get(statement.source, {})}
        key, value, wrong = _resolve(statement, imported)
        if not wrong:
            if key in _asked.bound:
                _asked.overridden.append(registry.internals().config[key[:2]][key[2]])
            try:
                gin.bind_parameter(key, value)
            except ValueError as error:  # its decorator excludes this parameter
                wrong = [f"{statement.where}: {str(error).splitlines()[0]}"]
            _asked.bound[key] = statement
            keys.append((statement, (statement.source, *key)))
        problems += wrong
    used = {macro.name for s in _asked.statements for macro in inside(s.value, Macro)}
    constants = registry.internals().constants
    problems += checks.undefined_macros(_asked, [name for name in used if constants.matching_selectors(name)])
    problems += checks.repeated(keys)
    if not problems:
        problems += _uncallable()
        _copy_to_subclasses()
    raise_all(problems)


def _import_modules(problems: list[str]) -> dict[str, dict[str, registry.Imported]]:
    """Imports the files' modules; returns the names that each source binds, and all of them together under ""."""
    tables: dict[str, dict[str, registry.Imported]] = {"": {}}
    for statement, source, where in _asked.imports:
        try:
            imported = _import(statement)
        except ModuleNotFoundError as error:
            if not error.name or not f"{statement.module}.".startswith(f"{error.name}."):
                raise  # the module exists, but a module that it imports does not
            problems.append(f"{where}: there is no module `{statement.module}`.")
            continue
        for table in (tables[""], tables.setdefault(source, {})):
            table[statement.bound_name()] = imported
    return tables


def _import(statement) -> registry.Imported:
    try:
        module = importlib.import_module(statement.module)
    except ModuleNotFoundError:
        package, _, name = statement.module.rpartition(".")
        if not statement.is_from or not hasattr(importlib.import_module(package), name):
            raise
        return registry.Imported(getattr(importlib.import_module(package), name), statement.module)
    if statement.is_from or statement.alias:
        return registry.Imported(module, statement.module)
    top = statement.module.split(".")[0]  # `import a.b` binds `a`, as in Python
    return registry.Imported(importlib.import_module(top), top)


def _resolve(statement: Statement, imported) -> tuple[tuple[str, str, str], Any, list[str]]:
    """Returns gin's key and value for a statement, and its errors."""
    wrong: list[str] = []
    if statement.arg:
        key = (statement.scope, statement.name, statement.arg)
        try:
            entry = registry.find(statement.name, imported)
            key = (statement.scope, entry.selector, statement.arg)
            problem = registry.check_parameter(entry, statement.name, statement.arg, statement.value)
            wrong += [f"{statement.where}: {problem}"] if problem else []
        except LookupError as error:
            wrong.append(f"{statement.where}: {error.args[0]}")
    else:
        key = (statement.name, "gin.macro", "value")

    def convert(value):
        if isinstance(value, Reference):
            scope, _, name = value.name.rpartition("/")
            try:
                selector = registry.find(name, imported).selector
            except LookupError as error:
                where = statement.where_is(f"@{value.name}")
                wrong.append(f"{where}: {error.args[0]}")
                return None
            return gin.config.ConfigurableReference(f"{scope}/{selector}" if scope else selector, value.evaluate)
        if isinstance(value, Macro):
            return gin.config.ParserDelegate().macro(value.name)
        if isinstance(value, dict):
            return {convert(k): convert(v) for k, v in value.items()}
        return type(value)(map(convert, value)) if isinstance(value, list | tuple) else value

    return key, convert(statement.value), wrong


def _uncallable() -> Iterator[str]:
    """Finds `@name()` with unbound required parameters, which gin would report only at the call."""
    bound = registry.internals().config
    for _, statement, reference in references():
        if reference.evaluate and not reference.selector.startswith("gin."):
            selector = reference.configurable.selector
            for missing in registry.required_parameters(reference.configurable.wrapped):
                # Bound in any scope is enough: the open scopes are known only at the call.
                if not any(name == selector and missing in args for (_, name), args in bound.items()):
                    name = "/".join([*reference.scopes, reference.configurable.name])
                    yield f"{statement.where}: `@{name}()` needs `{missing}`. Bind it: `{name}.{missing} = ...`."


def _copy_to_subclasses() -> None:
    """Copies bindings of base classes, such as `Trainer`, to the class bound to `run.trainer`.

    Gin injects by exact class, so a subclass would lose its base's bindings. Its own bindings have priority.
    """
    bound, lookup = registry.internals().config, registry.internals().lookup
    reference = bound.get(("", "trainer.run"), {}).get("trainer")
    while isinstance(reference, gin.config.ConfigurableReference) and reference.selector == "gin.macro":
        reference = bound[reference.config_key].get("value")
    if not isinstance(reference, gin.config.ConfigurableReference):
        return
    trainer = reference.configurable
    if not inspect.isclass(trainer.wrapped):
        return
    named = registry.parameters(trainer.wrapped)
    for base in filter(None, map(lookup, trainer.wrapped.__mro__[1:])):
        for scope, selector in [key for key in bound if key[1] == base.selector and key[1] != trainer.selector]:
            for arg, value in bound[scope, selector].items():
                own = bound.get((scope, trainer.selector), {})
                if arg not in own and (named is None or arg in named):
                    gin.bind_parameter((scope, trainer.selector, arg), value)
                    _asked.copied[scope, selector, arg] = (scope, trainer.selector, arg)


def injected(name: str) -> Callable:
    """Returns the configurable `name`, which gets its bindings when it is called: `injected("trainer.run")()`."""
    return gin.get_configurable(name)


def is_bound(name: str, parameter: str) -> bool:
    """True if a file, a --gin_param or a flag binds `parameter` of `name`, outside of any scope."""
    return parameter in registry.internals().config.get(("", registry.find(name, {}).selector), {})


def bound_value(name: str, parameter: str) -> Any:
    """Returns the value bound to `parameter` of `name`, with references and macros resolved; builds nothing else."""
    return copy.deepcopy(gin.get_bindings(name, resolve_references=False)[parameter])


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """A context in which another configuration is read, bound and used (`trainer.load`); restores the current one."""
    global _asked
    config, operative, singletons = registry.internals()[:2] + registry.internals()[-1:]
    kept = _asked, *({k: dict(v) for k, v in each.items()} for each in (config, operative)), dict(singletons)
    try:
        yield
    finally:
        gin.clear_config()
        _asked = kept[0]
        config.update(kept[1])
        operative.update(kept[2])
        singletons.update(kept[3])


def binding_of(selectors: Sequence[str], parameter: str) -> Statement | None:
    """Returns the binding of `parameter`, in any scope, of the first of the selectors that has one."""
    found = (s for name in selectors for key, s in _asked.bound.items() if key[1:] == (name, parameter))
    return next(found, None)


def references() -> Iterator[tuple[tuple, Statement, Any]]:
    """Yields every `@name` that is bound, with key and statement of the binding."""
    bound = registry.internals().config
    for key, statement in _asked.bound.items():
        for reference in inside(bound.get(key[:2], {}).get(key[2]), gin.config.ConfigurableReference):
            yield key, statement, reference
