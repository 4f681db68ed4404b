"""Schedule-free optimizers against the paper's three sequences in NumPy, and the swap between y and x."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from optimizers import OptimizerGroup
from optimizers.schedule_free import ScheduleFreeAdamW, ScheduleFreeSGD
from trainer.replicas.distribution import make_strategy


def _paper(w, gradient, steps, rate, beta, decay=0.0, warmup=0, beta_2=None, epsilon=1e-8):
    """Algorithm 1 of 2405.15682 (beta_2 None: plain gradient descent); returns (y, x, z) after `steps` updates."""
    x = z = w
    v, total = np.zeros_like(w), 0.0
    for t in range(1, steps + 1):
        y = (1 - beta) * z + beta * x
        g, gamma = gradient(y), rate * (min(1, t / warmup) if warmup else 1)
        direction = g
        if beta_2 is not None:
            v = beta_2 * v + (1 - beta_2) * g**2
            gamma *= np.sqrt(1 - beta_2**t)
            direction = g / (np.sqrt(v) + epsilon)
        z = z - gamma * (direction + decay * y)
        total += gamma**2
        x = (1 - gamma**2 / total) * x + gamma**2 / total * z
    return (1 - beta) * z + beta * x, x, z


START = np.random.default_rng(0).normal(size=(4, 3))
CURVATURE = np.linspace(0.1, 2, 12).reshape(4, 3)


def _gradient(y):
    return CURVATURE * (y - 1)


def _train(optimizer, steps, variable=None):
    v = variable if variable is not None else keras.Variable(START.astype("float32"))
    optimizer.build([v])
    step = tf.function(lambda: optimizer.apply([_gradient(v.value)]))
    for _ in range(steps):
        step()
    return v


@pytest.mark.parametrize("decay, warmup", [(0.0, 0), (0.1, 5)])
def test_sgd_is_the_papers(decay, warmup):
    optimizer = ScheduleFreeSGD(0.5, 0.8, decay, warmup)
    v = _train(optimizer, 15)
    y, x, _ = _paper(START, _gradient, 15, 0.5, 0.8, decay, warmup)
    np.testing.assert_allclose(v.numpy(), y, rtol=1e-5, atol=1e-6)
    optimizer.swap_to_eval([v])
    np.testing.assert_allclose(v.numpy(), x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay, warmup", [(0.0, 0), (0.1, 5)])
def test_adamw_is_the_papers(decay, warmup):
    optimizer = ScheduleFreeAdamW(0.1, 0.9, 0.99, weight_decay=decay, warmup_steps=warmup)
    v = _train(optimizer, 15)
    y, x, _ = _paper(START, _gradient, 15, 0.1, 0.9, decay, warmup, beta_2=0.99)
    np.testing.assert_allclose(v.numpy(), y, rtol=1e-5, atol=1e-5)
    optimizer.swap_to_eval([v])
    np.testing.assert_allclose(v.numpy(), x, rtol=1e-5, atol=1e-5)


def test_a_rate_that_changes_weighs_the_average_by_its_square():
    rates = [0.1, 0.3, 0.2]
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0, 1], rates)
    v, optimizer = keras.Variable(0.0), ScheduleFreeSGD(schedule, beta=0.5)
    optimizer.build([v])
    for _ in rates:
        optimizer.apply([tf.constant(1.0)])  # z = -0.1, -0.4, -0.6
    optimizer.swap_to_eval([v])
    wanted = -(0.01 * 0.1 + 0.09 * 0.4 + 0.04 * 0.6) / 0.14
    np.testing.assert_allclose(v.numpy(), wanted, rtol=1e-6)


def test_with_beta_0_the_model_is_plain_gradient_descent_and_x_its_mean():
    v, optimizer = keras.Variable(1.0), ScheduleFreeSGD(0.1, beta=0.0)
    optimizer.build([v])
    for _ in range(3):
        optimizer.apply([v.value])
    np.testing.assert_allclose(v.numpy(), 0.9**3, rtol=1e-6)
    optimizer.swap_to_eval([v])
    np.testing.assert_allclose(v.numpy(), (0.9 + 0.81 + 0.729) / 3, rtol=1e-6)


def test_beta_1_has_an_effect_here_and_none_in_keras():
    """The day that the second half fails, keras.optimizers.ScheduleFreeAdamW may take this one's place."""
    for make, differs in ((ScheduleFreeAdamW, True), (keras.optimizers.ScheduleFreeAdamW, False)):
        # Keras' model stands at the average whatever beta_1 is; where the gradient is taken shows in the sequence.
        low, high = (_train(make(0.1, beta_1=beta), 10).numpy() for beta in (0.5, 0.9))
        assert (np.abs(low - high).max() > 1e-3) == differs


def test_the_average_of_a_noisy_quadratic_beats_the_iterates():
    noise = np.random.default_rng(1).normal(size=(300, 4, 3)).astype("float32")
    v, optimizer = keras.Variable(START.astype("float32")), ScheduleFreeSGD(0.5)
    optimizer.build([v])
    step = tf.function(lambda sample: optimizer.apply([_gradient(v.value) + sample]))
    for sample in noise:
        step(tf.constant(sample))
    z = optimizer._z[0].numpy()
    optimizer.swap_to_eval([v])
    assert np.square(v.numpy() - 1).mean() < 0.1 * np.square(z - 1).mean()


