"""VICReg and Barlow Twins against loops in NumPy and values by hand."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import losses

SQUARE = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])  # no covariance, deviations of sqrt(4 / 3)


def _vic_reg_loop(first, second, invariance, variance, covariance):
    n, d = first.shape
    values = invariance * np.mean((first - second) ** 2, 1)
    for z in (first, second):
        c = np.cov(z.T, ddof=1).reshape(d, d) if n > 1 else np.zeros((d, d))
        values += variance / 2 * np.mean([max(0, 1 - np.sqrt(c[j, j] + 1e-4)) for j in range(d)])
        values += covariance / d * sum(c[i, j] ** 2 for i in range(d) for j in range(d) if i != j)
    return values


def _barlow_loop(first, second, redundancy):
    (n, d), total = first.shape, 0.0
    for i in range(d):
        for j in range(d):
            a, b = first[:, i] - first[:, i].mean(), second[:, j] - second[:, j].mean()
            c = (a @ b / n) / np.sqrt((a @ a / n + 1e-5) * (b @ b / n + 1e-5))
            total += (1 - c) ** 2 if i == j else redundancy * c**2
    return np.full(n, total)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.floats(0, 30), st.integers(0, 2**31))
def test_against_loops(n, d, weight, seed):
    first, second = np.random.default_rng(seed).normal(size=(2, n, d)) * 0.8
    wanted = _vic_reg_loop(first, second, weight, 2.0, 3.0)
    np.testing.assert_allclose(losses.vic_reg(first, second, weight, 2.0, 3.0), wanted, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(
        losses.barlow_twins(first, second, weight), _barlow_loop(first, second, weight), rtol=1e-9, atol=1e-9
    )


def test_what_they_ask_for_costs_nothing():
    """Equal views with deviations of 1 or more and features that know nothing of each other; a shift is no matter."""
    np.testing.assert_array_equal(losses.vic_reg(SQUARE, SQUARE), np.zeros(4))
    np.testing.assert_allclose(losses.barlow_twins(SQUARE, SQUARE + 7), np.zeros(4), atol=1e-9)


def test_by_hand():
    moved = SQUARE + [1, 0]
    np.testing.assert_allclose(losses.vic_reg(SQUARE, moved, 25.0), np.full(4, 25 * 1 / 2))
    # Half as wide: deviations of sqrt(1 / 3), in one of two views. One feature twice: two covariances of 4 / 3.
    narrow = 25 * (1 - np.sqrt(1 / 3 + 1e-4)) / 2
    np.testing.assert_allclose(losses.vic_reg(SQUARE, SQUARE / 2, invariance=0.0), np.full(4, narrow))
    twice = SQUARE[:, [0, 0]]
    np.testing.assert_allclose(losses.vic_reg(twice, SQUARE, invariance=0.0), np.full(4, 2 * (4 / 3) ** 2 / 2))
    np.testing.assert_allclose(losses.barlow_twins(twice, twice, 0.3), np.full(4, 0.3 * 2), rtol=1e-4)


@pytest.mark.parametrize("rows", [1, 3], ids=["one example", "all alike"])
def test_a_collapsed_batch_has_a_value_and_a_gradient(rows):
    z = tf.fill([rows, 2], 3.0)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(z)
        vic_reg, barlow = losses.vic_reg(z, z), losses.barlow_twins(z, z)
    np.testing.assert_allclose(vic_reg, np.full(rows, 25 * (1 - 0.01)), rtol=1e-6)  # deviations of sqrt(1e-4)
    np.testing.assert_allclose(barlow, np.full(rows, 2.0))
    for values in (vic_reg, barlow):
        assert np.isfinite(tape.gradient(values, z)).all()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: losses.VICReg(variance=-1), "`variance` must be >= 0.0, got -1"),
        (lambda: losses.BarlowTwins(-0.1), "`redundancy` must be >= 0.0, got -0.1"),
        (lambda: losses.vic_reg(np.zeros((2, 3)), np.zeros((2, 4))), r"one shape, got \(2, 3\) and \(2, 4\)"),
        (lambda: losses.barlow_twins(np.zeros(3), np.zeros(3)), "`first` must be .B, D."),
        (lambda: losses.VICReg()(np.zeros(2), np.zeros((2, 3))), "`predictions` must be .B, 2, D."),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
