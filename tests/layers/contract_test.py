"""Contract of every layer: saving, names, half precision, masks, tracing, XLA, replicas."""

import doctest
import importlib
import inspect
import json
import pathlib

import gin
import keras
import numpy as np
import pytest
import tensorflow as tf

import layers
from tests.runs import arrays_of
from trainer import Trainer
from trainer.config import registry
from trainer.replicas.distribution import make_strategy

B, T, F = 6, 4, 4
IMAGE = (3, 3, 2)


def _conv():
    return keras.layers.Conv2D(3, 2, padding="same")


def _wrap(wrapper, layer, dtype=None, **arguments):
    """A wrapper takes the precision of the layer in it."""
    return wrapper(
        layer if dtype is None else type(layer).from_config({**layer.get_config(), "dtype": dtype}), **arguments
    )


def _residual(dtype=None, **arguments):
    branch = [keras.layers.Dense(3, "tanh", name="a", dtype=dtype), keras.layers.Dense(F, name="b", dtype=dtype)]
    return layers.ResidualBlock(branch, dtype=dtype, **arguments)


# name: (layer, shape of an example's input); an image has [H, W, C]
CASES = {
    "ScaledDense": (lambda **k: layers.ScaledDense(3, "tanh", **k), (F,)),
    "PolynomialTransform": (lambda **k: layers.PolynomialTransform(3, **k), (F,)),
    "CrossLayer": (lambda **k: layers.CrossLayer(**k), (F,)),
    "CrossLayer of rank 2": (lambda **k: layers.CrossLayer(2, **k), (F,)),
    "Maxout": (lambda **k: layers.Maxout(2, **k), (F,)),
    "NoisyDense": (lambda **k: layers.NoisyDense(3, "relu", seed=5, **k), (F,)),
    "GradientReversal": (lambda **k: layers.GradientReversal(0.5, **k), (F,)),
    "ScaleGradient": (lambda **k: layers.ScaleGradient(0.5, **k), (F,)),
    "ClipGradient": (lambda **k: layers.ClipGradient(0.5, **k), (F,)),
    "StraightThrough round": (lambda **k: layers.StraightThrough("round", **k), (F,)),
    "StraightThrough sign": (lambda **k: layers.StraightThrough("sign", 1.0, **k), (F,)),
    "StraightThrough argmax": (lambda **k: layers.StraightThrough("argmax", **k), (F,)),
    "GumbelSoftmax": (lambda **k: layers.GumbelSoftmax(0.5, seed=5, **k), (F,)),
    "GumbelSoftmax hard": (lambda **k: layers.GumbelSoftmax(0.5, hard=True, seed=5, **k), (F,)),
    "WeightNorm": (lambda **k: _wrap(layers.WeightNorm, keras.layers.Dense(3), **k), (F,)),
    "WeightNorm of a convolution": (lambda **k: _wrap(layers.WeightNorm, _conv(), **k), IMAGE),
    "SpectralNorm": (lambda **k: _wrap(layers.SpectralNorm, keras.layers.Dense(3), **k), (F,)),
    "SpectralNorm of a convolution": (lambda **k: _wrap(layers.SpectralNorm, _conv(), **k), IMAGE),
    "WeightStandardization": (lambda **k: _wrap(layers.WeightStandardization, keras.layers.Dense(3), **k), (F,)),
    "WeightStandardization scaled": (lambda **k: _wrap(layers.WeightStandardization, _conv(), gamma=1.7, **k), IMAGE),
    "FilterResponseNorm": (lambda **k: layers.FilterResponseNorm(**k), IMAGE),
    "FilterResponseNorm learned": (lambda **k: layers.FilterResponseNorm(1e-4, learned_epsilon=True, **k), IMAGE),
    "TLU": (lambda **k: layers.TLU(**k), (F,)),
    "DropPath": (lambda **k: layers.DropPath(0.5, seed=5, **k), (F,)),
    "GaussianSampling": (lambda **k: layers.GaussianSampling(0.5, seed=5, **k), (F,)),
    "MaskedMean": (lambda **k: layers.MaskedMean(**k), (T, F)),
    "ResidualBlock": (lambda **k: _residual(**k), (F,)),
    "SelfNormalizingBlock": (lambda **k: layers.SelfNormalizingBlock(3, **k), (F,)),
    "SelfNormalizingBlock dropped": (lambda **k: layers.SelfNormalizingBlock(3, 0.2, seed=5, **k), (F,)),
}
RAGGED = {"RaggedToDense", "RaggedPool"}  # ragged_test.py does with them what is done here
PASSING = {"ActivationMonitor", "AddLoss", "AddMetric"}  # they change nothing; internals_test.py
RANDOM = {
    "NoisyDense",
    "GumbelSoftmax",
    "GumbelSoftmax hard",
    "DropPath",
    "GaussianSampling",
    "SelfNormalizingBlock dropped",
}


def set_weights(layer, values):
    """Assigns {name below the layer's: value} to all weights of `layer`."""
    by_name = {v.path.partition("/")[2] or v.name: v for v in layer.weights}
    assert by_name.keys() == values.keys()
    for name, value in values.items():
        by_name[name].assign(value)


