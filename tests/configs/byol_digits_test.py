"""configs/byol_digits: a momentum encoder, after the update."""

import functools

import keras
import pytest
import tensorflow as tf

from tests.configs.plain_loops import assert_like_the_plain_loop, gradients, load_config, run
from tests.runs import read_last_rows, run_config

byol = load_config("byol_digits")
make_encoder = functools.partial(byol.encoder, filters=4, features=8, projection=4)


def plain(trainer, batches):
    """The paper's loop by hand, on the models of `trainer`."""
    online, target, predictor = trainer.model, trainer.teacher, trainer.predictor
    optimizer, trained = keras.optimizers.SGD(0.02), online.trainable_variables + predictor.trainable_variables
    optimizer.build(trained)

    def step(batch):
        targets = [tf.linalg.normalize(target(view)[1], axis=1)[0] for view in batch]
        with tf.GradientTape() as tape:
            predictions = [
                tf.linalg.normalize(predictor(online(view, training=True)[1], training=True), axis=1)[0]
                for view in batch
            ]
            distances = [tf.reduce_sum(tf.square(p - z), 1) for p, z in zip(predictions, reversed(targets))]
            loss = tf.reduce_mean(distances[0] + distances[1])
        optimizer.apply_gradients(gradients(tape, loss, trained))
        for slow, fast in zip(target.weights, online.weights):
            slow.assign(trainer.momentum * slow + (1 - trainer.momentum) * fast)
        return {"losses/regression": loss}

    return run(step, batches)


def test_it_is_the_plain_loop_on_one_and_two_replicas_and_resumes():
    def make():
        return byol.BYOLTrainer(
            make_encoder(), make_encoder(), byol.predictor(4, 8), 0.9, optimizers=keras.optimizers.SGD(0.02)
        )

    assert_like_the_plain_loop(make, byol.train_data(batch_size=15), plain)


@pytest.mark.slow
def test_it_learns(tmp_path):
    assert read_last_rows(run_config("byol_digits", tmp_path))["validation"]["metrics/probe_accuracy"] > 0.95
