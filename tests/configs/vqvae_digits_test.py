"""configs/vqvae_digits: a codebook of moving averages, right on several replicas."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.configs.plain_loops import assert_like_the_plain_loop, gradients, load_config, run
from tests.runs import read_last_rows, run_config

vqvae = load_config("vqvae_digits")


def plain(trainer, batches):
    """The loop by hand, with the codebook's formulas of the paper, on the models and variables of `trainer`."""
    model, quantizer, decay = trainer.model, trainer.model.quantizer, trainer.decay
    optimizer, number = keras.optimizers.SGD(0.1), tf.Variable(0)
    trained = model.trainable_variables
    optimizer.build(trained)

    def step(images):
        with tf.GradientTape() as tape:
            vectors = model.encoder(images)
            book = quantizer.codebook.value
            distances = tf.reduce_sum(tf.square(vectors[..., None, :] - book), -1)
            codes = tf.argmin(distances, -1)
            nearest = tf.gather(book, codes)
            decoded = model.decoder(vectors + tf.stop_gradient(nearest - vectors))
            reconstruction = tf.reduce_mean(tf.square(images - decoded))
            commitment = tf.reduce_mean(tf.square(vectors - tf.stop_gradient(nearest)))
            loss = reconstruction + 0.25 * commitment
        optimizer.apply_gradients(gradients(tape, loss, trained))
        chosen = tf.one_hot(tf.reshape(codes, [-1]), len(book))
        rows = tf.reshape(vectors, [-1, vectors.shape[-1]])
        counts = decay * quantizer.counts + (1 - decay) * tf.reduce_sum(chosen, 0)
        sums = decay * quantizer.sums + (1 - decay) * tf.einsum("nk,nd->kd", chosen, rows)
        drawn = tf.random.stateless_uniform([len(book)], [0, number], maxval=len(rows), dtype=tf.int32)
        dead = counts < 1
        quantizer.counts.assign(tf.where(dead, 1.0, counts))
        quantizer.sums.assign(tf.where(dead[:, None], tf.gather(rows, drawn), sums))
        quantizer.codebook.assign(quantizer.sums / quantizer.counts[:, None])
        number.assign_add(1)
        return {"losses/reconstruction": reconstruction, "losses/commitment": commitment, "loss": loss}

    return run(step, batches)


def test_it_is_the_plain_loop_on_one_and_two_replicas_and_resumes():
    def make():
        return vqvae.VQVAETrainer(vqvae.VQVAE(4, 6, 3), optimizers=keras.optimizers.SGD(0.1))

    assert_like_the_plain_loop(make, vqvae.train_data(batch_size=15), plain)


def test_dead_codes_are_put_on_vectors_of_the_batch():
    quantizer = vqvae.Quantizer(codes=3, size=2)
    vectors = tf.constant([[1.0, 2.0], [3.0, 4.0]])
    quantizer.follow(tf.repeat(vectors, 50, 0), tf.repeat([0, 0], 50), 0.9, [0, 0])
    book = quantizer.codebook.numpy()
    np.testing.assert_allclose(book[0], [2, 3], rtol=1e-6)  # the mean of its vectors
    assert all(row.tolist() in vectors.numpy().tolist() for row in book[1:])


def test_perplexity_counts_codes():
    perplexity = vqvae.Perplexity(8)
    perplexity.update_state(tf.constant([[0, 1], [2, 3]]))
    assert float(perplexity.result()) == pytest.approx(4)


@pytest.mark.slow
def test_it_learns(tmp_path):
    row = read_last_rows(run_config("vqvae_digits", tmp_path))["validation"]
    assert row["losses/reconstruction"] < 0.02 and row["metrics/perplexity"] > 20
