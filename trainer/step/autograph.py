"""Applies AutoGraph to users' code only, and restores the exceptions of converted code.

Our own code is traced without conversion, because AutoGraph takes about 60 ms per function.
"""

import contextlib
import functools
import inspect
import types

import tensorflow as tf

_NEVER_CONVERTED = ("trainer", "layers", "losses", "optimizers", "keras", "tensorflow")


def convert(function):
    """Returns `function` as AutoGraph converts it: `if`, `while` and `for` on tensors work, also in what it calls.

    A function of this project, Keras or TensorFlow is returned unchanged; so is any function outside of a graph, where
    Python's own statements work and a debugger stops.
    """
    if tf.executing_eagerly() or _package(function) in _NEVER_CONVERTED:
        return function
    return tf_convert()(function)


def convert_at_call(function):
    """Returns a function that calls `convert(function)`, for code that keeps it to call it in a graph."""
    return functools.wraps(function)(lambda *args, **kwargs: convert(function)(*args, **kwargs))


@functools.cache
def tf_convert():
    """Returns AutoGraph's converter of one function, whatever the conversion status of its caller.

    The only use of private names of AutoGraph; tests/trainer/step/autograph_test.py notices when they change. A
    `tf.function` converts all that it traces; there is no public function to convert a part.
    """
    from tensorflow.python.autograph.core import ag_ctx, config

    # Our functions that a user's function calls are not converted, except those that in turn call a user's model.
    ours = tuple(config.DoNotConvert(package) for package in ("trainer", "layers", "losses", "optimizers"))
    config.CONVERSION_RULES = (config.Convert("losses.adversarial"), *ours, *config.CONVERSION_RULES)
    tf.get_logger().addFilter(_is_no_lambda_warning)
    enabled = ag_ctx.ControlStatusCtx(ag_ctx.Status.ENABLED)
    return lambda function: tf.__internal__.autograph.tf_convert(function, enabled, user_requested=True)


def _is_no_lambda_warning(record):
    """False for AutoGraph's warning that it could not read a lambda's source. Such a lambda runs unconverted."""
    text = str(record.msg)
    return not (text.startswith("AutoGraph could not transform") and "<lambda>" in record.getMessage())


def _package(function):
    """The top-level package that defines `function`: a function, method, partial or callable object."""
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function):
        function = type(function).__call__
    return (getattr(inspect.unwrap(function), "__module__", None) or "").partition(".")[0]


@contextlib.contextmanager
def users_errors():
    """A context that raises an exception of a user's traced code as the user raised it; eager.

    AutoGraph raises a new exception with its own text, or a StagingError if it cannot create one of the same type.
    The original is its context. AutoGraph's text, which has the user's files and lines, becomes a note; the frames
    between the user's call of the trainer and the user's own code are removed.
    """
    try:
        yield
    except Exception as error:
        original = error
        while _is_autographs(original) and original.__context__ is not None:
            original = original.__context__
        if original is not error:
            original.add_note(str(error))
        raise original.with_traceback(_users_frames(original.__traceback__)) from None


def _is_autographs(error):
    return type(error).__module__.startswith("tensorflow.python.autograph")


def _users_frames(trace):
    """Returns `trace` reduced to users' frames.

    It is unchanged if this project raised the error, or it has no users' frames.
    """
    frames = []
    while trace is not None:
        frames.append(trace)
        trace = trace.tb_next
    packages = [frame.tb_frame.f_globals.get("__name__", "").partition(".")[0] for frame in frames]
    generated = ["__autograph_generated_file" in frame.tb_frame.f_code.co_filename for frame in frames]
    hidden = [package in (*_NEVER_CONVERTED, "contextlib", "gin") for package in packages]
    if all(hidden) or packages[-1] in _NEVER_CONVERTED[:4]:
        return frames[0]
    kept = None
    for frame, hide, converted in reversed(list(zip(frames, hidden, generated))):
        if not hide and not converted:
            kept = types.TracebackType(kept, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    return kept
