"""Gradients explain themselves: the gallery of broken models, healthy ones, and that looking changes nothing."""

import collections
import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from optimizers import OptimizerGroup
from tests.runs import slow, train
from tests.trainer.gallery import GALLERY, FromFunction, Net, error, good_batch
from trainer import Trainer
from trainer.diagnosis.diagnostics import explain_gradients
from trainer.diagnosis.missing_gradients import reason_for_none
from trainer.diagnosis.reasons import KINDS, cure_of_error
from trainer.replicas.distribution import make_strategy, replica_values
from trainer.step.variables import raw

UNSURE = {"unknown", "inside"}


def _line(place):
    return place and (os.path.basename(place.rpartition(":")[0]), int(place.rpartition(":")[2]))


def _judge(case):
    """Returns "right", "unknown" or what is wrong with the report on `case`."""
    report = explain_gradients(*case.build())
    status = {row.name: row.status for row in report}
    expected = {name: str(case.status) if name in case.variables else "fine" for name in status}
    line = case.guilty_line() and ("gallery.py", case.guilty_line())
    told = {(row.kind, _line(row.place)) for row in report.wrong}
    if status != expected or not told:
        return f"status {status}, not {expected}"
    if any(kind in UNSURE for kind, _ in told):
        return "unknown"
    return "right" if told == {(case.kind, line)} else f"{told}, not {(case.kind, line)}"


def test_the_gallery_is_explained_with_the_right_reason_and_line(capsys):
    verdicts = {}
    for case in GALLERY:
        keras.utils.set_random_seed(0)
        verdicts[case.name] = _judge(case)
    count = collections.Counter(v if v in ("right", "unknown") else "wrong" for v in verdicts.values())
    with capsys.disabled():
        print(
            f"\ngallery: {count['right']} of {len(GALLERY)} right, {count['unknown']} unknown, {count['wrong']} wrong"
        )
    assert not {name: verdict for name, verdict in verdicts.items() if verdict not in ("right", "unknown")}
    assert count["right"] >= len(GALLERY) * 23 / 25
    assert len(GALLERY) >= 26


def test_the_gallery_has_no_unknown_kinds():
    assert {case.kind for case in GALLERY} <= set(KINDS)
    nowhere = {case.kind for case in GALLERY if case.guilty_line() is None}
    assert nowhere == {"unused", "other losses", "data"}


# ---- Healthy models ----------------------------------------------------------------------------------------------


def _data(n=8):
    rng = np.random.default_rng(3)
    return rng.normal(size=(n, 5)).astype(np.float32), rng.normal(size=(n, 2)).astype(np.float32)


def _functional():
    inputs = keras.Input((5,))
    h = keras.layers.Dense(8, "relu", kernel_regularizer="l2")(inputs)
    h = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(h))
    return keras.Model(inputs, keras.layers.Dense(2)(h))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden, self.head = keras.layers.Dense(6, "tanh"), keras.layers.Dense(2)

    def call(self, x, training=False):
        return self.head(self.hidden(x))


def _groups():
    return [
        OptimizerGroup("hidden/.*", optimizer="sgd", name="a"),
        OptimizerGroup("head/.*", name="b", sequential=True),
    ]


@pytest.mark.parametrize("name", [slow("default"), "mirrored"])
@pytest.mark.parametrize(
    "model, arguments",
    [
        (_functional, {}),
        (_functional, {"micro_batches": 2}),
        (Subclassed, {"optimizers": _groups}),
        (Subclassed, {"compile": "eager"}),
    ],
    ids=["functional", "micro_batches", "groups", "eager"],
)
def test_healthy_models_are_fine(name, model, arguments):
    with make_strategy(name).scope():
        made = {key: value() if callable(value) else value for key, value in arguments.items()}
        trainer = Trainer(model(), "mse", **made)
    report = explain_gradients(trainer, _data())
    assert report.ok and not report.losses, str(report)
    assert [row.name for row in report] == list(trainer.trainable_variables)
    assert all(row.norm > 0 and row.zeros < 1 and row.reason is None for row in report)


def test_a_healthy_model_in_float16_is_fine_though_the_first_loss_scale_overflows():
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    x, y = _data()
    trainer = Trainer(Subclassed(), "mse")
    trainer.build((tf.TensorSpec([None, 5]), tf.TensorSpec([None, 2])))
    report = explain_gradients(trainer, (x, 100.0 * y))
    assert report.ok, str(report)
    assert float(trainer.built.guard.loss_scale.value.numpy()) == 2.0**15


def test_norms_are_those_of_the_training_step():
    trainer = Trainer(Subclassed(), "mse")
    report = explain_gradients(trainer, _data())
    metrics = train(trainer, tf.data.Dataset.from_tensors(_data()), 1)
    np.testing.assert_allclose(np.linalg.norm([row.norm for row in report]), metrics["grad_norm/main"], rtol=1e-5)


# ---- It changes nothing ------------------------------------------------------------------------------------------


