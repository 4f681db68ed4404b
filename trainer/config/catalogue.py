"""Describes the names of a config: signatures, defaults, documentation; read from sources, without TensorFlow."""

import ast
import re
from collections.abc import Iterator

from trainer.config import registry, syntax, values
from trainer.config.binding import ConfigError, asked
from trainer.config.checks import Checks
from trainer.config.names import Names, Unknown
from trainer.config.statements import key_of


def configurables(pattern: str = "") -> Iterator[str]:
    """Yields signature, full gin name and summary of each name that a config can use.

    The modules that the last `config.read` imported are included.

    Args:
      pattern: a case-insensitive regular expression, searched in the full name.
    """
    names = Names(asked().imports)
    try:
        wanted = re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise ConfigError(f"`--configurables` must be a regular expression, got {pattern!r}: {error}.") from None
    for selector in sorted(names.selectors(), key=lambda s: (s.startswith("keras."), s)):
        found = names.find(selector, "") if wanted.search(selector) else None
        if found:
            summary = " ".join((ast.get_docstring(found.node) or "").split("\n\n")[0].split())
            call = f"{selector.rpartition('.')[2]}{_signature(syntax.signature(found))}"
            yield f"{call}\n    {selector}\n    {summary}".rstrip()


def _signature(signature: values.Signature | None) -> str:
    if signature is None:
        return "(...)"
    inherited = registry.UNNAMED_IN_KERAS
    shown = [
        p
        for p in signature.parameters.values()
        if p.is_required or p.name not in inherited or p.default != values.Computed()
    ]
    text = [p.name if p.is_required else f"{p.name}={p.default!r}" for p in shown]
    return f"({', '.join(text + ['**kwargs'] * signature.takes_any)})"


def explanation(name: str) -> str:
    """Returns documentation, rule, default and bindings of a parameter, such as `Trainer.optimizers`.

    Raises:
      ConfigError: if there is no such parameter.
    """
    owner, _, parameter = name.rpartition(".")
    if not owner:
        raise ConfigError(f"`--explain` takes NAME.PARAMETER, such as Trainer.optimizers, got {name!r}.")
    given = asked()
    try:
        found = Names(given.imports).find(owner.rpartition("/")[2], "")
    except Unknown as error:
        raise ConfigError(str(error)) from None
    signature = syntax.signature(found) if found else None
    if signature is None:
        raise ConfigError(f"`{owner}` cannot be read without an import.")
    if parameter not in signature.parameters:
        raise ConfigError(registry.no_parameter(owner, parameter, signature.parameters))
    described = signature.parameters[parameter]
    rule = values.rule(described)
    lines = [f"{name}: {described.meaning or 'not documented'}"]
    lines += [f"  takes {rule}"] if rule else []
    lines.append("  it has no default" if described.is_required else f"  default {described.default!r}")
    path = Checks(given).path
    bound = [s for s in given.statements if s.arg == parameter and path(s) == found.path]
    lines += [f"  {s.where}: {key_of(s)} = {s.value!r}" for s in bound]
    lines += [] if bound else ["  not bound" if given.statements else "  (with --gin_file=F: where F binds it)"]
    return "\n".join(lines)
