"""The names in gin: Keras' public classes, ours, and the modules that a config imports."""

import contextlib
import difflib
import importlib
import inspect
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gin

# The first module is the canonical one where Keras exports an object twice (`losses.hinge`, `metrics.hinge`).
_KERAS = (
    "optimizers", "optimizers.schedules", "losses", "metrics", "layers", "initializers", "regularizers", "constraints",
    "activations", "applications", "models",
)  # fmt: skip
NOT_CONFIGURABLE = {
    "get", "serialize", "deserialize", "clone_model", "load_model", "save_model", "model_from_json",
}  # fmt: skip
# Module in gin files -> (module that defines it, names; None means all public ones).
_OURS = {
    "trainer": ("trainer.experiment", ("run", "Trainer")),  # it registers `run` itself
    "trainer.data": ("trainer.data", None),
    "trainer.hooks": ("trainer.hooks", None),
    "trainer.strategies": ("trainer.replicas.strategies", ("tpu",)),
    "trainer.loading": ("trainer.saving.loading", ("init_from",)),
    "trainer.checkpoints": ("trainer.saving.checkpoints", None),
    "layers": ("layers", None),
    "losses": ("losses", None),
    "optimizers": ("optimizers", None),
    "trainer.methods": ("trainer.methods", None),
}

# Keras' Layer and Model take these from **kwargs without naming them in any signature.
UNNAMED_IN_KERAS = {"input_shape", "input_dim", "inputs", "outputs", "name", "trainable", "dtype"}


class Internals(NamedTuple):
    """The private parts of gin 0.5.0 that Gradloom reads. No other code in the project uses them (tested)."""

    config: dict
    operative: dict
    registry: Any
    constants: Any
    lookup: Callable
    singletons: dict


def internals() -> Internals:
    """Returns gin's registry and its two configurations."""
    c = gin.config
    return Internals(c._CONFIG, c._OPERATIVE_CONFIG, c._REGISTRY, c._CONSTANTS, c._inverse_lookup, c._SINGLETONS)


def configurable(target=None, *, name: str | None = None, module: str | None = None):
    """Decorates a function or class so that gin can bind its parameters; without it a config uses `module.name`.

    A Keras layer or model is registered, not wrapped: its bindings apply when a config builds it (`@MyLayer()`), not
    when Python code calls it. For other objects they apply to every call.

    Args:
      target: the function or class; or, as in gin, the name (`@configurable("cnn")`).
      name: the name in gin files, by default the object's name.
      module: the module in gin files, by default the object's module.

    Returns:
      The function or class, or a decorator.

    Example:
      >>> @configurable
      ... def cnn(width=32): ...
    """
    if target is None or isinstance(target, str):
        return lambda fn: configurable(fn, name=name or target, module=module)
    # gin.configurable replaces `__init__`, which breaks the construction of Keras 3 operations.
    decorate = gin.register if _is_keras_operation(target) else gin.configurable
    # A notebook cell may run several times; elsewhere a second definition is an error.
    again = gin.config.interactive_mode() if target.__module__ == "__main__" else contextlib.nullcontext()
    with again:
        return decorate(name or target.__name__, module=module)(target)


def arguments_of(function: Callable, name: str, module: str) -> Callable:
    """Returns a configurable with the parameters of `function` that calls nothing: it returns all arguments by name."""
    signature = inspect.signature(function)

    def arguments(*args, **kwargs) -> dict[str, Any]:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

    arguments.__signature__ = signature
    return configurable(arguments, name=name, module=module)


def _is_keras_operation(target) -> bool:
    # A Keras subclass can exist only if Keras is imported, so this never imports it.
    operation = getattr(sys.modules.get("keras"), "Operation", None)
    return operation is not None and inspect.isclass(target) and issubclass(target, operation)


