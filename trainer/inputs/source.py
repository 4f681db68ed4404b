"""What a source of batches is, and what is asked of a batch."""

import tensorflow as tf


class Source:
    """Where batches come from: subclass it, or offer `batches(start, chunk)` alone and `as_source` adds the rest.

    One that can make a single example offers `example` and `origin`, as ArraySource does, and `function`, the user's
    own one that examples come through, or None: errors then name row and origin.

    Attributes:
      exact: whether `batches(s)` is `batches(0)` without its first s batches, bit for bit. Resume relies on it.
      infinite: True where it is known that batches never end.
      cardinality: number of batches in all, None where endless or unknown.
      batch_size, num_examples: examples of a global batch and of an epoch, None where unknown.
      steps_per_epoch: batches per pass (a fraction where epochs are joined), None where unknown.
      corrupt_records: int, what of each epoch cannot be read and is left out.
    """

    exact, infinite = True, False
    cardinality = batch_size = num_examples = steps_per_epoch = None
    corrupt_records = 0

    def batches(self, start=0, chunk=None):
        """Returns a `tf.data.Dataset` of global batches [B, ...] from step `start` on, or of chunks [K, B, ...]."""
        raise NotImplementedError(f"{type(self).__name__} must define `batches(start=0, chunk=None)`.")

    @property
    def element_spec(self):
        """Nest of specs of one global batch; a leading dimension of None says that the last batch may be short."""
        return self.batches(0).element_spec

    def order(self):
        """Returns {name: number or text}: what decides which examples a step takes. A checkpoint holds it."""
        size = {"batches": self.steps_per_epoch} if self.num_examples is None else {"examples": self.num_examples}
        return {"batch size": self.batch_size, **size}

    def describe(self):
        """Returns one line for people."""
        return f"{type(self).__name__}, batches of {self.batch_size or 'unknown size'}"


def batch_size_of(batch):
    """Returns the leading dimension of the first component: an int where it is static, else a scalar int64 tensor."""
    first = tf.nest.flatten(batch)[0]
    if first.shape.rank and first.shape[0] is not None:
        return first.shape[0]
    if isinstance(first, tf.RaggedTensor):
        return first.nrows()
    return first.dense_shape[0] if isinstance(first, tf.SparseTensor) else tf.shape(first, tf.int64)[0]


def leaves(nest, path=""):
    """Returns [(path, leaf)]. Lists are leaves, as they are to tf.data."""
    items = nest.items() if isinstance(nest, dict) else enumerate(nest) if isinstance(nest, tuple) else None
    if items is None:
        return [(path, nest)]
    return [leaf for key, value in items for leaf in leaves(value, f"{path}[{key!r}]")]


def check_position(start, chunk):
    if start < 0 or (chunk is not None and chunk < 1):
        raise ValueError(f"`start` must be >= 0 and `chunk` >= 1 or None, got {start} and {chunk}.")
