"""configs/gan_ring: two losses and two optimizers in one step, and noise that resumes exactly."""

import importlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.runs import arrays_of, read_checkpoint, read_rows, run_config
from trainer import OptimizerGroup
from trainer.replicas.distribution import make_strategy


@pytest.fixture
def gan_ring():
    return importlib.import_module("gan_ring")


def train(folder, *params):
    """Runs the shipped config; returns ([validation rows], {name: array} of the last checkpoint)."""
    run_config("gan_ring", folder, *params)
    return read_rows(folder, "validation"), read_checkpoint(folder)


def make(gan_ring, strategy=None, **of_generator):
    """A small GANTrainer in Python; returns it with its iterator."""
    keras.utils.set_random_seed(0)
    with (strategy or tf.distribute.get_strategy()).scope():
        trainer = gan_ring.GANTrainer(
            generator=gan_ring.perceptron(2, "relu", units=(16,)),
            discriminator=gan_ring.perceptron(1, "tanh", units=(16,)),
            optimizers=[
                OptimizerGroup("discriminator/.*", ["discriminator"], keras.optimizers.SGD(0.1), name="discriminator"),
                OptimizerGroup(
                    "generator/.*", ["generator"], keras.optimizers.SGD(0.1), name="generator", **of_generator
                ),
            ],
        )
    return trainer, iter(trainer.distribute(gan_ring.train_data(batch_size=32)))


def values(trainer):
    return arrays_of(trainer.trainable_variables)


def test_points_lie_on_the_ring_and_batches_depend_on_the_step_alone(gan_ring):
    source = gan_ring.train_data(batch_size=512)
    batches = list(source.batches(0).take(6))
    points = batches[0]["points"].numpy()
    distances = np.linalg.norm(points[:, None] - gan_ring.CENTRES, axis=-1).min(1)
    assert 0.9 < np.sqrt((distances**2).mean() / 2) / gan_ring.DEVIATION < 1.1
    np.testing.assert_allclose(np.linalg.norm(gan_ring.CENTRES, axis=1), 2, rtol=1e-6)
    chunk = next(iter(source.batches(4, chunk=2)))
    for name in ("points", "noise"):
        np.testing.assert_array_equal(next(iter(source.batches(4)))[name], batches[4][name])
        np.testing.assert_array_equal(chunk[name][1], batches[5][name])
        assert (batches[4][name].numpy() != batches[5][name].numpy()).all()
    np.testing.assert_allclose(batches[0]["noise"].numpy().std(), 1, atol=0.05)


def test_the_held_out_batch_is_one_and_always_the_same(gan_ring):
    first, again = (list(gan_ring.eval_data(examples=10).batches()) for _ in range(2))
    assert len(first) == 1
    np.testing.assert_array_equal(first[0]["noise"], again[0]["noise"])


def test_coverage_counts_modes_and_close_points(gan_ring):
    coverage = gan_ring.Coverage()
    # 100 points: 60 at one mode, 39 at the next, 1 beyond `CLOSE` of a third.
    third = gan_ring.CENTRES[2:3] + [[0.0, 1.01 * gan_ring.CLOSE]]
    points = np.concatenate([gan_ring.CENTRES[[0] * 60 + [1] * 39], third]).astype("float32")
    coverage.update_state(tf.constant(points))
    assert {name: float(value) for name, value in coverage.result().items()} == pytest.approx(
        {"modes": 2, "close": 0.99}
    )
    coverage.update_state(tf.constant(gan_ring.CENTRES[2:4]))  # 1 of 102 each: below 1 %
    assert float(coverage.result()["modes"]) == 2


@pytest.mark.parametrize("sequential", [False, True])
def test_each_loss_moves_its_own_part_only(gan_ring, sequential):
    trainer, iterator = make(gan_ring, sequential=sequential, start=2)
    before = values(trainer)
    trainer.train(iterator, 2)
    middle = values(trainer)
    trainer.train(iterator, 1)
    after = values(trainer)
    for name in before:
        waits = name.startswith("generator/")
        assert np.array_equal(before[name], middle[name]) == waits, name
        assert not np.array_equal(middle[name], after[name]), name


def test_a_joint_step_is_the_one_written_by_hand(gan_ring):
    trainer, iterator = make(gan_ring)
    before = values(trainer)
    batch = next(iter(gan_ring.train_data(batch_size=32).batches()))
    with tf.GradientTape(persistent=True) as tape:
        losses, _ = trainer.compute_losses(batch, training=True)
        objectives = {name: tf.reduce_mean(loss) for name, loss in losses.items()}
    expected = {}
    for name, variable in trainer.trainable_variables.items():
        expected[name] = before[name] - 0.1 * tape.gradient(objectives[name.split("/")[0]], variable.value)
    trainer.train(iterator, 1)
    for name, value in values(trainer).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-6, err_msg=name)


def test_one_and_two_replicas_train_alike(gan_ring):
    """The noise comes with the batch: replicas draw none of their own."""
    ends = []
    for strategy in (make_strategy("default"), make_strategy("mirrored")):
        trainer, iterator = make(gan_ring, strategy, sequential=True)
        metrics = trainer.train(iterator, 20)
        ends.append({**values(trainer), "close": metrics["metrics/close"], "loss": metrics["loss"]})
    for name in ends[0]:
        np.testing.assert_allclose(ends[0][name], ends[1][name], atol=2e-6, err_msg=name)


def test_it_learns_and_draws(tmp_path):
    """Short form: untrained, no mode is reached and nothing is close."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    params = ["STEPS = 800", "run.eval_interval = 400", "gan_ring.DrawPoints.every = 400"]
    rows, _ = train(tmp_path, *params)
    assert rows[-1]["metrics/modes"] >= 4 and rows[-1]["metrics/close"] > 0.08
    events = EventAccumulator(str(tmp_path / "train")).Reload()
    pictures = events.Tensors("points")
    assert [picture.step for picture in pictures] == [400, 800]
    image = tf.io.decode_png(pictures[1].tensor_proto.string_val[2]).numpy()
    assert image.shape == (400, 400, 4) and image.std() > 5


def test_untrained_it_reaches_no_mode(gan_ring):
    trainer, _ = make(gan_ring)
    metrics = trainer.evaluate(gan_ring.eval_data())
    assert metrics["metrics/modes"] == 0 and metrics["metrics/close"] < 0.05


def test_a_stopped_run_goes_on_as_if_it_had_not(tmp_path):
    quick = ["run.eval_interval = None", "run.hooks = []"]
    _, whole = train(tmp_path / "whole", "run.train_steps = 40", *quick)
    train(tmp_path / "parts", "run.train_steps = 15", *quick)
    _, parts = train(tmp_path / "parts", "run.train_steps = 40", *quick)
    assert set(whole) == set(parts) and whole["global_step"] == 40
    for name in whole:
        np.testing.assert_array_equal(whole[name], parts[name], err_msg=name)


@pytest.mark.slow
def test_full_result_over_three_seeds(tmp_path):
    for seed in range(3):
        rows, _ = train(tmp_path / str(seed), f"run.seed = {seed}")
        assert rows[-1]["metrics/modes"] == 8 and rows[-1]["metrics/close"] >= 0.80
