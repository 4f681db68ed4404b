"""Reads, checks and binds gin configs.

Here: the syntax of gin files (files, without TensorFlow), the names that gin knows (registry), and binding the
first to the second (binding). Not here: module-level imports of TensorFlow, and the meaning of bindings for a run.
Used from outside: the names below, files.shown, registry.configurable and registry.internals.
"""

from trainer.config.binding import (
    ConfigError,
    bind,
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
    require,
    save,
    unused,
)

__all__ = [
    "ConfigError",
    "bind",
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
    "require",
    "save",
    "unused",
]
