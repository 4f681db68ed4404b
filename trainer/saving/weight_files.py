"""Reads the weights of files: our checkpoints, TensorFlow's, `.keras` and `.weights.h5`."""

import os
import re
import zipfile
from typing import NamedTuple

import h5py
import keras
import numpy as np
import tensorflow as tf
from keras.src.saving import saving_lib  # Keras has no public API for its names of weights
from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

from trainer.config.paths import literal, local_path
from trainer.saving.checkpoints import Checkpoints

_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VALUE = "VARIABLE_VALUE"
_NOT_WEIGHTS = (
    "optimizers/",
    "transforms/",
    "averages/",
    "hooks/",
    "guard/",
    "report/",
    "data/",
    "global_step",
)  # of ours
_DAMAGE = (tf.errors.OpError, OSError, KeyError, IndexError, ValueError, RuntimeError, zipfile.BadZipFile)


class Weights(NamedTuple):
    """The weights of a file.

    Attributes:
        source: path and kind of the file, for messages.
        tensors: {name: array}; names of this program's variables where the structures agree, else names of the file.
        here: {name of a variable of this program in a file of this kind: the variable's name}.
    """

    source: str
    tensors: dict
    here: dict


def read_weights(trainer, path):
    """Returns the Weights at `path`, with the names of a built trainer; eager.

    Args:
        path: a run folder of ours, one of its checkpoints, the prefix or the folder of a tf.train.Checkpoint (or of a
            TF1 Saver), a `.keras` file or a `.weights.h5` file.

    Raises:
        ValueError: if there is no such file, or it cannot be read.
    """
    path = local_path("init_from", path)
    if (path / "checkpoints").is_dir() or (path.parent.name == "checkpoints" and (path / "manifest.json").is_file()):
        return _ours(path)
    try:
        given = path if path.is_dir() else path.parent
        with literal(given) as folder:
            prefix = tf.train.latest_checkpoint(folder) if path.is_dir() else os.path.join(folder, path.name)
            prefix = (prefix or "").removesuffix(".index")
            if prefix and os.path.isfile(f"{prefix}.index"):
                found = _tensorflow(trainer, prefix)
                return found._replace(source=found.source.replace(folder, str(given)))
        if path.is_file() and path.name.endswith(".weights.h5"):
            return _keras(trainer, path, path)
        if path.is_file() and path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as file:
                return _keras(trainer, path, file)
    except _DAMAGE as error:
        message = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"`init_from` {str(path)!r} is damaged, or its name has the wrong suffix: {type(error).__name__}: {message}"
        ) from error
    there = "is none of these" if path.exists() else "does not exist"
    raise ValueError(
        "`init_from` must be a run folder with a whole checkpoint, a checkpoint of ours or of TensorFlow, a .keras or "
        f"a .weights.h5 file, but {str(path)!r} {there}."
    )


def _ours(path):
    folder, step = (
        (path, None) if (path / "checkpoints").is_dir() else (path.parent.parent, path.name.rpartition("_")[2])
    )
    found = Checkpoints().open(folder)
    checkpoint = found.latest() if step is None else found.at(int(step)) if step.isdigit() else None
    if checkpoint is None:
        raise ValueError(f"`init_from` {str(path)!r} has no whole checkpoint; steps there: {found.steps()}.")
    return _named(f"{checkpoint.path}, step {checkpoint.step}", checkpoint.read())


def _named(source, tensors):
    """Returns Weights stored under our names; the averaged ones if the run averaged them."""
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(_NOT_WEIGHTS)}
    averages = {name: tensors[slot] for name in weights for slot in _averages(name, tensors)}
    return Weights(
        source + (f", {len(averages)} of its weights averaged" if averages else ""), {**weights, **averages}, {}
    )


def _averages(name, tensors):
    """Yields the names of averaged weights in a checkpoint: of Trainer.averages, or a schedule-free optimizer's x."""
    if int(tensors.get("averages/updates", 0)) and f"averages/{name}" in tensors:
        yield f"averages/{name}"
    for slot in tensors:
        group = re.fullmatch(rf"(optimizers/[^/]+)/{re.escape(name)}/x", slot)
        if group and float(tensors.get(f"{group[1]}/weight_sum", 0)):
            yield slot


