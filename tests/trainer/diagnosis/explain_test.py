"""The text of an error: its whole message, without AutoGraph's frames."""

import keras
import numpy as np
import pytest

from tests.runs import train
from trainer import Trainer, data
from trainer.diagnosis import explain


class Refuses(keras.layers.Layer):
    def call(self, x, number):
        return x + number


class Model(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = Refuses()

    def call(self, x):
        return self.inner(x, 3)  # Keras wants `number=3`


def test_a_message_of_several_lines_is_whole():
    """Keras names the reason in the first lines of its message, and the arguments in the last."""
    with pytest.raises(ValueError) as caught:
        train(Trainer(Model(), "mse"), data.from_arrays((np.zeros([4, 2], "float32"),) * 2, 4), 1)
    lines = explain.message(caught.value).splitlines()
    assert lines[0] == "Exception encountered when calling Model.call()."
    assert any(line.startswith("Only input tensors may be passed as positional arguments.") for line in lines)
    assert "Arguments received by Model.call():" in lines and "File" not in lines[0]
