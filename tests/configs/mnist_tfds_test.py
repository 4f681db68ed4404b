"""configs/mnist_tfds: files in the layout of TensorFlow Datasets, written here, in memory and streamed."""

import importlib
import sys

import gin
import numpy as np
import pytest
import tensorflow as tf

import configs
from tests.configs.tfds_files import write_mnist
from tests.runs import read_checkpoint, read_rows, run_config
from trainer import data


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(folder, {split: (images, labels)}) of 1,437 digits in place of MNIST; skips where tfds is not installed."""
    folder = tmp_path_factory.mktemp("tfds")
    return folder, write_mnist(folder)


@pytest.fixture
def mnist_tfds(monkeypatch, files):
    monkeypatch.setattr(sys, "path", [*sys.path, configs.__path__[0]])
    module = importlib.import_module("mnist_tfds")
    gin.parse_config(f"mnist_tfds.examples.data_dir = '{files[0]}'")
    return module


def train(folder, files, *params):
    """Runs the shipped config; returns ([validation rows], {name: array} of the last checkpoint)."""
    run_config("mnist_tfds", folder, f"mnist_tfds.examples.data_dir = '{files[0]}'", *params)
    return read_rows(folder, "validation"), read_checkpoint(folder)


def test_what_is_read_is_what_was_written(mnist_tfds, files):
    for split in ("train", "test"):
        images, labels = mnist_tfds.load(split)
        assert images.dtype == tf.uint8 and images.shape[1:] == (28, 28, 1)
        np.testing.assert_array_equal(images, files[1][split][0])
        np.testing.assert_array_equal(labels, files[1][split][1])
    ((images, labels),) = mnist_tfds.eval_data(batch_size=360).batches()
    np.testing.assert_array_equal(labels, files[1]["test"][1])


@pytest.mark.parametrize("name", ["train_data", "streamed_train_data"])
def test_batches_of_both_ways_go_on_where_they_stopped(mnist_tfds, files, name):
    """Past the end of an epoch of 1,437 examples; a plain dataset, made anew, is skipped to its place."""

    def batches(start, count):
        source = data.as_source(getattr(mnist_tfds, name)(batch_size=500, seed=3))
        assert source.infinite and source.exact == (name == "train_data")
        return [[part.numpy() for part in batch] for batch in source.batches(start).take(count)]

    whole, parts = batches(0, 5), batches(3, 2)
    for wanted, batch in zip(whole[3:], parts):
        for a, b in zip(wanted, batch):
            np.testing.assert_array_equal(a, b)
    epoch = np.concatenate([labels for _, labels in whole])[:1437]
    np.testing.assert_array_equal(np.bincount(epoch), np.bincount(files[1]["train"][1]))
    assert (epoch != files[1]["train"][1]).mean() > 0.8, "it is shuffled"


def test_it_learns(files, tmp_path):
    """Short form: chance is .1."""
    rows, _ = train(tmp_path, files, "run.train_steps = 60", "run.eval_interval = None", "mnist_tfds.cnn.filters = 8")
    assert rows[-1]["metrics/accuracy"] > 0.7


def test_a_stopped_run_over_a_plain_dataset_goes_on(files, tmp_path, capsys):
    params = ["run.train_data = @mnist_tfds.streamed_train_data", "run.eval_data = None", "mnist_tfds.cnn.filters = 2"]
    params += ["Trainer.compile = 'eager'", "mnist_tfds.streamed_train_data.batch_size = 8"]
    _, whole = train(tmp_path / "whole", files, *params, "run.train_steps = 4")
    train(tmp_path / "parts", files, *params, "run.train_steps = 2")
    capsys.readouterr()
    _, parts = train(tmp_path / "parts", files, *params, "run.train_steps = 4")
    assert "cannot be restored exactly: batches are skipped" in capsys.readouterr().out
    for name in whole:
        np.testing.assert_array_equal(parts[name], whole[name], err_msg=name)


@pytest.mark.slow
def test_full_result_over_three_seeds(files, tmp_path):
    for seed in range(3):
        rows, _ = train(
            tmp_path / str(seed), files, f"run.seed = {seed}", "run.train_steps = 600", "run.eval_interval = 300"
        )
        assert rows[-1]["metrics/accuracy"] >= 0.97
