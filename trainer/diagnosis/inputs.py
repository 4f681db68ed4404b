"""What is wrong with the data, told by batch, row, element, file and name: exceptions of the pipeline, values that are not finite."""

import contextlib
import inspect
import re
import time

import tensorflow as tf

from trainer.data import NoBatches
from trainer.inputs.batches import not_finite
from trainer.inputs.record_source import find_records
from trainer.step.first_batch import check_labels

_PATIENCE = 30  # seconds for which data are read again to find what was wrong with them
_AHEAD = 20_000  # elements that a shuffle or prefetch may hold
_LOST_WORKER = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)
_FRAME = re.compile(r'^\s*File "[^"]+", line \d+, in .+$', re.MULTILINE)


@contextlib.contextmanager
def located(source, start=0, stop=None, what="training"):
    """Lets an exception of the input pipeline out with its type, and says in which batch, row, element and file; eager.

    The data are read again to find the place. Lines of the user's own code that TensorFlow knows of become a note.

    Args:
        source: where the batches come from.
        start, stop: the batches that may be meant; None: to the end.
        what: whose data, for people.
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
        new = type(found)(None, None, f"{_told(found)}\n  in {place}")
        new.add_note("\n".join([*_FRAME.findall(str(found)), *made_by]))
        new.is_nobodys_code = True  # explain.py: no frame of ours says more
        raise new from None


def cause_in_data(trainer, source, start, stop, labels=True):
    """Returns what the batches from `start` to `stop` - 1 have to do with gradients that are not finite, for people; eager.

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
    return f"All inputs of its batches are finite{again}: the model or its losses made what is not."


def _find(source, start, stop, what):
    """Reads the batches again: returns (the exception or None, where it came, lines of code that made it)."""
    first = start if source.exact else 0  # others would be skipped to their place, with no look at the clock
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
    """Returns (elements that came before, the exception), or (elements, None) where none came in time."""
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
    """Adds what the transformations of a dataset tell: the first of them that fails, at which element, and the files."""
    stages = [dataset]
    while len(inputs := stages[-1]._inputs()) == 1:
        stages.append(inputs[0])
    failing, taken, enough = None, None, None
    for depth, stage in enumerate(stages):
        before, found = _fails_at(stage, deadline, enough)
        if found is None:
            break
        failing, taken = depth, before
        enough = (before + 1) * int(
            getattr(stage, "_batch_size", 1)
        ) + _AHEAD  # what it took from its input, which may never end
    if failing is None:
        return place, []
    stage, *below = stages[failing:]
    function = getattr(getattr(stage, "_map_func", None), "_func", None)
    shuffled = any("Shuffle" in type(each).__name__ for each in (stage, *below))  # then the number says nothing
    place += f", at element {taken} of" if counted and not shuffled else ", at an element of"
    place += " ." + re.sub(r"^_?(Parallel)?|Dataset(V\d)?$", "", type(stage).__name__).lower()
    paths = _paths(stages[-1])
    if isinstance(error, tf.errors.DataLossError):
        place += _corrupt(paths, deadline)
    elif (
        counted
        and len(below) == 2
        and hasattr(below[0], "_filenames")
        and not getattr(below[0], "_num_parallel_reads", None)
    ):
        place += _file_of(taken, paths, type(below[0]), deadline)
    elif paths:
        place += f", file{'s' * (len(paths) > 1)} {', '.join(paths[:6])}{', ...' * (len(paths) > 6)}"
    return place, _line_of(function)


def _line_of(function):
    """Returns where a function of the user's is, as Python tells a frame."""
    code = getattr(inspect.unwrap(function), "__code__", None) if function is not None else None
    if code is None or "/tensorflow/" in code.co_filename:
        return []
    return [f'  File "{code.co_filename}", line {code.co_firstlineno}, in {code.co_name.strip("<>")}']


def _paths(dataset):
    """Returns the paths of files that a dataset names; none where it holds something else."""
    if dataset.element_spec != tf.TensorSpec([], tf.string):
        return []
    return [path.decode() for path in dataset.take(10_000).as_numpy_iterator() if tf.io.gfile.exists(path)]


def _corrupt(paths, deadline):
    for path in paths:
        corrupt = find_records(path)[1] if time.monotonic() < deadline else []
        if corrupt:
            return f", file {path}: {corrupt[0]}"
    return ""


def _file_of(element, paths, reader, deadline):
    """Returns which of the files, read one after the other, holds an element."""
    for path in paths:
        size, error = _fails_at(reader(path), deadline)
        if error is not None or time.monotonic() > deadline:
            break
        if element < size:
            return f", record {element} of file {path}"
        element -= size
    return ""


def _told(error):
    """Returns TensorFlow's text without the names of its nodes and the traceback, which is told elsewhere."""
    text = str(error).rpartition("<stack traces unavailable>\n")[2]
    text = re.sub(r"^\{\{function_node [^}]*\}\} ", "", text)
    text = re.sub(r"^Error in user-defined function passed to .*?Iterator::\S+ ", "", text)
    text = re.sub(r"^\d+ root error\(s\) found\.\n\s*\(0\) [A-Z_]+:\s+", "", text)
    return re.split(r"\nTraceback|\n\s*\[\[|\s*\[Op:", text)[0].strip()
