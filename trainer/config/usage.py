"""Finds bindings that nothing used, after everything is built."""

import ast

import gin

from trainer.config import registry, syntax
from trainer.config.binding import asked, references
from trainer.config.statements import inside, key_of

_Key = tuple[str, str, str]  # scope, selector, parameter


def unused() -> list[str]:
    """Returns a line for each binding or macro that nothing has used; call it after everything is built.

    Bindings of functions that users' code mentions, and may call later, are left to `unused_later`.
    """
    keys = _unused_keys()
    later = [key for key in keys if key[1] != "gin.macro" and _is_mentioned(key[1])]
    bound = registry.internals().config
    later += _needed([bound[key[:2]][key[2]] for key in later], [key for key in keys if key not in later])
    asked().later = later
    return [_line(key) for key in keys if key not in later]


def unused_later() -> list[str]:
    """Returns a line for each binding that `unused` left and that nothing has used since; once."""
    keys = [key for key in _unused_keys() if key in asked().later] if asked().later else []
    asked().later = []
    return [_line(key) for key in keys]


def drop_overridden() -> list[str]:
    """Removes unused bindings that only overridden ones needed: those of Adam, if a flag selects SGD instead.

    Returns:
      their names, with file and line.
    """
    bound, dropped = registry.internals().config, []
    for key in _needed(asked().overridden, _unused_keys() if asked().overridden else []):
        del bound[key[:2]][key[2]]
        dropped.append(f"`{key_of(asked().bound[key])}` ({asked().bound[key].where})")
    return sorted(dropped)


def _needed(values, keys: list[_Key]) -> list[_Key]:
    """Returns those of `keys` that the references and macros in `values` need, and what these need in turn."""
    bound, values, keys, needed = registry.internals().config, list(values), list(keys), []
    while values:
        for reference in inside(values.pop(), gin.config.ConfigurableReference):
            is_macro = reference.selector == "gin.macro"
            for key in [
                k for k in keys if k[:2] == reference.config_key or not is_macro and k[1] == reference.selector
            ]:
                keys.remove(key)
                needed.append(key)
                values.append(bound[key[:2]][key[2]])
    return needed


def _is_mentioned(selector: str) -> bool:
    """True if a module that the config imports mentions a name, besides its definition."""
    name = selector.rpartition(".")[2]
    trees = (module.tree for statement, *_ in asked().imports if (module := syntax.module(statement.module)))
    return any(name in (getattr(node, "id", ""), getattr(node, "attr", "")) for t in trees for node in ast.walk(t))


def _line(key: _Key) -> str:
    statement = asked().bound[key]
    what = f"`{key_of(statement)}`" if statement.arg else f"the macro `{statement.name}`"
    cure = "Its owner is never called, or the caller passes the value itself. " if statement.arg else ""
    return f"{statement.where}: {what} is never used. {cure}Remove it."


def _unused_keys() -> list[_Key]:
    bound, operative = registry.internals()[:2]
    read_by_now = {(scope, name, arg) for (scope, name), args in operative.items() for arg in args}
    # Uncalled references, such as hooks, are called later; `run` has called its three by now.
    built = {("trainer.run", arg) for arg in ("trainer", "train_data", "eval_data")}
    handed_on = {r.configurable.selector for key, _, r in references() if not r.evaluate and key[1:] not in built}

    def is_used(key) -> bool:
        scope, name, arg = key
        return name in handed_on or any(n == name and a == arg and _within(s, scope) for s, n, a in read_by_now)

    # A key that is no longer bound: gin.clear_config() was called since.
    present = [key for key in asked().bound if key[2] in bound.get(key[:2], {})]
    copied = asked().copied
    return [key for key in present if not is_used(key) and not (key in copied and is_used(copied[key]))]


def _within(scope: str, outer: str) -> bool:
    return not outer or scope == outer or scope.startswith(outer + "/")