def _tensorflow(trainer, prefix):
    reader = tf.train.load_checkpoint(prefix)
    if not reader.has_tensor(_GRAPH):  # of a Saver, or a moved checkpoint of ours: matched by name
        return _named(prefix, {name: reader.get_tensor(name) for name in sorted(reader.get_variable_to_shape_map())})
    graph = TrackableObjectGraph.FromString(reader.get_tensor(_GRAPH))
    here = _paths_here(trainer)
    keys = max((_paths_there(graph, root) for root in _roots(graph)), key=lambda paths: len(set(paths) & set(here)))
    return Weights(prefix, {here.get(path, path): reader.get_tensor(key) for path, key in keys.items()}, here)


def _roots(graph):
    """Yields the nodes that may be a model: the root and its named children."""
    return [
        0,
        *(child.node_id for child in graph.nodes[0].children if child.local_name not in ("optimizer", "save_counter")),
    ]


def _paths_there(graph, root):
    """Returns {path: key of its tensor} of the variables below a node, by the shortest path, as in TensorFlow."""
    nodes, keys = [("", root)], {}
    seen = {root}
    for path, node in nodes:  # grows
        for attribute in graph.nodes[node].attributes:
            if attribute.name == _VALUE:
                keys[path] = attribute.checkpoint_key
        for child in graph.nodes[node].children:
            if child.node_id not in seen and (path or child.local_name not in ("optimizer", "save_counter")):
                seen.add(child.node_id)
                nodes.append((_join(path, child.local_name), child.node_id))
    return keys


def _paths_here(trainer):
    """Returns {path: our name} of this program's variables; those of `model` have no prefix."""
    names = {id(variable): name for name, variable in trainer.variables.items()}
    nodes = [("" if key == "model" else key, value) for key, value in trainer.held().items()]
    nodes = [
        (path, value) for path, value in nodes if isinstance(value, (keras.layers.Layer, keras.Variable, tf.Variable))
    ]
    seen, found = {id(value) for _, value in nodes}, {}
    for path, node in nodes:  # grows
        if id(node) in names:
            found[path] = names[id(node)]
        for name, child in tf.train.TrackableView.children(node).items():
            if id(child) not in seen:
                seen.add(id(child))
                nodes.append((_join(path, name), child))
    return found


def _join(path, name):
    """Joins the parts of a path, without the underscore of attributes such as Dense's `_kernel`."""
    return f"{path}/{name}".strip("/").replace("/_", "/").removeprefix("_")


def _keras(trainer, path, file):
    """Returns the Weights of a Keras file for `Trainer.model`; its classes need not be registered."""
    here, tensors = {}, {}
    if trainer.model is not None:
        store = saving_lib.NpzIOStore(None, mode="w")  # collects the variables; no file is written
        saving_lib._save_state(trainer.model, store, None, "", set())
        names = {id(variable): name for name, variable in trainer.variables.items()}
        for layer, weights in store.contents.items():
            for key, variable in weights.items():
                if id(variable) in names:
                    here[_plain(f"{layer.replace('__root__', '')}/{key}")] = names[id(variable)]
    with h5py.File(file, "r") as archive:
        archive.visititems(lambda name, item: tensors.update({name: item}) if isinstance(item, h5py.Dataset) else None)
        tensors = {_plain(name): _array(item) for name, item in tensors.items() if not name.startswith("optimizer/")}
    if not tensors:
        raise ValueError("it holds no weights")
    return Weights(str(path), {here.get(name, name): tensor for name, tensor in tensors.items()}, here)


def _plain(path):
    """`layers/encoder/layers/dense/vars/0` as `encoder/dense/0`."""
    return "/".join(part for part in path.split("/") if part not in ("layers", "vars", ""))


def _array(dataset):
    array = np.asarray(dataset)
    return array.astype(tf.bfloat16.as_numpy_dtype) if dataset.attrs.get("dtype") == "bfloat16" else array
