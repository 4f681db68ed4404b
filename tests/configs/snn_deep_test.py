"""configs/snn_deep: activations of a deep network, watched from inside, at the start and through training."""

import importlib

import keras
import numpy as np
import pytest

from tests.runs import read_last_rows, run_config
from trainer import Trainer
from trainer.data import from_arrays

LAYERS = (1, 10, 20)


@pytest.fixture
def snn_deep():
    return importlib.import_module("snn_deep")


def train(folder, *params):
    """Runs the shipped config; returns {split: last row}."""
    return read_last_rows(run_config("snn_deep", folder, *params))


def at_start(snn_deep, activation, seed=0):
    """Returns what the monitors say of an untrained network over the training images."""
    keras.utils.set_random_seed(seed)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer = Trainer(snn_deep.network(activation), loss, compile="eager")
    return trainer.evaluate(from_arrays(snn_deep.load()[0], 1437, repeat=False))


def test_pixels_are_standardised_by_the_training_images(snn_deep):
    (train_x, train_y), (test_x, test_y) = snn_deep.load()
    assert train_x.shape == (1437, 64) and test_x.shape == (360, 64) and train_y.dtype == test_y.dtype == np.int32
    np.testing.assert_allclose(train_x.mean(0), 0, atol=1e-5)
    deviations = train_x.std(0)
    np.testing.assert_allclose(deviations[deviations > 0], 1, rtol=1e-4)
    assert (deviations > 0).sum() >= 60 and np.abs(test_x.mean(0)).max() > 1e-3


def test_selu_starts_with_mean_0_and_deviation_1_where_others_do_not(snn_deep):
    for seed in range(3):
        metrics = at_start(snn_deep, "selu", seed)
        assert abs(metrics["metrics/layer_20/mean"]) < 0.1 and 0.8 < metrics["metrics/layer_20/std"] < 1.2, seed
    relu, sigmoid = (at_start(snn_deep, activation) for activation in ("relu", "sigmoid"))
    assert relu["metrics/layer_20/mean"] > 0.1 and relu["metrics/layer_20/dead"] > 0
    assert sigmoid["metrics/layer_20/std"] < 0.3 and abs(sigmoid["metrics/layer_20/mean"] - 0.5) < 0.2


def test_monitors_report_what_the_layers_give(snn_deep):
    """The first layer, by NumPy from the weights; the monitors leave the logits alone."""
    keras.utils.set_random_seed(3)
    images, labels = snn_deep.load()[1]
    watched, plain = (
        snn_deep.network("relu", depth=2, units=8, watched=(1,)),
        snn_deep.network("relu", depth=2, units=8, watched=()),
    )
    plain.set_weights(watched.get_weights())
    np.testing.assert_array_equal(watched(images), plain(images))
    trainer = Trainer(watched, "sparse_categorical_crossentropy", compile="eager")
    kernel, bias = watched.get_weights()[:2]
    hidden = np.maximum(images @ kernel + bias, 0)
    metrics = trainer.evaluate(from_arrays((images, labels), 100, repeat=False))
    assert metrics["metrics/layer_1/mean"] == pytest.approx(hidden.mean(), rel=1e-4)
    assert metrics["metrics/layer_1/std"] == pytest.approx(hidden.std(), rel=1e-4)
    assert metrics["metrics/layer_1/dead"] == pytest.approx((hidden.max(0) <= 0).mean())


def test_it_learns_and_the_layers_are_in_tensorboard(tmp_path):
    """Short form: chance is .1, and by sigmoids the network stays there."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    last = train(tmp_path, "run.train_steps = 200", "run.eval_interval = None")
    assert last["validation"]["metrics/accuracy"] > 0.8
    tags = {f"metrics/layer_{number}/{what}" for number in LAYERS for what in ("mean", "std", "dead")}
    assert tags <= set(last["train"]) and tags <= set(last["validation"])
    for split in ("train", "validation"):
        found = EventAccumulator(str(tmp_path / split)).Reload().Tags()
        assert tags <= set(found["tensors"] + found["scalars"])


@pytest.mark.slow
def test_full_result_over_three_seeds(tmp_path):
    scores = {activation: [] for activation in ("selu", "relu", "sigmoid")}
    for activation, found in scores.items():
        for seed in range(3):
            params = [f"run.seed = {seed}", f"snn_deep.network.activation = '{activation}'"]
            found.append(train(tmp_path / f"{activation}_{seed}", *params)["validation"]["metrics/accuracy"])
    assert np.mean(scores["selu"]) >= 0.94 and np.mean(scores["selu"]) > np.mean(scores["relu"])
    assert max(scores["sigmoid"]) < 0.2