# ---- swaps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("make", [ScheduleFreeSGD, ScheduleFreeAdamW])
def test_a_swap_there_and_back_changes_no_bit_of_the_model_nor_of_what_follows(make, dtype):
    swapped, straight = (make(0.05) for _ in range(2))
    a, b = (keras.Variable(START, dtype=dtype) for _ in range(2))
    for optimizer, v in ((swapped, a), (straight, b)):
        optimizer.build([v])
    for _ in range(4):
        for optimizer, v in ((swapped, a), (straight, b)):
            optimizer.apply([v.value * 2])
        y = a.numpy()
        swapped.swap_to_eval([a])
        swapped.swap_to_eval([a])  # a second time does nothing
        swapped.swap_to_train([a])
        np.testing.assert_array_equal(a.numpy(), y)
    np.testing.assert_array_equal(a.numpy(), b.numpy())
    swapped.swap_to_eval([a])
    assert (a.numpy() != y).any()


def test_before_the_first_update_x_is_the_model_itself():
    v, optimizer = keras.Variable([1.0, 2.0]), ScheduleFreeSGD()
    optimizer.build([v])
    optimizer.swap_to_eval([v])
    np.testing.assert_array_equal(v.numpy(), [1.0, 2.0])
    optimizer.swap_to_train([v])
    np.testing.assert_array_equal(v.numpy(), [1.0, 2.0])


def test_weights_that_are_loaded_after_build_are_where_the_sequences_start():
    v, optimizer = keras.Variable([9.0, 9.0]), ScheduleFreeSGD(0.1)
    optimizer.build([v])
    v.assign([1.0, 2.0])
    optimizer.apply([tf.constant([1.0, 1.0])])
    np.testing.assert_allclose(v.numpy(), [0.9, 1.9], rtol=1e-6)


def test_a_checkpoint_at_x_comes_back_to_y_in_another_process():
    first, second = ScheduleFreeSGD(0.1), ScheduleFreeSGD(0.1)
    v = _train(first, 5)
    y = v.numpy()
    first.swap_to_eval([v])
    again = keras.Variable(v.numpy())
    second.build([again])
    for source, target in zip(first.variables, second.variables, strict=True):
        target.assign(source.numpy())
    second.swap_to_train([again])
    np.testing.assert_allclose(again.numpy(), y, rtol=2e-7)


def test_training_without_swapping_back_costs_one_gradient_only():
    kept, lost = ScheduleFreeSGD(0.1), ScheduleFreeSGD(0.1)
    a, b = _train(kept, 5), _train(lost, 5)
    lost.swap_to_eval([b])
    for optimizer in (kept, lost):
        optimizer.apply([tf.ones([4, 3])])  # the same gradient: then nothing differs
    np.testing.assert_array_equal(a.numpy(), b.numpy())
    lost.swap_to_train([b])  # the swap lies before the last update: y is not put back from there
    np.testing.assert_allclose(b.numpy(), a.numpy(), rtol=2e-7)


def test_swaps_reach_both_replicas():
    strategy = make_strategy("mirrored")
    with strategy.scope():
        v, group = keras.Variable([4.0]), OptimizerGroup(optimizer=ScheduleFreeSGD(0.1, beta=0.5))
        group.build({"v": v})

    @tf.function
    def step():
        strategy.run(lambda: group.apply([v.value], {}))

    for _ in range(3):
        step()
    y = v.numpy()
    _, x, _ = _paper(np.array([4.0]), lambda y: y, 3, 0.1, 0.5)
    group.optimizer.swap_to_eval([v])
    for copy in strategy.experimental_local_results(v.value):
        np.testing.assert_allclose(copy.numpy(), x, rtol=1e-6)
    group.optimizer.swap_to_train([v])
    for copy in strategy.experimental_local_results(v.value):
        np.testing.assert_array_equal(copy.numpy(), y)


def test_fit_ends_at_x():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
    model.compile(ScheduleFreeSGD(0.1, beta=0.5), "mse")
    model.fit(np.ones([4, 1]), np.zeros([4, 1]), batch_size=4, epochs=3, verbose=0)
    _, x, _ = _paper(np.array([1.0]), lambda y: 2 * y, 3, 0.1, 0.5)
    np.testing.assert_allclose(model.get_weights()[0].ravel(), x, rtol=1e-6)


# ---- mistakes ------------------------------------------------------------------------------------------------------


def test_a_constraint_is_refused():
    v = keras.Variable([1.0], name="w")
    v.constraint = keras.constraints.NonNeg()
    with pytest.raises(ValueError, match="cannot train 'w', which has a constraint"):
        ScheduleFreeSGD().build([v])


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: ScheduleFreeSGD(beta=1.5), r"`beta` must be a number in \[0, 1\], got 1.5"),
        (lambda: ScheduleFreeSGD(warmup_steps=-1), "`warmup_steps` must be a whole number >= 0, got -1"),
        (lambda: ScheduleFreeSGD(warmup_steps=0.5), "got 0.5"),
        (lambda: ScheduleFreeAdamW(beta_2=1.0), r"`beta_2` must be a number in \[0, 1\), got 1.0"),
        (lambda: ScheduleFreeAdamW(epsilon=0), "`epsilon` must be"),
        (lambda: ScheduleFreeAdamW(weight_decay=-0.1), "`weight_decay` must be"),
    ],
)
def test_mistakes_are_reported(make, match):
    with pytest.raises(ValueError, match=match):
        make()
