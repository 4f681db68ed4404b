"""The source for TFRecord files. Records are located and checked once, so that each can be read at random."""

import concurrent.futures
import fnmatch
import functools
import os

import numpy as np
import tensorflow as tf
from tensorflow.python.lib.io.tf_record import tf_record_random_reader  # no public API skips a corrupt record

from optimizers.base import check_bool
from trainer import console
from trainer.inputs.array_source import ArraySource

_OPEN = 64  # number of open files


class RecordSource(ArraySource):
    """See `from_tfrecords`."""

    def __init__(self, files, parse, batch_size, shuffle=True, seed=0, repeat=True, skip_corrupt=False):
        patterns = files if isinstance(files, (list, tuple)) else [files]
        if not all(isinstance(pattern, (str, os.PathLike)) for pattern in patterns):
            raise ValueError(f"`files` must be a path, a pattern or a list of them, got {files!r:.80}.")
        check_bool("skip_corrupt", skip_corrupt)
        self.files = [path for pattern in patterns for path in _matching(os.fspath(pattern))]
        if not self.files:
            raise ValueError(
                "`files` must name TFRecord files, or patterns of them, but nothing matches "
                f"{', '.join(map(str, patterns)) or '[]'}."
            )
        if not callable(parse):
            raise ValueError(f"`parse` must be a function (record, seed) -> example, got {parse!r}.")
        with concurrent.futures.ThreadPoolExecutor() as pool:
            found = list(pool.map(find_records, self.files))
        corrupt = [f"{path}: {text}" for path, (_, bad) in zip(self.files, found) for text in bad]
        self.corrupt_records = len(corrupt)
        if corrupt and not skip_corrupt:
            raise ValueError(
                f"{_folded(corrupt)}.\n  `skip_corrupt=True` skips corrupt records and counts them in "
                "data/corrupt_records."
            )
        if corrupt:
            console.warning(f"Corrupt records are skipped, {len(corrupt)} in each epoch:\n  {_folded(corrupt)}")
        self._numbers = [number for records, _ in found for number in records]
        self._open = functools.lru_cache(_OPEN)(functools.partial(open, mode="rb", buffering=0))
        where = {
            "file": np.repeat(np.arange(len(found), dtype=np.int32), [len(records) for records, _ in found]),
            "bytes": np.array([span for records, _ in found for span in records.values()], np.int64),
        }
        if not self._numbers:
            raise ValueError(f"There is no whole record in {_folded(self.files)}.")
        super().__init__(where, batch_size, shuffle, seed, parse, repeat)

    def describe(self):
        """Returns one line for the banner."""
        without = f", without {self.corrupt_records} corrupt ones" if self.corrupt_records else ""
        return f"{super().describe().removesuffix(', augmented')}, from {len(self.files)} TFRecord files{without}"

    def origin(self, step, row):
        """See `ArraySource.origin`."""
        index = self._index_of(step, row)
        return f"record {self._numbers[index]} of {self.files[int(self._arrays['file'][index])]}"

    @property
    def _example_spec(self):
        return tf.TensorSpec([], tf.string)

    def _augment_each(self, where, positions):
        records = tf.numpy_function(self._read, [where["file"], where["bytes"]], tf.string)
        return super()._augment_each(tf.reshape(records, tf.shape(positions)), positions)

    def _read(self, files, spans):
        return np.array([self._read_one(self.files[file], *map(int, span)) for file, span in zip(files, spans)], object)

    def _read_one(self, path, begin, end):
        file = self._open(path)  # a reference until it is read: another thread may drop it from the cache
        record = os.pread(file.fileno(), end - begin, begin)
        if len(record) < end - begin:
            raise tf.errors.DataLossError(None, None, f"{path} has been truncated since the start of the run")
        return record


def _matching(pattern):
    """Returns the files that a path or pattern matches, sorted; an existing path is literal, brackets included."""
    pattern = os.path.expanduser(pattern)
    if tf.io.gfile.exists(pattern):
        return [pattern]
    folder, name = os.path.split(pattern)
    if tf.io.gfile.isdir(folder or "."):
        found = fnmatch.filter(tf.io.gfile.listdir(folder or "."), name)
        return sorted(os.path.join(folder, each) for each in found)
    return sorted(tf.io.gfile.glob(pattern))


def find_records(path):
    """Returns ({number of a valid record: (first byte, end) of its data}, [descriptions of corrupt records])."""
    with tf.io.gfile.GFile(path, "rb") as file:
        size, magic = file.size(), file.read(2)
        if magic == b"\x1f\x8b":
            raise ValueError(
                f"{path} is compressed, so its records cannot be read at random. Decompress it first (gunzip)."
            )
        reader, records, corrupt, number, offset = tf_record_random_reader(path), {}, [], 0, 0
        while offset < size:
            try:
                _, end = reader.read(offset)
                records[number], offset = (offset + 12, end - 4), end  # checksums of length and data around it
            except tf.errors.DataLossError as error:
                file.seek(offset)
                end = offset + 16 + int.from_bytes(file.read(8), "little")
                if (
                    str(error).endswith(f"corrupted record at {offset + 12}") and end <= size
                ):  # the data is corrupt, the length is not
                    corrupt.append(f"record {number} (bytes {offset} to {end - 1}) is corrupt")
                    offset = end
                else:
                    corrupt.append(
                        f"record {number} (byte {offset}) is corrupt or truncated, so the rest of the file cannot "
                        "be read"
                    )
                    offset = size
            number += 1
    return records, corrupt


def _folded(texts):
    """Returns the first few of `texts` and the number of the others."""
    return "\n  ".join(texts[:6]) + (f"\n  ... and {len(texts) - 6} more" if len(texts) > 6 else "")
