"""Element specs as JSON, for the manifest of a checkpoint."""

import tensorflow as tf


def spec_to_json(spec):
    """Turns a nest of tensor, ragged and sparse specs into plain JSON. A namedtuple comes back as a tuple."""
    if isinstance(spec, dict):
        return {"dict": [[key, spec_to_json(value)] for key, value in spec.items()]}
    if isinstance(spec, (tuple, list)):
        return {"list" if isinstance(spec, list) else "tuple": [spec_to_json(value) for value in spec]}
    if isinstance(spec, (tf.TensorSpec, tf.SparseTensorSpec, tf.RaggedTensorSpec)):
        kind = type(spec).__name__.removesuffix("Spec")
        shape = None if spec.shape.rank is None else list(spec.shape)
        ragged = [spec.ragged_rank, spec.row_splits_dtype.name] if kind == "RaggedTensor" else []
        return {kind: [shape, spec.dtype.name, *ragged]}
    raise ValueError(f"The data must consist of tensors, ragged or sparse tensors, got {spec!r}.")


def spec_from_json(obj):
    """Makes the nest that `spec_to_json` was given."""
    ((kind, value),) = obj.items()
    if kind == "dict":
        return {key: spec_from_json(item) for key, item in value}
    if kind in ("tuple", "list"):
        return (tuple if kind == "tuple" else list)(spec_from_json(item) for item in value)
    return getattr(tf, kind + "Spec")(*value)