def check_gradients(layer, x, rtol=1e-5, atol=1e-7, **arguments):
    """Compares gradients of a weighted sum of the outputs with finite differences, in float64."""
    x = tf.constant(np.asarray(x, np.float64))
    weights = np.random.default_rng(7).normal(size=layer(x, **arguments).shape)
    value = lambda x: tf.reduce_sum(layer(x, **arguments) * weights)  # noqa: E731
    variables = layer.trainable_weights
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = value(x)
    by_x, by_weights = tape.gradient(total, [x, [v.value for v in variables]])
    np.testing.assert_allclose(by_x, _differences(value, x.numpy()), rtol=rtol, atol=atol)
    for variable, gradient in zip(variables, by_weights):
        start = variable.numpy()

        def at(values, variable=variable):
            variable.assign(values)
            return value(x)

        np.testing.assert_allclose(gradient, _differences(at, start), rtol=rtol, atol=atol, err_msg=variable.path)
        variable.assign(start)


def _differences(value, at, step=1e-6):
    at = np.asarray(at)
    result = np.zeros_like(at)
    for position in np.ndindex(*at.shape):
        up, down = at.copy(), at.copy()
        up[position] += step
        down[position] -= step
        result[position] = (float(value(up)) - float(value(down))) / (2 * step)
    return result


def _inputs(name, dtype="float32", scale=1.0):
    return tf.cast(np.random.default_rng(1).normal(size=(B, *CASES[name][1])) * scale, dtype)


def _call(layer, x, training=False):
    takes = "training" in inspect.signature(layer.call).parameters
    return layer(x, training=training) if takes else layer(x)


def _plain(config):
    """A config as it stands in a file, without the numbers that tell shared objects."""
    return json.loads(json.dumps(config), object_hook=lambda d: {k: v for k, v in d.items() if k != "shared_object_id"})


def test_every_layer_is_in_the_table():
    classes = {name for name in layers.__all__ if inspect.isclass(getattr(layers, name))}
    assert classes == {name.split()[0] for name in CASES} | RAGGED | PASSING
    assert not [n for n in layers.__all__ if hasattr(keras.layers, n)]  # a short name in a gin file would be ambiguous


@pytest.mark.parametrize("name", CASES)
def test_a_config_and_a_file_bring_it_back(name, tmp_path):
    make, shape = CASES[name]
    layer = make(name="mine")
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config() and again.name == "mine"
    model = keras.Sequential([keras.Input(shape), layer])
    for variable in model.trainable_variables:
        variable.assign(variable.numpy() + 0.1)
    _call(model, _inputs(name), training=True)  # what changes in training is saved as it is then
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(_inputs(name)), model(_inputs(name)))
    assert _plain(loaded.layers[0].get_config()) == _plain(layer.get_config())


