"""configs/moco_digits: a momentum encoder and a queue, after the update."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.configs.plain_loops import assert_like_the_plain_loop, gradients, load_config, run
from tests.runs import read_last_rows, run_config

moco = load_config("moco_digits")
make_encoder = functools.partial(moco.encoder, filters=2, features=6, projection=4)


def plain(trainer, batches):
    """Algorithm 1 of the paper by hand, on the models and the queue of `trainer`."""
    query, key, queue = trainer.model, trainer.teacher, trainer.queue
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(query.trainable_variables)

    def step(batch):
        keys = key(batch[1])[1]
        with tf.GradientTape() as tape:
            queries = query(batch[0])[1]
            positive = tf.einsum("nc,nc->n", queries, keys)[:, None]
            negative = tf.einsum("nc,kc->nk", queries, queue.value)
            logits = tf.concat([positive, negative], 1) / trainer.temperature
            labels = tf.zeros(len(logits), tf.int32)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        optimizer.apply_gradients(gradients(tape, loss, query.trainable_variables))
        for slow, fast in zip(key.weights, query.weights):
            slow.assign(trainer.momentum * slow + (1 - trainer.momentum) * fast)
        queue.assign(tf.concat([queue[len(keys) :], keys], 0))
        return {"losses/contrast": loss}

    return run(step, batches)


def test_it_is_the_plain_loop_on_one_and_two_replicas_and_resumes():
    def make():
        return moco.MoCoTrainer(make_encoder(), make_encoder(), 0.9, 40, optimizers=keras.optimizers.SGD(0.1))

    assert_like_the_plain_loop(make, moco.train_data(batch_size=15), plain)


def test_two_views_differ_and_depend_on_the_seed_alone():
    image = moco.load()[1][0][0]
    first, second = moco.two_views(image, tf.constant([1, 2]))
    again, _ = moco.two_views(image, tf.constant([1, 2]))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - second).max() > 0.1


@pytest.mark.slow
def test_it_learns(tmp_path):
    assert read_last_rows(run_config("moco_digits", tmp_path))["validation"]["metrics/probe_accuracy"] > 0.95
