"""Reads and checks gin files without TensorFlow: existence, syntax, duplicates, macros.

All mistakes are collected with file and line. `config.bind` checks names and parameters, which need the registry.
"""

import dataclasses
import difflib
import importlib.machinery
import linecache
import os
import pathlib
import re
import shlex
import sys
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import gin

from trainer.config import registry

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PACKAGES = ("trainer", "layers", "losses", "optimizers", "configs")
FOLDER_MARK = "# folder: "  # config.gin keeps the import folders of its run in comments of this form
_SHIPPED = ROOT / "configs"


@dataclasses.dataclass(frozen=True)
class Reference:
    """`@scope/name` or `@scope/name()` in a gin file."""

    name: str
    evaluate: bool


@dataclasses.dataclass(frozen=True)
class Macro:
    """`%name` in a gin file."""

    name: str


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
        """Returns `where`, at the line of a value of many lines that holds `word`."""
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
    command: str = ""


def shown(path: str) -> str:
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def read(
    gin_files: Sequence[str],
    gin_params: Sequence[str],
    search_paths: Sequence[str],
    flags: Mapping[str, Any],
) -> Asked:
    """Returns the statements of files and command line; `problems` lists the mistakes. See `config.read`."""
    asked = Asked()
    search = [os.path.expanduser(path) for path in search_paths]
    for name in gin_files:
        _read_file(asked, name, "--gin_file", search, given=True)
    for param in gin_params:
        _read_text(asked, param, f"--gin_param {shlex.quote(param)}", search, located=False)
    for name, value in flags.items():
        asked.statements.append(Statement("", "trainer.run", name, value, f"--{name}", 0, f"--{name}={value}"))
    _extend_path(asked)
    problems = asked.problems
    problems += shadows()
    problems += repeated((s, (s.source, s.scope, s.name, s.arg)) for s in asked.statements)
    problems += _lost_params(asked)
    problems += _missing_modules(asked)
    problems += _unfilled(asked)
    if not asked.imports:  # an imported module may define constants, which look like macros
        problems += undefined_macros(asked, known=("gin.REQUIRED",))
    return asked


def _read_file(asked: Asked, name: str, where: str, search: Sequence[str], given: bool = False) -> None:
    wanted = os.path.expanduser(name)
    # "" is the working directory. For an include `search` begins with the folder of the file that includes it.
    folders = ("", *search, str(_SHIPPED)) if given else (*search, "", str(_SHIPPED))
    tried = [os.path.join(folder, wanted) for folder in folders]
    path = next((os.path.abspath(p) for p in tried if os.path.isfile(p)), None)
    if path is None:
        folder = os.path.dirname(wanted) or "."
        files = [f for f in os.listdir(folder) if f.endswith(".gin")] if os.path.isdir(folder) else []
        near = difflib.get_close_matches(os.path.basename(wanted), files, n=1)
        cure = f" Did you mean `{os.path.join(os.path.dirname(wanted), near[0])}`?" if near else ""
        what = "is a folder" if os.path.isdir(wanted) else "does not exist"
        looked = ", ".join(dict.fromkeys(shown(os.path.dirname(os.path.abspath(p))) for p in tried))
        asked.problems.append(f"{where}: the gin file `{name}` {what} (looked in {looked}).{cure}")
        return
    # A file is included once: a second include would silently undo what overrides the first.
    if path in asked.files and not given:
        return
    asked.files.append(path)
    if given:
        asked.folders.append(os.path.dirname(path))
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        asked.problems.append(f"{where}: the gin file `{name}` cannot be read: {error}")
        return
    _read_text(asked, text, path, [os.path.dirname(path), *search], located=True)


