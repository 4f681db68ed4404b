"""Finds bindings that nothing used, after everything is built."""

import gin

from trainer.config import registry
from trainer.config.binding import asked, references
from trainer.config.statements import inside, key_of


def unused() -> list[str]:
    """Returns a line for each unused binding or macro; call it after everything is built."""
    lines = []
    for key in _unused_keys():
        statement = asked().bound[key]
        what = f"`{key_of(statement)}`" if statement.arg else f"the macro `{statement.name}`"
        cure = "Its owner is never called, or the caller passes the value itself. Remove it."
        lines.append(f"{statement.where}: {what} is never used. {cure if statement.arg else 'Remove it.'}")
    return lines


def drop_overridden() -> list[str]:
    """Removes unused bindings that only overridden ones needed: those of Adam, if a flag selects SGD instead.

    Returns:
      their names, with file and line.
    """
    bound, values, dropped = registry.internals().config, list(asked().overridden), []
    keys = _unused_keys() if values else []
    while values:
        for reference in inside(values.pop(), gin.config.ConfigurableReference):
            is_macro = reference.selector == "gin.macro"
            needed = [k for k in keys if k[:2] == reference.config_key or (not is_macro and k[1] == reference.selector)]
            for key in needed:
                keys.remove(key)
                values.append(bound[key[:2]].pop(key[2]))
                dropped.append(f"`{key_of(asked().bound[key])}` ({asked().bound[key].where})")
    return sorted(dropped)


def _unused_keys() -> list[tuple[str, str, str]]:
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
