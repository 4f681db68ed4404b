"""Batches: nests of dense, ragged, sparse and extension-type tensors, scalars and None. Their rows, parts and specs.

Only this file depends on the kinds of tensors in a batch.
"""

import importlib
import math

import numpy as np
import tensorflow as tf

_SHOWN = 6  # rows


def leaves(nest, path=""):
    """Returns [(path, leaf)] of a batch, or of its specs: dense, ragged and sparse tensors; None has no leaf.

    The tensors of an extension type are separate, numbered leaves. The order is that of the user's nest; tf.nest
    would sort the keys of a dict.
    """
    if nest is None or isinstance(nest, (tf.NoneTensorSpec, *_WHOLE)):
        return [] if nest is None or isinstance(nest, tf.NoneTensorSpec) else [(path, nest)]
    if isinstance(nest, dict):
        items = nest.items()
    elif isinstance(nest, (list, tuple)):
        items = enumerate(nest)
    else:
        parts = tf.nest.flatten(nest, expand_composites=True)
        if len(parts) == 1 and parts[0] is nest:
            return [(path, nest)]
        items = enumerate(parts)
    return [leaf for key, value in items for leaf in leaves(value, f"{path}[{key!r}]")]


def batch_size_of(batch):
    """Returns the first tensor's leading dimension: an int if it is static, else an int64 scalar tensor."""
    for _, leaf in leaves(batch):
        rows = _rows(leaf)
        if rows is not None:
            return rows
    raise ValueError("The batch has no tensor with a leading dimension of examples.")


def static_batch_size(spec):
    """Returns the leading dimension of the first spec that has one: an int, or None if it is unknown."""
    return next((leaf.shape[0] for _, leaf in leaves(spec) if leaf.shape.rank), None)


def _rows(leaf):
    """Returns the leading dimension of a leaf, an int or an int64 scalar tensor; None of a scalar."""
    shape = tf.TensorShape(leaf.shape)
    if shape.rank == 0:
        return None
    if shape.rank and shape[0] is not None:
        return shape[0]
    if isinstance(leaf, tf.TypeSpec):
        return None  # a spec of unknown size
    if isinstance(leaf, tf.RaggedTensor):
        return tf.cast(leaf.nrows(), tf.int64)
    return leaf.dense_shape[0] if isinstance(leaf, tf.SparseTensor) else tf.shape(leaf, tf.int64)[0]


# ---- Parts of a batch ------------------------------------------------------------------------------------------------


def units_of(batch, parts, what):
    """Returns the number of units of `batch`, in which it can be split: the greatest common divisor of its leaves'
    rows.

    A unit is one row of each leaf if all have the same number of rows, as usual. For x [8, ...] and u [24, ...] it is
    one row of x and three of u.

    Args:
        batch: a nest of tensors; traced or eager.
        parts: int, number of parts.
        what: text for the error, such as "2 shards, one for each replica".

    Returns:
        int where it is static, else an int64 scalar tensor.

    Raises:
        ValueError: if the leaves cannot be split in the same proportion. (For sizes that are not static:
            InvalidArgumentError, when the batch is read.)
    """
    named = [(path, rows) for path, leaf in leaves(batch) if (rows := _rows(leaf)) is not None]
    sizes = [rows for _, rows in named]
    rule = (
        f"The elements of a batch must divide in the same proportion into {what}. Elements that do not belong together "
        "row by row (nodes and edges of a graph) need one replica and `micro_batches=1`, a RaggedTensor with a row for "
        "each example (each graph), or a leading dimension of examples. Got"
    )
    if not sizes:
        return 1
    if all(isinstance(rows, int) for rows in sizes):
        units = max(math.gcd(*sizes), 1)
        if units < min(parts, *sizes):
            raise ValueError(f"{rule} " + ", ".join(f"batch{path}: {rows} rows" for path, rows in named) + ".")
        return units
    sizes = [tf.cast(rows, tf.int64) for rows in sizes]
    units = sizes[0]
    for rows in sizes[1:]:
        units, _ = tf.while_loop(lambda _, rest: rest > 0, lambda a, rest: (rest, a % rest), (units, rows))
    divides = units >= tf.reduce_min(tf.stack([tf.cast(parts, tf.int64), *sizes]))
    found = [x for (path, _), rows in zip(named, sizes) for x in (f"batch{path}:", rows)]
    with tf.control_dependencies([tf.debugging.Assert(divides, [rule, *found], summarize=1)]):
        return tf.maximum(units, 1)


