"""Distillation: a student learns from a teacher's probabilities and from the labels."""

import keras
import tensorflow as tf

from losses.base import ClassLoss, check_positive, check_range, check_scores, expect, to_float


def distill(
    labels: tf.Tensor,
    student_logits: tf.Tensor,
    teacher_logits: tf.Tensor,
    temperature: float = 2.0,
    alpha: float = 0.5,
) -> tf.Tensor:
    """Returns alpha T^2 KL(p_teacher^T || p_student^T) + (1 - alpha) CE(labels, p_student).

    Hinton et al. 2015, 1503.02531. p^T is the softmax of logits / T. The factor T^2 keeps the size of the gradient:
    for large T the first term tends to half the squared distance of the centred logits, divided by C.

    Args:
        labels: class ids [B, ...] or [B, ..., 1], or class probabilities [B, ..., C].
        student_logits: float [B, ..., C].
        teacher_logits: float [B, ..., C]; no gradient flows to them.
        temperature: number > 0, T.
        alpha: in [0, 1], weight of the teacher's term.

    Returns:
        float [B, ...]; alpha = 1 and equal logits give 0.

    Raises:
        ValueError: if the shapes of student, teacher and labels do not match.
    """
    _check(temperature, alpha)
    student = to_float(student_logits)
    check_scores("student_logits", student)
    teacher = tf.stop_gradient(tf.cast(tf.convert_to_tensor(teacher_logits), student.dtype))
    if teacher.shape.rank != student.shape.rank or not teacher.shape.is_compatible_with(student.shape):
        raise ValueError(
            f"`teacher_logits` of shape {teacher.shape} must have the shape of `student_logits`, {student.shape}. "
            "Both need the same classes in the same order."
        )
    log_teacher, log_student = (tf.nn.log_softmax(logits / temperature) for logits in (teacher, student))
    probable = tf.exp(log_teacher)
    divergence = tf.where(probable > 0, log_teacher - log_student, 0)  # a class that both exclude is 0 times inf - inf
    soft = temperature**2 * tf.reduce_sum(probable * divergence, -1)
    return alpha * soft + (1 - alpha) * expect(labels, tf.negative, tf.nn.log_softmax(student))


def _check(temperature, alpha):
    check_positive("temperature", temperature)
    check_range("alpha", alpha, 0.0, 1.0)


@keras.saving.register_keras_serializable(package="gradloom")
class Distillation(ClassLoss):
    """`distill` as a Keras loss on predictions [B, ..., 2, C], the student's and the teacher's logits."""

    def __init__(
        self,
        temperature: float = 2.0,
        alpha: float = 0.5,
        reduction="sum_over_batch_size",
        name="distillation",
        dtype=None,
    ):
        _check(temperature, alpha)
        super().__init__(_of_both, {"temperature": temperature, "alpha": alpha}, name, reduction, dtype)


def _of_both(labels, predictions, **arguments):
    predictions = tf.convert_to_tensor(predictions)
    if predictions.shape.rank is None or predictions.shape.rank < 3 or predictions.shape[-2] != 2:
        raise ValueError(
            "`predictions` must be [B, ..., 2, C], the student's and the teacher's logits, got the shape "
            f"{predictions.shape}. Stack them: keras.ops.stack([student, teacher], axis=-2)."
        )
    return distill(labels, *tf.unstack(predictions, 2, -2), **arguments)
