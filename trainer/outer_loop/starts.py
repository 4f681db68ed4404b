"""Records each start and end of a run in DIR/starts.jsonl: time, step, command, config, environment."""

import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import time

import tensorflow as tf

from trainer import config, history
from trainer.config import usage
from trainer.config.run_folder import command_of

_PACKAGES = ("gradloom", "tensorflow", "keras", "numpy", "gin-config")


def record(model_dir, step):
    """Appends a start at `step` and returns (it, the one before or None), as dicts: time, step, command, texts.

    The texts are those that TensorBoard and reports show: config, resolved_config, unused_bindings, environment.
    """
    start = {"time": round(time.time(), 3), "step": step, "command": command_of(model_dir), "texts": _texts()}
    before = history.starts(model_dir)
    _append(model_dir, start)
    return start, before[-1] if before else None


def end(model_dir, status, step, spent):
    """Appends the end of the last start: its status and step, and where the time went, rows of texts."""
    _append(model_dir, {"ended": status, "end_step": step, "spent": spent, "end_time": round(time.time(), 3)})


def _append(model_dir, row):
    with open(pathlib.Path(model_dir) / "starts.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _texts():
    environment = "\n".join(f"{name}: {value}" for name, value in _environment().items())
    return {
        "config": config.config_text(),
        "resolved_config": config.resolved_text(),
        "unused_bindings": "\n".join(usage.unused()) or "none",
        "environment": environment,
    }


def _environment():
    devices = [device.name.removeprefix("/device:") for device in tf.config.list_logical_devices()]
    return {
        "python": f"{platform.python_version()} ({sys.executable})",
        **{name: _version(name) for name in _PACKAGES},
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "devices": ", ".join(devices),
        "folder": os.getcwd(),
        "git": _git_revision(),
    }


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed as a package"


def _git_revision():
    """Returns the revision of the working folder and whether files differ from it; "none" outside of a repository."""
    try:
        revision = _git("rev-parse", "HEAD")
        return revision + (" with local changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "none"


def _git(*arguments):
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
