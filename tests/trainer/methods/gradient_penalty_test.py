"""PenalizedGAN: penalties in closed form for a linear discriminator, a step written out, replicas."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from optimizers import OptimizerGroup
from trainer.data import from_arrays
from trainer.methods import PenalizedGAN
from trainer.replicas.distribution import make_strategy

SGD, L = keras.optimizers.SGD, keras.layers
RNG = np.random.default_rng(0)
BATCHES = {
    "real": RNG.normal(size=(48, 2)).astype(np.float32),
    "noise": RNG.normal(size=(48, 3)).astype(np.float32),
    "epsilon": RNG.uniform(size=48).astype(np.float32),
}


def groups(every=1):
    return [
        OptimizerGroup("discriminator/.*", ["discriminator", "penalty"], SGD(0.1), name="discriminator"),
        OptimizerGroup("generator/.*", ["generator"], SGD(0.1), name="generator", every=every),
    ]


def linear(outputs, kernel=None):
    initializer = "glorot_uniform" if kernel is None else keras.initializers.Constant(kernel)
    return keras.Sequential([L.Dense(outputs, use_bias=False, kernel_initializer=initializer)])


def network(outputs):
    return keras.Sequential([L.Dense(8, "tanh"), L.Dense(outputs)])


def make(generator, discriminator, strategy="default", every=1, size=8, **arguments):
    keras.utils.set_random_seed(0)
    with make_strategy(strategy).scope():
        trainer = PenalizedGAN(generator(), discriminator(), optimizers=groups(every), **arguments)
    return trainer, iter(trainer.distribute(from_arrays(BATCHES, size, shuffle=False)))


@pytest.mark.parametrize(
    "penalty, weight, expected",
    [
        ("wgan_gp", 10.0, 10 * (5.0 - 1) ** 2),
        ("one_sided", 2.0, 2 * (5.0 - 1) ** 2),
        ("r1", 10.0, 10 / 2 * 25.0),
    ],
)
def test_a_linear_discriminator_in_closed_form(penalty, weight, expected):
    """D = w . x with w = (3, 4): (|w| - 1)^2, and R1 is gamma / 2 |w|^2."""
    trainer, iterator = make(
        lambda: linear(2), lambda: linear(1, [[3.0], [4.0]]), penalty=penalty, penalty_weight=weight, compile="eager"
    )
    fake = BATCHES["noise"][:8] @ trainer_kernel(trainer, "generator")
    metrics = trainer.train(iterator, 1)
    w = np.array([3.0, 4.0])
    assert metrics["losses/penalty"] == pytest.approx(expected, rel=1e-5)
    assert metrics["losses/discriminator"] == pytest.approx(np.mean(fake @ w - BATCHES["real"][:8] @ w), rel=1e-5)
    assert metrics["losses/generator"] == pytest.approx(-np.mean(fake @ w), rel=1e-5)
    # The penalty's gradient: 2 lambda (|w| - 1) w / |w|, and gamma w.
    of_penalty = weight * w if penalty == "r1" else weight * 2 * (5 - 1) * w / 5
    moved = w - 0.1 * (np.mean(fake - BATCHES["real"][:8], 0) + of_penalty)
    np.testing.assert_allclose(trainer_kernel(trainer, "discriminator")[:, 0], moved, rtol=1e-5)


def trainer_kernel(trainer, model):
    return trainer.variables[f"{model}/dense/kernel"].numpy()


def test_the_penalty_is_taken_between_real_and_generated_points():
    """D = x_1^2 / 2 has the gradient x_1 at the point epsilon real + (1 - epsilon) generated."""

    class Square(keras.Model):
        def __init__(self):
            super().__init__()
            self.w = self.add_weight(name="w", shape=(), initializer="ones")

        def call(self, x):
            return self.w * x[:, :1] ** 2 / 2

    trainer, iterator = make(lambda: linear(2), Square, penalty_weight=1.0, compile="eager")
    fake = BATCHES["noise"][:8] @ trainer_kernel(trainer, "generator")
    epsilon = BATCHES["epsilon"][:8]
    points = epsilon * BATCHES["real"][:8, 0] + (1 - epsilon) * fake[:, 0]
    metrics = trainer.train(iterator, 1)
    assert metrics["losses/penalty"] == pytest.approx(np.mean((np.abs(points) - 1) ** 2), rel=1e-5)


@pytest.mark.parametrize("kind, penalty", [("wgan", "wgan_gp"), pytest.param("ns", "r1", marks=pytest.mark.slow)])
def test_replicas_and_micro_batches_change_nothing(kind, penalty):
    """Batches of 7; epsilon comes with the batch. The generator moves at every second step."""
    runs = []
    for strategy, parts in (("default", 1), ("mirrored", 3)):
        arguments = {"kind": kind, "penalty": penalty, "penalty_weight": 0.3, "micro_batches": parts}
        trainer, iterator = make(lambda: network(2), lambda: network(1), strategy, every=2, size=7, **arguments)
        runs.append((trainer.train(iterator, 6), trainer))
    (metrics, one), (other_metrics, two) = runs
    assert metrics["updates/generator"] == 3 and metrics["updates/discriminator"] == 6
    assert other_metrics == pytest.approx(metrics, rel=2e-5, abs=2e-6)
    for name, v in one.variables.items():
        np.testing.assert_allclose(two.variables[name].numpy(), v.numpy(), atol=2e-6, err_msg=name)


def test_predictions_are_generated_examples():
    trainer, _ = make(lambda: linear(2), lambda: linear(1))
    predicted = trainer.predict(from_arrays(BATCHES, 8, repeat=False))
    np.testing.assert_allclose(predicted, BATCHES["noise"] @ trainer_kernel(trainer, "generator"), atol=1e-6)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"kind": "wgn"}, "`kind` must be one of ns, lsgan, hinge, wgan, got 'wgn'"),
        ({"penalty": "r2"}, "`penalty` must be one of wgan_gp, one_sided, r1, got 'r2'"),
        ({"penalty_weight": -1.0}, "`penalty_weight` must be >= 0, got -1.0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PenalizedGAN(None, None, **arguments)


def test_a_batch_without_epsilon_is_told_what_it_lacks():
    arrays = {name: BATCHES[name] for name in ("real", "noise")}
    with make_strategy("default").scope():
        trainer = PenalizedGAN(linear(2), linear(1), optimizers=groups())
    with pytest.raises(ValueError, match="must be a dict with real, noise, epsilon; it lacks epsilon"):
        trainer.distribute(from_arrays(arrays, 8))
    with make_strategy("default").scope():
        trainer = PenalizedGAN(linear(2), linear(1), penalty="r1", optimizers=groups())
    assert tf.nest.flatten(next(iter(trainer.distribute(from_arrays(arrays, 8)))))  # R1 needs none
