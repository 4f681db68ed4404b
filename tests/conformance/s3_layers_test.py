"""S3, layers and models: several inputs and outputs, a shared layer, and what trains when."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conformance.training import learns, numbers, sequential, train
from tests.runs import arrays_of
from trainer import OptimizerGroup, Trainer

L, SGD = keras.layers, keras.optimizers.SGD
X, Y = numbers()


class OldMyCustomLayer(L.Layer):
    """As the material has it."""

    def __init__(self, output_dim):
        super().__init__()
        self.output_dim = output_dim

    def build(self, input_shape):
        self.kernel = self.add_weight("kernel", shape=[int(input_shape[-1]), self.output_dim])

    def call(self, inputs):
        return tf.matmul(inputs, self.kernel)


class MyCustomLayer(OldMyCustomLayer):
    def build(self, input_shape):
        self.kernel = self.add_weight(name="kernel", shape=[input_shape[-1], self.output_dim])


def test_my_custom_layer():
    """Row 30: MyCustomLayer: `compile` says nothing, `fit` and the Trainer's build fail; with `name=` it trains."""
    model = keras.Sequential([OldMyCustomLayer(1)])
    model.compile("sgd", "mse")
    message = "`name` must be passed as a keyword argument"
    with pytest.raises(ValueError, match=message):
        model.fit(X, Y, verbose=0)
    with pytest.raises(ValueError, match=message):
        train(lambda: Trainer(keras.Sequential([OldMyCustomLayer(1)]), "mse"), (X, Y))
    trainer = learns(
        lambda: Trainer(keras.Sequential([MyCustomLayer(1)]), "mse", (), SGD(0.1), compile="eager"), (X, Y)
    )
    assert list(trainer.trainable_variables) == ["my_custom_layer/kernel"]


class MyCustomModel(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense1, self.dense2 = L.Dense(4, "relu"), L.Dense(1)

    def call(self, inputs):
        return self.dense2(self.dense1(inputs))


def test_my_custom_model():
    """Row 31: MyCustomModel runs as it is, and its variables have the names of its attributes."""
    trainer = learns(lambda: Trainer(MyCustomModel(), "mse", ["mae"], SGD(0.1)), (X, Y))
    assert list(trainer.trainable_variables) == [f"dense{i}/{name}" for i in (1, 2) for name in ("kernel", "bias")]


def two_by_two(names):
    """Two inputs, one layer for both, two outputs; Dense layers as outputs, or with names of their own."""
    inputs = {side: keras.Input((3,), name=side) for side in ("left", "right")}
    shared = L.Dense(4, "tanh", name="shared")
    features = L.Concatenate()([shared(inputs[side]) for side in ("left", "right")])
    outputs = [L.Dense(1, name=names and names[0])(features), L.Dense(1, name=names and names[1])(features)]
    return keras.Model(inputs, dict(zip(names, outputs)) if names else outputs)


BATCH = ({"left": X, "right": X[::-1].copy()}, {"value": Y, "sign": (Y > 0).astype(np.float32)})


def test_two_outputs_in_the_old_form():
    """Row 32: one list of metrics for two outputs fails in `fit`; two outputs of one name are refused by us."""
    model = two_by_two(None)
    model.compile("sgd", "mse", metrics=["accuracy"])
    with pytest.raises(ValueError, match="tuple arity mismatch; expected: 2, got: 1"):
        model.fit(BATCH[0], [Y, Y], verbose=0)

    head = L.Dense(1, name="dense")
    inputs = keras.Input((3,))
    same = keras.Model(
        inputs, [L.Identity(name="out")(head(inputs)), sequential(L.Dense(1), L.Identity(name="out"))(inputs)]
    )
    same.output_names = ["out", "out"]
    with pytest.raises(ValueError, match="several outputs named out; .* Give each output its own name"):
        train(lambda: Trainer(same, "mse"), (X, (Y, Y)))


def test_two_inputs_two_outputs_and_a_shared_layer():
    """Row 32: dicts of inputs, outputs, losses, weights and metrics; the first step's numbers are NumPy's."""
    losses = {"value": "mse", "sign": keras.losses.BinaryCrossentropy(from_logits=True)}
    group = lambda: OptimizerGroup(losses={"value": 1.0, "sign": 0.5}, optimizer=SGD(0.1), name="main")  # noqa: E731
    make = lambda: Trainer(two_by_two(("value", "sign")), losses, {"value": ["mae"]}, group())  # noqa: E731
    keras.utils.set_random_seed(0)
    fresh = two_by_two(("value", "sign"))
    outputs = {name: value.numpy() for name, value in fresh(BATCH[0]).items()}
    trainer, first, last = train(make, BATCH, 5, "mirrored")
    value = np.mean((outputs["value"] - Y) ** 2)
    z, y = outputs["sign"], BATCH[1]["sign"]
    sign = np.mean(np.log1p(np.exp(-z)) * y + np.log1p(np.exp(z)) * (1 - y))
    assert first["losses/value"] == pytest.approx(value, rel=1e-5)
    assert first["losses/sign"] == pytest.approx(sign, rel=1e-5)
    assert first["loss"] == pytest.approx(value + 0.5 * sign, rel=1e-5)
    assert first["metrics/value_mean_absolute_error"] == pytest.approx(np.mean(np.abs(outputs["value"] - Y)), rel=1e-5)
    assert last["loss"] < first["loss"]
    assert [name for name in trainer.trainable_variables if "shared" in name] == ["shared/kernel", "shared/bias"]


def test_freezing_and_unfreezing():
    """Row 33: Keras' optimizer does not know what was frozen when it was built; a group knows all its variables."""
    model, optimizer = sequential(L.Dense(2), L.Dense(1)), SGD(0.1)
    model.layers[0].trainable = False
    optimizer.build(model.trainable_variables)
    model.layers[0].trainable = True
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply([tf.ones(v.shape) for v in model.trainable_variables], model.trainable_variables)
    groups = lambda: [  # noqa: E731
        OptimizerGroup("head/.*", optimizer=SGD(0.1), name="head"),
        OptimizerGroup("encoder/.*", optimizer=SGD(0.1), start=3, name="encoder"),
    ]
    model = lambda: sequential(L.Dense(4, name="frozen"), L.Dense(4, "tanh", name="encoder"), L.Dense(1, name="head"))  # noqa: E731
    trainer, _, _ = train(lambda: Trainer(model(), "mse", (), groups(), frozen=["frozen/.*"]), (X, Y), 1, "mirrored")
    iterator = iter(trainer.distribute(tf.data.Dataset.from_tensors((X, Y)).repeat()))
    moved = []
    for _ in range(2):  # step 2, which leaves the encoder frozen, and step 3
        before = arrays_of(trainer.variables)
        trainer.train(iterator, 1)
        moved.append(
            {name.split("/")[0] for name, v in trainer.variables.items() if not np.array_equal(v.numpy(), before[name])}
        )
    assert moved == [{"head"}, {"head", "encoder"}]
