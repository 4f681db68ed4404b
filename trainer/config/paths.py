"""Validates paths that users give: literal paths of a local file system."""

import contextlib
import os
import pathlib
import re
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent  # of the packages shipped
PACKAGES = ("trainer", "layers", "losses", "optimizers", "configs")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # two characters or more; pathlib makes "gs:/" of "gs://"


def local_path(argument, value):
    """Returns a path as an absolute pathlib.Path: `~` is expanded, all other characters are literal.

    Args:
        argument: the name of the argument, for the error.
        value: str or os.PathLike.

    Raises:
        ValueError: if it is empty, not a path, or on a remote file system (`gs://bucket/run`).
    """
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str):
        raise ValueError(f"`{argument}` must be a path, a str or a pathlib.Path, got {value!r}.")
    text = os.fspath(value)
    if not text.strip() or "\0" in text:
        raise ValueError(f"`{argument}` must be a path, got {text!r}. Is a shell variable unset?")
    if scheme := _SCHEME.match(text):
        raise ValueError(
            f"`{argument}` must be on a file system of this machine, got {text!r}. {scheme[1]}:// is not supported: "
            "mount it, or use a local folder and copy it afterwards."
        )
    return pathlib.Path(os.path.abspath(os.path.expanduser(text)))


def folder_path(argument, value):
    """Returns `local_path` of a folder, which need not exist.

    Raises:
        ValueError: also if it, or a folder above it, is a file or a dangling link.
    """
    path = local_path(argument, value)
    there = next(above for above in (path, *path.parents) if os.path.lexists(above))
    if not there.is_dir():
        what = "is a dangling link" if not there.exists() else "is a file"
        raise ValueError(f"`{argument}` must be a folder, got {str(value)!r}, but {there} {what}.")
    return path


@contextlib.contextmanager
def literal(folder):
    """Yields a name of `folder` without pattern characters: TensorFlow searches checkpoints by glob, unescaped."""
    if not re.search(r"[][*?\\]", str(folder)):
        yield str(folder)
        return
    with tempfile.TemporaryDirectory() as made:
        link = os.path.join(made, "folder")
        os.symlink(os.path.abspath(folder), link)
        yield link
