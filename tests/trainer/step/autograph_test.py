"""AutoGraph converts users' code alone, and its exceptions come out as the user raised them."""

import logging
import pathlib
import traceback

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.runs import train
from trainer import Trainer
from trainer.step import autograph

X = np.arange(8, dtype=np.float32).reshape(4, 2)


def _model():
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])


def _doubled_if_large(values):
    if tf.reduce_sum(values) > 20.0:
        return 2.0 * values
    return values


class Branching(Trainer):
    """`if tensor:` in an override, in a function that it calls, and in a method."""

    def compute_losses(self, batch, training):
        predictions = self.model(batch[0], training=training)[:, 0]
        if tf.reduce_sum(batch[1]) > 0.0:
            values = _doubled_if_large(predictions)
        else:
            values = self.negative(predictions)
        return {"main": values}

    def negative(self, values):
        if tf.reduce_sum(values) > 0.0 and not tf.reduce_any(values > 1000.0):
            return -values
        return values


def _train(trainer, x, y):
    batches = tf.data.Dataset.from_tensors((x, y)).repeat()
    return train(trainer, batches, 2)


@pytest.mark.parametrize("compile", ["graph", "eager", "xla_step"])
@pytest.mark.parametrize("sign, loss", [(1.0, 14.0), (-1.0, -7.0)])
def test_conditions_on_tensors_work_in_what_users_write(compile, sign, loss):
    # Predictions are 1, 5, 9, 13: mean 7, sum 28.
    trainer = Branching(_model(), optimizers=keras.optimizers.SGD(0.0), compile=compile)
    assert _train(trainer, X, sign * np.ones([4, 1], np.float32))["loss"] == pytest.approx(loss)


def test_losses_metrics_transforms_and_schedules_of_users_are_converted():
    def loss(targets, predictions):
        if tf.reduce_sum(targets) > 0.0:
            return tf.abs(predictions[:, 0] - targets[:, 0])
        return tf.zeros_like(predictions[:, 0])

    def metric(targets, predictions):
        if tf.reduce_sum(targets) > 0.0:
            return tf.ones_like(targets)
        return tf.zeros_like(targets)

    def transform(gradients, variables, norms):
        if norms["all"] > 0.0:
            gradients = [0.0 * g for g in gradients]
        return gradients

    def weight(step):
        if step >= 1:
            return 3.0
        return 1.0

    from trainer import OptimizerGroup

    group = OptimizerGroup(losses={"main": weight}, optimizer="sgd", transforms=[transform])
    trainer = Trainer(_model(), loss, [metric], [group])
    metrics = _train(trainer, X, np.ones([4, 1], np.float32))
    assert metrics["metrics/metric"] == 1.0
    assert metrics["losses/main"] == pytest.approx(6.0) and metrics["loss"] == pytest.approx((6.0 + 18.0) / 2)
    np.testing.assert_array_equal(trainer.model.trainable_variables[0].numpy(), np.ones([2, 1]))


def test_our_functions_are_not_converted():
    assert autograph.convert(Trainer(_model(), "mse").compute_losses).__module__ == "trainer.trainer"
    seen = []

    @tf.function(autograph=False)
    def traced():
        for function in (Trainer.compute_losses, keras.losses.mean_squared_error, tf.square, _doubled_if_large):
            seen.append(autograph.convert(function) is function)

    traced()
    assert seen == [True, True, True, False]


class Broken(Trainer):
    def compute_losses(self, batch, training):
        raise TwoArguments("no", 7)


class TwoArguments(Exception):
    """AutoGraph cannot make another one from a text."""

    def __init__(self, text, number):
        super().__init__(text, number)
        self.number = number


def test_an_exception_keeps_its_type_and_shows_users_lines_alone():
    with pytest.raises(TwoArguments) as raised:
        Broken(_model()).build(tf.TensorSpec([4, 2]))
    text = "".join(traceback.format_exception(raised.value))
    assert raised.value.number == 7
    assert "in compute_losses" in text and 'raise TwoArguments("no", 7)' in text
    note = "\n".join(raised.value.__notes__)
    ours = str(pathlib.Path(autograph.__file__).parents[1])
    assert __file__ in note and ours not in note


def test_no_warning_of_retracing_and_none_of_lambdas(caplog):
    functions = [lambda t, p: tf.abs(p[:, 0] - t[:, 0]), lambda t, p: tf.square(p[:, 0] - t[:, 0])]
    with caplog.at_level(logging.WARNING):
        for index in range(7):
            _train(Trainer(_model(), functions[index % 2]), X, X[:, :1])
    text = caplog.text
    assert "retracing" not in text and "AutoGraph could not transform" not in text


def test_the_converter_of_tensorflow_is_where_it_was():
    """The private names that `tf_convert` uses."""
    from tensorflow.python.autograph.core import ag_ctx, config

    assert ag_ctx.Status.ENABLED and callable(ag_ctx.ControlStatusCtx) and callable(config.DoNotConvert)
    autograph.tf_convert()
    assert any("trainer" in str(vars(rule)) for rule in config.CONVERSION_RULES)
