"""Reads gin files and bindings of the command line without importing the modules that they name.

Mistakes are collected with file and line. checks.py checks the statements.
"""

import difflib
import importlib.machinery
import os
import pathlib
import re
import shlex
import sys
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gin

from trainer.config.advice import advice
from trainer.config.paths import PACKAGES, ROOT
from trainer.config.statements import FOLDER_MARK, Asked, Macro, Reference, Statement, shown

_SHIPPED = ROOT / "configs"


def read(
    gin_files: Sequence[str],
    gin_params: Sequence[str],
    search_paths: Sequence[str],
    flags: Mapping[str, Any],
) -> Asked:
    """Returns the statements of files and command line; `problems` lists the mistakes. See `config.read`."""
    asked = Asked()
    search = [os.path.expanduser(path) for path in search_paths]
    asked.problems += [
        f"--gin_search_paths: there is no folder `{path}`." for path in search if not os.path.isdir(path)
    ]
    for name in gin_files:
        _read_file(asked, name, "--gin_file", search, given=True)
    for param in gin_params:
        _read_text(asked, param, f"--gin_param {shlex.quote(param)}", search, located=False)
    for name, value in flags.items():
        asked.statements.append(Statement("", "trainer.run", name, value, f"--{name}", 0, f"--{name}={value}"))
    _extend_path(asked)
    asked.problems += shadows()
    return asked


def _read_file(asked: Asked, name: str, where: str, search: Sequence[str], given: bool = False) -> None:
    wanted = os.path.expanduser(name)
    # "" is the working directory. For an include `search` begins with the folder of the file that includes it.
    folders = ("", *search, str(_SHIPPED)) if given else (*search, "", str(_SHIPPED))
    tried = [os.path.join(folder, wanted) for folder in folders]
    path = next((os.path.abspath(p) for p in tried if os.path.isfile(p)), None)
    if path is None:
        cure = _nearest_file(wanted, [os.path.dirname(p) or "." for p in tried])
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


def _nearest_file(wanted: str, folders: Sequence[str]) -> str:
    """Returns " Did you mean `a.gin`?", or ""."""
    head, name = os.path.split(wanted.removesuffix(".gin") + ".gin")
    there = [f for folder in folders if os.path.isdir(folder) for f in os.listdir(folder) if f.endswith(".gin")]
    if near := difflib.get_close_matches(name, there, n=1):
        return f" Did you mean `{os.path.join(head, near[0])}`?"
    return f" Did you mean `{name}`, which is shipped?" if (_SHIPPED / name).is_file() else ""


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
                line, message, go_on = begin, "", max(begin, line - 1)
            where, wrong = f"{shown(source)}:{line}" if located else source, "".join(lines[line - 1 : line]).strip()
            problems.append(f"{where}: {advice(wrong, message, is_param=not located)}\n      {wrong}")
            start = next((i for i in range(go_on, len(lines)) if _begins_statement(lines[i])), len(lines))
            if start >= len(lines):
                return statements


def _begins_statement(line: str) -> bool:
    return re.match(r"[A-Za-z_]", line) is not None


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
