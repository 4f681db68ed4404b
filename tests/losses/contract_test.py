"""Contract of every loss: one value per example, finite in half precision, true gradients, weights and masks."""

import doctest
import importlib
import pathlib

import gin
import keras
import numpy as np
import pytest
import tensorflow as tf

import losses
from losses.base import ClassLoss
from tests.runs import train
from trainer import Trainer
from trainer.config import registry

B, C = 6, 4
IDS = np.array([0, 1, 2, 3, 1, 0])
ONES = np.array([0.0, 1.0, 1.0, 0.0, 1.0, 0.0])
COUNTS = [900, 90, 10, 1]

# name: (loss, targets [B, ...], shape of an example's predictions)
CASES = {
    "WeightedCrossentropy": (losses.WeightedCrossentropy([1, 2, 0.5, 3]), IDS, (C,)),
    "CostSensitive": (losses.CostSensitive(np.arange(16.0).reshape(4, 4)), IDS, (C,)),
    "Poly1": (losses.Poly1(2.0), IDS, (C,)),
    "LDAM": (losses.LDAM(COUNTS, scale=3.0), IDS, (C,)),
    "BinaryFocal": (losses.BinaryFocal(gamma=0.5), ONES, (1,)),
    "BinaryFocal of many": (losses.BinaryFocal(alpha=[0.2, 0.5, 0.9]), np.stack([ONES, 1 - ONES, ONES], 1), (3,)),
    "CategoricalFocal": (losses.CategoricalFocal(gamma=0.5, alpha=[1, 2, 0.5, 3]), IDS, (C,)),
    "Asymmetric": (losses.Asymmetric(1.0, 2.5, 0.05), ONES, (1,)),
    "Asymmetric without margin": (losses.Asymmetric(0.5, 0.5, 0.0), ONES, (1,)),
    "GeneralizedCrossentropy": (losses.GeneralizedCrossentropy(), IDS, (C,)),
    "SymmetricCrossentropy": (losses.SymmetricCrossentropy(), IDS, (C,)),
    "BiTempered": (losses.BiTempered(0.7, 1.4), IDS, (C,)),
    "PseudoHuber": (losses.PseudoHuber(0.5), ONES, (1,)),
    "PseudoHuber of many": (losses.PseudoHuber(2.0), np.stack([ONES, IDS], 1), (2,)),
    "Pinball": (losses.Pinball(0.3), ONES, (1,)),
    "Pinball of quantiles": (losses.Pinball([0.1, 0.5, 0.9]), ONES, (3,)),
    "Winsorised": (losses.Winsorised(2.5), ONES, (1,)),
    "HeteroscedasticNLL": (losses.HeteroscedasticNLL(), ONES, (2,)),
    "HeteroscedasticNLL of many": (losses.HeteroscedasticNLL(), np.stack([ONES, ONES], 1), (4,)),
    "NTXent": (losses.NTXent(), IDS, (2, 3)),
    "InfoNCE": (losses.InfoNCE(0.2), IDS, (2, 3)),
    "InfoNCE symmetric": (losses.InfoNCE(0.2, symmetric=True), IDS, (2, 3)),
    "SupCon": (losses.SupCon(), IDS, (3,)),
    "Contrastive": (losses.Contrastive(3.0), ONES, (2, 3)),
    "Triplet all": (losses.Triplet(1.0, "all"), IDS, (3,)),
    "Triplet hard": (losses.Triplet(1.0, "hard"), IDS, (3,)),
    "Triplet semi_hard": (losses.Triplet(1.0, "semi_hard"), IDS, (3,)),
    "LiftedStructure": (losses.LiftedStructure(1.0), IDS, (3,)),
    "NPairs": (losses.NPairs(), IDS, (2, 3)),
    "VICReg": (losses.VICReg(), IDS, (2, 3)),
    "BarlowTwins": (losses.BarlowTwins(0.1), IDS, (2, 3)),
    "Distillation": (losses.Distillation(3.0, 0.7), IDS, (2, C)),
}
WITHOUT_TARGETS = ("NTXent", "InfoNCE", "InfoNCE symmetric", "VICReg", "BarlowTwins")
TAKES_IDS = [name for name, case in CASES.items() if isinstance(case[0], ClassLoss) and name != "Distillation"]


def fit_and_train(loss, x, y, outputs, weights=None, activation=None):
    """Returns the weights after three epochs of one batch with Keras' `fit`, and with the Trainer."""
    results, batch = [], (x, y) if weights is None else (x, y, weights)
    for how in ("fit", "train"):
        keras.utils.set_random_seed(4)
        model = keras.Sequential([keras.Input(x.shape[1:]), keras.layers.Dense(outputs, activation)])
        if how == "fit":
            model.compile(keras.optimizers.SGD(0.5), loss)
            model.fit(x, y, sample_weight=weights, batch_size=len(x), epochs=3, verbose=0, shuffle=False)
        else:
            trainer = Trainer(model, loss, optimizers=keras.optimizers.SGD(0.5))
            train(trainer, tf.data.Dataset.from_tensors(batch).repeat(), 3)
        results.append(np.concatenate([w.numpy().ravel() for w in model.weights]))
    return results


