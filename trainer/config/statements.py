"""The statements of gin files and flags, with the references and macros in their values."""

import dataclasses
import linecache
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

FOLDER_MARK = "# folder: "  # config.gin keeps the import folders of its run in comments of this form


class Opaque:
    """A value that is known only when gin builds it: a reference, or a macro without a value."""


@dataclasses.dataclass(frozen=True)
class Reference(Opaque):
    """`@scope/name` or `@scope/name()` in a gin file."""

    name: str
    evaluate: bool

    @property
    def bare(self) -> str:
        """The name without its scope."""
        return self.name.rpartition("/")[2]

    @property
    def scope(self) -> str:
        return self.name.rpartition("/")[0]

    def __repr__(self):
        return f"@{self.name}{'()' * self.evaluate}"


@dataclasses.dataclass(frozen=True)
class Macro(Opaque):
    """`%name` in a gin file."""

    name: str

    def __repr__(self):
        return f"%{self.name}"


@dataclasses.dataclass(frozen=True)
class Statement:
    """One binding as written. `arg` is empty for a macro; `source` is its file or flag."""

    scope: str
    name: str
    arg: str
    value: Any
    source: str
    line: int
    text: str

    @property
    def where(self) -> str:
        return f"{shown(self.source)}:{self.line}" if self.line else self.source

    def where_is(self, word: str) -> str:
        """Returns `where`, with the line of a multi-line value that contains `word`."""
        lines = linecache.getlines(self.source)[self.line - 1 :] if self.line else []
        at = next((i for i, line in enumerate(lines) if re.search(re.escape(word) + r"(?![\w.])", line)), 0)
        return dataclasses.replace(self, line=self.line + at).where


@dataclasses.dataclass
class Asked:
    """The results of `read` and of `config.bind`."""

    statements: list[Statement] = dataclasses.field(default_factory=list)
    imports: list[tuple[Any, str, str]] = dataclasses.field(default_factory=list)  # (gin's statement, source, where)
    files: list[str] = dataclasses.field(default_factory=list)
    folders: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)
    bound: dict[tuple[str, str, str], Statement] = dataclasses.field(default_factory=dict)
    copied: dict[tuple[str, str, str], tuple[str, str, str]] = dataclasses.field(default_factory=dict)
    overridden: list[Any] = dataclasses.field(default_factory=list)  # values as gin holds them
    later: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)  # unused, but perhaps used later
    command: str = ""


def shown(path: str) -> str:
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def key_of(statement: Statement) -> str:
    scoped = f"{statement.scope}/{statement.name}" if statement.scope else statement.name
    return f"{scoped}.{statement.arg}" if statement.arg else scoped


def inside(value, kind) -> Iterator:
    """Yields every `kind` in a nest of lists, tuples and dicts."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, Mapping):
        for item in value.items():
            yield from inside(item, kind)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from inside(item, kind)