def _state(trainer):
    variables = [*trainer.variables.values(), trainer.global_step, trainer.built.guard.skipped]
    variables += [slot for group in trainer.groups for slot in group.slots.values()]
    return [one.numpy() for v in variables for one in replica_values(trainer.strategy, raw(v))]


@pytest.mark.parametrize("name", [slow("default"), "mirrored"])
def test_explaining_changes_no_state(name):
    curves = []
    for look in (False, True):
        keras.utils.set_random_seed(0)
        with make_strategy(name).scope():
            trainer = Trainer(_functional(), "mse", ["mae"])
        iterator = iter(trainer.distribute(tf.data.Dataset.from_tensors(_data()).repeat()))
        losses = []
        for _ in range(2):
            losses.append(trainer.train(iterator, 2)["loss"])
            before = _state(trainer)
            if look:
                assert explain_gradients(trainer, _data()).ok
                x, y = _data()
                assert not explain_gradients(trainer, (x * np.nan, y)).ok
            for a, b in zip(before, _state(trainer), strict=True):
                np.testing.assert_array_equal(a, b)
        curves.append(losses)
    assert curves[0] == curves[1]


def test_a_variable_that_is_assigned_in_the_loss_comes_back():
    trainer = FromFunction(_assigns, model=Net())
    explain_gradients(trainer, good_batch())
    np.testing.assert_array_equal(trainer.model.store, [1.0, 1.0, 1.0])


def _assigns(net, x, y):
    net.store.assign(tf.reduce_mean(net.first(x), 0))
    return {"main": error(net, x, y, net.store + net.first(x))}


# ---- What a report says ------------------------------------------------------------------------------------------


def test_without_a_line_of_the_user_the_operation_is_named():
    """The layers of a Functional model run inside the framework: nobody's line made their operations."""
    inputs = keras.Input((5,))
    dead = keras.layers.Dense(4, "relu", bias_initializer=keras.initializers.Constant(-100.0), name="dead")(inputs)
    trainer = Trainer(keras.Model(inputs, keras.layers.Dense(2)(dead)), "mse")
    row = explain_gradients(trainer, _data())[0]
    assert (row.name, row.status, row.kind, row.place) == ("dead/kernel", "zero", "dead", None)
    assert "dead" in row.reason.text and "Relu" in row.reason.text


def test_the_table_shows_every_variable_and_each_reason_once():
    case = next(case for case in GALLERY if case.name == "argmax_of_logits")
    text = str(explain_gradients(*case.build()))
    assert text.count("Argmax has no gradient") == 1
    assert "first/kernel, first/bias:" in text and "second/kernel" in text
    assert f"gallery.py:{case.guilty_line()}" in text


def test_an_integer_variable_is_reported():
    variable = keras.Variable(np.zeros(3, np.int32), dtype="int32")
    losses = {"main": tf.constant(0.0)}
    assert reason_for_none(tf.distribute.get_strategy(), variable, losses, OptimizerGroup()).kind == "integer variable"


# ---- In training -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [slow("default"), "mirrored"])
@pytest.mark.parametrize(
    "arguments", [{}, {"micro_batches": 2}, {"compile": "eager"}], ids=["graph", "micro_batches", "eager"]
)
def test_a_step_being_traced_explains_its_none(name, arguments):
    case = next(case for case in GALLERY if case.name == "a_stop_gradient_too_many")
    with make_strategy(name).scope():
        trainer = FromFunction(case.function, model=Net(), **arguments)
    with pytest.raises(ValueError) as raised:
        train(trainer, tf.data.Dataset.from_tensors(good_batch()), 1)
    text = str(raised.value)
    assert f"gallery.py:{case.guilty_line()}" in text and "stop_gradient" in text
    assert all(variable in text for variable in case.variables)


# ---- Errors of traced code that are hard to read -----------------------------------------------------------------


class Branches(keras.Model):
    def __init__(self, how):
        super().__init__()
        self.how, self.dense = how, keras.layers.Dense(2)

    def call(self, x):
        h = self.dense(x)
        if self.how == "if":
            return h if tf.reduce_sum(h) > 0.0 else -h
        if self.how == "numpy":
            return tf.constant(np.sin(h.numpy()))
        return tf.reshape(tf.image.adjust_hue(tf.reshape(tf.concat([h, h, h], -1), [-1, 1, 2, 3]), 0.1), [-1, 6])[:, :2]


@pytest.mark.parametrize(
    "how, cure", [("if", "@tf.function"), ("numpy", ".numpy()"), ("hue", "trainer.check gradients")]
)
def test_errors_that_are_hard_to_read_have_a_cure(how, cure):
    trainer = Trainer(Branches(how), "mse")
    with pytest.raises(Exception) as caught:
        train(trainer, tf.data.Dataset.from_tensors(_data()), 1)
    assert cure in cure_of_error(caught.value)


def test_other_errors_have_none():
    assert cure_of_error(ValueError("`x` must be > 0, got 0.")) is None
