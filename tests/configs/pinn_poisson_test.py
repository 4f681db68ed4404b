"""configs/pinn_poisson: a second derivative in the loss, no labels, and points drawn from the step's number."""

import importlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.runs import arrays_of, read_checkpoint, read_rows, run_config
from trainer.replicas.distribution import make_strategy


@pytest.fixture
def pinn_poisson():
    return importlib.import_module("pinn_poisson")


def train(folder, *params):
    """Runs the shipped config; returns ([validation rows], {name: array} of the last checkpoint)."""
    run_config("pinn_poisson", folder, *params)
    return read_rows(folder, "validation"), read_checkpoint(folder)


def test_batches_depend_on_the_step_alone_and_fill_the_interval(pinn_poisson):
    source = pinn_poisson.train_data(batch_size=50)
    batches = [batch.numpy() for batch in source.batches(0).take(6)]
    np.testing.assert_array_equal(next(iter(source.batches(4))), batches[4])
    np.testing.assert_array_equal(next(iter(source.batches(4, chunk=2))), np.stack(batches[4:]))
    assert not np.intersect1d(batches[0], batches[1]).size
    for batch in batches:
        assert batch.shape == (50, 1) and batch.dtype == np.float32
        np.testing.assert_array_equal(np.floor(batch[:, 0] * 50), np.arange(50))


def test_the_solution_has_no_loss_and_a_parabola_the_one_by_hand(pinn_poisson):
    """Networks with known second derivatives: sin(pi x), and x (1 - x) + 1 with u'' = -2 and 1 at both ends."""
    x = tf.constant(np.linspace(0, 1, 7, dtype="float32")[:, None])
    wave = np.pi**2 * np.sin(np.pi * x.numpy())

    def losses(function):
        trainer = pinn_poisson.PoissonTrainer(model=keras.layers.Lambda(function))
        return trainer.compute_losses(x, training=True)

    exact, u = losses(lambda x: tf.sin(np.pi * x))
    np.testing.assert_allclose(exact["equation"], np.zeros([7, 1]), atol=1e-8)
    assert float(exact["boundary"]) < 1e-12
    np.testing.assert_allclose(u, np.sin(np.pi * x.numpy()), atol=1e-6)
    parabola, _ = losses(lambda x: x * (1 - x) + 1)
    np.testing.assert_allclose(parabola["equation"], (wave - 2) ** 2, rtol=1e-4, atol=1e-5)
    assert float(parabola["boundary"]) == pytest.approx(1)


def test_relative_l2_by_hand(pinn_poisson):
    metric = pinn_poisson.RelativeL2()
    metric.update_state(tf.constant([[3.0]]), tf.constant([[3.0]]))
    metric.update_state(tf.constant([[4.0]]), tf.constant([[4.5]]))
    assert float(metric.result()) == pytest.approx(0.5 / 5)


def test_one_and_two_replicas_train_alike(pinn_poisson):
    """The loss at the ends is a scalar, which every replica computes alike: it must not count twice."""
    ends = []
    for name in ("default", "mirrored"):
        keras.utils.set_random_seed(0)
        with make_strategy(name).scope():
            trainer = pinn_poisson.PoissonTrainer(
                model=pinn_poisson.network((8,)), optimizers=keras.optimizers.SGD(1e-3)
            )
        metrics = trainer.train(iter(trainer.distribute(pinn_poisson.train_data(batch_size=32))), 5)
        values = arrays_of(trainer.trainable_variables)
        ends.append({**values, **{tag: metrics[tag] for tag in ("losses/equation", "losses/boundary")}})
    for name in ends[0]:
        np.testing.assert_allclose(ends[0][name], ends[1][name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_it_learns(tmp_path):
    """Short form: u = 0 has an error of 1."""
    rows, _ = train(tmp_path, "STEPS = 300")
    assert rows[-1]["metrics/relative_l2"] < 0.02


def test_a_stopped_run_goes_on_as_if_it_had_not(tmp_path):
    quick = ["run.eval_data = None", "Trainer.compile = 'eager'"]
    _, whole = train(tmp_path / "whole", "run.train_steps = 8", *quick)
    train(tmp_path / "parts", "run.train_steps = 3", *quick)
    _, parts = train(tmp_path / "parts", "run.train_steps = 8", *quick)
    assert set(whole) == set(parts) and whole["global_step"] == 8
    for name in whole:
        np.testing.assert_array_equal(whole[name], parts[name], err_msg=name)


@pytest.mark.slow
def test_full_result_over_three_seeds(tmp_path):
    for seed in range(3):
        rows, _ = train(tmp_path / str(seed), f"run.seed = {seed}")
        assert rows[-1]["metrics/relative_l2"] <= 2e-3
