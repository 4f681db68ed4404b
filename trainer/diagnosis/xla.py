"""Raises errors for operations that XLA cannot compile, before anything is compiled.

TensorFlow itself reports them during compilation, with pages of text, and after an
error about strings the next compilation may crash the process.
"""

import contextlib
import weakref

import tensorflow as tf

from trainer.inputs.source import leaves

_compiled = weakref.WeakSet()  # trainers whose first loop succeeded


@contextlib.contextmanager
def compiling(trainer, iterator):
    """A context for the first loop of a trainer that compiles with XLA; nothing for others.

    Raises:
        ValueError: names what XLA cannot compile, with file and line, before compilation; or, if compilation fails
            nevertheless, the first sentence of XLA's error.
    """
    if not trainer.compile.startswith("xla") or trainer in _compiled:
        yield
        return
    check_compilable(trainer, iterator)
    try:
        yield
        _compiled.add(trainer)
    except tf.errors.OpError as error:
        lines = [line.strip() for line in str(error).splitlines() if "XLA" in line and "compil" in line.lower()]
        if not lines:  # compiled, but failed at run time
            raise
        from trainer.diagnosis.xla_graph import sentence

        raise ValueError(sentence(trainer.compile, {lines[0].partition(". ")[0]: "other"})) from error


def check_compilable(trainer, iterator):
    """Raises ValueError if XLA cannot compile the traced loop of a trainer that compiles with XLA; eager."""
    if not trainer.compile.startswith("xla"):
        return
    from trainer.diagnosis.xla_graph import refused, sentence  # other modes need none of it

    found = {
        f"batch{path} holds strings": "string" for path, spec in leaves(trainer.element_spec) if spec.dtype == tf.string
    }
    found.update(refused(trainer.loop_graph(iterator)))
    if found:
        raise ValueError(sentence(trainer.compile, found))
