"""Converts users' data to sources: datasets, arrays, PyDatasets, generators, loaders of other libraries."""

import itertools
import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from optimizers.base import check_number
from trainer.inputs.array_source import ArraySource, columns, map_named
from trainer.inputs.batches import from_plain, spec_of, to_plain
from trainer.inputs.source import NoBatches, Source, Stream, check_position, stream_of_dataset

_KNOWN = ("exact", "infinite", "cardinality", "batch_size", "num_examples", "steps_per_epoch", "corrupt_records")


def as_source(
    data: Any,
    epochs: float | None = None,
    batch_size: int | None = None,
    repeat: bool = True,
    argument: str = "data",
) -> Source:
    """Returns `data` as a `Source`.

    | data | order | resume |
    |---|---|---|
    | a source, or any object with `batches(start, chunk)` | its own | exact if its `exact` is true |
    | a nest of arrays, with `batch_size` | shuffled and endless, or one ordered pass | exact |
    | a `keras.utils.PyDataset` | its own | exact, unless it has an `on_epoch_end` |
    | a `tf.data.Dataset` of global batches | its own | skips to its position |
    | a generator function, an iterable of batches (a torch DataLoader) | its own | reads again up to its position |
    | a HuggingFace dataset, with `batch_size` | its own | reads again up to its position |
    | a function that returns one of these | | |

    Args:
      data: see above.
      epochs: passes over a finite dataset or iterable, -1: infinite; default one. Sources set it themselves.
      batch_size, repeat: arguments of `from_arrays`, if `data` is arrays.
      argument: name of the caller's argument, for messages.

    Raises:
      ValueError: for anything else, and for data without a batch.
    """
    if epochs is not None and epochs != -1:
        check_number(
            "epochs", epochs, "a number > 0 or None", lambda x: 0 < x < math.inf, "-1 repeats the data for ever."
        )
    if isinstance(data, type) or (callable(data) and not hasattr(data, "batches") and not _is_iterable(data)):
        made = data()
        return (
            _of_iterable(data, epochs, made)
            if hasattr(made, "__next__")
            else as_source(made, epochs, batch_size, repeat, argument)
        )
    if isinstance(data, Source):
        return data if data.exact or isinstance(data, Stream) else _of_foreign(data)
    if isinstance(data, tf.data.Dataset):
        return stream_of_dataset(data, epochs)
    if hasattr(data, "batches"):
        return _of_foreign(data)
    if isinstance(data, keras.utils.PyDataset):
        return IndexedBatches(data, epochs)
    if hasattr(data, "with_format") and hasattr(data, "iter"):  # a HuggingFace dataset, which iterates over examples
        if batch_size is None:
            raise ValueError("A HuggingFace dataset yields examples, not batches. Use lambda: data.iter(batch_size).")
        return _of_iterable(lambda: data.with_format("numpy").iter(batch_size), epochs)
    if _is_arrays(data):
        if batch_size is None:
            raise ValueError(
                f"`{argument}` must come in batches, got arrays ({type(data).__name__}) without a batch size. Use "
                "trainer.data.from_arrays(arrays, batch_size)."
            )
        return ArraySource(data, batch_size, repeat=repeat)
    if _is_iterable(data):
        return _of_iterable(lambda: data, epochs)
    raise ValueError(
        f"`{argument}` must be a source, a tf.data.Dataset of batches, arrays, an iterable of batches, or a function "
        f"that returns one, got {data!r:.80}."
    )


