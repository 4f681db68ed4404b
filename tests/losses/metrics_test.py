"""Metrics against scikit-learn and loops; their sums fold over steps, loops and replicas."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, matthews_corrcoef

import losses
from trainer import Trainer
from trainer.replicas.distribution import make_strategy

RANDOM = np.random.default_rng(0)


def _result(metric, *batches):
    for batch in batches:
        metric.update_state(*batch)
    return float(metric.result())


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 5), st.integers(2, 40), st.integers(0, 2**31))
def test_kappa_and_mcc_equal_scikit_learn(classes, n, seed):
    rng = np.random.default_rng(seed)
    y, scores, weights = rng.integers(0, classes, n), rng.normal(size=(n, classes)), rng.uniform(0.1, 2, n)
    y[:2], scores[0, 0], scores[1, 1] = (0, 1), 9, 9  # two classes at least, on both sides
    predicted = scores.argmax(-1)
    for weighting in (None, "linear", "quadratic"):
        wanted = cohen_kappa_score(y, predicted, weights=weighting, sample_weight=weights, labels=range(classes))
        metric = losses.CohenKappa(classes, weighting)
        assert _result(metric, (y[:1], scores[:1], weights[:1]), (y[1:], scores[1:], weights[1:])) == pytest.approx(
            wanted, abs=2e-5
        )
    wanted = matthews_corrcoef(y, predicted, sample_weight=weights)
    assert _result(losses.MatthewsCorrelation(classes), (y, scores, weights)) == pytest.approx(wanted, abs=2e-5)


def _calibration_loop(y, p, bins):
    confidence, right = p.max(-1), p.argmax(-1) == y
    total = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_calibration_equals_a_loop(bins):
    y, logits = RANDOM.integers(0, 3, 200), RANDOM.normal(size=(200, 3)).astype(np.float32) * 2
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    wanted = _calibration_loop(y, p, bins)
    assert _result(losses.ExpectedCalibrationError(bins), (y[:50], p[:50]), (y[50:], p[50:])) == pytest.approx(
        wanted, abs=1e-6
    )
    assert _result(losses.ExpectedCalibrationError(bins, from_logits=True), (y, logits)) == pytest.approx(
        wanted, abs=1e-6
    )


def test_calibration_by_hand():
    # always .8 sure, right 3 times of 4
    p = np.tile([[0.8, 0.2]], [4, 1])
    assert _result(losses.ExpectedCalibrationError(), ([0, 0, 0, 1], p)) == pytest.approx(0.05, abs=1e-6)
    assert _result(losses.ExpectedCalibrationError(), ([1, 1, 1, 0], 1 - p[:, :1])) == pytest.approx(0.55, abs=1e-6)
    # the weight 3 of the mistake makes it 3 of 6
    assert _result(losses.ExpectedCalibrationError(), ([0, 0, 0, 1], p, [1, 1, 1, 3])) == pytest.approx(0.3, abs=1e-6)


def test_a_confidence_on_the_edge_belongs_to_the_lower_bin():
    p = np.array([[0.5, 0.5], [0.9, 0.1]])  # the first is wrong: |0 - .5| / 2 + |1 - .9| / 2
    assert _result(losses.ExpectedCalibrationError(2), ([1, 0], p)) == pytest.approx(0.3, abs=1e-6)


def test_shapes_of_labels_and_predictions():
    y, p = np.array([0, 1, 1, 0, 1]), np.array([0.2, 0.9, 0.4, 0.6, 0.5])
    wanted = matthews_corrcoef(y, p >= 0.5)
    two = np.stack([1 - p - 1e-6, p], 1)
    for truth in (y, y[:, None], y.astype(np.float32)):
        for predictions in (p, p[:, None], two):
            assert _result(losses.MatthewsCorrelation(), (truth, predictions)) == pytest.approx(wanted, abs=1e-6)
    assert _result(losses.MatthewsCorrelation(), (np.eye(2)[y], two)) == pytest.approx(wanted, abs=1e-6)
    sequence = _result(losses.CohenKappa(3), (np.zeros((2, 3), int), RANDOM.normal(size=(2, 3, 3))))
    assert np.isfinite(sequence)


@pytest.mark.parametrize(
    "make", [lambda: losses.CohenKappa(3), lambda: losses.MatthewsCorrelation(3), losses.ExpectedCalibrationError]
)
def test_nothing_seen_and_one_class_only_are_zero(make):
    assert float(make().result()) == 0.0
    metric = make()
    p = np.array([[1.0, 0, 0]] * 4)
    assert _result(metric, ([0, 0, 0, 0], p)) == pytest.approx(0.0, abs=1e-6)  # one class, always right, rightly sure
    metric.reset_state()
    assert float(metric.result()) == 0.0
    assert _result(make(), ([0, 1, 2, 0], p, [0, 0, 0, 0])) == 0.0


def test_masked_elements_do_not_count():
    y, scores = np.array([[0, 1, 2], [2, 0, 1]]), tf.constant(RANDOM.normal(size=(2, 3, 3)), tf.float32)
    scores._keras_mask = tf.constant([[True, True, False], [True, False, True]])
    kept = np.array([True, True, False, True, False, True])
    flat = scores.numpy().reshape(6, 3)
    for weights in (None, np.array([1.0, 2.0])):
        all_weights = np.ones(6) if weights is None else np.repeat(weights, 3)
        wanted = cohen_kappa_score(y.ravel()[kept], flat.argmax(-1)[kept], sample_weight=all_weights[kept])
        assert _result(losses.CohenKappa(3), (y, scores, weights)) == pytest.approx(wanted, abs=1e-5)


def test_an_id_that_does_not_exist_is_nan():
    assert np.isnan(_result(losses.CohenKappa(3), ([0, 3], np.eye(3)[:2])))


@pytest.mark.parametrize(
    "make",
    [
        lambda: losses.CohenKappa(3, "quadratic"),
        lambda: losses.MatthewsCorrelation(4),
        lambda: losses.ExpectedCalibrationError(7, True),
    ],
)
def test_serialization(make):
    metric = make()
    again = keras.metrics.deserialize(keras.metrics.serialize(metric))
    assert type(again) is type(metric) and again.get_config() == metric.get_config()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: losses.CohenKappa(1), "`num_classes` must be >= 2, got 1"),
        (lambda: losses.CohenKappa(3, "cubic"), "`weighting` must be None, 'linear' or 'quadratic', got 'cubic'"),
        (lambda: losses.ExpectedCalibrationError(0), "`bins` must be >= 1, got 0"),
        (lambda: losses.CohenKappa(3).update_state([0, 1], np.ones((2, 4))), "has no 3 scores per example"),
        (lambda: losses.CohenKappa(3).update_state([0, 1, 2], np.ones((2, 3))), "`y_true` of shape .3,. does not fit"),
        (lambda: losses.ExpectedCalibrationError().update_state([0, 1], [0.5, 0.5]), "`y_pred` must be"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_two_replicas_and_fit_give_what_one_gives():
    x, y = RANDOM.normal(size=(11, 4)).astype(np.float32), RANDOM.integers(0, 3, 11)

    def metrics():
        return [
            losses.CohenKappa(3),
            losses.MatthewsCorrelation(3),
            losses.ExpectedCalibrationError(5, from_logits=True),
        ]

    data, results = tf.data.Dataset.from_tensor_slices((x, y)).batch(4), {}
    for name in ("default", "mirrored", "fit"):
        keras.utils.set_random_seed(1)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        with make_strategy("default" if name == "fit" else name).scope():
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
            if name == "fit":
                model.compile("sgd", loss, metrics=metrics())
                results[name] = model.evaluate(data, verbose=0, return_dict=True)
                continue
            trainer = Trainer(model, loss, metrics(), optimizers="sgd")
        found = trainer.evaluate(data)
        results[name] = {tag.split("/")[1]: value for tag, value in found.items() if tag.startswith("metrics/")}
    results["fit"].pop("loss")
    for name in ("mirrored", "fit"):
        assert results[name] == pytest.approx(results["default"], abs=1e-6), name
    probabilities = tf.nn.softmax(model(x)).numpy()
    assert results["default"]["cohen_kappa"] == pytest.approx(cohen_kappa_score(y, probabilities.argmax(-1)), abs=1e-5)
