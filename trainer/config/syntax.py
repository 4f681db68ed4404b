"""Reads modules, names and signatures from syntax trees; imports nothing.

Gradloom, Keras and the user's modules are read. What a tree does not show, such as a name that a module computes, is
None: it is known only after an import.
"""

import ast
import dataclasses
import functools
import importlib.machinery
import importlib.util
import math
import pathlib
import sys
import sysconfig
from collections.abc import Iterator
from typing import Any

from trainer.config import values
from trainer.config.paths import PACKAGES, ROOT
from trainer.config.registry import UNNAMED_IN_KERAS

# Decorators that keep the signature; in Keras all do.
_TRANSPARENT = {
    "configurable", "external_configurable", "register", "register_keras_serializable", "keras_export", "cache",
    "lru_cache", "contextmanager", "function", "final", "total_ordering", "runtime_checkable",
}  # fmt: skip
_WITHOUT_PARAMETERS = {"object", "ABC", "Generic", "Protocol", "NamedTuple"}  # bases without parameters
_OPERATION = "keras.src.ops.operation.Operation"


@dataclasses.dataclass(frozen=True)
class Definition:
    """A function or class in its source."""

    module: "Module"
    node: Any

    @property
    def path(self) -> str:
        return f"{self.module.name}.{self.node.name}"

    @property
    def is_class(self) -> bool:
        return isinstance(self.node, ast.ClassDef)


@dataclasses.dataclass(frozen=True)
class Missing:
    """A path that does not exist: `path` has no `part`; it has `names`."""

    path: str
    part: str
    names: tuple[str, ...]


class Module:
    """The syntax tree of a module.

    Attributes:
        names: {name: node that defines it}, of the module's top level.
        is_complete: whether the module has no other names.
    """

    def __init__(self, name: str, path: str):
        self.name, self.path = name, path
        self.tree = ast.parse(pathlib.Path(path).read_bytes())
        self.names, self._starred, self._followed = {}, False, set()
        self._scan(self.tree.body, self.names)
        self.exported = self._literal("__all__")
        self.is_complete = not self._starred and ("__getattr__" not in self.names or self.exported is not None)

    @property
    def is_keras(self) -> bool:
        return self.name.split(".")[0] == "keras"

    @property
    def package(self) -> str:
        return self.name if self.path.endswith("__init__.py") else self.name.rpartition(".")[0]

    def _scan(self, body, names) -> None:
        for node in body:
            if isinstance(node, ast.If | ast.Try | ast.With):  # the first branch wins: TensorFlow's, in Keras
                for branch in (*getattr(node, "handlers", ()), *getattr(node, "orelse", ())):
                    self._scan(getattr(branch, "body", None) or [branch], names)
                self._scan(node.body, names)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names[node.name] = node
            elif isinstance(node, ast.Import | ast.ImportFrom):
                for alias in node.names:
                    self._starred |= alias.name == "*"
                    is_top = isinstance(node, ast.Import) and not alias.asname  # `import a.b` binds `a`
                    names[alias.asname or (alias.name.split(".")[0] if is_top else alias.name)] = (node, alias)
            elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
                for target in getattr(node, "targets", None) or [node.target]:
                    for name in getattr(target, "elts", [target]):
                        if isinstance(name, ast.Name):
                            names[name.id] = node.value
            elif isinstance(node, ast.For | ast.While | ast.Expr | ast.Delete):
                # A loop or a call may define names (`globals()[name] = ...`).
                self._starred |= any(
                    isinstance(n, ast.Name) and n.id in ("globals", "setattr", "exec") for n in ast.walk(node)
                )

    def _literal(self, name):
        try:
            return tuple(ast.literal_eval(self.names[name]))
        except (KeyError, ValueError, TypeError):
            return None

    def imports(self) -> Iterator[str]:
        """Yields the imported modules, and the paths of imported names that may be modules."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                source = self._source(node)
                yield from (f"{source}.{alias.name}" for alias in node.names)

    def _source(self, node) -> str:
        if not node.level:
            return node.module
        above = self.package.split(".")[: len(self.package.split(".")) - node.level + 1]
        return ".".join([*above, *filter(None, [node.module])])

    def public(self) -> list[str]:
        """Returns `__all__` without constants, or the public functions and classes that it defines."""
        own = (n for n, node in self.names.items() if isinstance(node, ast.FunctionDef | ast.ClassDef))
        if self.exported:
            return [n for n in self.exported if not isinstance(self.names.get(n), ast.Constant)]
        return [n for n in own if n[0] != "_"]

    def get(self, name: str):
        """Returns the Definition, Module or syntax node of a name; Missing; or None if only an import can tell."""
        node = self.names.get(name)
        if node is None:
            inner = (
                None if name in self.names or not self.path.endswith("__init__.py") else module(f"{self.name}.{name}")
            )
            known = [n for n in (*self.names, *(self.exported or ())) if n[0] != "_"]
            return inner or (Missing(self.name, name, tuple(known)) if self.is_complete and name not in known else None)
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            return Definition(self, node)
        if isinstance(node, ast.Name):  # an alias, `Mine = Yours`
            return self.get(node.id) if node.id != name and node.id in self.names else None
        if not isinstance(node, tuple):
            return node
        statement, alias = node
        if isinstance(statement, ast.Import):
            return module(alias.name if alias.asname else alias.name.split(".")[0])
        source = self._source(statement)
        if source == self.name:  # a package that imports its own module
            return module(f"{source}.{alias.name}")
        if name in self._followed:  # two modules that import a name from each other
            return None
        self._followed.add(name)
        found = follow(source, [alias.name])
        self._followed.discard(name)
        return found

    def __repr__(self):
        return f"<module {self.name}>"


def follow(top: str, parts):
    """Returns the object at the path `parts` from module `top`, as Module.get does."""
    found = module(top)
    for part in parts:
        found = found.get(part) if isinstance(found, Module) else None
    return found


def module(name: str) -> Module | None:
    """Returns a module of Gradloom, Keras or the user; None for any other, and for a missing one."""
    path = locate(name)
    return _parsed(name, path, pathlib.Path(path).stat().st_mtime_ns) if path and _is_read(name, path) else None


def error_in(name: str) -> SyntaxError | None:
    """Returns the syntax error of a user's module, or None."""
    path = locate(name)
    if path and _is_read(name, path):
        try:
            ast.parse(pathlib.Path(path).read_bytes(), path)
        except SyntaxError as error:
            return error
    return None