def quiet_import() -> None:
    """Imports TensorFlow and Keras without their start-up messages, which are printed if the import fails."""
    if "tensorflow" in sys.modules and "keras" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as captured:
        # The libraries write from C++ before they read their log level, so file descriptor 2 is redirected.
        os.dup2(captured.fileno(), 2)
        try:
            import keras  # noqa: F401
            import tensorflow as tf

            tf.config.list_physical_devices()  # CUDA prints its warnings when the devices are first listed
        except BaseException:
            captured.seek(0)
            os.write(kept, captured.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def homes() -> Iterator[tuple[str, str, Sequence[str] | None]]:
    """Yields (module in gin files, module that has the names, the names or None for all public ones)."""
    yield from ((f"keras.{module}", f"keras.{module}", None) for module in _KERAS)
    yield from ((module, home, names) for module, (home, names) in _OURS.items())


def register() -> None:
    """Registers Keras and Gradloom with gin, once per process. The objects are not changed."""
    for module, home, names in homes():
        package = importlib.import_module(home)
        _register_all(package, module, _public(package) if names is None else names)


def _public(module) -> list[str]:
    """Returns a module's `__all__`, or the public names that it defines; for Keras all public names."""
    if module.__name__.startswith("keras."):
        return [n for n in dir(module) if n[0] != "_" and n not in NOT_CONFIGURABLE]
    own = [n for n, o in vars(module).items() if n[0] != "_" and getattr(o, "__module__", None) == module.__name__]
    return getattr(module, "__all__", own)


def _register_all(package, module: str, names) -> None:
    known, lookup = internals().registry, internals().lookup
    objects = {n: getattr(package, n, None) for n in names if f"{module}.{n}" not in known}
    objects = {n: o for n, o in objects.items() if callable(o)}
    # An object's own name first, so that its aliases (`Convolution2D`) share its bindings.
    for name, value in sorted(objects.items(), key=lambda item: item[0] != getattr(item[1], "__name__", None)):
        already = lookup(value)
        if already is None:
            gin.external_configurable(value, name=name, module=module)
        else:
            known[f"{module}.{name}"] = already


class Imported(NamedTuple):
    """One `import` of a gin file: the object of its name, and the module path to register under."""

    value: Any
    path: str


def find(name: str, imported: Mapping[str, Imported]):
    """Returns gin's entry for `name`; registers an undecorated object of an imported module.

    Args:
      name: a selector as in a gin file, without scopes: `Adam`, `keras.losses.Hinge`, `my_trainer.MyTrainer`.
      imported: the names bound by the file's import statements.

    Raises:
      LookupError: if no object or several objects have this name; the message has the nearest names.
    """
    known, lookup = internals().registry, internals().lookup
    value, path, missing = _imported(name, imported)
    if callable(value):  # the file's own imports have priority
        if lookup(value) is None:
            module, _, last = path.rpartition(".")
            gin.external_configurable(value, name=last, module=module)
        return _sound(lookup(value))
    matches = sorted(known.matching_selectors(name))
    if len({id(known[m].wrapped) for m in matches}) > 1:
        raise LookupError(f"`{name}` is ambiguous: {either(matches)}. Write the full name.")
    if matches:
        return _sound(known[matches[0]])
    if missing:
        raise LookupError(f"`{name}` is unknown: {missing}")
    if path:
        raise LookupError(f"`{name}` is neither a function nor a class, got {value!r:.60}. Bind the value itself.")
    public = [n for i in imported.values() for n in dir(i.value) if inspect.ismodule(i.value) and n[0] != "_"]
    raise LookupError(unknown(name, [selector for selector, _ in known.items()], public))


def _sound(entry):
    """Returns gin's entry; raises LookupError for a Keras class that gin.configurable has changed, which breaks it."""
    for kind in getattr(entry.wrapped, "__mro__", ()) if _is_keras_operation(entry.wrapped) else ():
        construct = getattr(vars(kind).get("__init__"), "__code__", None)
        if construct is not None and construct.co_filename == gin.config.__file__:
            raise LookupError(
                f"`{kind.__name__}` is a Keras layer or model decorated with gin.configurable, which breaks its "
                "construction. Decorate it with trainer.configurable instead."
            )
    return entry


def _imported(name: str, imported: Mapping[str, Imported]) -> tuple[Any, str, str]:
    """Follows `name` from an imported module; returns the object, its full path, and an error if a part is missing."""
    first, *rest = name.split(".")
    if first not in imported:
        return None, "", ""
    value, path = imported[first]
    for part in rest:
        if not hasattr(value, part):
            return None, path, f"`{path}` has no `{part}`.{near(part, [n for n in dir(value) if n[0] != '_'])}"
        value, path = getattr(value, part), f"{path}.{part}"
    return value, path, ""


def unknown(name: str, selectors: Iterable[str], public: Sequence[str]) -> str:
    """Returns the message for an unknown name; `public` are the names of imported modules."""
    last = name.rpartition(".")[2]
    exact = sorted(s for s in selectors if s.rpartition(".")[2] == last)
    if exact:
        return f"`{name}` is unknown. Did you mean {either(exact)}?"
    nearest = near(last, [s.rpartition(".")[2] for s in selectors] + public)
    return f"`{name}` is unknown.{nearest or ' Import the module that defines it (`import my_module`).'}"


def either(names: Iterable[str]) -> str:
    return " or ".join(f"`{n}`" for n in names)


def near(name: str, candidates) -> str:
    """Returns " Did you mean `x`?" for the nearest candidate, or ""."""
    nearest = difflib.get_close_matches(name, sorted(set(candidates)), n=1, cutoff=0.6)
    return f" Did you mean `{nearest[0]}`?" if nearest else ""


def check_parameter(entry, name: str, parameter: str, value: Any = None) -> str | None:
    """Returns the error of binding `parameter` of gin's `entry` (written `name`) to `value`, or None."""
    named = parameters(entry.wrapped)
    if named is None or parameter in named:
        return _wrong_type(entry.wrapped, name, parameter, value)
    return no_parameter(name, parameter, named)


def no_parameter(name: str, parameter: str, named: Iterable[str]) -> str:
    """Returns the message for an unknown parameter of `name`, with the known ones."""
    there = ", ".join(f"`{n}`" for n in sorted(named))
    return f"`{name}` has no parameter `{parameter}`.{near(parameter, named)} It has {there or 'none'}."


def _wrong_type(target, name: str, parameter: str, value: Any) -> str | None:
    """Finds a string for a parameter whose default is a number or a bool."""
    try:
        found = inspect.signature(target).parameters.get(parameter)
    except (TypeError, ValueError):  # builtins without a signature
        return None
    default = found.default if found else None
    if not isinstance(value, str) or not isinstance(default, (int, float)):
        return None
    wanted = "True or False" if isinstance(default, bool) else "a number"
    return f"`{name}.{parameter}` must be {wanted}, like its default {default!r}, got {value!r}."


def parameters(target) -> set[str] | None:
    """Returns the parameter names of `target`, over the whole MRO if **kwargs is passed on; None: any name."""
    if not inspect.isclass(target):
        named, is_open = _signature(target)
        return None if is_open else named
    is_keras, named = target.__module__.split(".")[0] == "keras", set()
    for base in target.__mro__:
        construct = base.__dict__.get("__init__") or base.__dict__.get("__new__")
        if base is object or not inspect.isroutine(construct):
            continue
        more, is_open = _signature(construct)
        named |= more
        is_keras |= base.__module__.split(".")[0] == "keras"
        if not is_open and not _is_keras_operation(target):
            break
    else:
        # **kwargs up to the top are free-form in a user's class; Keras rejects unknown names.
        if named and not is_keras:
            return None
    return named - {"self", "cls", "_cls"} | (UNNAMED_IN_KERAS if _is_keras_operation(target) else set())


def _signature(fn) -> tuple[set[str], bool]:
    try:
        found = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # builtins without a signature
        return set(), True
    return {p.name for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}, any(
        p.kind == p.VAR_KEYWORD for p in found
    )


def required_parameters(target) -> list[str]:
    """Returns the parameters without a default, in order."""
    try:
        found = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in found if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
