"""Every variable has one name, relative to the model and the same in every process."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import Trainer, run
from trainer.data import from_arrays
from trainer.step.variables import name_variables, numbered_names

L = keras.layers


class Holder:
    """What a Trainer is to `name_variables`: an object with attributes."""

    def __init__(self, model=None, **others):
        self.model = model
        vars(self).update(others)


def _names(model, **others):
    return list(name_variables(vars(Holder(model, **others))))


def _trainable(model):
    return [name for name, v in name_variables(vars(Holder(model))).items() if v.trainable]


def _twice(make):
    """Names in a first and in a second model of one process; the caller compares them with the right ones."""
    return [_names(make()) for _ in range(2)]


def _built(model, *inputs):
    model(*(inputs or (tf.ones([2, 3]),)))
    return model


class Block(L.Layer):
    def __init__(self):
        super().__init__()
        self.first = L.Dense(3)
        self.second = L.Dense(3, use_bias=False)

    def call(self, x):
        return self.second(self.first(x))


class Nested(keras.Model):
    def __init__(self):
        super().__init__()
        self.blocks = [Block(), Block()]
        self.heads = {"left": L.Dense(1), "right": L.Dense(1, use_bias=False)}
        self.scale = self.add_weight(name="scale", shape=())

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return (self.heads["left"](x) + self.heads["right"](x)) * self.scale


NESTED = {
    *(f"blocks/{i}/{name}" for i in (0, 1) for name in ("first/kernel", "first/bias", "second/kernel")),
    "heads/left/kernel",
    "heads/left/bias",
    "heads/right/kernel",
    "scale",
}


def test_subclassed_models_are_named_by_attribute_through_lists_and_dicts():
    for names in _twice(lambda: _built(Nested())):
        assert set(names) == NESTED and len(names) == len(NESTED)


def test_attributes_come_in_order_of_assignment():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.zebra = L.Dense(1, use_bias=False)
            self.apple = L.Dense(1, use_bias=False)

        def call(self, x):
            return self.apple(self.zebra(x))

    assert _names(_built(Model())) == ["zebra/kernel", "apple/kernel"]


def _sequential():
    return keras.Sequential(
        [keras.Input((3,)), L.Dense(2), L.BatchNormalization(), L.Dense(2, name="head"), L.Dense(1)]
    )


SEQUENTIAL = [
    "dense/kernel", "dense/bias",
    *(f"batch_normalization/{name}" for name in ("gamma", "beta", "moving_mean", "moving_variance")),
    "head/kernel", "head/bias", "dense_1/kernel", "dense_1/bias",
]  # fmt: skip


def test_sequential_models_are_renumbered_in_model_order():
    keras.Sequential([keras.Input((3,)), *[L.Dense(1) for _ in range(7)]])  # others that took dense ... dense_6
    for names in _twice(_sequential):
        assert names == SEQUENTIAL


def test_functional_models_are_renumbered_in_model_order():
    def make():
        inputs = keras.Input((3,))
        h = L.Dense(2)(inputs)
        return keras.Model(inputs, [L.Dense(1, use_bias=False)(h), L.Dense(1, name="aux")(h)])

    for names in _twice(make):
        assert set(names) == {"dense/kernel", "dense/bias", "dense_1/kernel", "aux/kernel", "aux/bias"}


def test_a_sequential_model_without_an_input_has_the_same_names_once_built():
    model = keras.Sequential([L.Dense(2), L.Dense(1, use_bias=False)])
    assert _names(_built(model)) == ["dense/kernel", "dense/bias", "dense_1/kernel"]


def test_a_functional_model_inside_a_subclassed_one_is_below_its_attribute():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.encoder = keras.Sequential([keras.Input((3,)), L.Dense(2), L.Dense(2)])

        def call(self, x):
            return self.encoder(x)

    wanted = ["encoder/dense/kernel", "encoder/dense/bias", "encoder/dense_1/kernel", "encoder/dense_1/bias"]
    for names in _twice(lambda: _built(Model())):
        assert names == wanted


def test_a_subclassed_layer_inside_a_functional_model_is_below_its_layer_name():
    def make():
        inputs = keras.Input((3,))
        return keras.Model(inputs, Block()(inputs))

    for names in _twice(make):
        assert names == ["block/first/kernel", "block/first/bias", "block/second/kernel"]


def test_a_model_inside_a_model_is_renumbered_by_itself():
    def make():
        inner = keras.Sequential([keras.Input((3,)), L.Dense(3)], name="inner")
        inputs = keras.Input((3,))
        return keras.Model(inputs, L.Dense(1)(inner(inputs)))

    for names in _twice(make):
        assert names == ["inner/dense/kernel", "inner/dense/bias", "dense/kernel", "dense/bias"]


def test_a_shared_layer_keeps_its_first_path():
    class Shared(keras.Model):
        def __init__(self):
            super().__init__()
            self.one = L.Dense(3, use_bias=False)
            self.two = self.one

        def call(self, x):
            return self.two(self.one(x))

    assert _names(_built(Shared())) == ["one/kernel"]
    inputs = keras.Input((3,))
    dense = L.Dense(3, use_bias=False)
    assert _names(keras.Model(inputs, dense(dense(inputs)))) == ["dense/kernel"]


def test_the_models_own_name_is_left_out():
    assert _names(keras.Sequential([keras.Input((3,)), L.Dense(1, use_bias=False)], name="classifier")) == [
        "dense/kernel"
    ]


class Twins(L.Layer):
    """Makes its weights the way that Keras' own layers do, and those of many papers' code: several under one name."""

    def __init__(self):
        super().__init__()
        self.a = self.add_weight(name="same", shape=())
        self.b = self.add_weight(name="same", shape=())
        self.rest = [self.add_weight(name="w", shape=()) for _ in range(3)]
        self.by_side = {side: self.add_weight(name="w", shape=()) for side in ("right", "left")}

    def call(self, x):
        return x * self.a * self.b


TWINS = [
    "same", "same_1", "rest/w", "rest/w_1", "rest/w_2", "by_side/w", "by_side/w_1",
]  # fmt: skip


def test_variables_that_a_layer_made_under_one_name_are_numbered_in_order():
    for names in _twice(lambda: keras.Sequential([keras.Input((3,)), Twins(), Twins(), L.Dense(1)])):
        assert names == [
            *(f"twins/{name}" for name in TWINS), *(f"twins_1/{name}" for name in TWINS), "dense/kernel", "dense/bias",
        ]  # fmt: skip
    layer = Twins()
    by_name = name_variables(vars(Holder(layer)))
    assert (
        by_name["same"] is layer.a and by_name["same_1"] is layer.b and by_name["by_side/w"] is layer.by_side["right"]
    )
    assert numbered_names(vars(Holder(layer))) == {
        "same": ["same_1"], "rest/w": ["rest/w_1", "rest/w_2"], "by_side/w": ["by_side/w_1"],
    }  # fmt: skip


def test_a_number_in_use_is_skipped():
    class Model(L.Layer):
        def __init__(self):
            super().__init__()
            self.first = self.add_weight(name="w_1", shape=())
            self.second = self.add_weight(name="w", shape=())
            self.third = self.add_weight(name="w", shape=())

    assert _names(Model()) == ["w_1", "w", "w_2"]


def test_the_states_of_a_stateful_lstm_are_numbered():
    model = keras.Sequential([keras.Input(batch_shape=(2, 4, 3)), L.LSTM(5, stateful=True), L.Dense(1)])
    assert [name for name in _names(model) if "rnn_state" in name] == [
        "lstm/states/rnn_state",
        "lstm/states/rnn_state_1",
    ]


class Pair(keras.Model):
    """A container: it holds models, and has no `call`."""

    def __init__(self):
        super().__init__()
        self.generator = keras.Sequential([keras.Input((3,)), L.Dense(3, use_bias=False)])
        self.critics = [keras.Sequential([keras.Input((3,)), L.Dense(1, use_bias=False)]) for _ in range(2)]
        self.heads = {"real": L.Dense(1, use_bias=False)}
        self.heads["real"].build((2, 3))
        self.temperature = self.add_weight(name="temperature", shape=())


def test_a_container_without_call_is_named_by_attribute():
    for names in _twice(Pair):
        assert names == [
            "generator/dense/kernel",
            "critics/0/dense/kernel",
            "critics/1/dense/kernel",
            "heads/real/kernel",
            "temperature",
        ]


def test_a_functional_model_of_a_class_of_its_own_is_named_by_layers():
    class Net(keras.Model):
        def __init__(self):
            inputs = keras.Input((3,))
            super().__init__(inputs, L.Dense(1, use_bias=False)(L.Dense(2, use_bias=False)(inputs)))

        def call(self, inputs, training=None, mask=None):
            return 2 * super().call(inputs, training=training, mask=mask)

    for names in _twice(Net):
        assert names == ["dense/kernel", "dense_1/kernel"]


def test_renumbering_never_collides_with_a_name_that_the_user_gave():
    with pytest.raises(ValueError, match="of different layers are named"):
        _names(keras.Sequential([keras.Input((4, 3)), L.Dense(3), L.Conv1D(1, 1, name="dense")]))


@pytest.mark.parametrize(
    "make, inputs, wanted",
    [
        (
            lambda: L.MultiHeadAttention(2, 3),
            (tf.ones([2, 4, 3]), tf.ones([2, 4, 3])),
            {
                f"{part}/{name}"
                for part in ("query_dense", "key_dense", "value_dense", "output_dense")
                for name in ("kernel", "bias")
            },
        ),
        (lambda: L.LSTM(2), (tf.ones([2, 4, 3]),), {"cell/kernel", "cell/recurrent_kernel", "cell/bias"}),
        (
            lambda: L.BatchNormalization(),
            (tf.ones([2, 3]),),
            {"gamma", "beta", "moving_mean", "moving_variance"},
        ),
        (lambda: L.Dropout(0.5), (tf.ones([2, 3]),), set()),
        (lambda: L.Embedding(4, 2), (tf.constant([[1, 2]]),), {"embeddings"}),
        (
            lambda: L.Bidirectional(L.GRU(2)),
            (tf.ones([2, 4, 3]),),
            {
                f"{way}_layer/cell/{name}"
                for way in ("forward", "backward")
                for name in ("kernel", "recurrent_kernel", "bias")
            },
        ),
    ],
    ids=["attention", "lstm", "batch_norm", "dropout", "embedding", "bidirectional"],
)
def test_keras_layers_have_one_stable_name_per_variable(make, inputs, wanted):
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.layer = make()

        def call(self, *inputs):
            return self.layer(*inputs)

    seen = []
    for _ in range(2):
        model = _built(Model(), *inputs)
        names = name_variables(vars(Holder(model)))
        assert len({id(v) for v in names.values()}) == len(names)
        assert {id(v) for v in names.values()} >= {id(v) for v in model.variables}
        seen.append({name for name in names if "seed_generator" not in name})
    assert seen[0] == seen[1] == {f"layer/{name}" for name in wanted}


def test_seed_generators_are_named_once_and_stably():
    def make():
        return keras.Sequential([keras.Input((3,)), L.Dropout(0.5), L.GaussianNoise(1.0), L.Dropout(0.1), L.Dense(1)])

    first, second = _twice(make)
    assert first == second
    seeds = [name for name in first if "seed" in name]
    assert len(seeds) == 3 and [name.split("/")[0] for name in seeds] == ["dropout", "gaussian_noise", "dropout_1"]


def test_metrics_inside_a_model_are_not_its_variables():
    class Measuring(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = L.Dense(1, use_bias=False)
            self.mean = keras.metrics.Mean(name="level")

        def call(self, x):
            return self.dense(x)

    assert _names(_built(Measuring())) == ["dense/kernel"]


def test_attributes_of_the_owner_beside_the_model_give_names_below_their_own():
    other = _built(keras.Sequential([L.Dense(1, use_bias=False)]))
    temperature = keras.Variable(1.0, name="variable")
    model = keras.Sequential([keras.Input((3,)), L.Dense(1, use_bias=False)])
    names = _names(
        model, critic=other, temperature=temperature, models=[_built(keras.Sequential([L.Dense(1, use_bias=False)]))]
    )
    assert names == ["dense/kernel", "critic/dense/kernel", "temperature", "models/0/dense/kernel"]


def test_every_variable_of_a_model_is_found_exactly_once():
    for model in (_built(Nested()), _sequential()):
        found = [id(v) for v in name_variables(vars(Holder(model))).values()]
        assert len(set(found)) == len(found)
        assert set(found) >= {id(v) for v in model.variables}


def test_a_stateful_lstm_trains_as_fit_does_also_when_it_resumes_in_the_middle(tmp_path):
    """The state is carried from batch to batch, and is in the checkpoint under its two names."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(24, 5, 3)).astype("float32"), random.normal(size=(24, 1)).astype("float32")

    def make():
        keras.utils.set_random_seed(7)
        return keras.Sequential([keras.Input(batch_shape=(4, 5, 3)), L.LSTM(6, stateful=True), L.Dense(1)])

    fitted = make()
    fitted.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    fitted.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)

    def start(steps):
        data = lambda: from_arrays((x, y), 4, shuffle=False)  # noqa: E731
        trainer = lambda: Trainer(make(), "mse", (), keras.optimizers.SGD(0.1))  # noqa: E731
        return run(tmp_path, trainer, data, train_steps=steps, steps_per_loop=5, strategy="default").trainer

    start(5)
    trained = start(12)
    assert {"lstm/states/rnn_state", "lstm/states/rnn_state_1"} < set(trained.variables)
    for ours, theirs in zip(trained.model.variables, fitted.variables):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-5, atol=1e-6, err_msg=ours.path)
