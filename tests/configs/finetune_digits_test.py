"""configs/finetune_digits: weights from another run, an encoder that waits for its start, then trains more slowly."""

import importlib

import numpy as np
import pytest

from tests.runs import read_checkpoint, read_rows, run_config

START, END = 20, 40
SHORT = [f"run.train_steps = {END}", f"encoder/OptimizerGroup.start = {START}", "run.eval_interval = None"]


@pytest.fixture
def finetune_digits():
    return importlib.import_module("finetune_digits")


def train(name, folder, *params, **flags):
    """Runs a shipped config; returns (last validation accuracy, {name: array} of the last checkpoint)."""
    run_config(name, folder, *params, **flags)
    return read_rows(folder, "validation")[-1]["metrics/accuracy"], read_checkpoint(folder)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """The run folder, the accuracy and the tensors of a short first phase."""
    folder = tmp_path_factory.mktemp("pretrained")
    accuracy, tensors = train("finetune_digits_pretrain", folder, "run.train_steps = 60", "run.eval_interval = None")
    return folder, accuracy, tensors


def part(tensors, name):
    return {key: value for key, value in tensors.items() if key.startswith(name)}


def step_size(before, after, name):
    """Root mean square change of an element: a norm that does not grow with the number of weights."""
    changes = [np.ravel(after[key] - before[key]) for key in part(after, name)]
    return float(np.sqrt(np.mean(np.square(np.concatenate(changes)))))


def test_the_phases_share_no_class_and_the_second_has_few_examples(finetune_digits):
    first, second = (0, 1, 2, 3, 4), (5, 6, 7, 8, 9)
    (train_x, train_y), (test_x, test_y) = finetune_digits.load(first)
    assert train_x.shape == (721, 8, 8, 1) and test_x.shape == (180, 8, 8, 1)
    assert set(train_y) == set(test_y) == set(range(5)) and np.abs(np.bincount(test_y) - 36).max() <= 1
    (other_x, _), _ = finetune_digits.load(second)
    assert not {x.tobytes() for x in train_x} & {x.tobytes() for x in other_x}
    _, labels = next(iter(finetune_digits.train_data(second, per_class=10, batch_size=50).batches()))
    np.testing.assert_array_equal(np.bincount(labels), [10] * 5)


def test_the_first_phase_learns(pretrained):
    """Short form: chance is .2."""
    assert pretrained[1] > 0.8


def test_freezing_then_a_lower_rate_then_exact_resume(pretrained, tmp_path, capsys):
    folder, _, source = pretrained

    def second(name, *params):
        return train("finetune_digits", tmp_path / name, *SHORT, *params, init_from=folder)

    # Stopped before the encoder's start ...
    _, frozen = second("parts", f"run.train_steps = {START - 5}")
    assert "as initialized, not in the file: head_56789/kernel, head_56789/bias" in capsys.readouterr().out
    encoder = part(source, "encoder/")
    assert len(encoder) == 6 and not part(frozen, "head_01234")
    for name, value in encoder.items():
        np.testing.assert_array_equal(value, frozen[name], err_msg=f"{name} moved before its group's start")
    assert frozen["head_56789/bias"].any()
    assert frozen["optimizers/encoder/iteration"] == 0 and frozen["optimizers/head/iteration"] == START - 5
    assert not any(value.any() for name, value in frozen.items() if name.startswith("optimizers/encoder/encoder/"))

    # ... and between the start and the end: it goes on from its own checkpoint, not from `init_from`.
    _, middle = second("parts", f"run.train_steps = {START + 10}")
    ratio = step_size(frozen, middle, "encoder/") / step_size(frozen, middle, "head_56789/")
    assert middle["optimizers/encoder/iteration"] == 10
    assert 0 < ratio < 10 * 1e-4 / 1e-2, "the encoder's steps are smaller about as much as its rate is"

    accuracy, parts = second("parts")
    assert accuracy > 0.6, "chance is .2"
    _, whole = second("whole")
    assert set(parts) == set(whole) and whole["global_step"] == END
    for name in whole:
        np.testing.assert_array_equal(parts[name], whole[name], err_msg=name)


@pytest.mark.slow
def test_full_result_over_three_seeds(tmp_path):
    for seed in range(3):
        seeded = f"run.seed = {seed}"
        first, _ = train("finetune_digits_pretrain", tmp_path / f"first_{seed}", seeded)
        second, _ = train("finetune_digits", tmp_path / f"second_{seed}", seeded, init_from=tmp_path / f"first_{seed}")
        assert first >= 0.98 and second >= 0.85
