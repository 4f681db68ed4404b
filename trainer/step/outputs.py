"""Names the outputs of a model, and matches nests (losses, targets, sample weights) to them by name."""

import difflib

import tensorflow as tf

SINGLE_OUTPUT = "main"


def by_output(predictions, model=None):
    """Returns {output name: tensor} of a nest of model outputs; a single output is called `main`.

    Args:
        predictions: a tensor, or a dict, list or tuple of tensors.
        model: the model, whose `output_names` name a list or tuple of outputs if there are any.
    """
    names = getattr(model, "output_names", None)
    if isinstance(predictions, dict):
        flat = {}
        for key, value in predictions.items():
            for name, tensor in by_output(value).items():
                flat[key if name == SINGLE_OUTPUT else f"{key}/{name}"] = tensor
        return flat
    if isinstance(predictions, (list, tuple)):
        if names is None or len(names) != len(predictions):
            names = [f"output_{i}" for i in range(len(predictions))]
        twice = sorted({name for name in names if list(names).count(name) > 1})
        if twice:
            raise ValueError(
                f"The model has several outputs named {', '.join(twice)}; their losses and metrics need different "
                "names. Give each output its own name, e.g. with keras.layers.Identity(name=...)."
            )
        return dict(zip(names, predictions))
    return {SINGLE_OUTPUT: predictions}


def match(argument, nest, outputs):
    """Returns {output name: part of `nest`} for the `outputs` that have a part other than None.

    A nest has the structure of the outputs; a single value applies to all of them. An output may be None.
    """
    if nest is None:
        return {}
    there = [name for name, output in outputs.items() if output is not None]
    if isinstance(nest, dict):
        flat = by_output(nest)
        for name in flat:
            if name in outputs and name not in there and flat[name] is not None:
                raise ValueError(f"`{argument}` names the output {name!r}, which is None.")
            if name not in outputs:
                near = difflib.get_close_matches(name, outputs, 1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(
                    f"`{argument}` names the output {name!r}, but the model's outputs are {', '.join(outputs)}.{hint}"
                )
        return {name: value for name, value in flat.items() if value is not None}
    if isinstance(nest, (list, tuple)):
        if len(nest) != len(outputs):
            raise ValueError(
                f"`{argument}` has {len(nest)} parts, but the model has {len(outputs)} outputs: {', '.join(outputs)}."
            )
        return {name: value for name, value in zip(outputs, nest) if value is not None and name in there}
    return dict.fromkeys(there, nest)


def keras_mask(tensor):
    """Returns the mask that Keras attached to `tensor` (bool, [B, T]), or None.

    The only use of this private attribute.
    """
    return getattr(tensor, "_keras_mask", None)


def keras_masks(outputs):
    """Returns the masks of all leaves of `outputs`, which may be None: a list of tensors or None."""
    return [] if outputs is None else [keras_mask(leaf) for leaf in tf.nest.flatten(outputs)]


def set_keras_mask(tensor, mask):
    """Attaches `mask` to `tensor` as Keras does; the inverse of `keras_mask`."""
    if mask is not None:
        tensor._keras_mask = mask


def align(weights, values):
    """Adds or drops trailing axes of 1 so that weights [B] multiply values [B, T] row by row."""
    if weights.shape.rank is None or values.shape.rank is None:
        return weights
    while weights.shape.rank < values.shape.rank:
        weights = weights[..., tf.newaxis]
    if weights.shape.rank == values.shape.rank + 1 and weights.shape[-1] == 1:
        weights = tf.squeeze(weights, -1)
    if weights.shape.rank > values.shape.rank:
        raise ValueError(
            f"`sample_weight` of shape {weights.shape} has more axes than the loss values, {values.shape}; "
            "give one weight per example, or per element of the loss."
        )
    return weights
