"""What leaves the framework: the inner Keras model as a SavedModel and a .keras file, compared before it counts."""

import keras
import numpy as np
import tensorflow as tf

from trainer import console
from trainer.saving.checkpoints import literal


def export(trainer, source, directory):
    """Writes DIR/saved_model and DIR/model.keras of the trainer's model, reloads both and compares; eager.

    Where the trainer averages its weights, the averaged ones leave.

    Args:
        trainer: a built Trainer with a `model`.
        source: a source whose first batch gives the real examples to compare on.
        directory: pathlib.Path.

    Raises:
        ValueError: if there is no model, or a reloaded one gives other outputs.
    """
    model = trainer.model
    if model is None:
        raise ValueError("`model` is None: export takes the Trainer's inner Keras model, and this Trainer holds none.")
    batch = next(iter(source.batches(0).take(1)))
    inputs, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
    expected = model(inputs, training=False)
    directory.mkdir(parents=True, exist_ok=True)
    saved_model, keras_file = directory / "saved_model", directory / "model.keras"
    signature = tf.nest.map_structure(lambda x: tf.TensorSpec([None, *x.shape[1:]], x.dtype), inputs)
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", lambda x: model(x, training=False), input_signature=[signature])
    archive.write_out(str(saved_model), verbose=False)
    with literal(saved_model) as folder:
        restored = tf.saved_model.load(folder)  # held: its variables die with it
    _compare("SavedModel", expected, restored.serve(inputs))
    console.line(f"SavedModel in {saved_model}: reloaded, same outputs.")
    model.save(keras_file)
    try:
        reloaded = keras.models.load_model(keras_file)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{keras_file} cannot be loaded again: {str(error).splitlines()[0]} The SavedModel is whole. For .keras, give "
            f"{type(model).__name__} a `get_config` with its constructor's arguments and @keras.saving.register_keras_serializable()."
        ) from error
    _compare(".keras file", expected, reloaded(inputs, training=False))
    console.line(f".keras file {keras_file}: reloaded, same outputs.")


def _compare(what, expected, got):
    for a, b in zip(tf.nest.flatten(expected), tf.nest.flatten(got), strict=True):
        difference = float(np.max(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)), initial=0.0))
        if not difference <= 1e-5 * max(1.0, float(np.max(np.abs(a), initial=0.0))):
            raise ValueError(
                f"The reloaded {what} gives other outputs than the model: they differ by {difference:.3g}."
            )
