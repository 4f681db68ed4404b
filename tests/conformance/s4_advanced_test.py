"""S4, advanced Keras: CustomDense, and looking into a step while it runs."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conformance.training import learns, numbers, sequential, train
from trainer import OptimizerGroup, Trainer

L, SGD = keras.layers, keras.optimizers.SGD
X, Y = numbers()


class OldCustomDense(L.Layer):
    """As the material has it: weights without names, no `get_config`."""

    def __init__(self, units=32):
        super().__init__()
        self.units = units

    def build(self, input_shape):
        self.w = self.add_weight(shape=(input_shape[-1], self.units), initializer="random_normal", trainable=True)
        self.b = self.add_weight(shape=(self.units,), initializer="zeros", trainable=True)

    def call(self, inputs):
        return tf.matmul(inputs, self.w) + self.b


@keras.saving.register_keras_serializable(package="tests")
class CustomDense(L.Layer):
    def __init__(self, units=32, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape):
        self.w = self.add_weight(name="w", shape=(input_shape[-1], self.units), initializer="random_normal")
        self.b = self.add_weight(name="b", shape=(self.units,), initializer="zeros")

    def call(self, inputs):
        return tf.matmul(inputs, self.w) + self.b

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def test_the_old_custom_dense(tmp_path):
    """Row 34: CustomDense without names: its weights are variable_1, ..., no file loads, no tape watches."""
    old = sequential(OldCustomDense(1))
    assert all("variable" in v.path for v in old.weights)
    old.save(tmp_path / "old.keras")
    with pytest.raises(TypeError, match="could not be deserialized properly"):
        keras.models.load_model(tmp_path / "old.keras")
    with pytest.raises(ValueError, match="of type 'Variable', not tf.Tensor or tf.Variable"), tf.GradientTape() as tape:
        tape.watch(old.weights[0])


@pytest.mark.parametrize("dense", [OldCustomDense, CustomDense])
def test_custom_dense_is_routed_to_two_optimizers(dense, tmp_path):
    """Row 34: CustomDense: the Trainer names unnamed weights by their attributes; the new one is saved and loaded."""
    groups = [
        OptimizerGroup(".*/w", optimizer=SGD(0.1), name="weights"),
        OptimizerGroup(".*/b", optimizer=keras.optimizers.Adam(0.01), name="biases"),
    ]
    model = lambda: sequential(dense(4), L.Activation("tanh"), dense(1))  # noqa: E731
    trainer = learns(lambda: Trainer(model(), "mse", (), groups), (X, Y))
    name = trainer.groups[0].variable_names[0].removesuffix("/w")
    assert name in ("custom_dense", "old_custom_dense")
    assert [group.variable_names for group in trainer.groups] == [[f"{name}/{w}", f"{name}_1/{w}"] for w in "wb"]
    with tf.GradientTape() as tape:
        tape.watch(trainer.model.weights[0].value)  # what a tape can watch
    if dense is CustomDense:
        trainer.model.save(tmp_path / "new.keras")
        np.testing.assert_array_equal(keras.models.load_model(tmp_path / "new.keras")(X), trainer.model(X))


class Printing(L.Layer):
    def call(self, x):
        if tf.executing_eagerly():  # building is a trace, in every mode
            print(f"mean {float(tf.reduce_mean(x)):.4f}")
        return x


def test_a_print_in_call(capsys):
    """Row 35: compile="eager" runs `call` in Python at each step: a print shows numbers; the steps are the graph's."""
    results = {}
    for mode in ("eager", "graph"):
        make = lambda: Trainer(sequential(Printing(), L.Dense(1)), "mse", (), SGD(0.1), compile=mode)  # noqa: B023, E731
        trainer, _, last = train(make, (X, Y), 3)
        results[mode] = [last["loss"], *trainer.variables["dense/kernel"].numpy()[:, 0]]
        printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("mean")]
        assert printed == [f"mean {X.mean():.4f}"] * (3 if mode == "eager" else 0)
    np.testing.assert_allclose(results["eager"], results["graph"], rtol=1e-5)