@functools.cache
def _parsed(name, path, _changed) -> Module | None:
    try:
        return Module(name, path)
    except (SyntaxError, UnicodeDecodeError):  # reported by the import
        return None


def locate(name: str) -> str | None:
    """Returns the file of a module, without importing its packages; "" for a module without a file; None: no module."""
    top, *rest = name.split(".")
    try:
        spec = (
            importlib.machinery.PathFinder.find_spec(top, [str(ROOT)])
            if top in PACKAGES
            else importlib.util.find_spec(top)
        )
        for i in range(len(rest)):
            if spec is None or spec.submodule_search_locations is None:
                return None
            spec = importlib.machinery.PathFinder.find_spec(
                ".".join([top, *rest[: i + 1]]), spec.submodule_search_locations
            )
    except (ValueError, ImportError):  # a module made by hand, without a spec
        return "" if name in sys.modules else None
    if spec is None:
        return "" if name in sys.modules else None
    return spec.origin if spec.has_location and spec.origin.endswith(".py") else ""


def _is_read(name: str, path: str) -> bool:
    return name.split(".")[0] in (*PACKAGES, "keras") or not is_installed(path)


@functools.cache
def is_installed(path: str) -> bool:
    """True if a file belongs to Python or to an installed package."""
    folders = {sysconfig.get_path(kind) for kind in ("purelib", "platlib", "stdlib")}
    return any(pathlib.Path(path).is_relative_to(folder) for folder in folders)


# Signatures.


