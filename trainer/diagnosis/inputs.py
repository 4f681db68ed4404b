"""Locates errors in the data by batch, row, element, file and name: pipeline exceptions and non-finite values."""

import contextlib
import inspect
import re
import time

import tensorflow as tf

from trainer.data import NoBatches
from trainer.inputs.batches import leaves, not_finite
from trainer.inputs.pipelines import function_of, inputs_of, stages_of
from trainer.inputs.record_source import find_records
from trainer.step.first_batch import check_labels

_PATIENCE = 30  # seconds for which data is read again to locate an error
_AHEAD = 20_000  # elements that a shuffle or prefetch buffer may hold
_LOST_WORKER = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)
_PASSES = re.compile("Batch|Shuffle|Prefetch|Cache|Repeat|Take|Skip|Shard|Filter|Options")  # elements, as they are
_FRAME = re.compile(r'^\s*File "[^"]+", line \d+, in .+$', re.MULTILINE)


@contextlib.contextmanager
def located(source, start=0, stop=None, what="training"):
    """A context that adds batch, row, element and file to an exception of the input pipeline and keeps its type; eager.

    It reads the data again to locate the error. Lines of the user's code that TensorFlow knows are added as a note.

    Args:
        source: the source of the batches.
        start, stop: the range of batches to search; None: to the end.
        what: name of the data in messages.
    """
    try:
        yield
    except NoBatches:
        raise NoBatches(f"The {what} data") from None
    except tf.errors.OpError as error:
        if "IteratorGetNext" not in str(error) or isinstance(error, _LOST_WORKER):
            raise  # the step's own
        found, place, made_by = _find(source, start, stop, what)
        found = found if found is not None else error
        new = type(found)(None, None, f"{_message(found)}\n  in {place}")
        new.add_note("\n".join([*_FRAME.findall(str(found)), *made_by]))
        new.is_nobodys_code = True  # explain.py: no frame of ours adds information
        raise new from None


def cause_in_data(trainer, source, start, stop, labels=True):
    """Returns a sentence on whether the batches from `start` to `stop` - 1 caused non-finite gradients; eager.

    Raises:
        ValueError: if `labels`, and class ids out of range are the cause.
    """
    for number, batch in enumerate(source.batches(start).take(stop - start), start):
        if labels:
            check_labels(trainer, batch)
        found = not_finite(trainer, batch)
        if found:
            return f"In batch {number} of the training data {' and '.join(found)}."
    again = "" if source.exact else ", as far as they can be read again"
    return f"All inputs of its batches are finite{again}: the model or its losses produced the non-finite values."


def _find(source, start, stop, what):
    """Reads the batches again; returns (the exception or None, its location, lines of the user's code)."""
    first = start if source.exact else 0  # other sources skip to a position, for an unlimited time
    deadline, count = time.monotonic() + _PATIENCE, None if stop is None else stop - first
    taken, error = _fails_at(source.batches(first), deadline, count)
    if error is None:
        last = "" if stop is None else f" to {stop - 1}"
        again = "which gave no error when they were read again" if time.monotonic() < deadline else "as far as is known"
        return None, f"batches {start}{last} of the {what} data, {again}", []
    step = first + taken
    place = f"batch {step} of the {what} data" + (
        f" (epoch {int(step / source.steps_per_epoch)})" if source.steps_per_epoch else ""
    )
    if hasattr(source, "example"):
        row = _failing_row(source, step)
        return (
            error,
            place + (f", row {row}: {source.origin(step, row)}" if row is not None else ""),
            _line_of(source.function),
        )
    return error, *_describe(source.batches(first), place, error, deadline, counted=first == 0)


def _fails_at(dataset, deadline, count=None):
    """Returns (number of elements before it, the exception), or (number, None) if none was found in time."""
    taken = 0
    try:
        for _ in dataset if count is None else dataset.take(count):
            taken += 1
            if time.monotonic() > deadline:
                break
    except tf.errors.OpError as error:
        return taken, error
    return taken, None


def _failing_row(source, step):
    for row in range(source.batch_size):
        try:
            source.example(step, row)
        except tf.errors.OpError:
            return row
    return None


def _describe(dataset, place, error, deadline, counted):
    """Adds the first transformation of a dataset that fails, the number of the element, and the files."""
    failing = _first_failing(dataset, deadline)
    if failing is None:
        return place, []
    stage, taken = failing
    below = stages_of(stage)[1:]
    shuffled = any("Shuffle" in type(each).__name__ for each in (stage, *below))  # the number is then meaningless
    place += f", at element {taken} of" if counted and not shuffled else ", at an element of"
    place += " ." + re.sub(r"^_?(Parallel)?|Dataset(V\d)?$", "", type(stage).__name__).lower()
    paths = [path for each in (stage, *below) if not inputs_of(each) for path in _paths(each)]
    in_order = (
        len(below) == 2 and hasattr(below[0], "_filenames") and not getattr(below[0], "_num_parallel_reads", None)
    )
    if isinstance(error, tf.errors.DataLossError):
        place += _corrupt(paths, deadline)
    elif found := _failing_files(stage, deadline):
        place += _files(found)
    elif counted and in_order:
        place += _file_of(taken, paths, type(below[0]), deadline)
    elif paths:
        place += _files(paths)
    return place, _line_of(function_of(stage))


