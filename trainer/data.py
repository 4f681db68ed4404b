"""Resumable input pipelines: the position in the data is a function of the step, so that it needs no other state.

`from_arrays` is the source for data that fits in memory, `from_tfrecords` that for TFRecord files; `as_source` accepts
whatever else users have.
"""

import tensorflow as tf

from trainer.inputs.array_source import ArraySource
from trainer.inputs.record_source import RecordSource
from trainer.inputs.source import Source, check_position, leaves


def from_arrays(arrays, batch_size, shuffle=True, seed=0, augment=None, repeat=True):
    """Makes batches of arrays in memory, from any step on, always the same ones.

    Args:
      arrays: nest (tuple, list, dict) of arrays of equal length n. They are copied and keep their dtypes.
      batch_size: examples per global batch, that is over all replicas.
      shuffle: whether each epoch is a permutation of its own. The one pass without `repeat` is in order in any case.
      seed: int, of the permutations and of `augment`.
      augment: `(example, seed) -> example`, on one example without a batch dimension. seed is int32 [2], another one
        for each example of each epoch: for `tf.random.stateless_uniform`, `tf.image.stateless_random_crop`, ...
      repeat: True for training: epochs without end, joined, so that each batch has `batch_size` examples. False for
        evaluation: one ordered pass whose last batch may be short.

    Returns:
      An `ArraySource`.

    Example:
      >>> from_arrays((np.zeros([10, 3]), np.arange(10)), batch_size=4).element_spec[0].shape
      TensorShape([4, 3])
    """
    return ArraySource(arrays, batch_size, shuffle, seed, augment, repeat)


def from_tfrecords(files, parse, batch_size, shuffle=True, seed=0, repeat=True, skip_corrupt=False):
    """Makes batches of the records of TFRecord files, from any step on, always the same ones.

    All files are read once at the start, to find the records and to check them.

    Args:
      files: a path, a pattern such as "train-*.tfrecord", or a list of them; on this machine's file system, not compressed.
      parse: `(record, seed) -> example`, on one record, a string scalar: tf.io.parse_single_example and what follows.
        seed is that of `augment` in `from_arrays`.
      batch_size, shuffle, seed, repeat: those of `from_arrays`.
      skip_corrupt: whether corrupt records are left out, told and counted (`data/corrupt_records`). Where the length
        of a record is damaged, the rest of its file cannot be read.

    Raises:
      ValueError: if there are no records, or corrupt ones that are not to be skipped, by file and number.
    """
    return RecordSource(files, parse, batch_size, shuffle, seed, repeat, skip_corrupt)


class DatasetSource(Source):
    """A user's own dataset of global batches: skipped to its place, in O(start), and chunked by `.batch(K)`."""

    exact = False  # it may shuffle or draw random numbers, which cannot be seen from outside

    def __init__(self, dataset, epochs=None):
        size = int(dataset.cardinality())
        self.infinite = size == tf.data.INFINITE_CARDINALITY or (epochs == -1 and size != 0)
        self.steps_per_epoch = size if size >= 0 else None
        self.cardinality = None if self.infinite or size < 0 else size * (epochs or 1)
        self._dataset = dataset if epochs is None or size == tf.data.INFINITE_CARDINALITY else dataset.repeat(epochs)
        for path, spec in leaves(dataset.element_spec):
            if spec.shape.rank == 0:
                raise ValueError(
                    f"A dataset must yield batches [B, ...], but batch{path} is a scalar. Batch it: dataset.batch(B)."
                )
            if spec.shape.rank is None:
                raise ValueError(
                    f"A dataset must yield batches [B, ...], but the rank of batch{path} is unknown. Say "
                    "it by tf.ensure_shape in a map."
                )
        self.batch_size = leaves(dataset.element_spec)[0][1].shape[0]

    element_spec = property(lambda self: self._dataset.element_spec, doc=Source.element_spec.__doc__)

    def batches(self, start=0, chunk=None):
        """See `Source.batches`."""
        check_position(start, chunk)
        dataset = self._dataset.skip(start) if start else self._dataset
        if not chunk:
            return dataset
        for path, spec in leaves(self.element_spec):
            if isinstance(spec, tf.TensorSpec) and not spec.shape.is_fully_defined():
                raise ValueError(
                    f"A chunk stacks batches of one shape, but batch{path} has {spec.shape}. Use "
                    "dataset.batch(B, drop_remainder=True), or a mode that takes single batches."
                )
        return dataset.batch(chunk)


def as_source(data, epochs=None):
    """Returns the `Source` in `data`: a source, a `tf.data.Dataset` of global batches, or a function returning either.

    Args:
      data: see above. Anything with `batches(start, chunk)` is a source, and exact if it says so.
      epochs: passes over a finite dataset, -1 for endless; default one. Sources know for themselves.
    """
    if isinstance(data, type) or (callable(data) and not hasattr(data, "batches")):
        data = data()
    if isinstance(data, Source):
        return data
    if isinstance(data, tf.data.Dataset):
        return DatasetSource(data, epochs)
    if hasattr(data, "batches"):
        source = Source()
        vars(source).update(
            {"exact": False}
            | {
                name: getattr(data, name)
                for name in (
                    "batches",
                    "exact",
                    "infinite",
                    "cardinality",
                    "batch_size",
                    "num_examples",
                    "steps_per_epoch",
                    "corrupt_records",
                )
                if hasattr(data, name)
            }
        )
        return source
    raise ValueError(
        f"Data must be a source, a tf.data.Dataset of batches, or a function returning one, got "
        f"{type(data).__name__}. For arrays there is trainer.data.from_arrays(arrays, batch_size)."
    )
