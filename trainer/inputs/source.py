"""The interface of a source of global batches, and the source for data that may be readable only once."""

import math
from typing import Any

import tensorflow as tf

from optimizers.base import check_count
from trainer.inputs.batches import leaves
from trainer.inputs.pipelines import runs_python


class NoBatches(ValueError):
    """Raised if a data set has no batch. `what` names the set."""

    def __init__(self, what):
        super().__init__(
            f"{what} has no batches: it is empty (fewer examples than a batch, with drop_remainder=True), or it can be "
            "read only once and is used up."
        )


class Source:
    """A source of global batches. Subclass it, or define only `batches(start, chunk)`; `as_source` adds the rest.

    For errors that name row and origin, a source may define `example` and `origin` as ArraySource does, and `function`,
    the user's function that maps examples, or None.

    Attributes:
      exact: whether `batches(s)` equals `batches(0)` without its first s batches, bit for bit. Exact resume requires
          it.
      infinite: True if the batches are known to be infinite.
      cardinality: number of batches, None if infinite or unknown.
      batch_size, num_examples: examples of a global batch and of an epoch, None if unknown.
      steps_per_epoch: batches per pass (a fraction if epochs are joined), None if unknown.
      epochs: passes before the source ends, None if it does not count them.
      corrupt_records: int, records of each epoch that are skipped because they cannot be read.
    """

    exact, infinite = True, False
    cardinality = batch_size = num_examples = steps_per_epoch = epochs = None
    corrupt_records = 0

    def batches(self, start: int = 0, chunk: int | None = None) -> tf.data.Dataset:
        """Returns a `tf.data.Dataset` of global batches [B, ...] from step `start` on, or of chunks [K, B, ...]."""
        raise NotImplementedError(f"{type(self).__name__} must define `batches(start=0, chunk=None)`.")

    @property
    def element_spec(self):
        """Nest of specs of one global batch; its leading dimension is None if the last batch may be short."""
        return self.batches(0).element_spec

    def first(self, start: int = 0) -> Any:
        """Returns batch `start`, or None if the data ends before it; eager."""
        return next(iter(self.batches(start).take(1)), None)

    def check_ends(self, what):
        """Raises ValueError if the batches are known to be infinite; `what` names the data."""
        if self.infinite or (self.exact and self.batches(0).cardinality() == tf.data.INFINITE_CARDINALITY):
            raise ValueError(f"{what} never ends. Use from_arrays(..., repeat=False) or dataset.take(n).")

    def order(self) -> dict[str, Any]:
        """Returns {name: number or text} that determines the examples of each step; stored in checkpoints."""
        size = {"batches": self.steps_per_epoch} if self.num_examples is None else {"examples": self.num_examples}
        return {"batch size": self.batch_size, **size}

    def describe(self) -> str:
        """Returns one line for the banner."""
        return f"{type(self).__name__}, batches of {self.batch_size or 'unknown size'}"


class Stream(Source):
    """Data whose position may be inexact, because it shuffles, uses random numbers, or can be read only once.

    Python code in the pipeline (a generator, a simulator) may yield other batches when it is read again. The batch that
    `first` read is therefore kept: the next call of `batches` continues the same iterator.

    Args:
      open: function (start, chunk) -> tf.data.Dataset of batches, or of chunks.
      epochs: passes, for `describe`; see `Source`.
      known: {attribute: value} of `Source`.
    """

    exact = False

    def __init__(self, open, element_spec, **known):
        self._open, self._element_spec, self._held, self._first = open, element_spec, None, {}
        vars(self).update(known)

    element_spec = property(lambda self: self._element_spec, doc=Source.element_spec.__doc__)

    def first(self, start=0):
        """See `Source.first`."""
        if self._held is not None and self._held[0] == start:
            return self._held[1]
        if start not in self._first:
            if start and self._held is None:
                self.first(0)
            dataset = self.batches(start)
            iterator = iter(dataset)
            batch = next(iterator, None)
            # A dataset that reshuffles each iterator gives training the order of its second one, also after a resume.
            if start or runs_python(dataset):
                self._held = start, batch, iterator
                return batch
            self._first[start] = batch
        return self._first[start]

    def batches(self, start=0, chunk=None):
        """See `Source.batches`. In a second call a generator may be exhausted."""
        check_position(start, chunk)
        held, self._held = self._held, None
        if held is None or held[0] > start:
            return self._open(start, chunk)
        begin, batch, iterator = held
        if batch is None:
            return self._open(start, chunk).take(0)
        dataset = tf.data.Dataset.from_tensors(batch).concatenate(_rest_of(iterator, self._element_spec))
        dataset = dataset.skip(start - begin) if start > begin else dataset
        if not chunk:
            return dataset
        _check_chunk(self._element_spec)
        return dataset.batch(chunk)


