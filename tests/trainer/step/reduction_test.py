"""Losses are reduced to means over the global batch."""

import numpy as np
import pytest
import tensorflow as tf

from trainer.step.reduction import make_term

VALUES = np.array([[1.0, 2.0, 6.0], [3.0, 0.0, 0.0]], np.float32)


def test_values_of_any_rank_mean_over_all_elements():
    for values in (VALUES, VALUES[0], VALUES.reshape(2, 3, 1)):
        term = make_term("l", tf.constant(values), tf.constant(2))
        assert not term.own and float(term.value) == values.mean() and float(term.weight) == 2


def test_a_scalar_counts_with_the_examples_and_an_empty_one_with_none():
    assert [float(x) for x in make_term("l", tf.constant(5.0), tf.constant(3))[:2]] == [5.0, 3.0]
    assert float(make_term("l", tf.constant(5.0), tf.constant(0)).weight) == 0.0


def test_values_and_weights_give_sums():
    term = make_term("l", (tf.constant([1.0, 2.0, 4.0]), tf.constant([1.0, 0.0, 0.5])), tf.constant(3))
    assert term.own and (float(term.value), float(term.weight)) == (3.0, 1.5)


def test_weights_of_rows_weigh_each_element_of_the_row():
    term = make_term("l", (tf.constant(VALUES), tf.constant([2.0, 1.0])), tf.constant(2))
    assert (float(term.value), float(term.weight)) == (2 * 9 + 3, 2 * 3 + 3)


def test_integer_and_bool_weights_are_cast():
    term = make_term("l", (tf.constant([1.0, 2.0]), tf.constant([True, False])), tf.constant(2))
    assert (float(term.value), float(term.weight)) == (1.0, 1.0)


def test_no_gradient_flows_into_weights():
    w = tf.Variable([1.0, 2.0])
    with tf.GradientTape() as tape:
        term = make_term("l", (tf.constant([3.0, 4.0]), w), tf.constant(2))
        total = term.value + term.weight
    assert tape.gradient(total, w) is None


def test_padding_has_no_weight():
    term = make_term("l", (tf.constant([3.0]), tf.constant([1.0])), tf.constant(0))
    assert (float(term.value), float(term.weight)) == (0.0, 0.0)
    term = make_term("l", tf.constant([3.0]), tf.constant(0), counted=True)
    assert (float(term.value), float(term.weight)) == (0.0, 0.0)


def test_ragged_values_mean_over_their_elements():
    term = make_term("l", tf.ragged.constant([[1.0, 2.0], [], [6.0]]), tf.constant(3), counted=True)
    assert term.own and (float(term.value), float(term.weight)) == (9.0, 3.0)


@pytest.mark.parametrize("dtype, wide", [("float16", "float32"), ("bfloat16", "float32"), ("float64", "float64")])
def test_half_precision_is_summed_in_float32(dtype, wide):
    # 4096 ones of float16 sum to 2048: it has no odd numbers above.
    term = make_term("l", (tf.ones([4096], dtype), tf.ones([4096], dtype)), tf.constant(4096))
    assert float(term.value) == float(term.weight) == 4096 and term.value.dtype.name == wide


@pytest.mark.parametrize(
    "value, match",
    [
        (tf.constant([1, 2]), "'l' must be of a floating dtype, got int32"),
        ("abc", "'l' must be"),
        (object(), "'l' must be a tensor"),
    ],
)
def test_an_invalid_loss_is_refused_by_name(value, match):
    with pytest.raises(ValueError, match=match):
        make_term("l", value, tf.constant(1))
