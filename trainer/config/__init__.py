"""Reads, checks and binds gin configs.

Read without importing what is named: gin files (files, statements, advice), the sources of ours, Keras and the user
(syntax, names, values), and the mistakes found in both (checks). After the import: what gin knows by name (registry),
and binding the statements to it (binding). Not here: anything that imports TensorFlow at the top of a module, and what a
binding means to a run. From outside, the names below are used, and statements.shown, paths, run_folder,
registry.configurable and registry.internals.
"""

from trainer.config.binding import (
    ConfigError,
    bind,
    binding_of,
    bound_value,
    config_text,
    configurable,
    difference,
    injected,
    is_bound,
    isolated,
    operative_text,
    quiet_import,
    read,
    references,
    save,
    unused,
)

__all__ = [
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
    "save",
    "unused",
]
