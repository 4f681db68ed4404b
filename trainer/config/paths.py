"""Paths that users give: literal, on a file system of this machine."""

import contextlib
import os
import pathlib
import re
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent  # of the packages shipped
PACKAGES = ("trainer", "layers", "losses", "optimizers", "configs")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # two characters or more; pathlib makes "gs:/" of "gs://"


def local_path(argument, value):
    """Returns a path as an absolute pathlib.Path: `~` is expanded, every other character stands for itself.

    Args:
        argument: the name of the argument, for the error.
        value: str or os.PathLike.

    Raises:
        ValueError: if it is empty, no path, or names another file system (`gs://bucket/run`).
    """
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str):
        raise ValueError(f"`{argument}` must be a path, a str or a pathlib.Path, got {value!r}.")
    text = os.fspath(value)
    if not text.strip() or "\0" in text:
        raise ValueError(f"`{argument}` must be a path, got {text!r}. Is a variable of the shell unset?")
    if scheme := _SCHEME.match(text):
        raise ValueError(
            f"`{argument}` must be on a file system of this machine, got {text!r}. {scheme[1]}:// is not supported: mount "
            "it, or use a local folder and copy it afterwards."
        )
    return pathlib.Path(os.path.abspath(os.path.expanduser(text)))


def folder_path(argument, value):
    """Returns `local_path` of a folder, which need not exist.

    Raises:
        ValueError: also if a file or a link to nothing is in its place, or in that of a folder above.
    """
    path = local_path(argument, value)
    there = next(above for above in (path, *path.parents) if os.path.lexists(above))
    if not there.is_dir():
        what = "is a link to nothing" if not there.exists() else "is a file"
        raise ValueError(f"`{argument}` must be a folder, got {str(value)!r}, but {there} {what}.")
    return path


@contextlib.contextmanager
def literal(folder):
    """Yields a name of `folder` that is no pattern: TensorFlow looks for checkpoints by glob, which takes no escapes."""
    if not re.search(r"[][*?\\]", str(folder)):
        yield str(folder)
        return
    with tempfile.TemporaryDirectory() as made:
        link = os.path.join(made, "folder")
        os.symlink(os.path.abspath(folder), link)
        yield link
