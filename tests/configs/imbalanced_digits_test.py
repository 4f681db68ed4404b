"""configs/imbalanced_digits: few examples of one digit, weights from counts, and metrics for a rare class."""

import importlib

import keras
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from tests.runs import read_rows, run_config


@pytest.fixture
def imbalanced_digits():
    return importlib.import_module("imbalanced_digits")


def train(folder, *params):
    """Runs the shipped config; returns the last validation (average precision, F1)."""
    row = read_rows(run_config("imbalanced_digits", folder, *params), "validation")[-1]
    return row["metrics/average_precision"], row["metrics/f1"]


def scores(sure):
    """Returns labels, [3600, 1], one in ten, and logits of a fair model that is `sure` (large) of the negatives."""
    random = np.random.default_rng(0)
    labels = (np.arange(3600) % 10 == 0).astype("float32")[:, None]
    return labels, sure * (random.normal(size=(3600, 1)) + 2 * labels - 3).astype("float32")


def test_the_rare_digit_is_rare_in_training_alone(imbalanced_digits):
    (train_x, train_y), (test_x, test_y) = imbalanced_digits.load()
    assert train_x.shape == (1313, 64) and train_y.shape == (1313, 1) and train_y.sum() == 15
    assert test_x.shape == (360, 64) and test_y.sum() == 35
    assert not {x.tobytes() for x in train_x} & {x.tobytes() for x in test_x}
    np.testing.assert_array_equal(train_x, imbalanced_digits.load()[0][0])
    assert (imbalanced_digits.load(seed=1)[0][0] != train_x).any()
    assert imbalanced_digits.load(positives=10_000)[0][0].shape == (1437, 64), "no more than there are"


def test_alpha_is_of_the_counts(imbalanced_digits):
    assert imbalanced_digits.alpha(beta=0.0) == 0.5
    assert imbalanced_digits.alpha(beta=1.0) == pytest.approx(1298 / 1313)
    one, zero = (0.001 / (1 - 0.999**n) for n in (15, 1298))
    assert imbalanced_digits.alpha(beta=0.999) == pytest.approx(one / (one + zero))


@pytest.mark.parametrize("sure", [1.0, 4.0])
def test_average_precision_is_that_of_the_order(imbalanced_digits, sure):
    """Keras' own thresholds see no order among logits below -5.3, a probability of 1/200."""
    labels, logits = scores(sure)
    expected = average_precision_score(labels, logits)
    settings = {"curve": "PR", "from_logits": True}
    ours = keras.metrics.AUC(thresholds=imbalanced_digits.thresholds(), **settings)
    own = keras.metrics.AUC(**settings)
    for metric in (ours, own):
        metric.update_state(labels[:2000], logits[:2000])
        metric.update_state(labels[2000:], logits[2000:])
    assert float(ours.result()) == pytest.approx(expected, abs=0.005)
    if sure > 1:
        assert float(own.result()) < expected - 0.04, "Keras has mended it: `thresholds` can go"


def test_f1_is_of_decisions_by_the_sign_of_the_logit(imbalanced_digits):
    labels, logits = scores(1.0)
    metric = imbalanced_digits.F1()
    for part in (slice(0, 2000), slice(2000, None)):
        metric.update_state(labels[part], logits[part])
    expected = f1_score(labels, logits > 0)
    assert 0 < expected < 1 and float(metric.result()) == pytest.approx(expected, rel=1e-6)


def test_it_learns(tmp_path):
    """Short form: an untrained network has the average precision of chance, .1, and as little F1."""
    average_precision, f1 = train(tmp_path, "run.train_steps = 300", "run.eval_interval = None")
    assert average_precision > 0.7 and f1 > 0.5


@pytest.mark.slow
def test_full_result_over_three_seeds(tmp_path):
    means = {}
    for gamma in (2.0, 0.0):
        for beta in (1.0, 0.0):
            params = [f"BinaryFocal.gamma = {gamma}", f"imbalanced_digits.alpha.beta = {beta}"]
            rows = [train(tmp_path / f"{gamma}_{beta}_{seed}", f"run.seed = {seed}", *params) for seed in range(3)]
            means[gamma, beta] = np.mean(rows, axis=0)
    assert all(average_precision >= 0.80 for average_precision, _ in means.values())
    crossentropy_f1 = means[0.0, 0.0][1]
    assert means[2.0, 1.0][1] > crossentropy_f1 and means[0.0, 1.0][1] > crossentropy_f1