def cut(batch, low, high, units, parts):
    """Returns the rows of `batch` from unit `low` to unit `high`; scalars and None as they are. See `units_of`.

    Args:
        low, high, units: ints or int64 scalars, low < high <= units.
        parts: int, number of parts; shapes stay static if all parts have the same size.
    """

    def of(leaf):
        rows = _rows(leaf)
        if rows is None:
            return leaf
        same = rows is units or (isinstance(rows, int) and isinstance(units, int) and rows == units)
        first, last = (low, high) if same else (low * rows // units, high * rows // units)
        if isinstance(leaf, tf.SparseTensor):
            start = tf.concat([[first], tf.zeros([leaf.shape.rank - 1], tf.int64)], 0)
            return tf.sparse.slice(leaf, start, tf.concat([[last - first], leaf.dense_shape[1:]], 0))
        if isinstance(leaf, tf.RaggedTensor):
            return leaf[first:last]
        if (
            isinstance(units, int) and units % parts == 0 and isinstance(rows, int)
        ):  # XLA does not compile slices of unknown size
            shape = tf.concat([[parts, rows // parts], tf.shape(leaf)[1:]], 0)
            part = tf.reshape(leaf, shape)[low // (units // parts)]
            return tf.ensure_shape(part, [rows // parts, *leaf.shape[1:]])
        return leaf[first:last]

    return map_leaves(of, batch)


def sized_spec(spec, batch_spec=None):
    """Returns `spec` with its unknown leading dimensions from `batch_spec`, the spec of a batch, or 2."""
    known = iter([] if batch_spec is None else to_plain(batch_spec))

    def of(leaf):
        like = next(known, leaf)
        return with_rows(leaf, leaf.shape[0] or like.shape[0] or 2) if leaf.shape.rank else leaf

    return map_leaves(of, spec)


def shard_spec(spec, parts, what):
    """Returns the spec of the first of `parts` parts of a batch of `spec`, all sizes known. See `units_of`."""
    if parts == 1:
        return spec
    units = units_of(spec, parts, what)
    taken = max(units // parts, 1)
    return map_leaves(lambda leaf: with_rows(leaf, leaf.shape[0] * taken // units) if leaf.shape.rank else leaf, spec)


def with_rows(spec, rows):
    """Returns a spec with another leading dimension, None if it is unknown."""
    shape = [rows, *spec.shape[1:]]
    if isinstance(spec, tf.RaggedTensorSpec):
        return tf.RaggedTensorSpec(shape, spec.dtype, spec.ragged_rank, spec.row_splits_dtype)
    return type(spec)(shape, spec.dtype)


def map_leaves(function, nest):
    """Returns `nest` with `function` applied to each leaf; extension types and None are kept."""

    def each(value):
        if value is None or isinstance(value, tf.NoneTensorSpec):
            return value
        if isinstance(value, _WHOLE):
            return function(value)
        if isinstance(value, tf.TypeSpec) and _is_extension(value):
            return value.value_type.Spec(*(map_leaves(function, part) for part in _fields(value)))
        return tf.nest.map_structure(function, value, expand_composites=True)

    return tf.nest.map_structure(each, nest)


def without_none(spec):
    """Returns `spec` with None for the spec of None, as tf.function expects it."""
    return tf.nest.map_structure(lambda leaf: None if isinstance(leaf, tf.NoneTensorSpec) else leaf, spec)


def is_plain(spec):
    """True if a batch of `spec` holds only dense, ragged and sparse tensors, as tf.distribute's iterators require."""
    return all(isinstance(leaf, _WHOLE) for leaf in tf.nest.flatten(spec))


def to_plain(batch):
    """Returns the leaves of `batch` as a tuple, for `from_plain`."""
    return tuple(
        leaf
        for value in tf.nest.flatten(batch)
        if value is not None
        for leaf in ([value] if isinstance(value, _WHOLE) else tf.nest.flatten(value, expand_composites=True))
    )


def from_plain(spec, plain):
    """Restores the batch of structure `spec` from the result of `to_plain`."""
    rest = iter(plain)

    def each(leaf):
        if isinstance(leaf, tf.NoneTensorSpec):
            return None
        if isinstance(leaf, _WHOLE):
            return next(rest)
        parts = [next(rest) for _ in tf.nest.flatten(leaf, expand_composites=True)]
        return tf.nest.pack_sequence_as(leaf, parts, expand_composites=True)

    return tf.nest.pack_sequence_as(spec, [each(leaf) for leaf in tf.nest.flatten(spec)])


# ---- Specs -----------------------------------------------------------------------------------------------------------


def spec_of(batch):
    """Returns the nest of specs of a batch, with its sizes."""
    return tf.nest.map_structure(lambda x: tf.NoneTensorSpec() if x is None else tf.type_spec_from_value(x), batch)


def spec_to_json(spec):
    """Converts a nest of specs to JSON, for the manifest of a checkpoint. A namedtuple is restored as a tuple."""
    if spec is None:
        return None
    if isinstance(spec, dict):
        return {"dict": [[key, spec_to_json(value)] for key, value in spec.items()]}
    if isinstance(spec, (tuple, list)):
        return {"list" if isinstance(spec, list) else "tuple": [spec_to_json(value) for value in spec]}
    if isinstance(spec, tf.NoneTensorSpec):
        return {"None": []}
    if isinstance(spec, (tf.TensorSpec, tf.SparseTensorSpec, tf.RaggedTensorSpec)):
        kind = type(spec).__name__.removesuffix("Spec")
        shape = None if spec.shape.rank is None else list(spec.shape)
        ragged = [spec.ragged_rank, spec.row_splits_dtype.name] if kind == "RaggedTensor" else []
        return {kind: [shape, spec.dtype.name, *ragged]}
    if _is_extension(spec):
        kind = spec.value_type
        return {"ExtensionType": [kind.__module__, kind.__qualname__, [spec_to_json(part) for part in _fields(spec)]]}
    raise ValueError(f"The data must consist of tensors, ragged or sparse tensors, got {spec!r}.")


def spec_from_json(obj):
    """Restores the nest given to `spec_to_json`."""
    ((kind, value),) = obj.items()
    if kind == "dict":
        return {key: spec_from_json(item) for key, item in value}
    if kind in ("tuple", "list"):
        return (tuple if kind == "tuple" else list)(spec_from_json(item) for item in value)
    if kind == "None":
        return tf.NoneTensorSpec()
    if kind == "ExtensionType":
        module, name, parts = value
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        return found.Spec(*map(spec_from_json, parts))
    return getattr(tf, kind + "Spec")(*value)


def _is_extension(spec):
    kind = getattr(spec, "value_type", None)
    return isinstance(kind, type) and issubclass(kind, tf.experimental.ExtensionType)


def _fields(spec):
    return [getattr(spec, name) for name in spec.value_type.__annotations__]


# ---- Non-finite values -----------------------------------------------------------------------------------------------


def not_finite(trainer, batch):
    """Returns a text for each non-finite input of a global batch, such as "x['age'] holds NaN in rows 3, 17"; eager."""
    texts = []
    for path, value in leaves(batch):
        if not value.dtype.is_floating:
            continue
        values, rows = _values_and_rows(value)
        bad = np.logical_not(tf.math.is_finite(values).numpy())
        rows = np.unique(rows[bad.any(axis=tuple(range(1, bad.ndim)))])
        if rows.size:
            kind = "NaN" if np.isnan(np.asarray(values, np.float64)).any() else "infinity"
            more = f" and {rows.size - _SHOWN} more" if rows.size > _SHOWN else ""
            shown = (
                f" in row{'s' * (rows.size > 1)} {', '.join(map(str, rows[:_SHOWN]))}{more}" if value.shape.rank else ""
            )
            texts.append(f"{_name(trainer, batch, path)} holds {kind}{shown}")
    return texts


def _values_and_rows(value):
    """Returns values [n, ...] and their rows in the batch, [n]."""
    if isinstance(value, tf.SparseTensor):
        return value.values, value.indices[:, 0].numpy()
    if value.shape.rank == 0:
        return value[tf.newaxis], np.zeros([1], int)
    rows = np.arange(value.shape[0] if isinstance(value, tf.Tensor) else int(value.nrows()))
    while isinstance(value, tf.RaggedTensor):
        value, rows = value.values, rows[value.value_rowids().numpy()]
    return value, rows


def _name(trainer, batch, path):
    """Returns the name of a component: for the default step the items of a tuple are x, y and sample_weight."""
    if isinstance(batch, tuple) and len(batch) <= 3 and type(trainer).compute_losses.__module__ == "trainer.trainer":
        place, _, rest = path[1:].partition("]")
        return ("x", "y", "sample_weight")[int(place)] + rest
    return f"batch{path}"


_WHOLE = (
    tf.Tensor, tf.RaggedTensor, tf.SparseTensor, tf.TensorSpec, tf.RaggedTensorSpec, tf.SparseTensorSpec, tf.Variable
)  # fmt: skip
