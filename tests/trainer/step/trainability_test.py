"""`trainable`, changed after building: it changes nothing, and the next `train` says so."""

import keras
import numpy as np

from tests.runs import train
from trainer import Trainer, data

X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")


def test_a_changed_trainable_flag_is_reported_once(capsys):
    first, second = keras.layers.Dense(3, name="a"), keras.layers.Dense(1, name="b")
    model = keras.Sequential([keras.Input((4,)), first, second])
    second.trainable = False
    trainer = Trainer(model, "mse", (), "sgd")
    iterator = iter(trainer.distribute(data.from_arrays((X, X[:, :1]), 8)))

    def told():
        before = [weight.numpy() for weight in (first.kernel, second.kernel)]
        capsys.readouterr()
        trainer.train(iterator, 1)
        moved = [not np.array_equal(was, weight.numpy()) for was, weight in zip(before, (first.kernel, second.kernel))]
        return "".join(capsys.readouterr()).replace("\n", " "), moved

    assert told() == ("", [True, False])
    first.trainable = False
    text, moved = told()
    assert moved == [True, False]
    assert "`trainable` of a/kernel, a/bias was set to False after the Trainer was built" in text
    assert "still trained" in text and "Trainer.frozen" in text and "`start` and `stop`" in text
    assert told() == ("", [True, False])
    first.trainable, second.trainable = True, True
    text, moved = told()
    assert moved == [True, False] and "`trainable` of b/kernel, b/bias was set to True" in text.replace(
        "a/kernel, a/bias, ", ""
    )


def test_a_frozen_pattern_is_no_change(capsys):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="a"), keras.layers.Dense(1, name="b")])
    trainer = Trainer(model, "mse", (), "sgd", frozen=["a/.*"])
    train(trainer, data.from_arrays((X, X[:, :1]), 8), 1)
    assert "trainable" not in "".join(capsys.readouterr())