def _rest_of(iterator, spec):
    """Returns a dataset of the remaining elements of an iterator."""
    convert = tf.autograph.experimental.do_not_convert
    optionals = tf.data.Dataset.range(2**62).map(convert(lambda _: iterator.get_next_as_optional()))
    found = optionals.take_while(convert(lambda optional: optional.has_value()))
    return found.map(convert(lambda optional: optional.get_value()))


def stream_of_dataset(dataset, epochs=None):
    """Returns a Stream of a user's dataset of global batches: skipped to its position, in O(start), and chunked by
    `.batch(K)`.

    Args:
      epochs: passes, -1: infinite, None: one. A fraction needs a dataset of known size.

    Raises:
      ValueError: for a dataset that yields no batches, or a fraction of a pass over data of unknown size.
    """
    size = int(dataset.cardinality())
    ranked = _check_spec(dataset.element_spec)
    infinite = size == tf.data.INFINITE_CARDINALITY or (epochs == -1 and size != 0)
    passes = None if size == tf.data.INFINITE_CARDINALITY else epochs
    if passes is not None and size < 0 and passes != int(passes):
        raise ValueError(
            f"`epochs` must be a whole number of passes where the size of the data is unknown, got {epochs}. Give "
            "`train_steps`, or set the size: dataset.apply(tf.data.experimental.assert_cardinality(n))."
        )
    total = None if infinite or size < 0 else math.ceil(size * (epochs or 1))
    if passes is not None:
        dataset = dataset.repeat(math.ceil(passes))
        dataset = dataset if total is None else dataset.take(total)

    def open(start, chunk):
        if chunk:
            _check_chunk(dataset.element_spec)
        found = dataset.skip(start) if start else dataset
        return found.batch(chunk) if chunk else found

    return Stream(
        open,
        dataset.element_spec,
        infinite=infinite,
        cardinality=total,
        steps_per_epoch=size if size >= 0 else None,
        epochs=None if infinite else passes,
        batch_size=ranked[0][1].shape[0],
    )


def _check_spec(spec):
    """Returns [(path, spec)] of specs with a leading dimension; raises ValueError if they are not those of a batch."""
    for path, leaf in leaves(spec):
        if leaf.shape.rank is None:
            raise ValueError(
                f"A dataset must yield batches [B, ...], but the rank of batch{path} is unknown. Use tf.ensure_shape "
                "in a map."
            )
    ranked = [(path, leaf) for path, leaf in leaves(spec) if leaf.shape.rank]
    if not ranked:
        scalars = ", ".join(f"batch{path}" for path, _ in leaves(spec)) or "the element"
        raise ValueError(
            f"A dataset must yield batches [B, ...], but {scalars} is a scalar. Batch it: dataset.batch(B)."
        )
    return ranked


def _check_chunk(spec):
    for path, leaf in leaves(spec):
        if isinstance(leaf, tf.TensorSpec) and not leaf.shape.is_fully_defined():
            raise ValueError(
                f"A chunk stacks batches of one shape, but batch{path} has {leaf.shape}. Use "
                "dataset.batch(B, drop_remainder=True), or a mode that takes single batches."
            )


def check_position(start, chunk):
    check_count("start", start, 0, "It is the step of the first batch.")
    if chunk is not None:
        check_count("chunk", chunk, 1, "None yields single batches.")
