"""configs/gradnorm_tasks: loss weights trained from the norms of the tasks' gradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.configs.plain_loops import assert_like_the_plain_loop, gradients, load_config, run
from tests.runs import read_last_rows, run_config
from trainer import OptimizerGroup, data

gradnorm = load_config("gradnorm_tasks")


def plain(trainer, batches):
    """Algorithm 1 of the paper by hand, with the gradients of its equation 2."""
    model, weights, first = trainer.model, trainer.balance.weights_of_tasks, trainer.first
    optimizers = [keras.optimizers.SGD(1e-3), keras.optimizers.SGD(1e-3)]
    optimizers[0].build(model.trainable_variables)
    optimizers[1].build([weights])
    number = tf.Variable(0)

    def step(batch):
        x, y = batch
        with tf.GradientTape(persistent=True) as tape:
            errors = [tf.reduce_mean(tf.square(model(x)[:, i] - y[:, i])) for i in range(len(weights))]
            weighted = [w * error for w, error in zip(tf.unstack(weights.value), errors)]
            loss = tf.add_n([tf.stop_gradient(w) * error for w, error in zip(tf.unstack(weights.value), errors)])
            norms = tf.stack([tf.norm(tape.gradient(value, model.shared.kernel.value)) for value in weighted])
            now = tf.stack(errors)
            ratios = now / (now if number == 0 else first.value)
            wanted = tf.reduce_mean(norms) * (ratios / tf.reduce_mean(ratios)) ** trainer.alpha
            balance = tf.reduce_sum(tf.abs(norms - tf.stop_gradient(wanted)))
        # d |w_i n_i - c| / d w_i with the norms n_i of the unweighted gradients
        of_weights = tf.sign(norms - wanted) * norms / weights.value
        optimizers[0].apply_gradients(gradients(tape, loss, model.trainable_variables))
        optimizers[1].apply_gradients([(of_weights, weights)])
        weights.assign(weights * len(weights) / tf.reduce_sum(weights))
        if number == 0:
            first.assign(now)
        number.assign_add(1)
        return {"losses/tasks": loss, "losses/balance": balance}

    return run(step, batches)


def test_it_is_the_plain_loop_on_one_and_two_replicas_and_resumes():
    def make():
        groups = [
            OptimizerGroup(
                "(trunk|shared|heads)/.*", {"tasks": 1.0, "relative": 0.0}, keras.optimizers.SGD(1e-3), name="network"
            ),
            OptimizerGroup("balance/.*", ["balance"], keras.optimizers.SGD(1e-3), name="weights"),
        ]
        return gradnorm.GradNormTrainer(gradnorm.MultiTask(3, 4, 2, (4, 5)), 3, 0.5, optimizers=groups)

    source = data.from_arrays(gradnorm.tasks(60, tasks=3, inputs=4, outputs=2), 15)
    assert_like_the_plain_loop(make, source, plain)


def test_scales_differ_by_task():
    _, y = gradnorm.tasks(200)
    np.testing.assert_allclose(np.abs(y).max((0, 2)) / np.linspace(1, 20, 10), 1, atol=0.1)


@pytest.mark.slow
def test_it_helps_the_small_tasks(tmp_path):
    found = []
    for alpha in (0.12, None):
        folder = run_config("gradnorm_tasks", tmp_path / str(alpha), f"gradnorm_tasks.GradNormTrainer.alpha = {alpha}")
        found.append(read_last_rows(folder)["validation"]["losses/relative"])
    assert found[0] < found[1]