def _first_failing(dataset, deadline, enough=None):
    """Returns (transformation, elements before it fails) for the one that fails on valid inputs, or None."""
    taken, error = _fails_at(dataset, deadline, enough)
    if error is None:
        return None
    enough = (taken + 1) * int(getattr(dataset, "_batch_size", 1))  # of its inputs, which may be infinite
    enough += 0 if "Zip" in type(dataset).__name__ else _AHEAD
    deeper = (_first_failing(each, deadline, enough) for each in inputs_of(dataset))
    return next(filter(None, deeper), (dataset, taken))


def _failing_files(stage, deadline):
    """Returns the files in the first element that fails alone in the functions up to `stage`."""
    steps = []
    while len(inputs := inputs_of(stage)) == 1:
        if function_of(stage) is None and not _PASSES.search(type(stage).__name__):
            break  # for example a reader of files
        steps.insert(0, stage)
        stage = inputs[0]
        if any(leaf.dtype == tf.string for _, leaf in leaves(stage.element_spec)) and _paths_in(
            next(iter(stage), None)
        ):
            for element in stage:
                if time.monotonic() > deadline:
                    break
                if _fails_at(_alone(element, steps), deadline)[1] is not None:
                    return _paths_in(element)
            break
    return []


def _alone(element, steps):
    dataset = tf.data.Dataset.from_tensors(element)
    for step in steps:
        name, function = type(step).__name__, function_of(step)
        if function is not None:
            nested = "FlatMap" in name or "Interleave" in name
            dataset = dataset.flat_map(function) if nested else dataset.map(function)
        elif "Batch" in name:
            dataset = dataset.batch(1)
    return dataset


def _files(paths):
    return f", file{'s' * (len(paths) > 1)} {', '.join(paths[:6])}{', ...' * (len(paths) > 6)}"


def _line_of(function):
    """Returns the location of a user's function, in Python's format of a frame."""
    code = getattr(inspect.unwrap(function), "__code__", None) if function is not None else None
    if code is None or "/tensorflow/" in code.co_filename:
        return []
    return [f'  File "{code.co_filename}", line {code.co_firstlineno}, in {code.co_name.strip("<>")}']


def _paths(dataset):
    """Returns the first few paths of files that the elements of a dataset name."""
    if not any(leaf.dtype == tf.string for _, leaf in leaves(dataset.element_spec)):
        return []
    return [path for element in dataset.take(10_000) for path in _paths_in(element)]


def _paths_in(element):
    """Returns the paths of files among the strings of an element."""
    strings = [leaf for _, leaf in leaves(element) if leaf.dtype == tf.string and isinstance(leaf, tf.Tensor)]
    texts = [text.decode(errors="replace") for leaf in strings for text in tf.reshape(leaf, [-1]).numpy()]
    return [text for text in texts if 0 < len(text) < 4096 and "\0" not in text and _is_file(text)]


def _is_file(text):
    try:
        return tf.io.gfile.exists(text)
    except tf.errors.OpError:  # it only looks like a path of a remote file system
        return False


def _corrupt(paths, deadline):
    for path in paths:
        if time.monotonic() > deadline:
            break
        try:
            corrupt = find_records(path)[1]
        except ValueError:  # compressed
            corrupt = ["cannot be decompressed to its end"] if not _unpacks(path) else []
        if corrupt:
            return f", file {path}: {corrupt[0]}"
    return ""


def _unpacks(path):
    return _fails_at(tf.data.TFRecordDataset(path, "GZIP"), time.monotonic() + _PATIENCE)[1] is None


def _file_of(element, paths, reader, deadline):
    """Returns the file that holds an element, if the files are read in sequence."""
    for path in paths:
        size, error = _fails_at(reader(path), deadline)
        if error is not None or time.monotonic() > deadline:
            break
        if element < size:
            return f", record {element} of file {path}"
        element -= size
    return ""


def _message(error):
    """Returns TensorFlow's message without node names and traceback, which are shown elsewhere."""
    text = str(error).rpartition("<stack traces unavailable>\n")[2]
    text = re.sub(r"^\d+ root error\(s\) found\.\n\s*\(0\) [A-Z_]+:\s+", "", text)
    text = re.sub(r"^\{\{function_node [^}]*\}\} ", "", text)
    text = re.sub(r"^Error in user-defined function passed to .*?Iterator::\S+ ", "", text)
    return re.split(r"\nTraceback|\n\s*\[\[|\s*\[Op:", text)[0].strip()