@functools.cache
def signature(found: Definition) -> values.Signature | None:
    """Returns the signature of a function or class; None if it is known only after an import."""
    order = _mro(found) if found.is_class else [found]
    is_operation = any(base is not None and base.path == _OPERATION for base in order)
    parameters, required, positional, is_open, is_keras = {}, None, 0, True, False
    for base in order:
        if base is None or not _is_transparent(base):
            return None
        constructor = _constructor(base)
        if constructor is None:
            continue
        own, is_open = _parameters(base, constructor)
        if required is None:  # the first constructor is the one that is called
            required = [name for name, p in own.items() if p.is_required]
            positional = math.inf if constructor.args.vararg else len(own) - len(constructor.args.kwonlyargs)
        parameters.update((name, p) for name, p in own.items() if name not in parameters)
        is_keras |= base.module.is_keras
        if not is_open and not is_operation:
            break
    if found.is_class and is_keras:
        is_open = False  # Keras rejects unknown names
        parameters.update((n, values.Parameter(n)) for n in UNNAMED_IN_KERAS if is_operation and n not in parameters)
    takes_any = is_open and (bool(parameters) or not found.is_class)
    return values.Signature(parameters, required or [], takes_any, positional)


def _mro(found: Definition) -> list[Definition | None]:
    """Returns a class and its bases, None for an unreadable one."""
    order = [found]
    for base in found.node.bases:
        base = base.value if isinstance(base, ast.Subscript) else base  # Generic[T]
        if last_name(base) in _WITHOUT_PARAMETERS:
            continue
        definition = resolve(found.module, base)
        if isinstance(definition, Definition):
            inherited = _mro(definition)
            order = [d for d in order if d is None or d not in inherited] + inherited
        elif not found.module.is_keras:  # TensorFlow's own bases of Keras' classes take no parameters
            order.append(None)
    return order


def resolve(module: Module, node):
    """Returns the object of a name or dotted path in a module, as Module.get does."""
    if isinstance(node, ast.Name):
        return module.get(node.id) if node.id in module.names else None
    if isinstance(node, ast.Attribute):
        owner = resolve(module, node.value)
        return owner.get(node.attr) if isinstance(owner, Module) else None
    return None


def _is_transparent(found: Definition) -> bool:
    decorators = [found.module.names.get(getattr(d, "id", ""), d) for d in found.node.decorator_list]
    return found.module.is_keras or all(last_name(d) in _TRANSPARENT for d in decorators)


def last_name(node) -> str:
    """Returns the last part of a dotted name, also of one that is called or imported; "" for anything else."""
    node = node[1] if isinstance(node, tuple) else node.func if isinstance(node, ast.Call) else node
    return getattr(node, "id", getattr(node, "attr", getattr(node, "name", "")))


def _constructor(found: Definition):
    """Returns the node with the parameters: the function itself, or `__init__` or `__new__` of the class; or None."""
    if not found.is_class:
        return found.node
    methods = {n.name: n for n in found.node.body if isinstance(n, ast.FunctionDef)}
    if any(last_name(base) == "NamedTuple" for base in found.node.bases):
        fields = [n for n in found.node.body if isinstance(n, ast.AnnAssign)]
        args = [ast.arg("self")] + [ast.arg(n.target.id, n.annotation) for n in fields]
        return ast.FunctionDef(
            "__new__", ast.arguments([], args, None, [], [], None, [n.value for n in fields if n.value]), [], []
        )
    return methods.get("__init__") or methods.get("__new__")


def _parameters(found: Definition, node) -> tuple[dict[str, values.Parameter], bool]:
    """Returns the named parameters of a function node, and whether it takes **kwargs."""
    a = node.args
    listed = [*a.posonlyargs, *a.args]
    defaults = (
        [values.REQUIRED] * (len(listed) - len(a.defaults))
        + list(a.defaults)
        + [values.REQUIRED if d is None else d for d in a.kw_defaults]
    )
    meanings = {**values.meanings(ast.get_docstring(found.node)), **values.meanings(ast.get_docstring(node))}
    declared = values.DECLARED.get(found.path, {})
    parameters = {}
    for arg, default in list(zip([*listed, *a.kwonlyargs], defaults))[1 if found.is_class else 0 :]:
        default = default if default is values.REQUIRED else _literal(default)
        annotation = declared.get(arg.arg, values.annotation(arg.annotation))
        parameters[arg.arg] = values.Parameter(arg.arg, default, annotation, meanings.get(arg.arg, ""))
    return {n: p for n, p in parameters.items() if n not in [x.arg for x in a.posonlyargs]}, a.kwarg is not None


def _literal(node):
    try:
        return ast.literal_eval(node)
    except ValueError:
        return values.Computed(ast.unparse(node))
