"""Checks the statements of a config before anything is imported: names, parameters, values, macros, scopes."""

import dataclasses
import difflib
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from trainer.config import registry, syntax, values
from trainer.config.names import Names, Unknown
from trainer.config.statements import Asked, Macro, Reference, Statement, inside, key_of, shown
from trainer.config.syntax import Definition

_REQUIRED = Macro("gin.REQUIRED")
_RUN = "trainer.experiment.run"


class Checks:
    """The checks of the statements. `problems` yields the mistakes, and converts values to the types of parameters.

    Args:
      asked: the statements and imports; numbers among the statements' values are converted in place.
    """

    def __init__(self, asked: Asked):
        self._asked, self._names = asked, Names(asked.imports)
        self._macros = {s.name: s.value for s in asked.statements if not s.arg}
        self._found: dict[tuple[str, str], Definition | None] = {}

    def problems(self, optional: Sequence[str] | None) -> Iterator[str]:
        """Yields a line for each mistake. optional: as in `config.read`."""
        asked = self._asked
        yield from _missing_modules(asked)
        unknown = []
        last = {self._key(s): s for s in asked.statements}  # overridden statements may have any value
        for i, statement in enumerate(asked.statements):
            asked.statements[i], found = self._check(statement, last[self._key(statement)] is statement)
            unknown += found
        yield from unknown
        yield from repeated((s, (s.source, *self._key(s))) for s in asked.statements)
        yield from self._unused_words()
        yield from self._unfilled()
        yield from self._cycles()
        yield from self._uncallable()
        if asked.problems:  # unreadable files may hold the missing bindings
            return
        if optional is not None:
            yield from self._missing_of_run(optional)
            yield from self._scopes()
        if not self._names.is_open:
            yield from undefined_macros(asked, ["gin.REQUIRED", *self._names.constants])

    # One statement.

    def _find(self, name: str, source: str) -> Definition | None:
        """Returns the definition of a name; None if it is unknown, or known only after an import."""
        if (name, source) not in self._found:
            try:
                self._found[name, source] = self._names.find(name, source)
            except Unknown:
                self._found[name, source] = None
        return self._found[name, source]

    def _signature(self, name: str, source: str) -> values.Signature | None:
        found = self._find(name, source)
        return syntax.signature(found) if found else None

    def path(self, statement: Statement) -> str:
        """Returns the path of the definition that a binding names, or the name as written."""
        found = self._find(statement.name, statement.source) if statement.arg else None
        return found.path if found else statement.name

    def _key(self, statement: Statement) -> tuple[str, str, str]:
        return statement.scope, self.path(statement), statement.arg

    def _check(self, statement: Statement, is_last: bool) -> tuple[Statement, list[str]]:
        """Returns the statement, with its value converted, and the problems of its names and its value."""
        problems = []
        for reference in dict.fromkeys(inside(statement.value, Reference)):
            try:
                self._names.find(reference.bare, statement.source)
            except Unknown as error:
                problems.append(f"{statement.where_is(f'@{reference.name}')}: {error}")
        if not statement.arg:
            return statement, problems
        try:
            self._names.find(statement.name, statement.source)
        except Unknown as error:
            return statement, [f"{statement.where}: {error}", *problems]
        signature = self._signature(statement.name, statement.source)
        if signature is None:
            return statement, problems
        label = f"{statement.name.removeprefix('trainer.run') or 'run'}.{statement.arg}"
        parameter = signature.parameters.get(statement.arg)
        if parameter is None:
            if not signature.takes_any:
                text = registry.no_parameter(statement.name, statement.arg, signature.parameters)
                problems.append(f"{statement.where}: {text}")
            return statement, problems
        if not is_last:
            return statement, problems
        resolved = self._resolved(statement.value)
        value, problem = values.fitted(parameter, resolved, label)
        problems += [f"{statement.where}: {problem}"] if problem else self._calls(statement, parameter, label, resolved)
        is_plain = not problem and next(inside(statement.value, (Reference, Macro)), None) is None
        return (dataclasses.replace(statement, value=value) if is_plain else statement), problems

    def _resolved(self, value: Any, seen: tuple[str, ...] = ()) -> Any:
        """Returns a value with its macros replaced by their values; macros without a value are kept."""
        if isinstance(value, Macro) and value.name in self._macros and value.name not in seen:
            return self._resolved(self._macros[value.name], (*seen, value.name))
        if isinstance(value, dict):
            return {self._resolved(k, seen): self._resolved(v, seen) for k, v in value.items()}
        return type(value)(self._resolved(v, seen) for v in value) if isinstance(value, list | tuple) else value

    def _calls(self, statement: Statement, parameter: values.Parameter, label: str, value: Any) -> Iterator[str]:
        """Finds `@f` where `@f()` is meant, and the reverse."""
        wanted = values.takes(parameter)
        for reference in inside(value, Reference) if wanted else ():
            found = self._find(reference.bare, statement.source)
            signature = syntax.signature(found) if found else None
            if signature is None:
                continue
            where, name = statement.where_is(f"@{reference.name}"), reference.name
            if isinstance(wanted, values.Maker):
                if reference.evaluate:
                    cure = "the run calls it in the strategy's scope. Remove the ()."
                    yield f"{where}: `{label}` takes `@{name}`, uncalled: {cure}"
            elif not reference.evaluate and (found.is_class or self._makes_object(found, signature, wanted.arguments)):
                what = "class" if found.is_class else "function"
                yield f"{where}: `{label}` takes an object, not the {what} that creates it. Call it: `@{name}()`."

    def _makes_object(self, found: Definition, signature: values.Signature, arguments: int | None) -> bool:
        """True if gin can call the function, and it is not itself the callable of so many arguments that is needed."""
        bound = {s.arg for s in self._asked.statements if s.arg and self.path(s) == found.path}
        is_object = arguments is not None and len(signature.required) <= arguments <= signature.positional
        return not is_object and bound.issuperset(signature.required)

    # All statements.

    def _unused_words(self) -> Iterator[str]:
        """Finds `train_steps = 5`, on the command line or in a file: without a dot gin makes it an unused macro."""
        used = {m.name for s in self._asked.statements for m in inside(s.value, Macro)}
        macros = sorted({s.name for s in self._asked.statements if not s.arg and s.line} | used)
        of_run = self._signature("trainer.run", "").parameters
        for lost in (s for s in self._asked.statements if not s.arg and s.name not in used):
            owner = next((s.name for s in self._asked.statements if s.arg == lost.name), None)
            if lost.line and owner is None and lost.name not in of_run:
                continue  # an unused macro, which the run reports
            near = difflib.get_close_matches(lost.name, [m for m in macros if m != lost.name], n=1, cutoff=0.7)
            cure = (
                f"Did you mean the macro `{near[0]}`?"
                if near
                else f"Name its owner, such as `{owner or 'run'}.{lost.name} = ...`."
            )
            yield f"{lost.where}: `{lost.name}` has no dot and is not a macro that the files use. {cure}"

    def _unfilled(self) -> Iterator[str]:
        """Finds values that are still `%gin.REQUIRED` after all overrides."""
        statements = self._asked.statements
        for i, empty in enumerate(statements):
            if _REQUIRED in inside(empty.value, Macro) and not any(
                self._key(s) == self._key(empty) for s in statements[i + 1 :]
            ):
                key = key_of(empty)
                signature = self._signature(empty.name, empty.source) if empty.arg else None
                meaning = _meaning(signature and signature.parameters.get(empty.arg))
                cure = f"Set it: --gin_param '{key} = ...'."
                yield f"{empty.where}: `{key}` is required and has no value{meaning}. {cure}"

    def _mode(self) -> Any:
        modes = [s.value for s in self._asked.statements if s.arg == "mode" and self.path(s) == _RUN]
        return modes[-1] if modes else "train_and_eval"

    def _missing_of_run(self, optional: Sequence[str]) -> Iterator[str]:
        signature = self._signature("trainer.run", "")
        bound = {s.arg for s in self._asked.statements if not s.scope and s.arg and self.path(s) == _RUN}
        optional = (*optional, "model_dir") if self._mode() == "fast_dev_run" else optional
        for name in signature.required:
            if name not in bound and name not in optional:
                cure = f"Bind it in a gin file or with --gin_param 'run.{name} = ...'."
                yield f"`run.{name}` has no value{_meaning(signature.parameters[name])}. {cure}"

    def _cycles(self) -> Iterator[str]:
        """Finds macros, and objects that are built without a scope, that need themselves."""
        needs: dict[str, set[str]] = {}
        first: dict[str, Statement] = {}
        for s in self._asked.statements:
            if s.arg and s.scope:
                continue
            node = f"@{s.name}()" if s.arg else f"%{s.name}"
            first.setdefault(node, s)
            needs.setdefault(node, set()).update(f"%{m.name}" for m in inside(s.value, Macro))
            needs[node].update(f"@{r.name}()" for r in inside(s.value, Reference) if r.evaluate)
        reported: set[str] = set()
        for node in needs:
            path = _path_to_itself(node, needs)
            if path and not reported & set(path):
                reported |= set(path)
                yield f"{first[node].where}: `{node}` needs itself: {' -> '.join(f'`{n}`' for n in [*path, node])}."

    def _scopes(self) -> Iterator[str]:
        """Finds bindings in scopes that no reference opens; only in the mode that uses all bindings."""
        if self._names.opens_scopes or self._names.is_open or self._mode() not in ("train_and_eval", "fast_dev_run"):
            return
        opened = {r.scope for s in self._asked.statements for r in inside(s.value, Reference) if r.scope}
        for s in self._asked.statements:
            if s.arg and s.scope and not any(o == s.scope or o.startswith(f"{s.scope}/") for o in opened):
                near = registry.near(s.scope, opened)
                cure = near or f" It applies where `@{s.scope}/{s.name}()` or another reference in this scope is built."
                yield f"{s.where}: `{key_of(s)}` is never used: no reference opens the scope `{s.scope}`.{cure}"

    def _uncallable(self) -> Iterator[str]:
        """Finds `@name()` with unbound required parameters, which gin would report only at the call."""
        # Bound in any scope is enough: the open scopes are known only at the call.
        bound = {(self.path(s), s.arg) for s in self._asked.statements if s.arg}
        for s in self._asked.statements:
            for reference in dict.fromkeys(inside(s.value, Reference)):
                found = self._find(reference.bare, s.source) if reference.evaluate else None
                signature = syntax.signature(found) if found else None
                for name in signature.required if signature else ():
                    if (found.path, name) not in bound:
                        meaning = _meaning(signature.parameters[name])
                        where, cure = s.where_is(f"@{reference.name}"), f"Bind it: `{reference.name}.{name} = ...`."
                        yield f"{where}: `@{reference.name}()` needs `{name}`{meaning}. {cure}"


