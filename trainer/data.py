"""Resumable input pipelines. The position in the data is a function of the step and needs no other state.

`from_arrays` is the source for data that fits in memory, `from_tfrecords` the one for TFRecord files. `as_source`
converts datasets and functions.
"""

from collections.abc import Callable
from typing import Any

from trainer.inputs.array_source import ArraySource
from trainer.inputs.record_source import RecordSource
from trainer.inputs.source import NoBatches as NoBatches
from trainer.inputs.source import Source
from trainer.inputs.user_data import as_source

__all__ = ["Source", "as_source", "from_arrays", "from_tfrecords"]


def from_arrays(
    arrays: Any, batch_size: int, shuffle=True, seed=0, augment: Callable | None = None, repeat=True
) -> Source:
    """Returns a source of batches from arrays in memory. Batch s is the same in every run.

    Args:
      arrays: nest (tuple, list, dict) of arrays of equal length n, or a pandas DataFrame. They are copied and keep
        their dtypes. A list becomes a tuple, None stays None.
      batch_size: examples per global batch, over all replicas.
      shuffle: whether each epoch has its own permutation. Without `repeat` the single pass is always in order.
      seed: int, of the permutations and of `augment`.
      augment: `(example, seed) -> example`, on one example without a batch dimension; its result may have any
        structure, dtypes and shapes. seed is int32 [2], different for each example of each epoch: for
        `tf.random.stateless_uniform`, `tf.image.stateless_random_crop`, ...
      repeat: True for training: an infinite sequence of joined epochs, so that each batch has `batch_size` examples.
        False for evaluation: one ordered pass whose last batch may be short.

    Returns:
      An `ArraySource`.

    Example:
      >>> from_arrays((np.zeros([10, 3]), np.arange(10)), batch_size=4).element_spec[0].shape
      TensorShape([4, 3])
    """
    return ArraySource(arrays, batch_size, shuffle, seed, augment, repeat)


def from_tfrecords(
    files: Any, parse: Callable, batch_size: int, shuffle=True, seed=0, repeat=True, skip_corrupt=False
) -> Source:
    """Returns a source of batches from TFRecord files. Batch s is the same in every run.

    All files are read once at the start, to locate and check the records.

    Args:
      files: a path (str or pathlib.Path), a pattern such as "train-*.tfrecord", or a list of them: local files, not
        compressed. A path that exists is not treated as a pattern.
      parse: `(record, seed) -> example`, on one record, a string scalar: tf.io.parse_single_example and what follows.
        seed is that of `augment` in `from_arrays`.
      batch_size, shuffle, seed, repeat: those of `from_arrays`.
      skip_corrupt: whether corrupt records are skipped, logged and counted (`data/corrupt_records`). If the length
        of a record is damaged, the rest of its file cannot be read.

    Raises:
      ValueError: if there are no records, or corrupt ones without `skip_corrupt`; it names file and number.
    """
    return RecordSource(files, parse, batch_size, shuffle, seed, repeat, skip_corrupt)
