"""configs/class_penalty: what errors cost, in two losses and two metrics that share a matrix."""

import importlib

import keras
import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, recall_score

from tests.configs.mnist_file import write_mnist
from tests.runs import read_rows, run_config

PLAIN = "Trainer.loss = @class_penalty.plain()"
EXPECTED_COST = "Trainer.loss = @class_penalty.expected_cost()"


@pytest.fixture
def class_penalty():
    return importlib.import_module("class_penalty")


def train(folder, *params, **flags):
    """Runs the shipped config; returns the last row of the validation."""
    return read_rows(run_config("class_penalty", folder, *params, **flags), "validation")[-1]


def batch(size=200):
    """Returns labels and logits that are right more often than not."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, size, dtype="int32")
    return labels, (random.normal(size=(size, 10)) + 2 * np.eye(10)[labels]).astype("float32")


def test_pixels_are_scaled_and_no_image_is_in_both_parts(class_penalty):
    (train_x, train_y), (test_x, test_y) = class_penalty.load()
    assert train_x.shape == (1437, 64) and test_x.shape == (360, 64) and train_x.max() == test_x.max() == 1
    assert (test_y == 8).sum() == 35 and train_y.dtype == test_y.dtype == np.int32
    assert not {x.tobytes() for x in train_x} & {x.tobytes() for x in test_x}


def test_the_costs_are_a_row_of_the_penalty_and_no_cost_of_being_right(class_penalty):
    costs = class_penalty.costs(digit=3, penalty=5.0)
    for truth in range(10):
        for prediction in range(10):
            assert costs[truth, prediction] == (0 if truth == prediction else 5 if truth == 3 else 1)


def test_losses_are_of_the_costs(class_penalty):
    labels, logits = batch()
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    crossentropy = -log_p[np.arange(len(labels)), labels]
    weights = np.where(labels == 8, 10, 1)
    np.testing.assert_allclose(class_penalty.plain()(labels, logits), crossentropy.mean(), rtol=1e-5)
    np.testing.assert_allclose(class_penalty.weighted()(labels, logits), (weights * crossentropy).mean(), rtol=1e-5)
    p_wrong = 1 - np.exp(-crossentropy)
    np.testing.assert_allclose(class_penalty.expected_cost()(labels, logits), (weights * p_wrong).mean(), rtol=1e-5)


def test_the_best_by_weighted_crossentropy_is_the_best_by_the_costs(class_penalty):
    """sum_c w_c p_c (-log q_c) is least at q_c ~ w_c p_c, whose largest is the decision of least expected cost."""
    weights = np.array(class_penalty.weighted().get_config()["class_weights"])
    truth = np.random.default_rng(1).dirichlet(np.ones(10), size=500)
    np.testing.assert_array_equal((truth * weights).argmax(1), (truth @ class_penalty.costs()).argmin(1))


def test_metrics_over_two_batches(class_penalty):
    labels, logits = batch()
    cost, recall = class_penalty.Cost(), class_penalty.Recall()
    for part in (slice(0, 150), slice(150, None)):
        cost.update_state(labels[part], logits[part])
        recall.update_state(labels[part], logits[part])
    errors = confusion_matrix(labels, logits.argmax(1), labels=range(10))
    assert float(cost.result()) == pytest.approx((errors * class_penalty.costs()).sum() / 200, rel=1e-6)
    expected = recall_score(labels, logits.argmax(1), labels=[8], average=None)[0]
    assert 0 < expected < 1 and float(recall.result()) == pytest.approx(expected, rel=1e-6)


def test_mnist_with_one_binding_and_from_a_file(class_penalty, tmp_path, monkeypatch):
    import gin

    arrays = write_mnist(tmp_path / "mnist.npz")
    (train_x, train_y), (test_x, test_y) = class_penalty.load("mnist", tmp_path / "mnist.npz")
    np.testing.assert_allclose(train_x, arrays["x_train"].reshape(70, 784) / 255, atol=1e-7)
    np.testing.assert_array_equal(test_y, arrays["y_test"])
    assert train_x.dtype == np.float32 and train_y.dtype == np.int32 and test_x.shape == (20, 784)

    downloaded = tuple((arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in ("train", "test"))
    monkeypatch.setattr(keras.datasets.mnist, "load_data", lambda: downloaded)
    with gin.unlock_config():
        gin.bind_parameter("class_penalty.load.dataset", "mnist")
    assert class_penalty.train_data().num_examples == 70 and class_penalty.eval_data().num_examples == 20
    assert class_penalty.network().input_shape == (None, 784)
    with pytest.raises(ValueError, match="'digits' or 'mnist', got 'cifar'"):
        class_penalty.load(dataset="cifar")


def test_it_learns_and_the_penalty_buys_recall(tmp_path):
    """Short form: untrained, the cost is about 1.7, the accuracy .1."""
    short = ["run.train_steps = 300", "run.eval_interval = None"]
    weighted, plain = train(tmp_path / "weighted", *short), train(tmp_path / "plain", *short, PLAIN)
    assert weighted["metrics/cost"] < 0.4 and weighted["metrics/accuracy"] > 0.85
    assert weighted["metrics/recall"] > plain["metrics/recall"] and weighted["metrics/cost"] < plain["metrics/cost"]


@pytest.mark.slow
def test_full_result_over_three_seeds(tmp_path):
    found = {name: [] for name in ("weighted", "plain", "untrained", "continued")}
    for seed in range(3):
        own = f"run.seed = {seed}"
        found["weighted"].append(train(tmp_path / f"weighted_{seed}", own))
        found["plain"].append(train(tmp_path / f"plain_{seed}", own, PLAIN))
        found["untrained"].append(train(tmp_path / f"untrained_{seed}", own, EXPECTED_COST))
        plain = tmp_path / f"plain_{seed}"
        found["continued"].append(train(tmp_path / f"continued_{seed}", own, EXPECTED_COST, init_from=plain))

    def mean(name, metric):
        return np.mean([row[f"metrics/{metric}"] for row in found[name]])

    for name in ("weighted", "continued"):
        assert mean(name, "cost") <= mean("plain", "cost") - 0.01
        assert mean(name, "recall") >= mean("plain", "recall") + 0.02
        assert mean(name, "accuracy") >= 0.95
    assert mean("untrained", "accuracy") < 0.8