def _meaning(parameter: values.Parameter | None) -> str:
    """Returns the first sentence of a parameter's documentation, in brackets; or ""."""
    first = re.split(r"(?<=[.;])\s", parameter.meaning, maxsplit=1)[0].rstrip(".;") if parameter else ""
    return f" ({first})" if first else ""


def _path_to_itself(node: str, needs: Mapping[str, set[str]]) -> list[str]:
    """Returns the shortest cycle from a node, without its last node; or []."""
    paths, seen = [[node]], set()
    while paths:
        path = paths.pop(0)
        for following in sorted(needs.get(path[-1], ())):
            if following == node:
                return path
            if following not in seen:
                seen.add(following)
                paths.append([*path, following])
    return []


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


def undefined_macros(asked: Asked, known: Sequence[str]) -> list[str]:
    """Finds macros that no statement defines and that are not `known`."""
    defined = {s.name for s in asked.statements if not s.arg}
    problems = []
    for statement in asked.statements:
        for macro in inside(statement.value, Macro):
            if macro.name not in defined and macro.name not in known:
                near = registry.near(macro.name, defined) or f" Define it on a separate line: `{macro.name} = ...`."
                where = statement.where_is(f"%{macro.name}")
                problems.append(f"{where}: the macro `%{macro.name}` is not defined.{near}")
    return problems


def _missing_modules(asked: Asked) -> Iterator[str]:
    for found, _, where in asked.imports:
        top, *rest = found.module.split(".")
        if wrong := syntax.error_in(found.module):
            yield f"{where}: {shown(wrong.filename)}:{wrong.lineno}: {wrong.msg}: `{(wrong.text or '').strip()}`"
        if syntax.locate(top) is None:
            near = registry.near(top, [p.stem for f in asked.folders for p in pathlib.Path(f).glob("*.py")])
            looked = ", ".join(shown(folder) for folder in asked.folders)
            yield f"{where}: there is no module `{top}` (looked in {looked} and where Python looks).{near}"
        elif rest and syntax.locate(found.module) is None:
            package, _, name = found.module.rpartition(".")
            owner = syntax.module(package)
            known = owner.get(name) if owner and found.is_from else None
            if owner and (isinstance(known, syntax.Missing) or not found.is_from):
                names = (
                    [*owner.names, *(p.stem for p in pathlib.Path(owner.path).parent.glob("*.py"))]
                    if owner.path.endswith("__init__.py")
                    else owner.names
                )
                what = f"`{package}` has no `{name}`" if found.is_from else f"there is no module `{found.module}`"
                yield f"{where}: {what}.{registry.near(name, names)}"
