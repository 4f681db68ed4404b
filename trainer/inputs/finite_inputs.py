"""Inputs that are not finite, by name and row."""

import numpy as np
import tensorflow as tf

from trainer.inputs.source import leaves

_SHOWN = 6  # rows


def not_finite(trainer, batch):
    """Returns a text for each input of a global batch that is not finite, such as "x['age'] holds NaN in rows 3, 17"; eager."""
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
            shown = ", ".join(map(str, rows[:_SHOWN]))
            texts.append(f"{_name(trainer, batch, path)} holds {kind} in row{'s' * (rows.size > 1)} {shown}{more}")
    return texts


def _values_and_rows(value):
    """Returns values [n, ...] and the rows of the batch, [n], that they belong to."""
    if isinstance(value, tf.SparseTensor):
        return value.values, value.indices[:, 0].numpy()
    rows = np.arange(value.shape[0] if isinstance(value, tf.Tensor) else int(value.nrows()))
    while isinstance(value, tf.RaggedTensor):
        value, rows = value.values, rows[value.value_rowids().numpy()]
    return value, rows


def _name(trainer, batch, path):
    """The default step calls the parts of a tuple x, y and sample_weight; other steps have names of their own."""
    if isinstance(batch, tuple) and type(trainer).compute_losses.__module__ == "trainer.trainer":
        place, _, rest = path[1:].partition("]")
        return ("x", "y", "sample_weight")[int(place)] + rest
    return f"batch{path}"
