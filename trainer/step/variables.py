"""Names variables, in the same way in every process.

Keras' paths contain the model's name and process-wide suffixes
(`sequential_1/dense_3/kernel`). The names here are relative to the model and
depend only on it. Variables that a layer created under one name are numbered
in the order of its attributes: `rnn_state`, `rnn_state_1`.
"""

import itertools
import re

import keras
import tensorflow as tf

_KERAS_INTERNALS = frozenset(vars(keras.layers.Layer())) | frozenset(vars(keras.Sequential()))
_AUTOMATIC = re.compile(r"variable(_\d+)?")


def is_variable(value):
    return isinstance(value, (keras.Variable, tf.Variable))


def raw(variable):
    """Returns the tf.Variable of a keras.Variable, and a tf.Variable itself."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def read(variables):
    """Returns copies of the values of `variables`, as they are now; traced, per replica."""
    return [tf.identity(raw(v)) for v in variables]


def restore(variables, values):
    """Assigns `values` of `read` to `variables`; traced, per replica."""
    for variable, value in zip(variables, values):
        raw(variable).assign(value)


def name_variables(attributes):
    """Returns {name: variable} of everything reachable from `attributes`, in a fixed order.

    Args:
        attributes: {attribute: value}, `Trainer.held()`. `model` gives names
            without a prefix; other attributes that hold layers, models or
            variables (also in lists and dicts) give names below their own.

    Raises:
        ValueError: if variables of two layers end up with one name.
    """
    return _Names(attributes).names


def name_layers(attributes):
    """Returns {layer: name} of all layers reachable as in `name_variables`; the model itself is `model`."""
    return {layer: path or "model" for layer, path in _Names(attributes).layers.items()}


def numbered_names(attributes):
    """Returns {name: [names of the numbered variables]} of variables that one layer created under one name."""
    return _Names(attributes).numbered


class _Names:
    """One walk over `attributes`."""

    def __init__(self, attributes):
        self.names, self.layers, self.numbered = {}, {}, {}
        self._seen = set()
        self._makers = {}  # name -> the layer that holds the variable; None: the trainer
        for attribute, value in attributes.items():
            self.walk(value, "" if attribute == "model" else attribute, None)

    def walk(self, value, path, maker):
        if is_variable(value):
            self._add(value, path, maker)
        elif isinstance(value, keras.layers.Layer):
            self._walk_layer(value, path)
        elif isinstance(value, (keras.random.SeedGenerator, tf.random.Generator)):
            self._add(value.state, _join(path, "state"), maker)
        elif isinstance(value, tf.Module):
            self.walk({key: item for key, item in vars(value).items() if not key.startswith("_self_")}, path, maker)
        elif isinstance(value, dict):
            for key, item in value.items():
                self.walk(item, _join(path, str(key)), maker)
        elif isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                self.walk(item, _join(path, str(index)), maker)

    def _walk_layer(self, layer, path):
        if layer in self.layers:
            return  # A shared layer keeps its first path.
        self.layers[layer] = path
        if is_layer_graph(layer):
            for name, child in zip(stable_names(layer.layers), layer.layers):
                self.walk(child, _join(path, name), layer)
        internals = _KERAS_INTERNALS if not is_layer_graph(layer) else set(vars(layer)) & _KERAS_INTERNALS
        for attribute, value in vars(layer).items():
            tracking = attribute in internals or attribute.startswith(
                "_self_"
            )  # Keras' and TensorFlow's own bookkeeping
            if not tracking and not (is_layer_graph(layer) and attribute.startswith("_")):
                self.walk(value, _join(path, attribute.lstrip("_")), layer)
        for variable in layer.variables:  # variables that no attribute holds, by Keras' name
            if id(variable) not in self._seen and not _is_metric_variable(layer, variable):
                self._add(variable, _join(path, "/".join(variable.path.split("/")[1:]) or variable.name), layer)

    def _add(self, variable, path, maker):
        if id(variable) in self._seen:
            return
        self._seen.add(id(variable))
        parent, _, attribute = path.rpartition("/")
        if isinstance(variable, keras.Variable) and parent != path and not _AUTOMATIC.fullmatch(variable.name):
            path = _join(parent, variable.name) if attribute else variable.name
        name = self._free(path, maker) if path in self.names else path
        self.names[name], self._makers[name] = variable, maker

    def _free(self, path, maker):
        """Returns the next numbered name for a variable that `maker` created under an existing name."""
        if self._makers[path] is not maker:
            raise ValueError(
                f"Two variables of different layers are named {path!r}. Give one of the layers a unique name "
                "(`name=`), so that groups, reports and checkpoints can tell them apart."
            )
        name = next(name for number in itertools.count(1) if (name := f"{path}_{number}") not in self.names)
        self.numbered.setdefault(path, []).append(name)
        return name


def check_watched(watched, variables, place_of_read):
    """Raises ValueError for a trainable variable that the losses read and that is not among the trainer's.

    Args:
        watched: the variables that a GradientTape watched.
        variables: {name: variable}, all that are reachable from attributes of the trainer.
        place_of_read: function of a variable that returns the user's line that reads it, or "".
    """
    known = {id(raw(v)) for v in variables.values()}
    unknown = [v for v in watched if id(v) not in known]
    if unknown:
        places = [(v, place_of_read(v)) for v in unknown]
        texts = [
            f"{v.name.split(':')[0]} ({v.dtype.name} {v.shape}{', read at ' + place if place else ''})"
            for v, place in places
        ]
        raise ValueError(
            "The losses depend on trainable variables that are not reachable from attributes of the model or the "
            f"Trainer: {', '.join(texts)}. They would be neither trained nor saved. Keep the layer or keras.Variable "
            "in an attribute, a list or a dict of the model or of a Trainer subclass, or create it with "
            "`trainable=False`."
        )


def is_layer_graph(layer):
    """True if `layer` is a Functional or Sequential model, whose layers have names and an order."""
    return isinstance(layer, (keras.Sequential, keras.Function))


def stable_names(layers):
    """Renumbers automatic names (`dense_7`) of layers or metrics in their order: dense, dense_1, ..."""
    counts, names = {}, []
    for layer in layers:
        base = _snake_case(type(layer).__name__)
        if re.fullmatch(rf"{base}(_\d+)?", layer.name):
            number = counts.get(base, 0)
            counts[base] = number + 1
            names.append(f"{base}_{number}" if number else base)
        else:
            names.append(layer.name)
    return names


def _snake_case(name):
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _is_metric_variable(layer, variable):
    return any(variable is held for metric in getattr(layer, "metrics", ()) for held in metric.variables)


def _join(path, name):
    return f"{path}/{name}" if path else name
