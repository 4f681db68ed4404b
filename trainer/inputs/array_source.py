"""The source for arrays in memory. It shuffles without a buffer: batch s is a gather at positions computed from s."""

import hashlib
import math
import zlib

import tensorflow as tf

from optimizers.base import check_bool, check_callable, check_count
from trainer.inputs.batches import from_plain, map_leaves, spec_of, to_plain, with_rows
from trainer.inputs.source import Source, check_position

_ENDLESS = 2**62  # larger than the last position of any run
_GROUP_BATCHES, _GROUP_BYTES = 16, 2**20  # small batches are made in groups, because op overhead dominates their cost


class ArraySource(Source):
    """See `from_arrays`."""

    def __init__(self, arrays, batch_size, shuffle=True, seed=0, augment=None, repeat=True):
        self.batch_size = check_count(
            "batch_size", batch_size, 1, "It counts the examples of a global batch, of all replicas."
        )
        self._seed = check_count("seed", seed, -(2**63), "Epochs with different seeds have different orders.")
        check_callable("augment", augment, "a function (example, seed) -> example")
        self.infinite = check_bool("repeat", repeat)
        arrays = columns(arrays)
        self.num_examples = n = _common_length(arrays)
        self.steps_per_epoch = n / self.batch_size if repeat else math.ceil(n / self.batch_size)
        self.cardinality = None if repeat else self.steps_per_epoch
        self._short = 0 if repeat else n % self.batch_size  # examples in the short last batch
        self._shuffle, self._augment = (
            check_bool("shuffle", shuffle) and self.infinite,
            augment and tf.function(augment),
        )
        self.function = augment  # the user's function that maps examples
        # Map functions capture eager tensors by handle. Constants would have to fit into a GraphDef of 2 GB.
        # `tf.constant` copies; `convert_to_tensor` may alias memory that the caller changes later.
        with tf.init_scope(), tf.device("CPU:0"):
            self._arrays = map_named(_to_tensor, arrays)
        self._made = self._trace_augment() if augment else None
        self._plain = augment is None and type(self).batches is ArraySource.batches  # a pipeline only gathers
        self._element_spec = self._batched_spec() if self._plain else self.batches(0).element_spec

    element_spec = property(lambda self: self._element_spec, doc=Source.element_spec.__doc__)

    def batches(self, start=0, chunk=None):
        """See `Source.batches`; any `start` takes O(1)."""
        check_position(start, chunk)
        if chunk and self._short:
            raise ValueError(
                f"A chunk stacks batches of one size, but the last batch has {self._short} of {self.batch_size} "
                f"examples. Use repeat=True, or a `batch_size` that divides {self.num_examples}."
            )
        # A chunk is one gather; with `augment` it is stacked from batches made in parallel.
        group = 1 if self._augment else chunk or self._group
        dataset = self._groups(start, group, stacked=not self._augment and (chunk or group > 1))
        if self._augment:
            return dataset.batch(chunk, drop_remainder=self.infinite) if chunk else dataset
        return dataset if chunk or group == 1 else dataset.unbatch()

    def first(self, start=0):
        """See `Source.first`; computed without a pipeline, which takes longer to trace, unless it has users' code."""
        if not self._plain:
            return super().first(start)
        check_position(start, None)
        begin, end = start * self.batch_size, min((start + 1) * self.batch_size, self._end)
        with tf.device("CPU:0"):
            return self._take(tf.range(begin, end, dtype=tf.int64)) if begin < end else None

    def shards(self, start, first, last, replicas):
        """Returns a dataset of (examples of replicas `first` to `last` - 1, n) for each batch of n; other examples are
        not made.

        Replica i has the examples from i*n//replicas to (i+1)*n//replicas; if there are none, a copy of another
        example.
        """
        minimum, maximum = (min, max) if self.infinite else (tf.minimum, tf.maximum)

        def keep(positions):  # of the concatenated batches of a group
            n = self.batch_size if self.infinite else tf.shape(positions)[0]
            low, high = minimum(first * n // replicas, n - 1), last * n // replicas
            return tf.reshape(tf.reshape(positions, [-1, n])[:, low : maximum(high, low + 1)], [-1])

        group = 1 if self._augment else self._group
        examples = self._groups(start, group, group > 1, keep)
        sizes = self._starts(start, self.batch_size).map(
            lambda at: tf.minimum(tf.cast(self.batch_size, tf.int64), self._end - at)
        )
        return tf.data.Dataset.zip(examples if group == 1 else examples.unbatch(), sizes)

    def order(self):
        """See `Source.order`."""
        first = [tf.io.serialize_tensor(array[0]).numpy() for array in to_plain(self._arrays)]
        checksum = f"{zlib.crc32(b''.join(first)):08x}"
        return {
            **super().order(),
            "seed": self._seed,
            "shuffle": bool(self._shuffle),
            "checksum of the first example": checksum,
        }

    def example(self, step, row):
        """Returns one example of batch `step`, computed alone; eager."""
        return self._take(tf.constant([step * self.batch_size + row], tf.int64))

    def origin(self, step, row):
        """Returns the origin of a row of batch `step`, for messages."""
        return f"example {self._index_of(step, row)} of the arrays"

    def describe(self):
        """Returns one line for the banner."""
        order = (
            "one ordered pass" if not self.infinite else "shuffled, endless" if self._shuffle else "ordered, endless"
        )
        augmented = ", augmented" if self._augment else ""
        return f"{self.num_examples:,} examples, batches of {self.batch_size}, {order}{augmented}"

    @property
    def _group(self):
        example_bytes = sum(a.dtype.size * a.shape[1:].num_elements() for a in to_plain(self._arrays))
        fitting = _GROUP_BYTES // max(self.batch_size * example_bytes, 1)
        return max(1, min(_GROUP_BATCHES, fitting)) if self.infinite else 1

    @property
    def _end(self):
        return _ENDLESS if self.infinite else self.num_examples

    def _batched_spec(self):
        size = None if self._short else self.batch_size
        return map_leaves(lambda spec: with_rows(spec, size), spec_of(self._arrays))

    def _starts(self, start, size):
        return tf.data.Dataset.range(start * self.batch_size, self._end, size)

    def _groups(self, start, group, stacked, keep=tf.identity):
        """Makes `group` batches at a time from rows that `keep` selects: [group, B, ...] if stacked, else [n, ...]."""
        size = group * self.batch_size
        whole = self.infinite or (group == 1 and not self._short)

        @tf.autograph.experimental.do_not_convert
        def make(first):  # int64, a position in the stream of examples of all epochs
            positions = (
                first + tf.range(size, dtype=tf.int64)
                if whole
                else tf.range(first, tf.minimum(first + size, self._end))
            )
            examples = self._take(keep(positions))
            return map_leaves(stack, examples) if stacked else examples

        def stack(array):  # [group*B, ...] -> [group, B, ...]; fewer batches at the end of a single pass
            return tf.reshape(array, [*([group, -1] if whole else [-1, self.batch_size]), *array.shape[1:]])

        # Two parallel calls, in order, are the only prefetching; more would need more memory.
        return self._starts(start, size).map(
            make, num_parallel_calls=tf.data.AUTOTUNE if self._augment else 2, deterministic=True
        )

    def _index_of(self, step, row):
        return int(self._indices(tf.constant([step * self.batch_size + row], tf.int64))[0])

    def _take(self, positions):
        """Returns the examples at the given positions of the stream, a nest of [len(positions), ...]."""
        index = self._indices(positions)
        examples = map_leaves(lambda array: tf.gather(array, index), self._arrays)
        return self._augment_each(examples, positions) if self._augment else examples

    def _indices(self, positions):
        """Returns the indices into the arrays for the given positions of the stream, int64 [n]."""
        index, epoch = positions % self.num_examples, positions // self.num_examples
        if self._shuffle:
            # The key of each element is a hash of its epoch. The kernel uses only half as many bits of a key as an
            # index has: with epoch numbers as keys 400 epochs had 256 different permutations.
            keys = self._hash(tf.range(epoch[0], epoch[-1] + 1), "shuffle")
            keys = tf.cast(tf.bitcast(keys, tf.uint16)[:, :3], tf.int32)  # [epochs, 3]
            index = tf.raw_ops.RandomIndexShuffle(
                index=index,
                seed=tf.gather(keys, epoch - epoch[0]),
                rounds=4,
                max_index=tf.constant(self.num_examples - 1, tf.int64),
            )
        return index

    def _seeds(self, positions):
        return tf.bitcast(self._hash(positions, "augment"), tf.int32)  # [n, 2]

    @property
    def _example_spec(self):
        """Nest of specs of the input of the user's function."""
        return map_leaves(lambda spec: tf.TensorSpec(spec.shape[1:], spec.dtype), spec_of(self._arrays))

    def _trace_augment(self):
        """Returns the nest of specs of the result of the user's function for one example."""
        example = from_plain(self._example_spec, to_plain(self._example_spec))  # None instead of its spec
        traced = self._augment.get_concrete_function(example, tf.TensorSpec([2], tf.int32))
        return spec_of(columns(traced.structured_outputs))

    def _augment_each(self, examples, positions):
        # A loop, not tf.vectorized_map: it accepts any function, was faster, and does not change the random numbers.
        def augment(example_and_seed):
            example, seed = example_and_seed
            return to_plain(columns(self._augment(from_plain(self._example_spec, example), seed)))

        plain = (to_plain(examples), self._seeds(positions))
        return from_plain(self._made, tf.map_fn(augment, plain, fn_output_signature=to_plain(self._made)))

    def _hash(self, values, purpose):
        """Hashes int64 [n] to uint64 [n], one to one for each seed (finalizer of SplitMix64, Steele et al. 2014)."""
        key = int.from_bytes(hashlib.sha256(f"{purpose} {self._seed}".encode()).digest()[:8], "little")
        shift, xor = tf.bitwise.right_shift, tf.bitwise.bitwise_xor
        z = tf.bitcast(values, tf.uint64) + tf.constant(key, tf.uint64)
        z = xor(z, shift(z, tf.constant(30, tf.uint64))) * tf.constant(0xBF58476D1CE4E5B9, tf.uint64)
        z = xor(z, shift(z, tf.constant(27, tf.uint64))) * tf.constant(0x94D049BB133111EB, tf.uint64)
        return xor(z, shift(z, tf.constant(31, tf.uint64)))


def columns(arrays):
    """Returns the nest with tuples instead of lists, which tf.data would stack, and with dicts for DataFrames."""
    if hasattr(arrays, "columns") and hasattr(arrays, "to_numpy"):
        return {str(name): arrays[name].to_numpy() for name in arrays.columns}
    if isinstance(arrays, dict):
        return {name: columns(part) for name, part in arrays.items()}
    if isinstance(arrays, tuple) and hasattr(arrays, "_fields"):
        return type(arrays)(*map(columns, arrays))
    if isinstance(arrays, tuple) or (isinstance(arrays, list) and arrays and all(map(_is_nest, arrays))):
        return tuple(map(columns, arrays))
    return arrays


def _is_nest(part):
    return part is None or hasattr(part, "shape") or isinstance(part, (dict, tuple, list))


def map_named(function, nest, path=""):
    """Applies `function(path, leaf)` to each leaf but None; lists are leaves."""
    if nest is None:
        return None
    if isinstance(nest, dict):
        return {key: map_named(function, part, f"{path}[{key!r}]") for key, part in nest.items()}
    if isinstance(nest, tuple):
        parts = [map_named(function, part, f"{path}[{place}]") for place, part in enumerate(nest)]
        return type(nest)(*parts) if hasattr(nest, "_fields") else tuple(parts)
    return function(path, nest)


def _to_tensor(path, array):
    try:
        return tf.constant(array)
    except (TypeError, ValueError) as error:
        kind = f"{type(array).__name__} of dtype {getattr(array, 'dtype', '?')}"
        raise ValueError(
            f"`arrays{path}` is a {kind}, which cannot become a tensor ({error}). Its elements must have one type: "
            "numbers, bools or strings, without None; for rows of different lengths use a tf.data.Dataset with ragged "
            "batches."
        ) from None


def _common_length(arrays):
    """Returns the number of examples; raises ValueError if it differs between arrays."""
    lengths = {}

    def measure(path, leaf):
        if not getattr(leaf, "shape", None):
            what = f"`arrays{path}` is a {type(leaf).__name__} without a leading dimension of examples"
            raise ValueError(
                f"`arrays` must be an array or a tuple, list or dict of arrays, but {what}. Use np.asarray."
            )
        lengths[f"arrays{path}"] = int(leaf.shape[0])

    map_named(measure, arrays)
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        shown = [f"{path}: {length}" for path, length in lengths.items()]
        more = f" and {len(shown) - 12} more" if len(shown) > 12 else ""
        raise ValueError(
            f"`arrays` must have one common length >= 1, got {', '.join(shown[:12]) or 'no arrays'}{more}."
        )
    return next(iter(lengths.values()))
