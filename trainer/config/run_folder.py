"""Writes the config files of a run folder. A file that the user wrote or changed is never overwritten."""

import contextlib
import hashlib
import os
import pathlib

_CONFIG, _OPERATIVE, _RESOLVED, _COMMAND = "config.gin", "operative_config.gin", "resolved_config.gin", "command.txt"
_OTHER = "run_"  # prefix of our files if the user has a file of that name
_MARK = "# Written by `run`. If you change it, it is yours, and the next start writes run_{name}. sha256 of the rest: "


def save(model_dir, config: str, operative: str, command: str, resolved: str | None = None) -> None:
    """Writes config.gin, operative_config.gin and command.txt, or run_... if the user has such a file; atomically."""
    folder = pathlib.Path(model_dir)
    folder.mkdir(parents=True, exist_ok=True)
    gin_files = [folder / _CONFIG, folder / _OPERATIVE]
    is_old = all(path.is_file() for path in [*gin_files, folder / _COMMAND]) and not any(
        _has_mark(path.read_text()) for path in gin_files
    )  # from a version without the mark
    for name, text in ((_CONFIG, config), (_OPERATIVE, operative), (_RESOLVED, resolved)):
        if text is None:
            continue
        path = _free(folder, name, lambda there: _is_as_written(there) or (is_old and not _has_mark(there)))
        _write(path, _MARK.format(name=name) + _sha256(text) + "\n" + text)
    _write(
        _free(folder, _COMMAND, lambda there: there.strip() == "" or there.startswith("python -m trainer.")),
        command + "\n",
    )


def config_of(model_dir) -> pathlib.Path:
    """Returns the path of the config.gin that the last run wrote into a folder; it may not exist."""
    ours = pathlib.Path(model_dir) / (_OTHER + _CONFIG)
    return ours if ours.exists() else pathlib.Path(model_dir) / _CONFIG


def command_of(model_dir) -> str:
    """Returns the last command of a run folder, "" for a run started from Python."""
    ours = pathlib.Path(model_dir) / (_OTHER + _COMMAND)
    path = ours if ours.exists() else pathlib.Path(model_dir) / _COMMAND
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def _free(folder, name, is_ours):
    """Returns the path under which a run may write `name`, and removes an older file of ours under the other path."""
    path, other = folder / name, folder / (_OTHER + name)
    if path.exists() and not is_ours(path.read_text(encoding="utf-8", errors="replace")):
        return other
    with contextlib.suppress(FileNotFoundError):
        other.unlink()
    return path


def _has_mark(text):
    return text.startswith(_MARK.partition(".")[0])


def _is_as_written(text):
    mark, _, rest = text.partition("\n")
    return _has_mark(text) and mark.endswith(_sha256(rest))


def _sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def _write(path, text):
    temporary = path.parent / f".{path.name}.writing"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