def _read_text(asked: Asked, text: str, source: str, search: Sequence[str], located: bool) -> None:
    """Reads one source; an include takes effect at its position."""
    lines = text.splitlines()
    asked.folders += [line[len(FOLDER_MARK) :] for line in lines if line.startswith(FOLDER_MARK)]
    parser = gin.config_parser
    for found in _parse(asked.problems, text, source, located):
        line = found.location.line_num if located else 0
        where = f"{shown(source)}:{line}" if located else source
        if isinstance(found, parser.IncludeStatement):
            _read_file(asked, found.filename, where, search)
        elif isinstance(found, parser.ImportStatement):
            if found.module.split(".")[:2] == ["gin", "tf"]:
                asked.problems.append(f"{where}: `gin.tf` does not work with TensorFlow 2.21. Remove the import: every"
                                       " public Keras name is registered already.")  # fmt: skip
            elif not found.module.startswith("__gin__"):  # dynamic registration is always on, see registry.find
                asked.imports.append((found, source, where))
                asked.folders += [os.path.dirname(source)] if located else []
        elif isinstance(found, parser.BindingStatement):
            scope, name = found.scope, found.selector
            if not found.arg_name:  # a macro, whose name may hold slashes
                scope, name = "", f"{scope}/{name}" if scope else name
            as_written = lines[found.location.line_num - 1].strip() if located else text.strip()
            asked.statements.append(Statement(scope, name, found.arg_name, found.value, source, line, as_written))


class _Delegate(gin.config_parser.ParserDelegate):
    """Keeps names as written, before anything is registered."""

    def configurable_reference(self, scoped_configurable_name, evaluate):
        return Reference(scoped_configurable_name, evaluate)

    def macro(self, macro_name):
        return Macro(macro_name)


def _parse(problems: list[str], text: str, source: str, located: bool) -> list:
    """Returns gin's statements; after a syntax error it continues at the next line that may begin one."""
    lines = text.splitlines(keepends=True)
    statements, start = [], 0
    while True:
        try:
            # Blank lines replace the lines that were read, to keep line numbers.
            parser = gin.config_parser.ConfigParser("\n" * start + "".join(lines[start:]), _Delegate())
            for statement in parser:
                statements.append(statement)
            return statements
        except (SyntaxError, tokenize.TokenError) as error:
            after = max([start, *(s.location.line_num for s in statements)])
            begin = next((i + 1 for i in range(after, len(lines)) if _begins_statement(lines[i])), after or 1)
            line, message = (error.lineno, error.msg) if isinstance(error, SyntaxError) else (begin, "")
            go_on = line
            # A value that extends to the next statement, or the end of the file, lacks a bracket or a quote.
            if not message or (line > begin and _begins_statement(lines[line - 1])):
                line, message, go_on = begin, "A bracket or a string is not closed.", max(begin, line - 1)
            where = f"{shown(source)}:{line}" if located else source
            problems.append(f"{where}: {_syntax(message)}\n      {''.join(lines[line - 1 : line]).strip()}")
            start = next((i for i in range(go_on, len(lines)) if _begins_statement(lines[i])), len(lines))
            if start >= len(lines):
                return statements


def _begins_statement(line: str) -> bool:
    return re.match(r"[A-Za-z_]", line) is not None


def _syntax(message: str) -> str:
    token = re.search(r"Failed to parse token '(.*)'", message, re.DOTALL)
    if token and token[1].isidentifier():
        return (
            f"`{token[1]}` is not a value. A string needs quotes ('{token[1]}'), a function or class `@`, a macro `%`."
        )
    return f"not a gin statement: {' '.join(message.split())}"


def _extend_path(asked: Asked) -> None:
    """Puts the folders of the gin files, then the working directory, at the end of sys.path."""
    folders = dict.fromkeys(folder for folder in asked.folders if folder != str(_SHIPPED))
    folders = [*folders, os.getcwd(), *({str(_SHIPPED)} & set(asked.folders))]
    asked.folders = [folder for folder in dict.fromkeys(folders) if os.path.isdir(folder)]
    sys.path.extend(folder for folder in asked.folders if folder not in sys.path)


