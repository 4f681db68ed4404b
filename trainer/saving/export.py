"""Exports the Trainer's model as a SavedModel and a .keras file, and compares the outputs of the reloaded files."""

import keras
import numpy as np
import tensorflow as tf

from trainer import console
from trainer.config.paths import literal
from trainer.step.variables import is_layer_graph, is_variable, name_layers, raw


def export(trainer, source, directory):
    """Writes the trainer's model to DIR/saved_model and DIR/model.keras, reloads both and compares outputs; eager.

    If the trainer averages its weights, the average is exported. The signature `serve` of the SavedModel has None for
    dimensions that differ between batches or that a Functional model leaves undefined.

    Args:
        trainer: a built Trainer with a `model`.
        source: a source; its first batch is used for the comparison.
        directory: pathlib.Path.

    Raises:
        ValueError: if there is no model with a `call`, it cannot be saved, or the outputs of a reloaded file differ.
    """
    model = trainer.model
    if model is None:
        raise ValueError("`model` is None: export takes the Trainer's inner Keras model, and this Trainer holds none.")
    if type(model).call is keras.Model.call:
        raise ValueError(
            f"`model` {type(model).__name__} has no `call` to export. Define a `call` that returns the outputs, "
            "or save the models that it holds: load(DIR).model.generator.save('generator.keras')."
        )
    inputs, _, _ = keras.utils.unpack_x_y_sample_weight(next(iter(source.batches(0).take(1))))
    spec, _, _ = keras.utils.unpack_x_y_sample_weight(source.element_spec)
    expected = model(inputs, training=False)
    directory.mkdir(parents=True, exist_ok=True)
    _save_saved_model(trainer, _open(model, spec), directory / "saved_model", inputs, expected)
    _save_keras_file(trainer, directory / "model.keras", inputs, expected)


def _save_saved_model(trainer, spec, path, inputs, expected):
    held = tf.Module()  # only what `serve` needs of the model: Keras' tracking would trace it for dense inputs
    held.weights = [raw(v) for v in trainer.variables.values()]
    held.resources = _resources(trainer)
    held.serve = tf.function(lambda x: trainer.model(x, training=False), input_signature=[spec])
    signatures = {"serve": held.serve, "serving_default": held.serve}
    tf.saved_model.save(held, str(path), signatures=signatures)
    with literal(path) as folder:
        restored = tf.saved_model.load(folder)  # a reference, since its variables are deleted with it
    _compare("SavedModel", expected, restored.serve(inputs))
    console.line(f"SavedModel in {path}: reloaded, same outputs.")


def _save_keras_file(trainer, path, inputs, expected):
    try:
        trainer.model.save(path)
        reloaded = keras.models.load_model(path)
    except Exception as error:  # any exception of a user's `get_config` or constructor
        path.unlink(missing_ok=True)
        text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(f"{path} was not written; the SavedModel is whole. {_cure(trainer, error) or text}") from error
    _compare(".keras file", expected, reloaded(inputs, training=False))
    console.line(f".keras file {path}: reloaded, same outputs.")


def _cure(trainer, error):
    """Returns a sentence on the user's classes that prevent a .keras file, and the fix; "" if there are none."""
    own = {type(layer): None for layer in _layers(trainer.model) if not type(layer).__module__.startswith("keras.")}
    registered = keras.saving.get_registered_name
    if isinstance(error, NotImplementedError):
        lacking = [kind for kind in own if f"Object {kind.__name__} was created" in str(error)]
        needs = (
            "a `get_config` that returns its constructor's arguments, and @keras.saving.register_keras_serializable()"
        )
    else:
        lacking = [kind for kind in own if registered(kind) == kind.__name__]
        needs = "@keras.saving.register_keras_serializable(), and a `get_config` where its constructor has arguments"
    names = ", ".join(kind.__name__ for kind in lacking)
    return f"A .keras file holds configs, not code. Give {names} {needs}." if lacking else ""


def _resources(trainer):
    """Returns tables, modules and variables that layers hold in addition to Keras' variables."""
    kinds = (tf.saved_model.experimental.TrackableResource, tf.Module, tf.Variable)
    values = [leaf for layer in _layers(trainer.model) for value in vars(layer).values() for leaf in _leaves(value)]
    return [value for value in values if isinstance(value, kinds) and not is_variable(value)]


def _layers(model):
    return name_layers({"model": model})


def _leaves(value):
    if isinstance(value, (list, tuple, dict)):
        return [leaf for item in (value.values() if isinstance(value, dict) else value) for leaf in _leaves(item)]
    return [value]


def _open(model, spec):
    """Returns the input spec of `serve`: the spec of the data, with the undefined dimensions of the model."""
    leaves = tf.nest.flatten(spec)
    declared = model.inputs if is_layer_graph(model) and len(model.inputs) == len(leaves) else leaves
    return tf.nest.pack_sequence_as(spec, [_open_leaf(*pair) for pair in zip(leaves, declared)])


def _open_leaf(spec, declared):
    shape = spec.shape.as_list()
    if isinstance(declared, keras.KerasTensor) and len(declared.shape) == len(shape):
        batch = declared.shape[0]  # None, except for Input(batch_shape=...)
        shape = [size if own is not None else None for size, own in zip(shape, declared.shape)]
    else:
        batch = None
    shape = [batch, *shape[1:]]
    if isinstance(spec, tf.RaggedTensorSpec):
        return tf.RaggedTensorSpec(shape, spec.dtype, spec.ragged_rank, spec.row_splits_dtype)
    return type(spec)(shape, spec.dtype)


def _compare(what, expected, got):
    flat = [tf.nest.flatten(outputs, expand_composites=True) for outputs in (expected, got)]
    for a, b in zip(*map(_arrays, flat), strict=True):
        if a.dtype == object or a.dtype.kind in "SUb":
            difference = float(np.sum(a != b)) if a.shape == b.shape else np.inf
        else:
            difference = float(np.max(np.abs(a - b), initial=0.0)) if a.shape == b.shape else np.inf
            difference /= max(1.0, float(np.max(np.abs(a), initial=0.0)))
        if not difference <= 1e-5:
            raise ValueError(f"The outputs of the reloaded {what} differ from those of the model by {difference:.3g}.")


def _arrays(tensors):
    arrays = [np.asarray(tensor) for tensor in tensors if tensor is not None]
    return [x.astype(np.float64) if x.dtype.kind in "iuf" or x.dtype.name == "bfloat16" else x for x in arrays]
