"""configs/vae_digits: a model adds a loss, annealed by the step, and a metric; its sampling resumes exactly."""

import importlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.runs import read_checkpoint, read_rows, run_config

QUICK = ["run.eval_data = None", "run.hooks = []", "Trainer.compile = 'eager'"]  # a few steps are not worth a graph


@pytest.fixture
def vae_digits():
    return importlib.import_module("vae_digits")


def train(folder, *params):
    """Runs the shipped config; returns ({split: [rows]}, {name: array} of the last checkpoint)."""
    run_config("vae_digits", folder, *params)
    return {split: read_rows(folder, split) for split in ("train", "validation")}, read_checkpoint(folder)


def test_what_the_bound_can_be(vae_digits):
    """The image of means costs 27.2 nats; no model gets below the entropy of the pixels, 13.7."""
    (train_x, train_y), (test_x, test_y) = vae_digits.load()
    assert train_x.shape == (1437, 64) and test_x.shape == (360, 64) and len(train_y) == 1437 and len(test_y) == 360

    def cost(images, probabilities):
        p = np.clip(probabilities, 1e-6, 1 - 1e-6)
        return vae_digits.crossentropy(images, tf.constant(np.log(p / (1 - p)))).numpy()

    images, mean = test_x.astype("float64"), np.broadcast_to(train_x.mean(0), test_x.shape).astype("float64")
    assert cost(images, mean).shape == (360,)
    assert cost(images, mean).mean() == pytest.approx(27.2, abs=0.1)
    assert cost(images, images).mean() == pytest.approx(13.67, abs=0.1)


def test_outside_of_a_step_the_model_only_reconstructs(vae_digits):
    images = vae_digits.load()[1][0][:3]
    model = vae_digits.VAE(latents=2, units=(16,))
    logits = model(images)
    np.testing.assert_array_equal(logits, model.decode(model.encode(images)[:, :2]))
    assert logits.shape == (3, 64) and not model.losses


def test_it_learns_and_draws(tmp_path):
    """Short form: untrained it costs 45 nats, and without latents 27.2; the linear probe starts from pixels at .97."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    params = ["run.train_steps = 500", "run.eval_interval = 250", "vae_digits.DrawReconstructions.every = 250"]
    rows, _ = train(tmp_path, *params, "LinearWarmup.warmup_steps = 200")
    last = rows["validation"][-1]
    assert last["metrics/negative_elbo"] < 26 and last["losses/kl"] >= 1 and last["metrics/probe_accuracy"] > 0.8
    assert last["loss"] == pytest.approx(last["losses/main"] + last["losses/kl"], rel=1e-5)
    assert last["metrics/negative_elbo"] > last["loss"], "the mean of the latents flatters"
    events = EventAccumulator(str(tmp_path / "train")).Reload()
    assert {"losses/kl", "metrics/squared_error"} <= set(events.Tags()["tensors"] + events.Tags()["scalars"])
    pictures = events.Tensors("reconstructions")
    assert [picture.step for picture in pictures] == [250, 500]
    image = tf.io.decode_png(pictures[1].tensor_proto.string_val[2]).numpy()
    assert image.shape == (64, 320, 1)
    above, below = np.split(image[..., 0] / 255, 2)
    assert np.abs(above - below).mean() < 0.15 < np.abs(above - below[:, ::-1]).mean()


def test_the_weight_of_the_divergence_follows_the_step(tmp_path):
    """In a straight line over 4 steps: the first step's total is without it, from the fifth on it is whole."""
    short = ["run.train_steps = 6", "run.steps_per_loop = 1", "run.summary_interval = 1", *QUICK]
    rows, _ = train(tmp_path, *short, "LinearWarmup.warmup_steps = 4")
    assert len(rows["train"]) == 6
    for row in rows["train"]:
        weight = min((row["step"] - 1) / 4, 1)
        assert row["loss"] == pytest.approx(row["losses/main"] + weight * row["losses/kl"], rel=1e-5)
        assert row["losses/kl"] > 0


def test_a_stopped_run_goes_on_as_if_it_had_not(tmp_path):
    _, whole = train(tmp_path / "whole", "run.train_steps = 8", *QUICK)
    train(tmp_path / "parts", "run.train_steps = 3", *QUICK)
    _, parts = train(tmp_path / "parts", "run.train_steps = 8", *QUICK)
    assert set(whole) == set(parts) and "sample/seed_generator/seed_generator_state" in whole
    for name in whole:
        np.testing.assert_array_equal(whole[name], parts[name], err_msg=name)


@pytest.mark.slow
def test_full_result_over_three_seeds(tmp_path):
    for seed in range(3):
        keras.backend.clear_session()
        rows, _ = train(tmp_path / str(seed), f"run.seed = {seed}")
        last = rows["validation"][-1]
        assert last["metrics/negative_elbo"] <= 24.5 and last["loss"] <= 24.5
        assert last["losses/kl"] >= 2 and last["metrics/probe_accuracy"] >= 0.87
