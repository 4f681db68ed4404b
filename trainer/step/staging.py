"""What AutoGraph does to an exception of the user's own code, undone."""

import contextlib


@contextlib.contextmanager
def users_errors():
    """Lets an exception out of traced code as the user raised it.

    AutoGraph makes a new exception with its own text, and where it cannot make
    one of the same type (a constructor of another form), a StagingError. The
    original is its context; AutoGraph's text, which shows the user's lines, becomes a note.
    """
    try:
        yield
    except Exception as error:
        original = error
        while _is_autographs(original) and original.__context__ is not None:
            original = original.__context__
        if original is error:
            raise
        original.add_note(str(error))
        raise original from None


def _is_autographs(error):
    return type(error).__module__.startswith("tensorflow.python.autograph")
