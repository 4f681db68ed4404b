"""configs/fixmatch_digits: two streams of different batch sizes, and a teacher that follows."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.configs.plain_loops import assert_like_the_plain_loop, gradients, load_config, run
from tests.runs import read_last_rows, run_config
from trainer import OptimizerGroup

fixmatch = load_config("fixmatch_digits")
LOSSES = {"labelled": 1.0, "unlabelled": 1.0, "sure": 0.0}


def plain(trainer, batches):
    """The loop by hand, on the models of `trainer`."""
    student, teacher = trainer.model, trainer.teacher
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(student.trainable_variables)
    entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def step(batch):
        images, labels = batch["labelled"]
        weak, strong = batch["unlabelled"]
        probabilities = tf.nn.softmax(teacher(weak))
        chosen = tf.one_hot(tf.argmax(probabilities, 1), 10)
        sure = tf.where(tf.reduce_max(probabilities, 1) < trainer.threshold, 0.0, 1.0)
        with tf.GradientTape() as tape:
            supervised = entropy(labels, student(images))
            logs = tf.nn.log_softmax(student(strong))
            consistent = -tf.reduce_mean(sure * tf.reduce_sum(chosen * logs, 1))
            loss = supervised + consistent
        optimizer.apply_gradients(gradients(tape, loss, student.trainable_variables))
        for slow, fast in zip(teacher.weights, student.weights):
            slow.assign(trainer.momentum * slow + (1 - trainer.momentum) * fast)
        rate = tf.reduce_mean(sure)
        return {"losses/labelled": supervised, "losses/unlabelled": consistent, "losses/sure": rate, "loss": loss}

    return run(step, batches)


def test_it_is_the_plain_loop_on_one_and_two_replicas_and_resumes():
    def make():
        group = OptimizerGroup(losses=LOSSES, optimizer=keras.optimizers.SGD(0.1))
        models = fixmatch.classifier(2), fixmatch.classifier(2)
        return fixmatch.FixMatchTrainer(*models, threshold=0.12, momentum=0.9, optimizers=group)

    assert_like_the_plain_loop(make, fixmatch.train_data(labelled=5, unlabelled=15), plain)


def test_there_are_forty_labels():
    seen = [next(iter(fixmatch.train_data(labelled=40).batches(epoch)))["labelled"][1] for epoch in range(2)]
    for labels in seen:
        np.testing.assert_array_equal(np.bincount(labels), [4] * 10)


@pytest.mark.slow
def test_images_without_labels_help(tmp_path):
    with_them, without = (
        read_last_rows(run_config("fixmatch_digits", tmp_path / str(weight), f"main/OptimizerGroup.losses = {losses}"))[
            "validation"
        ]["metrics/teacher_accuracy"]
        for weight in (1.0, 0.0)
        for losses in [{**LOSSES, "unlabelled": weight}]
    )
    assert with_them > 0.91 and with_them > without + 0.02
