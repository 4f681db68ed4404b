"""configs/gan_ring_wgan_gp: a method with data and a metric of its own; its step is tested with the method."""

import importlib

import numpy as np
import pytest
import tensorflow as tf

from tests.runs import read_checkpoint, read_rows, run_config


@pytest.fixture
def gan_ring_wgan_gp():
    return importlib.import_module("gan_ring_wgan_gp")


def train(folder, *params):
    """Runs the shipped config; returns ([validation rows], {name: array} of the last checkpoint)."""
    run_config("gan_ring_wgan_gp", folder, *params)
    return read_rows(folder, "validation"), read_checkpoint(folder)


def test_points_lie_on_the_ring_and_batches_depend_on_the_step_alone(gan_ring_wgan_gp):
    source = gan_ring_wgan_gp.train_data(batch_size=512)
    batches = list(source.batches(0).take(6))
    points, epsilon = batches[0]["real"].numpy(), batches[0]["epsilon"].numpy()
    distances = np.linalg.norm(points[:, None] - gan_ring_wgan_gp.CENTRES, axis=-1).min(1)
    assert 0.9 < np.sqrt((distances**2).mean() / 2) / gan_ring_wgan_gp.DEVIATION < 1.1
    assert 0 <= epsilon.min() < 0.02 and 0.98 < epsilon.max() < 1
    chunk = next(iter(source.batches(4, chunk=2)))
    for name in ("real", "noise", "epsilon"):
        np.testing.assert_array_equal(next(iter(source.batches(4)))[name], batches[4][name])
        np.testing.assert_array_equal(chunk[name][1], batches[5][name])
        assert (batches[4][name].numpy() != batches[5][name].numpy()).all()


def test_coverage_counts_modes_and_close_points(gan_ring_wgan_gp):
    coverage = gan_ring_wgan_gp.Coverage()
    # 100 points: 60 at one mode, 39 at the next, 1 beyond `CLOSE` of a third.
    third = gan_ring_wgan_gp.CENTRES[2:3] + [[0.0, 1.01 * gan_ring_wgan_gp.CLOSE]]
    points = np.concatenate([gan_ring_wgan_gp.CENTRES[[0] * 60 + [1] * 39], third]).astype("float32")
    coverage.update_state(tf.constant(points))
    assert {name: float(value) for name, value in coverage.result().items()} == pytest.approx(
        {"modes": 2, "close": 0.99}
    )


def test_it_learns(tmp_path):
    """Short form: untrained, no mode is reached and nothing is close; two updates of the discriminator to one."""
    rows, tensors = train(tmp_path, "STEPS = 2_000", "run.eval_interval = None")
    assert rows[-1]["metrics/modes"] >= 6 and rows[-1]["metrics/close"] > 0.2
    assert rows[-1]["losses/penalty"] < 0.5
    updates = [tensors[f"optimizers/{group}/iteration"] for group in ("discriminator", "generator")]
    assert updates == [2_000, 1_000]


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_if_it_had_not(tmp_path):
    _, whole = train(tmp_path / "whole", "run.train_steps = 20", "run.eval_interval = None")
    train(tmp_path / "parts", "run.train_steps = 9", "run.eval_interval = None")
    _, parts = train(tmp_path / "parts", "run.train_steps = 20", "run.eval_interval = None")
    assert set(whole) == set(parts) and whole["global_step"] == 20
    for name in whole:
        np.testing.assert_array_equal(whole[name], parts[name], err_msg=name)


@pytest.mark.slow
def test_full_result_over_three_seeds(tmp_path):
    for seed in range(3):
        rows, _ = train(tmp_path / str(seed), f"run.seed = {seed}")
        assert rows[-1]["metrics/modes"] == 8 and rows[-1]["metrics/close"] >= 0.80
