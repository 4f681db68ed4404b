"""The first batches of a source: once, for a short evaluation, or again and again, to overfit a few batches."""

import tensorflow as tf

from optimizers.base import check_count
from trainer.inputs.source import NoBatches, Source, check_position


class FirstBatches(Source):
    """One pass over the first `count` batches of a source."""

    def __init__(self, source, count):
        self._source, self._count = source, check_count("count", count, 1, "It is a number of batches.")
        self.exact, self.batch_size = source.exact, source.batch_size
        self.cardinality = None if source.cardinality is None else min(source.cardinality, count)

    element_spec = property(lambda self: self._source.element_spec, doc=Source.element_spec.__doc__)

    def batches(self, start=0, chunk=None):
        """See `Source.batches`."""
        check_position(start, chunk)
        dataset = self._source.batches(start).take(max(self._count - start, 0))
        return dataset.batch(chunk) if chunk else dataset

    def describe(self):
        """See `Source.describe`."""
        return f"the first {self._count} batches of {self._source.describe()}"


class RepeatedBatches(Source):
    """The first `count` batches of a source, read once, kept in memory and repeated; step s has batch s % count."""

    infinite = True

    def __init__(self, source, count):
        kept = list(source.batches(0).take(check_count("overfit_batches", count, 1, "It is a number of batches.")))
        if not kept:
            raise NoBatches("`train_data`")
        self._source, self._count = source, len(kept)
        self.exact, self.batch_size, self.steps_per_epoch = source.exact, source.batch_size, len(kept)
        self._pass = tf.data.Dataset.from_tensors(kept[0])
        for batch in kept[1:]:
            self._pass = self._pass.concatenate(tf.data.Dataset.from_tensors(batch))

    def batches(self, start=0, chunk=None):
        """See `Source.batches`."""
        check_position(start, chunk)
        dataset = self._pass.repeat().skip(start % self._count)
        return dataset.batch(chunk) if chunk else dataset

    def describe(self):
        """See `Source.describe`."""
        return f"the first {self._count} batches of {self._source.describe()}, repeated"
