"""Short runs before the long one: a few batches, a first look at the evaluation, one loop, a profile, NaNs located."""

import itertools
import pathlib
import tempfile
import traceback

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.trainer.experiment_test import X, Y, _data, _held_out, _run, _trainer, _weights
from trainer import Trainer, main
from trainer.data import as_source
from trainer.inputs.limited import FirstBatches, RepeatedBatches


def _values(dataset):
    return [batch[0].numpy() for batch in dataset]


def test_the_first_batches_repeat_from_any_step():
    source = RepeatedBatches(_data(), 3)
    first = _values(_data().batches(0).take(3))
    for start in (0, 2, 7):
        expected = [first[(start + i) % 3] for i in range(5)]
        np.testing.assert_array_equal(_values(source.batches(start).take(5)), expected)
        np.testing.assert_array_equal(_values(source.batches(start, 5).take(1))[0], expected)
    assert source.infinite and source.exact and source.steps_per_epoch == 3
    assert RepeatedBatches(as_source(tf.data.Dataset.from_tensors((X, Y))), 9).steps_per_epoch == 1


def test_the_first_batches_end():
    source = FirstBatches(_data(), 3)
    np.testing.assert_array_equal(_values(source.batches(1)), _values(_data().batches(1).take(2)))
    assert not _values(source.batches(5))
    with pytest.raises(ValueError, match="`count`"):
        FirstBatches(_data(), 0)


def test_overfitting_trains_on_the_first_batches_alone(tmp_path):
    keras.utils.set_random_seed(0)
    result = _run(tmp_path, overfit_batches=2, train_steps=6)
    keras.utils.set_random_seed(0)
    by_hand = _trainer()
    batches = itertools.islice(itertools.cycle(list(_data().batches(0).take(2))), 6)
    by_hand.train(iter(by_hand.distribute(lambda: batches)), 6)
    for ours, theirs in zip(_weights(result), [v.numpy() for v in by_hand.variables.values()], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_a_limited_evaluation_uses_the_first_batches(tmp_path):
    result = _run(tmp_path, eval_data=_held_out(), limit_eval_batches=2, train_steps=5)
    predictions = result.trainer.predict(X[:10])
    expected = np.abs(predictions - Y[:10]).mean()
    np.testing.assert_allclose(result.metrics["validation"]["metrics/mean_absolute_error"], expected, rtol=1e-5)


def test_a_broken_evaluation_fails_before_the_first_step(tmp_path):
    def broken():
        return tf.data.Dataset.from_tensors((X, Y)).map(
            lambda x, y: (x, tf.ensure_shape(tf.py_function(_fail, [y], tf.float32), [40, 1]))
        )

    with pytest.raises(Exception, match="not today"):
        _run(tmp_path, eval_data=broken, sanity_eval_batches=1)
    assert not (tmp_path / "checkpoints").exists() and not (tmp_path / "metrics.jsonl").exists()


def _fail(y):
    raise KeyError("not today")


def test_the_look_at_the_evaluation_changes_nothing(tmp_path):
    plain = _run(tmp_path / "a", eval_data=_held_out(), train_steps=5)
    looked = _run(tmp_path / "b", eval_data=_held_out(), train_steps=5, sanity_eval_batches=2)
    np.testing.assert_equal(_weights(looked), _weights(plain))
    for tag in ("loss", "metrics/mean_absolute_error"):
        assert looked.metrics["validation"][tag] == plain.metrics["validation"][tag]


def test_a_fast_run_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    saved = []
    hook = lambda trainer, step, metrics: saved.append((step, "validation/loss" in metrics))  # noqa: E731
    result = _run(None, eval_data=_held_out(), mode="fast_dev_run", train_steps=1000, hooks=[hook])
    assert result.status == "done" and set(result.metrics) == {"train", "validation"}
    assert saved == [(5, True)] and not list(tmp_path.iterdir())


def test_a_fast_run_needs_no_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = [
        "--gin_file=friedman_huber.gin",
        "--mode=fast_dev_run",
        "--gin.run.steps_per_loop=2",
        "--gin.run.limit_eval_batches=1",
    ]
    assert main.main(["main", *flags]) == 0
    assert "done at step 2" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_a_profile_of_some_steps(tmp_path):
    steps = []
    _run(tmp_path, train_steps=8, profile=(3, 6), hooks=[lambda trainer, step, metrics: steps.append(step)])
    assert steps == [3, 5, 6, 8]
    assert list((tmp_path / "train").glob("plugins/profile/*/*.xplane.pb"))


@pytest.mark.parametrize(
    "wrong", [{"profile": (5, 3)}, {"profile": 4}, {"overfit_batches": 0}, {"sanity_eval_batches": -1}]
)
def test_wrong_arguments_are_named(tmp_path, wrong):
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be"):
        _run(tmp_path, **wrong)


class Logarithm(keras.layers.Layer):
    def call(self, x):
        return keras.ops.log(keras.ops.abs(x) - 100.0)  # NaN


@pytest.mark.parametrize("strategy, compile", [("default", "graph"), ("default", "xla_step"), ("mirrored", "graph")])
def test_the_first_nan_is_located(tmp_path, strategy, compile):
    def broken():
        model = keras.Sequential([keras.Input((3,)), Logarithm(), keras.layers.Dense(1)])
        return Trainer(model, "mse", (), "sgd", compile=compile)

    with pytest.raises(tf.errors.InvalidArgumentError, match="NaN") as caught:
        _run(tmp_path, trainer=broken, debug_nans=True, strategy=strategy)
    line = 1 + pathlib.Path(__file__).read_text().splitlines().index(
        "        return keras.ops.log(keras.ops.abs(x) - 100.0)  # NaN"
    )
    frames = [(file, number) for file, number, name, _ in traceback.extract_tb(caught.tb) if name == "call"]
    assert frames[-1] == (__file__, line)
