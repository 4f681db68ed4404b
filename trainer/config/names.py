"""Looks up the names of a config in syntax trees, as `registry.find` does after TensorFlow is imported."""

import ast
import functools
import sys
from collections.abc import Iterable
from typing import Any

from trainer.config import registry, syntax
from trainer.config.syntax import Definition, Missing, Module

# Packages that register nothing in gin. Any other installed package might.
_REGISTER_NOTHING = {
    *("tensorflow", "keras", "numpy", "gin", "absl", "scipy", "sklearn", "matplotlib", "pandas", "PIL", "h5py", "rich"),
    *("tensorboard", "tensorflow_datasets", "typing_extensions", "__future__", "__gin__"),
    *sys.stdlib_module_names,
    *syntax.PACKAGES[:-1],
}
_OF_GIN = ("gin.macro", "gin.constant", "gin.singleton")
_REGISTERING = ("configurable", "register", "external_configurable")


class Unknown(LookupError):
    """A name that does not exist; the message has the nearest one."""


class Names:
    """The names that the statements of a config may use.

    Attributes:
        is_open: whether unreadable code may register further names.
        opens_scopes: whether code opens scopes of gin (`gin.config_scope`).
        constants: the names of gin's constants.
    """

    def __init__(self, imports):
        """Reads the modules. imports: (gin's import statement, source, where) of each import."""
        self._tables: dict[str, dict[str, Any]] = {}
        self._everywhere: dict[str, Any] = {}
        self._registered: dict[str, Any] = dict(shipped())
        self.constants, self.is_open, self.opens_scopes, self._seen = set(), False, False, set()
        for statement, source, _ in imports:
            module = syntax.module(statement.module)
            if statement.is_from and module is None:
                package, _, name = statement.module.rpartition(".")
                owner = syntax.module(package)
                found = owner.get(name) if owner else None
                module = owner
            else:
                found = (
                    module if statement.is_from or statement.alias else syntax.module(statement.module.split(".")[0])
                )
            for table in (self._everywhere, self._tables.setdefault(source, {})):
                table[statement.bound_name()] = found
            self._read(statement.module, module)

    def _read(self, name: str, module: Module | None) -> None:
        """Records the names that a module and its imports register."""
        top = name.split(".")[0]
        if module is None:
            self.is_open |= top not in _REGISTER_NOTHING and syntax.locate(top) is not None
        if module is None or module.path in self._seen or top in ("keras", *syntax.PACKAGES[:-1]):
            return
        self._seen.add(module.path)
        decorators = {id(d): d for node in ast.walk(module.tree) for d in getattr(node, "decorator_list", ())}
        for node in module.tree.body:
            for decorator in getattr(node, "decorator_list", ()):
                if syntax.last_name(decorator) in _REGISTERING:
                    self._register(module, decorator, Definition(module, node), node.name)
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and id(node) not in decorators:
                if syntax.last_name(node) == "constant" and node.args and isinstance(node.args[0], ast.Constant):
                    self.constants.add(node.args[0].value)
                elif syntax.last_name(node) in _REGISTERING or syntax.last_name(node) in (
                    "constants_from_enum",
                    "parse_config",
                    "bind_parameter",
                ):
                    self.is_open = True  # its registrations are known only after the import
                self.opens_scopes |= syntax.last_name(node) == "config_scope"
        for imported in module.imports():
            if syntax.locate(imported) is not None or "." not in imported:
                self._read(imported, syntax.module(imported))

    def _register(self, module, decorator, found, name) -> None:
        call = decorator if isinstance(decorator, ast.Call) else ast.Call(decorator, [], [])
        given = {k.arg: k.value for k in call.keywords}
        name, home = call.args[0] if call.args else given.get("name", name), given.get("module", module.name)
        name, home = (getattr(value, "value", value) for value in (name, home))
        if isinstance(name, str) and isinstance(home, str):
            self._registered[f"{home}.{name}"] = found
        else:
            self.is_open = True

    def selectors(self) -> list[str]:
        """Returns the full names of all registered objects."""
        return [name for name, found in self._registered.items() if found is not None]

    def find(self, name: str, source: str) -> Definition | None:
        """Returns the Definition of a name in `source`; None if it is known only after an import.

        Raises:
          Unknown: if there is no such name, or if there are several.
        """
        imported = {**self._everywhere, **self._tables.get(source, {})}
        first, *rest = name.split(".")
        missing = None
        if first in imported:
            found = imported[first]
            for part in rest:
                if not isinstance(found, Module):
                    return None
                found = found.get(part)
            if isinstance(found, Definition):
                return found
            missing = found
            if not isinstance(found, Missing):
                return None
        matches = [name] if name in self._registered else [s for s in self._registered if s.endswith(f".{name}")]
        identities = {_identity(self._registered[m]) for m in matches}
        if len(identities) > 1:
            raise Unknown(f"`{name}` is ambiguous: {registry.either(sorted(matches))}. Write the full name.")
        if matches:
            found = self._registered[matches[0]]
            return found.definition if isinstance(found, _Lazy) else found
        if missing:
            near = registry.near(missing.part, missing.names)
            raise Unknown(f"`{name}` is unknown: `{missing.path}` has no `{missing.part}`.{near}")
        if self.is_open:
            return None
        public = [n for m in imported.values() if isinstance(m, Module) for n in m.names if n[0] != "_"]
        raise Unknown(registry.unknown(name, self._registered, public))


class _Lazy:
    """A registered name whose file is read when it is looked up."""

    def __init__(self, module: str, name: str):
        self._module, self._name = module, name

    @functools.cached_property
    def definition(self) -> Definition | None:
        found = syntax.follow(self._module, [self._name])
        return found if isinstance(found, Definition) else None


def _identity(found):
    definition = found.definition if isinstance(found, _Lazy) else found
    return definition.path if definition else id(found)


@functools.cache
def shipped() -> dict[str, Any]:
    """Returns {selector: its definition} of the public names of Keras, Gradloom and gin."""
    found = dict.fromkeys(_OF_GIN)
    for module, home, names in registry.homes():
        tree = syntax.module(home)
        for name in _public_of_keras(tree) if names is None and tree.is_keras else names or tree.public():
            found[f"{module}.{name}"] = _Lazy(home, name)
    return found


def _public_of_keras(module: Module) -> Iterable[str]:
    """Returns the names that a generated package of Keras exports, without its subpackages."""
    for name, node in module.names.items():
        if isinstance(node, tuple) and node[0].module.startswith("keras.src") and name[0] != "_":
            if name not in registry.NOT_CONFIGURABLE:
                yield name
