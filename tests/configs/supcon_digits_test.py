"""configs/supcon_digits: a loss over the global batch, a probe of a frozen encoder, then a lower rate for it."""

import json

import numpy as np
import pytest

from tests.runs import read_checkpoint, read_rows, run_config

QUICK = ["run.eval_data = None", "Trainer.compile = 'eager'"]  # a few steps are not worth a graph
START = 60


def train(name, folder, *params, **flags):
    """Runs a shipped config; returns ([validation rows], {name: array} of the last checkpoint)."""
    run_config(name, folder, *params, **flags)
    return read_rows(folder, "validation"), read_checkpoint(folder)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """The run folder, the validation loss and the encoder of a short first phase."""
    folder = tmp_path_factory.mktemp("supcon")
    rows, tensors = train("supcon_digits_pretrain", folder, "run.train_steps = 80", "run.eval_interval = None")
    return folder, rows[-1]["loss"], {key: value for key, value in tensors.items() if key.startswith("encoder/")}


def test_the_first_phase_learns(pretrained):
    """Short form: log 359 = 5.9 where all images are alike, log 35 = 3.56 at best."""
    assert 3.55 < pretrained[1] < 4.2
    assert len(pretrained[2]) == 6


def test_on_two_replicas_images_are_compared_with_those_of_both(tmp_path):
    # An update of Adam is continuous at a gradient of 0 only with a large epsilon.
    short = [*QUICK, "run.train_steps = 2", "run.steps_per_loop = 1", "run.summary_interval = 1", "Adam.epsilon = 1.0"]
    reports, tensors = [], []
    for strategy in ("default", "mirrored"):
        tensors.append(train("supcon_digits_pretrain", tmp_path / strategy, *short, strategy=strategy)[1])
        lines = (tmp_path / strategy / "metrics.jsonl").read_text().splitlines()
        reports.append([[json.loads(line)[tag] for tag in ("loss", "grad_norm/main")] for line in lines])
    assert len(reports[0]) == 2 and reports[0][0][0] > 5, "of 255 others in one batch; of 127 it would be less"
    np.testing.assert_allclose(reports[1], reports[0], rtol=1e-4)
    for name in [name for name in tensors[0] if name.endswith(("/kernel", "/bias"))]:
        np.testing.assert_allclose(tensors[1][name], tensors[0][name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_the_encoders_first_update_is_a_hundredth_of_the_heads(pretrained, tmp_path):
    """Adam's first update equals its rate if the gradient is large compared with epsilon (Kingma & Ba 2015)."""
    folder, _, encoder = pretrained
    params = [*QUICK, "run.train_steps = 1", "encoder/OptimizerGroup.start = 0"]
    _, after = train("supcon_digits", tmp_path, *params, init_from=folder)
    moved = np.concatenate([np.abs(after[name] - value).ravel() for name, value in encoder.items()])
    np.testing.assert_allclose(np.abs(after["head/bias"]), np.full(10, 1e-2), rtol=2e-2)  # it was 0
    assert np.max(moved) == pytest.approx(1e-4, rel=1e-2) and np.median(moved[moved > 0]) == pytest.approx(
        1e-4, rel=1e-2
    )


def test_a_probe_of_the_frozen_encoder_then_both(pretrained, tmp_path):
    folder, _, encoder = pretrained
    short = [f"encoder/OptimizerGroup.start = {START}", "run.eval_interval = None"]
    rows, probe = train("supcon_digits", tmp_path / "probe", *short, f"run.train_steps = {START}", init_from=folder)
    for name, value in encoder.items():
        np.testing.assert_array_equal(value, probe[name], err_msg=f"{name} moved before its group's start")
    assert probe["optimizers/encoder/iteration"] == 0 and probe["optimizers/head/iteration"] == START
    # A probe of an encoder that was never trained, for as long.
    untrained, _ = train("supcon_digits", tmp_path / "untrained", *short, f"run.train_steps = {START}")
    assert (
        rows[-1]["metrics/accuracy"] > 0.85 and rows[-1]["metrics/accuracy"] > untrained[-1]["metrics/accuracy"] + 0.08
    )

    _, both = train("supcon_digits", tmp_path / "probe", *short, f"run.train_steps = {START + 10}", init_from=folder)
    assert both["optimizers/encoder/iteration"] == 10 and both["optimizers/head/iteration"] == START + 10
    assert all(not np.array_equal(both[name], value) for name, value in encoder.items())
    ratio = _size(both, probe, "encoder/") / _size(both, probe, "head/")
    assert 0 < ratio < 10 * 1e-4 / 1e-2, "the encoder's steps are smaller about as much as its rate is"


def _size(after, before, part):
    """Root mean square change of an element: a norm that does not grow with the number of weights."""
    changes = [np.ravel(after[name] - before[name]) for name in before if name.startswith(part)]
    return float(np.sqrt(np.mean(np.square(np.concatenate(changes)))))


@pytest.mark.slow
def test_full_result_over_three_seeds(tmp_path):
    for seed in range(3):
        seeded = f"run.seed = {seed}"
        train("supcon_digits_pretrain", tmp_path / f"first_{seed}", seeded)
        rows, _ = train("supcon_digits", tmp_path / f"second_{seed}", seeded, init_from=tmp_path / f"first_{seed}")
        probe, both = (row["metrics/accuracy"] for row in rows)
        assert probe >= 0.985 and both >= 0.98
