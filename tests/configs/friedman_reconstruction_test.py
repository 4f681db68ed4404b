"""configs/friedman_reconstruction: a loss and a metric from inside a subclassed model, beside the default Trainer."""

import importlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.runs import arrays_of, read_rows, run_config
from trainer import Trainer
from trainer.replicas.distribution import make_strategy

WEIGHT = "friedman_reconstruction.ReconstructingRegressor.reconstruction_weight"


@pytest.fixture
def friedman_reconstruction():
    return importlib.import_module("friedman_reconstruction")


def train(folder, *params):
    """Runs the shipped config; returns the last validation row."""
    return read_rows(run_config("friedman_reconstruction", folder, *params), "validation")[-1]


def make(friedman_reconstruction, weight, strategy=None, compile="graph"):
    """A small Trainer in Python; returns it with its iterator."""
    keras.utils.set_random_seed(0)
    with (strategy or tf.distribute.get_strategy()).scope():
        model = friedman_reconstruction.ReconstructingRegressor(units=(8,), reconstruction_weight=weight)
        trainer = Trainer(model, "mse", optimizers=keras.optimizers.SGD(1e-3), compile=compile)
    return trainer, iter(trainer.distribute(friedman_reconstruction.train_data(batch_size=32)))


def test_held_out_targets_are_free_of_noise_and_few_examples_are_the_first_ones(friedman_reconstruction):
    (train_x, train_y), (test_x, test_y) = friedman_reconstruction.load()
    few = friedman_reconstruction.load(train_examples=20)[0]
    np.testing.assert_array_equal(few[0], train_x[:20])
    np.testing.assert_array_equal(few[1], train_y[:20])
    x = test_x.astype("float64")
    exact = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    np.testing.assert_allclose(test_y[:, 0], exact, atol=1e-4)
    assert len(train_x) == 3000 and len(test_x) == 1000


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_the_step_is_the_one_written_by_hand(friedman_reconstruction, weight):
    trainer, iterator = make(friedman_reconstruction, weight, compile="eager")
    model, (x, y) = trainer.model, next(iter(friedman_reconstruction.train_data(batch_size=32).batches()))
    before = arrays_of(trainer.trainable_variables)
    with tf.GradientTape() as tape:
        hidden = model.body(x)
        error = tf.square(model.reconstruct(hidden) - x)
        main_loss, reconstruction = tf.reduce_mean(tf.square(model.head(hidden) - y)), tf.reduce_mean(error)
        total = main_loss + weight * reconstruction
    gradients = tape.gradient(total, [variable.value for variable in trainer.trainable_variables.values()])
    metrics = trainer.train(iterator, 1)
    for (name, variable), gradient in zip(trainer.trainable_variables.items(), gradients):
        step = 0 if gradient is None else 1e-3 * gradient
        np.testing.assert_allclose(variable.numpy(), before[name] - step, rtol=1e-5, atol=1e-6, err_msg=name)
    worst = tf.reduce_mean(tf.sqrt(tf.reduce_max(error, 1)))
    expected = {
        "loss": total,
        "losses/main": main_loss,
        "losses/reconstruction": reconstruction,
        "metrics/worst_input": worst,
    }
    for tag, value in expected.items():
        assert metrics[tag] == pytest.approx(float(value), rel=1e-5), tag


def test_one_and_two_replicas_train_alike(friedman_reconstruction):
    ends = []
    for name in ("default", "mirrored"):
        trainer, iterator = make(friedman_reconstruction, 1.0, make_strategy(name))
        metrics = trainer.train(iterator, 10)
        tags = ("loss", "losses/reconstruction", "metrics/worst_input", "grad_norm/main")
        ends.append({**arrays_of(trainer.trainable_variables), **{t: metrics[t] for t in tags}})
    for name in ends[0]:
        np.testing.assert_allclose(ends[0][name], ends[1][name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_it_learns_both(tmp_path):
    """Short form: the means have R2 0 and leave an error of 1 / 12 by input; a straight line has R2 .73."""
    last = train(tmp_path, "run.train_steps = 600", "run.eval_interval = None")
    assert last["metrics/r2_score"] > 0.75 and last["losses/reconstruction"] < 0.06
    assert last["loss"] == pytest.approx(last["losses/main"] + last["losses/reconstruction"], rel=1e-5)
    assert 0 < last["metrics/worst_input"] < 0.5


@pytest.mark.slow
def test_full_result_over_three_seeds(tmp_path):
    for seed in range(3):
        both = train(tmp_path / f"both_{seed}", f"run.seed = {seed}")
        alone = train(tmp_path / f"alone_{seed}", f"run.seed = {seed}", f"{WEIGHT} = 0.0")
        assert both["metrics/r2_score"] >= 0.95 and alone["metrics/r2_score"] >= 0.95
        assert both["losses/reconstruction"] < 0.01 and alone["losses/reconstruction"] > 0.1
