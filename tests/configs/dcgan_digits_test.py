"""configs/dcgan_digits: two updates in a step, the second on fresh fakes; spectral norms moved once a step."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.configs.plain_loops import assert_like_the_plain_loop, gradients, load_config, run
from tests.runs import read_last_rows, run_config
from trainer import OptimizerGroup

dcgan = load_config("dcgan_digits")


def plain(trainer, batches):
    """Two tapes, one after the other, on the models of `trainer`."""
    generator, discriminator = trainer.generator, trainer.discriminator
    optimizers = [keras.optimizers.SGD(0.05), keras.optimizers.SGD(0.05)]
    for optimizer, model in zip(optimizers, (discriminator, generator)):
        optimizer.build(model.trainable_variables)
    crossentropy = keras.losses.BinaryCrossentropy(from_logits=True)
    ones = tf.ones(len(batches[0]["image"]))

    def step(batch):
        with tf.GradientTape() as tape:
            real, fake = discriminator(batch["image"]), discriminator(generator(batch["noise"][:, 0]))
            of_discriminator = crossentropy(0.9 * ones, real) + crossentropy(0 * ones, fake)
        optimizers[0].apply_gradients(gradients(tape, of_discriminator, discriminator.trainable_variables))
        with tf.GradientTape() as tape:
            of_generator = crossentropy(ones, discriminator(generator(batch["noise"][:, 1])))
        optimizers[1].apply_gradients(gradients(tape, of_generator, generator.trainable_variables))
        for layer in discriminator.layers[:2]:
            matrix = tf.reshape(layer.kernel, [-1, layer.filters])
            right = tf.linalg.matvec(matrix, layer.left.value)
            left = tf.linalg.matvec(matrix, right / tf.norm(right), transpose_a=True)
            layer.left.assign(left / tf.norm(left))
        return {"losses/discriminator": of_discriminator}

    return run(step, batches)


def test_it_is_the_plain_loop_on_one_and_two_replicas_and_resumes():
    def make():
        groups = [
            OptimizerGroup(f"{name}/.*", [name], keras.optimizers.SGD(0.05), sequential=name == "generator", name=name)
            for name in ("discriminator", "generator")
        ]
        return dcgan.DCGANTrainer(dcgan.generator(2, 4), dcgan.discriminator(2), optimizers=groups)

    assert_like_the_plain_loop(make, dcgan.train_data(batch_size=15, latent=4), plain)


def test_a_spectral_convolution_has_norm_1_when_iterated():
    layer = dcgan.SpectralConv(3, 3)
    layer.build((None, 8, 8, 2))
    for _ in range(200):
        layer.iterate()
    matrix = np.reshape(layer.kernel.numpy(), (-1, 3))
    x = np.random.default_rng(0).normal(size=(1, 3, 3, 2)).astype("float32")
    expected = x.reshape(1, -1) @ matrix / np.linalg.norm(matrix, 2)
    np.testing.assert_allclose(np.reshape(layer(x), (1, 3)), expected, rtol=1e-4, atol=1e-6)


def test_the_distance_of_images_from_themselves_is_0():
    images = dcgan.load()[1][0]
    assert abs(dcgan.distance(images, images)) < 1e-3 < dcgan.distance(images, 0 * images)


@pytest.mark.slow
def test_it_learns(tmp_path):
    """Gray images are 28 from the held-out ones, uniform noise is 14, the training images are .2."""
    assert read_last_rows(run_config("dcgan_digits", tmp_path))["validation"]["metrics/distance"] < 10
