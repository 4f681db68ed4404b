"""configs/maml_sine: second-order gradients through an inner step."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.configs.plain_loops import assert_like_the_plain_loop, gradients, load_config, run
from tests.runs import read_last_rows, run_config
from trainer import OptimizerGroup

maml = load_config("maml_sine")


def plain(trainer, batches):
    """The loop by hand, task after task, the perceptron written out as matrix products."""
    variables, rate = trainer.model.trainable_variables, trainer.rate
    optimizer = keras.optimizers.SGD(0.01)
    optimizer.build(variables)

    def error(weights, x, y):
        for kernel, bias in zip(weights[:-2:2], weights[1:-2:2]):
            x = tf.nn.relu(x @ kernel + bias)
        return tf.reduce_mean(tf.square(x @ weights[-2] + weights[-1] - y))

    def step(batch):
        with tf.GradientTape() as outer:
            errors = []
            for task in range(len(batch["x"])):
                weights = [tf.convert_to_tensor(v.value) for v in variables]
                with tf.GradientTape() as inner:
                    inner.watch(weights)
                    value = error(weights, batch["x"][task], batch["y"][task])
                inner_gradients = inner.gradient(value, weights)
                if trainer.first_order:
                    inner_gradients = [tf.stop_gradient(g) for g in inner_gradients]
                fast = [w - rate * g for w, g in zip(weights, inner_gradients)]
                errors.append(error(fast, batch["query_x"][task], batch["query_y"][task]))
            loss = tf.reduce_mean(errors)
        optimizer.apply_gradients(gradients(outer, loss, variables))
        return {"losses/after": loss}

    return run(step, batches)


@pytest.mark.parametrize("first_order", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_it_is_the_plain_loop_on_one_and_two_replicas_and_resumes(first_order):
    def make():
        group = OptimizerGroup(losses={"after": 1.0, "before": 0.0}, optimizer=keras.optimizers.SGD(0.01))
        return maml.MAMLTrainer(maml.perceptron((4,)), 0.05, first_order=first_order, optimizers=group)

    assert_like_the_plain_loop(make, maml.train_data(tasks=3, points=4), plain)


def test_tasks_depend_on_the_step_alone():
    source = maml.train_data()
    for one, two in zip(list(source.batches(0).take(3))[2].values(), next(iter(source.batches(2))).values()):
        np.testing.assert_array_equal(one, two)


@pytest.mark.slow
def test_it_learns(tmp_path):
    row = read_last_rows(run_config("maml_sine", tmp_path))["validation"]
    assert row["losses/after"] < 0.5 * row["losses/before"]
