"""Reads, checks and binds gin configs.

Here: gin files as syntax (files, without TensorFlow), what gin knows by name (registry), and binding one to the
other (binding). Not here: anything that imports TensorFlow at the top of a module, and what a binding means to a run.
From outside, the names below are used, and files.shown, registry.configurable and registry.internals.
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
    "save",
    "unused",
]