def shadows() -> Iterator[str]:
    """Yields a message for each package of ours that another one of the same name hides."""
    for name in PACKAGES:
        ours = ROOT / name
        if not (ours / "__init__.py").exists():
            continue
        module = sys.modules.get(name)
        spec = module.__spec__ if module else importlib.machinery.PathFinder.find_spec(name)
        if spec is None:
            continue
        file = spec.origin or next(iter(spec.submodule_search_locations or ()), None)
        if file and not pathlib.Path(file).resolve().is_relative_to(ours):
            file = os.path.dirname(file) if os.path.basename(file) == "__init__.py" else file
            cure = f"Rename it (`my_{name}`), or start from another folder."
            yield f"`{name}` is imported from {file}, which hides Gradloom's own {ours}. {cure}"


def repeated(keyed: Iterable[tuple[Statement, tuple]]) -> list[str]:
    """Finds bindings made twice in one file, where the second silently wins."""
    first: dict[tuple, Statement] = {}
    problems = []
    for statement, key in keyed:
        if statement.line and key in first:
            before = first[key].where
            problems.append(f"{statement.where}: `{key_of(statement)}` is bound already at {before}. Remove one.")
        first.setdefault(key, statement)
    return problems


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


def _lost_params(asked: Asked) -> list[str]:
    """Finds `train_steps=5` on the command line: without a dot gin makes it an unused macro."""
    used = {m.name for s in asked.statements for m in inside(s.value, Macro)}
    macros = sorted({s.name for s in asked.statements if not s.arg and s.line} | used)
    problems = []
    for lost in (s for s in asked.statements if not s.arg and not s.line and s.name not in used):
        near = difflib.get_close_matches(lost.name, macros, n=1, cutoff=0.7)
        owner = next((s.name for s in asked.statements if s.arg == lost.name), "run")
        cure = f"Name its owner, such as `{owner}.{lost.name} = ...`."
        cure = f"Did you mean the macro `{near[0]}`?" if near else cure
        problems.append(f"{lost.source}: `{lost.name}` has no dot and is not a macro that the files use. {cure}")
    return problems


def _missing_modules(asked: Asked) -> list[str]:
    problems = []
    for found, _, where in asked.imports:
        top = found.module.split(".")[0]
        if top not in sys.modules and importlib.machinery.PathFinder.find_spec(top) is None:
            near = registry.near(top, [p.stem for f in asked.folders for p in pathlib.Path(f).glob("*.py")])
            looked = ", ".join(shown(folder) for folder in asked.folders)
            problems.append(f"{where}: there is no module `{top}` (looked in {looked} and where Python looks).{near}")
    return problems


def _unfilled(asked: Asked) -> list[str]:
    """Finds values that are still `%gin.REQUIRED` after all overrides."""
    required = Macro("gin.REQUIRED")
    problems = []
    for i, open_one in enumerate(asked.statements):
        if required in inside(open_one.value, Macro) and not any(
            _same(open_one, later) for later in asked.statements[i + 1 :]
        ):
            key = key_of(open_one)
            cure = f"Set it: --gin_param '{key} = ...'."
            problems.append(f"{open_one.where}: `{key}` is required and has no value. {cure}")
    return problems


def _same(a: Statement, b: Statement) -> bool:
    """True if two bindings may be of the same parameter: `Adam` and `keras.optimizers.Adam` are not resolved yet."""
    names = f".{a.name}", f".{b.name}"
    return (a.scope, a.arg) == (b.scope, b.arg) and (names[0].endswith(names[1]) or names[1].endswith(names[0]))


def undefined_macros(asked: Asked, known: Sequence[str]) -> list[str]:
    defined = {s.name for s in asked.statements if not s.arg}
    problems = []
    for statement in asked.statements:
        for macro in inside(statement.value, Macro):
            if macro.name not in defined and macro.name not in known:
                near = registry.near(macro.name, defined) or f" Define it on a separate line: `{macro.name} = ...`."
                where = statement.where_is(f"%{macro.name}")
                problems.append(f"{where}: the macro `%{macro.name}` is not defined.{near}")
    return problems