class IndexedBatches(Source):
    """Batches `data[0]` to `data[len - 1]` of a keras.utils.PyDataset, repeated each epoch, read by Python calls."""

    def __init__(self, data, epochs=None):
        self._data, size = data, len(data)
        if size < 1:
            raise ValueError(f"{type(data).__name__} has no batches: its `__len__` is {size}.")
        self.exact = type(data).on_epoch_end is keras.utils.PyDataset.on_epoch_end
        self.steps_per_epoch, self.epochs = size, epochs
        self.infinite = epochs == -1
        self.cardinality = None if self.infinite else int(np.ceil(size * (epochs or 1)))
        self._spec = _common_spec([_to_batch(data[0])])
        self.batch_size = None

    element_spec = property(lambda self: self._spec, doc=Source.element_spec.__doc__)

    def batches(self, start=0, chunk=None):
        """See `Source.batches`; any `start` takes O(1)."""
        check_position(start, chunk)
        specs = to_plain(self._spec)

        def read(step):
            index = int(step) % self.steps_per_epoch
            if index == 0 and step > start and not self.exact:
                self._data.on_epoch_end()
            return to_plain(_to_batch(self._data[index]))

        def make(step):
            parts = tf.numpy_function(read, [step], [spec.dtype for spec in specs])
            return from_plain(self._spec, [tf.ensure_shape(x, spec.shape) for x, spec in zip(parts, specs)])

        convert = tf.autograph.experimental.do_not_convert
        steps = tf.data.Dataset.range(start, 2**62 if self.infinite else self.cardinality)
        dataset = steps.map(convert(make)).prefetch(1)
        return dataset.batch(chunk) if chunk else dataset

    def describe(self):
        """Returns one line for the banner."""
        return f"{type(self._data).__name__}, {self.steps_per_epoch} batches an epoch, in its own order"


def _of_foreign(data):
    """Returns the source for an object with `batches`."""
    known = {name: getattr(data, name) for name in _KNOWN if hasattr(data, name)}
    if known.get("exact"):
        source = Source()
        vars(source).update(known, batches=data.batches)
        return source
    dataset = data.batches(0)
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        known["infinite"] = True
    known.pop("exact", None)
    return Stream(
        lambda start, chunk: data.batches(start, chunk) if chunk else data.batches(start), dataset.element_spec, **known
    )


def _of_iterable(make, epochs, made=None):
    """Returns the source for the result of `make`: an iterable of batches, or a new iterator from each call."""
    iterator = iter(make() if made is None else made)
    # Two, as in Keras: dimensions that differ are not static.
    seen = list(map(_to_batch, itertools.islice(iterator, 2)))
    if not seen:
        raise NoBatches(f"The data ({type(iterator).__name__})")
    spec = _common_spec(seen)
    begun = [itertools.chain(seen, map(_to_batch, iterator))]  # puts the batches back that were read

    def read():
        for batch in begun.pop() if begun else map(_to_batch, make()):
            tf.nest.assert_same_structure(batch, spec)
            yield to_plain(batch)

    dataset = tf.data.Dataset.from_generator(read, output_signature=to_plain(spec))
    dataset = dataset.map(tf.autograph.experimental.do_not_convert(lambda *plain: from_plain(spec, plain)))
    try:
        size = len(make()) if made is None else None
    except TypeError:
        size = None
    if size is not None:
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(size))
    return stream_of_dataset(dataset, epochs)


def _to_batch(batch):
    """Returns a batch as NumPy arrays and tensors; lists of arrays, as from torch's loaders, become tuples."""
    return map_named(lambda _, x: x if _is_kept(x) else np.asarray(x), columns(batch))


def _is_kept(value):
    return value is None or isinstance(value, (tf.Tensor, tf.RaggedTensor, tf.SparseTensor))


def _common_spec(batches):
    """Returns the nest of specs for all `batches`; the number of examples is None."""
    specs = [
        spec_of(tf.nest.map_structure(lambda x: tf.constant(x) if isinstance(x, np.ndarray) else x, batch))
        for batch in batches
    ]

    def common(*each):
        first = each[0]
        if not isinstance(first, tf.TensorSpec) or not first.shape.rank:
            return first
        rest = [dims[0] if len(set(dims)) == 1 else None for dims in zip(*(spec.shape[1:] for spec in each))]
        return tf.TensorSpec([None, *rest], first.dtype)

    return tf.nest.map_structure(common, *specs)


def _is_iterable(data):
    return hasattr(data, "__iter__") and not isinstance(data, (str, bytes, type))


def _is_arrays(data):
    """True for an array and for tuples, lists and dicts of arrays."""
    if isinstance(data, (dict, tuple, list)):
        parts = data.values() if isinstance(data, dict) else data
        return bool(parts) and all(part is None or _is_arrays(part) for part in parts)
    return hasattr(data, "shape") and hasattr(data, "dtype") or (hasattr(data, "columns") and hasattr(data, "to_numpy"))