@pytest.mark.parametrize("name", CASES)
def test_weights_have_names_and_every_trained_one_a_gradient(name):
    layer, x = CASES[name][0](), _inputs(name)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(tf.cast(_call(layer, x, training=True), tf.float32) ** 3)
    paths = [v.path for v in layer.weights]
    assert len(set(paths)) == len(paths) and not any("variable" in path for path in paths)
    assert all(path.startswith(layer.name + "/") or "seed" in path for path in paths)
    gradients = tape.gradient(loss, [x, *(v.value for v in layer.trainable_weights)])
    assert all(g is not None and np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_precision(name, dtype):
    compute = dtype.removeprefix("mixed_")
    layer = CASES[name][0](dtype=dtype)
    for scale in (0.0, 1.0, 100.0):
        x = _inputs(name, compute, scale)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = _call(layer, x, training=True)
            # Divided first: a sum of squares in float16 is inf by itself.
            loss = tf.reduce_sum(tf.cast(y, tf.float32) / 100.0)
        assert y.dtype == tf.as_dtype(compute) and np.isfinite(tf.cast(y, tf.float64)).all()
        for gradient in tape.gradient(loss, [x, *(v.value for v in layer.trainable_weights)]):
            assert np.isfinite(tf.cast(gradient, tf.float64)).all()
    wanted = "float32" if dtype.startswith("mixed") else dtype
    assert {v.dtype for v in layer.weights if "int" not in v.dtype} <= {wanted}


@pytest.mark.parametrize("name", [n for n in CASES if n not in RANDOM])
def test_half_precision_is_near_float32(name):
    keras.utils.set_random_seed(1)
    layer = CASES[name][0]()
    wanted = _call(layer, _inputs(name))
    half = CASES[name][0](dtype="mixed_float16")
    half.build((None, *CASES[name][1]))
    for variable, value in zip(half.weights, layer.weights):
        variable.assign(value)
    np.testing.assert_allclose(tf.cast(_call(half, _inputs(name)), tf.float32), wanted, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", CASES)
def test_the_shape_is_known_before_there_is_data(name):
    make, shape = CASES[name]
    layer = make()
    output = layer(keras.Input(shape))
    y = _call(layer, _inputs(name))
    assert output.shape[0] is None and output.shape[1:] == tuple(y.shape[1:])
    assert tuple(layer.compute_output_shape((None, *shape))) == output.shape
    assert tuple(layer.compute_output_shape((B, *shape))) == tuple(y.shape)


# Where training makes no difference it is not tried; nor where it is random: TF draws other numbers under XLA.
TRAINED_TOO = [n for n in CASES if n not in RANDOM and n.split()[0] in ("SpectralNorm", "ResidualBlock")]


@pytest.mark.parametrize("name, training", [(n, False) for n in CASES] + [(n, True) for n in TRAINED_TOO])
def test_eager_graph_and_xla_agree(name, training):
    layer, x = CASES[name][0](), _inputs(name)
    layer.build(x.shape)
    start = [v.numpy() for v in layer.weights]
    results = []

    def both(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = _call(layer, x, training)
            loss = tf.reduce_sum(y**3)
        return y, tape.gradient(loss, x)

    spec = [tf.TensorSpec([None, *CASES[name][1]])]
    for how in (both, tf.function(both, input_signature=spec), tf.function(both, jit_compile=True)):
        for variable, value in zip(layer.weights, start):
            variable.assign(value)
        results.append([*how(x), *(v.numpy() for v in layer.weights)])
    for other in results[1:]:
        for a, b in zip(results[0], other):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in CASES if CASES[n][1] == (F,)])
def test_a_mask_is_passed_on(name):
    x = np.array(tf.reshape(tf.range(B * T * F, dtype=tf.float32), (B, T, F))) / 100 + 0.1
    x[1, 2:] = 0
    masked = keras.layers.Masking()(x)
    y = CASES[name][0]()(masked)
    np.testing.assert_array_equal(y._keras_mask, masked._keras_mask)


class Towers(Trainer):
    """A small model around each layer of the table, so that one pair of runs compares them all."""

    def compute_losses(self, batch, training):
        inputs, targets = batch
        return {
            name: tf.square(tower(inputs[name], training=training)[:, 0] - targets)
            for name, tower in self.towers.items()
        }


FIRST = {name.split()[0]: name for name in reversed(CASES)}.values()  # one case for each class


def _towers():
    towers = {}
    for i, name in enumerate(FIRST):
        make, shape = CASES[name]
        layer = make(name=f"layer_{i}")  # a replica of a random layer draws numbers of its own
        towers[name] = keras.Sequential([keras.Input(shape), layer, keras.layers.Flatten(), keras.layers.Dense(1)])
    return towers


@pytest.fixture(scope="module")
def trained():
    """Weights {strategy: {name: value}} at the start and after three steps on one and on two replicas."""
    rng, found = np.random.default_rng(3), {}
    inputs = {
        name: rng.normal(size=(B, *shape)).astype("float32") for name, (_, shape) in CASES.items() if name in FIRST
    }
    data = tf.data.Dataset.from_tensors((inputs, rng.normal(size=B).astype("float32"))).repeat()
    for strategy in ("default", "mirrored"):
        keras.utils.set_random_seed(2)
        with make_strategy(strategy).scope():
            trainer = Towers(optimizers=keras.optimizers.SGD(0.01))
            trainer.towers = _towers()
        iterator = iter(trainer.distribute(data))
        found.setdefault("start", arrays_of(trainer.variables))
        trainer.train(iterator, 3)
        found[strategy] = arrays_of(trainer.variables)
    found["trained"] = set(trainer.trainable_variables)
    return found


@pytest.mark.parametrize("name", FIRST)
def test_two_replicas_equal_one(trained, name):
    own = [
        variable for variable in trained["start"] if variable.startswith(f"towers/{name}/") and "seed" not in variable
    ]
    assert len(own) >= 2 and [v for v in trained["mirrored"] if v in own] == own
    for variable in own:
        one, two = trained["default"][variable], trained["mirrored"][variable]
        assert np.isfinite(one).all() and np.isfinite(two).all()
        if variable in trained["trained"]:
            assert not np.array_equal(one, trained["start"][variable]), f"{variable} stands still"
        if name not in RANDOM:
            np.testing.assert_allclose(two, one, rtol=1e-5, atol=2e-6, err_msg=variable)


def test_gin_knows_them_by_name():
    registry.register()
    for name in layers.__all__:
        assert registry.find(name, {}) is registry.find(f"layers.{name}", {})
    gin.parse_config("ScaledDense.units = 7\nPolynomialTransform.degree = 2")
    assert gin.get_configurable("ScaledDense")().units == 7
    model = keras.Sequential([keras.Input((3,)), gin.get_configurable("PolynomialTransform")()])
    assert model.layers[0].coefficients.shape == (3, 3)
    assert type(keras.layers.deserialize(keras.layers.serialize(model.layers[0]))) is layers.PolynomialTransform


@pytest.mark.parametrize("file", sorted(path.stem for path in pathlib.Path(layers.__file__).parent.glob("[a-z]*.py")))
def test_the_examples_in_the_docstrings_run(file):
    module = importlib.import_module(f"layers.{file}")
    assert doctest.testmod(module).failed == 0
    source = pathlib.Path(module.__file__).read_text()
    assert "import trainer" not in source and "from trainer" not in source
    assert len(source.splitlines()) <= 320