def _case(name):
    loss, targets, shape = CASES[name]
    return loss, tf.constant(targets), np.random.default_rng(1).normal(size=(B, *shape))


def _values_and_gradient(loss, targets, predictions):
    predictions = tf.convert_to_tensor(predictions)
    with tf.GradientTape() as tape:
        tape.watch(predictions)
        values = loss.call(targets, predictions)
    return values, tape.gradient(values, predictions)


@pytest.mark.parametrize("name", CASES)
def test_one_value_per_example_eager_and_traced(name):
    loss, targets, predictions = _case(name)
    values, _ = _values_and_gradient(loss, targets, predictions.astype(np.float32))
    assert values.shape == (B,) and values.dtype == tf.float32
    assert loss.call(targets, predictions).dtype == tf.float64

    @tf.function(
        input_signature=[tf.TensorSpec([None, *t.shape[1:]], t.dtype) for t in (targets, tf.constant(predictions))]
    )
    def traced(targets, predictions):
        return loss.call(targets, predictions)

    np.testing.assert_allclose(traced(targets, predictions), values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_last_axis_of_one_changes_nothing(name):
    loss, targets, predictions = _case(name)
    if targets.shape.rank == 1:
        np.testing.assert_array_equal(loss.call(targets[:, None], predictions), loss.call(targets, predictions))
    if predictions.shape == (B, 1) and name not in TAKES_IDS:
        np.testing.assert_array_equal(loss.call(targets, predictions[:, 0]), loss.call(targets, predictions))


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_that_of_finite_differences(name):
    loss, targets, predictions = _case(name)
    _, gradient = _values_and_gradient(loss, targets, predictions)
    assert np.abs(gradient).max() > 1e-3
    step = 1e-6
    for position in np.ndindex(*predictions.shape):
        if name == "Distillation" and position[1] == 1:
            continue  # the teacher, which has no gradient
        up, down = predictions.copy(), predictions.copy()
        up[position] += step
        down[position] -= step
        wanted = (np.sum(loss.call(targets, up)) - np.sum(loss.call(targets, down))) / (2 * step)
        assert gradient[position].numpy() == pytest.approx(wanted, rel=2e-5, abs=1e-8), position


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_extreme_predictions_are_finite_in_value_and_gradient(name, dtype):
    loss, targets, _ = _case(name)
    shape = CASES[name][2]
    for low, high in [(0, 0), (-20, 20), (-100, 100), (100, -100)]:
        # Each example has `high` at another place, so that it meets its label somewhere and misses it elsewhere.
        predictions = np.full((B, int(np.prod(shape))), float(low))
        predictions[np.arange(B), np.arange(B) % predictions.shape[1]] = high
        values, gradient = _values_and_gradient(loss, targets, tf.cast(predictions.reshape(B, *shape), dtype))
        assert values.dtype == tf.float32
        assert gradient.dtype == tf.as_dtype(dtype)
        gradient = tf.cast(gradient, tf.float64).numpy()
        if name.startswith(("Heteroscedastic", "VICReg")) and dtype == "float16":
            # It is e^2 / variance, or a prediction's third power: truly larger than float16 holds.
            gradient = gradient[~np.isinf(gradient)]
        assert np.isfinite(values).all() and np.isfinite(gradient).all(), (low, high)


@pytest.mark.parametrize("name", CASES)
def test_sample_weights_and_masks_are_keras_own(name):
    loss, targets, predictions = _case(name)
    predictions = tf.constant(predictions, tf.float32)
    values, weights = loss.call(targets, predictions).numpy(), np.array([0, 1, 2, 0, 0.5, 1], np.float32)
    assert float(loss(targets, predictions)) == pytest.approx(values.mean(), rel=1e-5)
    assert float(loss(targets, predictions, weights)) == pytest.approx((values * weights).mean(), rel=1e-5)
    for mask in (weights > 0.7, weights < 0):
        masked = tf.identity(predictions)
        masked._keras_mask = tf.constant(mask)
        wanted = values[mask].mean() if mask.any() else 0.0  # all of it masked: 0
        assert float(loss(targets, masked)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_serialization_keeps_the_values(name):
    loss, targets, predictions = _case(name)
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(again) is type(loss) and again.get_config() == loss.get_config()
    np.testing.assert_array_equal(again.call(targets, predictions), loss.call(targets, predictions))
    assert type(loss)(**{**loss.get_config(), "dtype": "float64"}).get_config()["dtype"] == "float64"


@pytest.mark.parametrize("name", CASES)
def test_targets_of_a_wrong_shape_are_refused(name):
    loss, targets, predictions = _case(name)
    if name in WITHOUT_TARGETS:
        pytest.skip("it has no targets")
    for wrong in (targets[: B - 1], tf.stack([targets] * 5, 1), targets[None]):
        with pytest.raises(ValueError, match=r"shape.*(Give|Reshape)"):
            loss.call(wrong, predictions)


@pytest.mark.parametrize("name", TAKES_IDS)
def test_ids_equal_one_hot_labels_and_work_along_a_sequence(name):
    loss, targets, predictions = _case(name)
    values = loss.call(targets, predictions)
    np.testing.assert_allclose(loss.call(tf.one_hot(targets, C), predictions), values, rtol=1e-6)
    for ids in (tf.reshape(targets, [2, 3]), tf.reshape(targets, [2, 3, 1])):
        sequence = loss.call(ids, predictions.reshape(2, 3, C))
        np.testing.assert_allclose(sequence, tf.reshape(values, [2, 3]), rtol=1e-12)


@pytest.mark.parametrize("name", TAKES_IDS)
def test_an_impossible_class_is_no_nan(name):
    loss, targets, predictions = _case(name)
    predictions[:, 2] = -np.inf  # a class that a mask excludes
    possible = targets.numpy() != 2
    for labels in (targets, tf.one_hot(targets, C, dtype=tf.float64)):
        values, gradient = _values_and_gradient(loss, labels[possible], predictions[possible])
        assert np.isfinite(values).all() and np.isfinite(gradient).all()


@pytest.mark.parametrize("name", TAKES_IDS)
def test_an_id_that_does_not_exist_is_an_error(name):
    loss, _, predictions = _case(name)
    for wrong in (C, -1):
        with pytest.raises(tf.errors.InvalidArgumentError):
            loss.call(tf.constant([0, 1, 2, 3, 1, wrong]), predictions)


@pytest.mark.parametrize("name", TAKES_IDS)
def test_an_id_that_does_not_exist_is_nan_where_the_device_says_nothing(name):
    """In the gradient too, by which a guard finds it; and in that example's alone."""
    loss, _, predictions = _case(name)

    @tf.function(jit_compile=True)
    def traced(predictions):
        with tf.GradientTape() as tape:
            tape.watch(predictions)
            values = loss.call(tf.constant([0, 1, 2, 3, C, -1]), predictions)
        return values, tape.gradient(values, predictions)

    values, gradient = traced(tf.constant(predictions, tf.float32))
    assert list(np.isnan(values)) == [False] * 4 + [True] * 2
    assert np.isfinite(gradient[:4]).all() and np.isnan(gradient[4:]).any(-1).all()


def test_one_score_per_example_is_no_class_score():
    with pytest.raises(ValueError, match="`logits` must be .* got the shape .6, 1.. For one score"):
        losses.poly1(IDS, np.zeros((B, 1)))


def test_the_public_names():
    for name in losses.__all__:
        assert getattr(losses, name).__name__ == name
    assert dir(losses) == sorted(losses.__all__)
    with pytest.raises(AttributeError, match="no attribute 'focal_los'; its public names are"):
        losses.focal_los  # noqa: B018
    unnamed = [name for name in losses.__all__ if getattr(keras.losses, name, getattr(keras.metrics, name, None))]
    assert not unnamed  # a short name in a gin file would be ambiguous


def test_gin_knows_them_by_name():
    registry.register()
    for name in losses.__all__:
        assert registry.find(name, {}) is registry.find(f"losses.{name}", {})
    gin.parse_config(
        "WeightedCrossentropy.class_weights = [1, 2]\nsup_con.temperature = 0.3\nCohenKappa.num_classes = 3"
    )
    loss = gin.get_configurable("WeightedCrossentropy")()
    assert type(keras.losses.deserialize(keras.losses.serialize(loss))) is losses.WeightedCrossentropy
    assert loss.get_config()["class_weights"] == [1.0, 2.0]
    assert gin.get_configurable("CohenKappa")().num_classes == 3
    embeddings = np.random.default_rng(0).normal(size=(4, 3))
    bound = gin.get_configurable("sup_con")([0, 0, 1, 1], embeddings)
    np.testing.assert_array_equal(bound, losses.sup_con([0, 0, 1, 1], embeddings, 0.3))


@pytest.mark.parametrize("file", sorted(path.stem for path in pathlib.Path(losses.__file__).parent.glob("[a-z]*.py")))
def test_the_examples_in_the_docstrings_run(file):
    module = importlib.import_module(f"losses.{file}")
    assert doctest.testmod(module).failed == 0
    source = pathlib.Path(module.__file__).read_text()
    assert "import trainer" not in source and "from trainer" not in source
    assert len(source.splitlines()) <= 320
