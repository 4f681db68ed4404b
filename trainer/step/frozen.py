"""Runs layers whose variables are all frozen in inference mode, as Keras does for `layer.trainable = False`."""

import contextlib
import threading


class FrozenLayers:
    """Switches frozen layers to `trainable = False` while a forward pass is traced, so that their statistics stay.

    Args:
        layers: {layer: name}, the trainer's layers.
        trainable: {name: variable}, its trainable variables.
        frozen: names of those that match `Trainer.frozen`.

    Attributes:
        names: names of the frozen layers with variables that a forward pass in training mode could change.
    """

    def __init__(self, layers, trainable, frozen):
        self._layers, self.names = [], []
        for layer, path in layers.items():
            prefix = "" if path == "model" else path + "/"
            has_layers_inside = any(other is not layer and name.startswith(prefix) for other, name in layers.items())
            if has_layers_inside or not layer.non_trainable_variables or not layer.trainable:
                continue
            if _all_frozen(prefix, trainable, frozen):
                self._layers.append(layer)
                self.names.append(path)
        self._depth, self._lock = 0, threading.Lock()  # replicas are traced in threads that alternate

    @contextlib.contextmanager
    def inference(self):
        """A context in which the frozen layers are not trainable; for any thread; may be nested."""
        with self._lock:
            self._depth += 1
            if self._depth == 1:
                self._switch(False)
        try:
            yield
        finally:
            with self._lock:
                self._depth -= 1
                if self._depth == 0:
                    self._switch(True)

    def _switch(self, trainable):
        for layer in self._layers:
            layer.trainable = trainable


def _all_frozen(prefix, trainable, frozen):
    """True if all variables of the layer are frozen; without trainable ones, those of the nearest layer around it."""
    while True:
        own = [name for name in trainable if name.startswith(prefix)]
        if own:
            return all(name in frozen for name in own)
        if not prefix:
            return False
        prefix = prefix.rstrip("/").rpartition("/")[0]
        prefix = prefix + "/" if prefix else ""
