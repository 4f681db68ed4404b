"""configs/ragged_docs: strings to ragged ids in the pipeline, and one graph for texts of any length."""

import importlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.runs import arrays_of, read_rows, run_config
from trainer import Trainer, load
from trainer.replicas.distribution import make_strategy


@pytest.fixture
def ragged_docs():
    return importlib.import_module("ragged_docs")


def train(folder, *params):
    """Runs the shipped config; returns the last validation row."""
    return read_rows(run_config("ragged_docs", folder, *params), "validation")[-1]


def test_no_text_comes_twice_and_all_modules_are_there(ragged_docs):
    (train_x, train_y), (test_x, test_y) = ragged_docs.load()
    texts = [*train_x, *test_x]
    assert len(set(texts)) == len(texts) > 1_000 and len(test_x) == round(0.2 * len(texts))
    assert all(6 <= len(text.split()) <= 80 and "\n" not in text for text in texts)
    for labels in (train_y, test_y):
        assert set(labels) == set(range(len(ragged_docs.MODULES)))
        assert np.bincount(labels).max() < 0.6 * len(labels), "the commonest module is no answer"
    again = ragged_docs.load()
    np.testing.assert_array_equal(again[0][0], train_x)


def test_paragraphs_are_those_of_functions_classes_and_methods(ragged_docs):
    found = list(ragged_docs.paragraphs(np.fft))
    assert "Compute the one-dimensional discrete Fourier Transform." in found
    assert any("Draw samples" in text for text in ragged_docs.paragraphs(np.random)), "of a method of a class"


def test_words_become_ids_that_depend_on_nothing_but_the_word(ragged_docs):
    ids = ragged_docs.hash_words(tf.constant(["One, two. (ONE)", "", "two"]), buckets=1_000)
    assert ids.dtype == tf.int64 and ids.row_lengths().numpy().tolist() == [3, 0, 1]
    first, second = ids[0].numpy(), ids[2].numpy()
    assert first[0] == first[2] != first[1] == second[0] and 0 <= first.min() <= first.max() < 1_000


def test_batches_depend_on_the_step_alone(ragged_docs):
    source = ragged_docs.train_data(batch_size=16)
    assert source.exact and source.infinite and source.element_spec[0].ragged_rank == 1
    batches = list(source.batches(0).take(4))
    (ids, labels), wanted = next(iter(source.batches(3))), batches[3]
    assert ids.to_list() == wanted[0].to_list()
    np.testing.assert_array_equal(labels, wanted[1])
    assert len({ids.bounding_shape(1).numpy() for ids, _ in batches}) > 1, "the longest text differs"


class Counting(Trainer):
    """Counts how often it is traced."""

    traces = 0

    def compute_losses(self, batch, training):
        self.traces += 1
        return super().compute_losses(batch, training)


def test_texts_of_any_length_are_one_graph_and_two_replicas_train_as_one(ragged_docs):
    """Traced to build, to find what an evaluation reports, and once per replica to train and to evaluate."""
    found = []
    for strategy, most in (("default", 4), ("mirrored", 6)):
        keras.utils.set_random_seed(1)
        with make_strategy(strategy).scope():
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model = ragged_docs.bag_of_words(size=4, dropout=0.0)
            trainer = Counting(model, loss, ["accuracy"], keras.optimizers.SGD(0.5))
        iterator = iter(trainer.distribute(ragged_docs.train_data(batch_size=15)))
        reports = [trainer.train(iterator, 3) for _ in range(2)]
        reports += [trainer.evaluate(ragged_docs.eval_data(batch_size=500)) for _ in range(2)]  # 500 and 305 texts
        assert trainer.traces <= most
        found.append([*reports, arrays_of(trainer.variables)])
    for one, two in zip(*found):
        for name in one:
            np.testing.assert_allclose(two[name], one[name], rtol=2e-5, atol=2e-6, err_msg=name)


def test_it_learns_and_comes_back(tmp_path, ragged_docs):
    """Short form: the commonest module has .37. A loaded model takes texts as ragged ids."""
    row = train(tmp_path, "run.train_steps = 60", "run.eval_interval = None", "BUCKETS = 2_000")
    assert row["metrics/accuracy"] > 0.75
    model, (texts, labels) = load(str(tmp_path)).model, ragged_docs.load()[1]
    logits = model(ragged_docs.hash_words(texts, buckets=2_000))
    assert np.mean(np.argmax(logits, -1) == labels) == pytest.approx(row["metrics/accuracy"], abs=1e-3)


@pytest.mark.slow
def test_full_result_over_three_seeds(tmp_path):
    """Of the NumPy at hand; .93 or more with 2.4."""
    for seed in range(3):
        assert train(tmp_path / str(seed), f"run.seed = {seed}")["metrics/accuracy"] >= 0.88
