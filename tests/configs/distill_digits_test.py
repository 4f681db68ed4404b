"""configs/distill_digits: a frozen teacher whose weights come from another run."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.configs.plain_loops import assert_like_the_plain_loop, gradients, load_config, run
from tests.runs import read_checkpoint, read_last_rows, run_config

distill = load_config("distill_digits")
RENAME = r'init_from.rename = {"(.*)": "teacher/\\1"}'


def plain(trainer, batches):
    """The loop by hand: crossentropy of softened probabilities, with its factor T^2."""
    student, teacher, temperature, alpha = trainer.model, trainer.teacher, trainer.temperature, trainer.alpha
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(student.trainable_variables)
    of_labels = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    divergence = keras.losses.KLDivergence()

    def step(batch):
        images, labels = batch
        soft = tf.nn.softmax(teacher(images) / temperature)
        with tf.GradientTape() as tape:
            logits = student(images)
            distance = temperature**2 * divergence(soft, tf.nn.softmax(logits / temperature))
            loss = alpha * distance + (1 - alpha) * of_labels(labels, logits)
        optimizer.apply_gradients(gradients(tape, loss, student.trainable_variables))
        return {"losses/distill": loss}

    return run(step, batches)


def test_it_is_the_plain_loop_on_one_and_two_replicas_and_resumes():
    def make():
        student, teacher = distill.classifier(units=(4,)), distill.classifier(units=(6,))
        return distill.DistillTrainer(student, teacher, optimizers=keras.optimizers.SGD(0.1), frozen=["teacher/.*"])

    assert_like_the_plain_loop(make, distill.train_data(batch_size=15), plain)


def test_the_teacher_is_that_of_the_run(tmp_path):
    short = ["run.train_steps = 2", "run.eval_data = None"]
    teacher = read_checkpoint(run_config("distill_digits_teacher", tmp_path / "teacher", *short))
    student = read_checkpoint(
        run_config("distill_digits", tmp_path / "student", RENAME, *short, init_from=tmp_path / "teacher")
    )
    weights = [name for name in student if name.startswith("teacher/")]
    assert len(weights) == 6
    for name in weights:
        np.testing.assert_array_equal(student[name], teacher[name.removeprefix("teacher/")], err_msg=name)


@pytest.mark.slow
def test_a_student_with_a_teacher_is_better(tmp_path):
    run_config("distill_digits_teacher", tmp_path / "teacher")
    found = []
    for alpha in (0.0, 0.9):
        folder, param = tmp_path / str(alpha), f"distill_digits.DistillTrainer.alpha = {alpha}"
        run_config("distill_digits", folder, RENAME, param, init_from=tmp_path / "teacher")
        found.append(read_last_rows(folder)["validation"]["metrics/accuracy"])
    assert found[1] > found[0] > 0.8
