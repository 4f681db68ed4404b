"""Evaluation and prediction: each example once, in order, without a trace in the state."""

import keras
import numpy as np
import pytest

from tests.runs import random_arrays, slow, train
from tests.trainer.trainer_test import Custom, Scalars, _batches, _mlp, _state
from trainer import Trainer, weighted
from trainer.data import from_arrays


def _identity_model():
    return keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="ones", use_bias=False)])


@pytest.mark.parametrize("n, size", [slow(8, 4), (7, 4), slow(9, 4), (3, 2), (5, 8)])
def test_evaluation_counts_each_example_once(strategy, n, size):
    x = np.arange(1, n + 1, dtype=np.float32)[:, None]  # predictions are x, targets 0
    with strategy.scope():
        trainer = Trainer(_identity_model(), "mse", ["mae", "mse"])
    metrics = trainer.evaluate(from_arrays((x, 0 * x), size, repeat=False))
    np.testing.assert_allclose(metrics["loss"], np.mean(x**2), rtol=1e-6)
    np.testing.assert_allclose(metrics["losses/main"], np.mean(x**2), rtol=1e-6)
    values = {tag: value for tag, value in metrics.items() if tag.startswith("metrics/")}
    np.testing.assert_allclose(sorted(values.values()), sorted([np.mean(x), np.mean(x**2)]), rtol=1e-6)
    again = trainer.evaluate(from_arrays((x, 0 * x), size, repeat=False))
    assert again == metrics


def test_evaluation_of_weighted_losses_divides_by_all_weights(strategy):
    x = np.arange(1, 8, dtype=np.float32)[:, None]
    with strategy.scope():
        trainer = Custom(lambda m, x: {"l": (m.u * x[:, 0], x[:, 0])}, model=Scalars(u=1.0))
    metrics = trainer.evaluate(_batches(x, 3))
    np.testing.assert_allclose(metrics["losses/l"], np.sum(x**2) / np.sum(x), rtol=1e-6)


def test_evaluation_changes_nothing(strategy):
    with strategy.scope():
        layers = [keras.layers.BatchNormalization(), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
        trainer = Trainer(keras.Sequential([keras.Input((3,)), *layers]), "mse", ["mae"])
    data = _batches(random_arrays(12))
    train(trainer, data, 2)
    before = _state(trainer)
    trainer.evaluate(data)
    trainer.predict(data)
    after = _state(trainer)
    for key, values in before.items():
        for a, b in zip(values, after[key], strict=True):
            np.testing.assert_array_equal(a, b, err_msg=key)


@pytest.mark.parametrize("endless", ["from_arrays", "dataset"])
def test_evaluation_of_endless_data_is_refused(endless):
    data = from_arrays(random_arrays(12), 4) if endless == "from_arrays" else _batches(random_arrays(12)).repeat()
    trainer = Trainer(_mlp(), "mse")
    trainer.distribute(data)

    def begun(iterator, num_batches):
        raise AssertionError("the endless evaluation began")

    trainer.eval_loop = begun
    with pytest.raises(ValueError, match="never ends"):
        trainer.evaluate(data)


@pytest.mark.parametrize("n, size", [(8, 4), (7, 4), (9, 4)])
def test_predictions_come_in_order(strategy, n, size):
    x = np.arange(n, dtype=np.float32)[:, None]
    with strategy.scope():
        trainer = Trainer(_identity_model(), "mse")
    predictions = trainer.predict(_batches((x, x), size))
    np.testing.assert_array_equal(predictions, x)


def test_predictions_keep_the_nest_of_the_outputs():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, {"a": keras.layers.Dense(1)(inputs), "b": keras.layers.Dense(2)(inputs)})
    x, y = random_arrays(6)
    predictions = Trainer(model, {"a": "mse"}, frozen=["dense_1/.*"]).predict(_batches((x, {"a": y})))
    np.testing.assert_allclose(predictions["b"], model(x)["b"].numpy(), rtol=1e-6)
    assert predictions["a"].shape == (6, 1)


def test_eval_end_and_train_end_may_add_metrics_and_train_begin_runs_before_each_loop():
    calls = []

    class Ends(Trainer):
        def train_begin(self):
            calls.append(int(self.global_step.numpy()))

        def train_end(self, metrics):
            return {**metrics, "metrics/twice": 2 * metrics["loss"]}

        def eval_end(self, metrics):
            return {**metrics, "metrics/rmse": metrics["loss"] ** 0.5}

    trainer = Ends(_mlp(), "mse")
    iterator = iter(trainer.distribute(_batches(random_arrays(12))))
    for _ in range(2):
        metrics = trainer.train(iterator, 1)
        assert metrics["metrics/twice"] == 2 * metrics["loss"]
    assert calls == [0, 1]
    metrics = trainer.evaluate(_batches(random_arrays(5)))
    assert metrics["metrics/rmse"] ** 2 == pytest.approx(metrics["loss"])


def test_only_metrics_declared_weighted_are_given_sample_weights(strategy):
    x = np.array([[1.0], [2.0], [3.0], [4.0], [5.0]], np.float32)
    weights = np.array([1, 0, 2, 0, 1], np.float32)
    with strategy.scope():
        metrics = [keras.metrics.MeanAbsoluteError("plain"), weighted(keras.metrics.MeanAbsoluteError("heavy"))]
        trainer = Trainer(_identity_model(), "mae", metrics)
    result = trainer.evaluate(_batches((x, 0 * x, weights), 5))
    assert result["metrics/plain"] == pytest.approx(3.0)
    assert result["metrics/heavy"] == pytest.approx((1 + 6 + 5) / 4)
    assert result["loss"] == pytest.approx((1 + 6 + 5) / 5)  # as Keras: divided by the number of examples
