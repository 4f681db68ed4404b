"""configs/siamese: two inputs, one encoder, three outputs, and everything about them by name."""

import importlib

import numpy as np
import pytest
import tensorflow as tf

from tests.runs import read_checkpoint, read_last_rows, run_config

OUTPUTS = ("left", "right", "same")


@pytest.fixture
def siamese():
    return importlib.import_module("siamese")


def train(folder, *params):
    """Runs the shipped config; returns ({split: last row}, {name: array} of the last checkpoint)."""
    run_config("siamese", folder, *params)
    return read_last_rows(folder), read_checkpoint(folder)


def test_half_of_the_pairs_are_alike_and_labels_are_true(siamese):
    (images, labels), _ = siamese.load()
    names = {image.tobytes(): label for image, label in zip(images, labels)}
    inputs, targets = siamese.pairs(images, labels, partners=4, seed=0)
    assert len(targets["same"]) == 4 * 1437 and targets["same"].shape[1:] == (1,)
    for side in ("left", "right"):
        np.testing.assert_array_equal(targets[side], [names[image.tobytes()] for image in inputs[side]])
    np.testing.assert_array_equal(targets["same"][:, 0], targets["left"] == targets["right"])
    assert targets["same"].mean() == 0.5
    assert np.bincount(targets["right"]).min() > 0.08 * len(targets["right"])
    again = siamese.pairs(images, labels, partners=4, seed=0)
    tf.nest.map_structure(np.testing.assert_array_equal, (inputs, targets), again)
    assert (siamese.pairs(images, labels, partners=4, seed=1)[1]["right"] != targets["right"]).any()


def test_no_held_out_image_is_in_a_training_pair(siamese):
    (train_x, _), (test_x, _) = siamese.load()
    assert not {x.tobytes() for x in train_x} & {x.tobytes() for x in test_x}
    held_out = {x.tobytes() for x in test_x}
    (inputs, _) = next(iter(siamese.eval_data().batches()))
    assert {x.tobytes() for x in inputs["right"].numpy()} <= held_out
    (inputs, _) = next(iter(siamese.train_data(batch_size=2_000).batches()))
    assert not {x.tobytes() for x in inputs["right"].numpy()} & held_out


def test_the_encoder_is_shared_and_the_order_of_a_pair_is_no_matter(siamese):
    model = siamese.siamese(filters=4, features=8)
    names = [variable.path for variable in model.trainable_variables]
    assert sum("encoder" in name for name in names) == 6 and len(names) == 6 + 3 * 2
    (inputs, _) = next(iter(siamese.eval_data(batch_size=5).batches()))
    outputs, swapped = model(inputs), model({"left": inputs["right"], "right": inputs["left"]})
    assert {name: tuple(output.shape) for name, output in outputs.items()} == {
        "left": (5, 10),
        "right": (5, 10),
        "same": (5, 1),
    }
    np.testing.assert_allclose(outputs["same"], swapped["same"], atol=1e-6)
    np.testing.assert_allclose(outputs["left"], swapped["right"], atol=1e-6)


def test_it_learns_all_three(tmp_path):
    """Short form: chance is .1 for the classes, .5 for the comparison."""
    last, _ = train(tmp_path, "run.train_steps = 200", "run.eval_interval = None")
    for split in ("train", "validation"):
        assert {f"losses/{name}" for name in OUTPUTS} <= set(last[split])
        assert {f"metrics/{name}_accuracy" for name in OUTPUTS} <= set(last[split])
    row = last["validation"]
    assert (
        min(row["metrics/left_accuracy"], row["metrics/right_accuracy"]) > 0.85 and row["metrics/same_accuracy"] > 0.8
    )
    total = 0.5 * row["losses/left"] + 0.5 * row["losses/right"] + row["losses/same"]
    assert row["loss"] == pytest.approx(total, rel=1e-5)


def test_a_weight_of_0_leaves_a_head_as_it_was(tmp_path):
    quick = [
        "run.eval_data = None",
        "Trainer.compile = 'eager'",
        "run.steps_per_loop = 1",
        "run.checkpoint_interval = 1",
    ]
    params = [*quick, "main/OptimizerGroup.losses = {'left': 0.0, 'right': 0.0, 'same': 1.0}"]
    _, first = train(tmp_path, *params, "run.train_steps = 1")
    _, second = train(tmp_path, *params, "run.train_steps = 2")
    for name in [name for name in first if name.endswith("/kernel") and not name.startswith("optimizers/")]:
        assert (first[name] == second[name]).all() == name.startswith("class/"), name


@pytest.mark.slow
def test_full_result_over_three_seeds(tmp_path):
    for seed in range(3):
        row = train(tmp_path / str(seed), f"run.seed = {seed}")[0]["validation"]
        assert (row["metrics/left_accuracy"] + row["metrics/right_accuracy"]) / 2 >= 0.97
        assert row["metrics/same_accuracy"] >= 0.92
