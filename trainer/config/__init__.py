"""Reads, checks and binds gin configs.

Before users' modules are imported: gin files (files, statements, advice), the source code of Gradloom, Keras and the
user (syntax, names, values), and the mistakes found in both (checks). After the import: the names that gin knows
(registry), and binding the statements to them (binding). Not here: module-level imports of TensorFlow, and the meaning
of bindings for a run.
Used from outside: the names below, statements.shown, paths, run_folder, registry.configurable, registry.internals.
"""

from trainer.config.binding import (
    ConfigError,
    bind,
    binding_of,
    bound_value,
    configurable,
    injected,
    is_bound,
    isolated,
    quiet_import,
    read,
    references,
)
from trainer.config.texts import bindings, config_text, difference, operative_text, resolved_text, save

__all__ = [
    "bindings",
    "ConfigError",
    "bind",
    "binding_of",
    "bound_value",
    "config_text",
    "configurable",
    "difference",
    "injected",
    "is_bound",
    "isolated",
    "operative_text",
    "quiet_import",
    "read",
    "references",
    "resolved_text",
    "save",
]
