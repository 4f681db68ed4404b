"""configs/ddpm_digits: a noise schedule, averaged weights, the loss by time, and sampling."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from optimizers import EMA
from tests.configs.plain_loops import assert_like_the_plain_loop, gradients, load_config, run
from tests.runs import read_last_rows, run_config, train

ddpm = load_config("ddpm_digits")


def plain(trainer, batches):
    """Algorithm 1 of the paper by hand."""
    model = trainer.model
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)

    def step(batch):
        angle = (0.02 + 0.96 * batch["time"]) * np.pi / 2
        alpha_bar = tf.square(tf.cos(angle))[:, None, None, None]
        noisy = tf.sqrt(alpha_bar) * batch["image"] + tf.sqrt(1 - alpha_bar) * batch["noise"]
        with tf.GradientTape() as tape:
            errors = tf.reduce_mean(tf.square(model(noisy, batch["time"]) - batch["noise"]), [1, 2, 3])
            loss = tf.reduce_mean(errors)
        optimizer.apply_gradients(gradients(tape, loss, model.trainable_variables))
        early = errors[batch["time"] < 0.25]
        return {"losses/noise": loss, "metrics/error_of_quarter_0": tf.reduce_mean(early)}

    return run(step, batches)


def _make():
    return ddpm.DDPMTrainer(ddpm.Denoiser(2, 1), optimizers=keras.optimizers.SGD(0.1), averages=EMA(0.9))


def test_it_is_the_plain_loop_on_one_and_two_replicas_and_resumes():
    assert_like_the_plain_loop(_make, ddpm.train_data(batch_size=31), plain)


def test_the_schedule_goes_from_image_to_noise():
    signal, noise = ddpm.signal_and_noise(tf.constant([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(signal**2 + noise**2, 1, rtol=1e-6)
    assert signal[0] > 0.999 > 0.05 > signal[2]


def test_a_model_that_knows_the_image_samples_it():
    """With the right noise at each step, the samples are the image."""
    trainer = _make()
    train(trainer, ddpm.train_data(batch_size=8), 1)
    image = ddpm.load()[1][:1]

    def exact(x, times):
        signal, noise = ddpm.signal_and_noise(times[:, None, None, None])
        return (x - signal * image) / noise

    trainer.model = exact
    np.testing.assert_allclose(ddpm.sample(trainer, 2, steps=20), np.repeat(image, 2, 0), atol=0.15)


@pytest.mark.slow
def test_it_learns(tmp_path):
    row = read_last_rows(run_config("ddpm_digits", tmp_path))["validation"]
    assert row["losses/noise"] < 0.25
