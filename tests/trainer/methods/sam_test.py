"""SAM and ASAM: quadratics in closed form, a plain eager implementation, what the second pass may not leave."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from optimizers import OptimizerGroup, clip_by_global_norm
from tests.runs import arrays_of, train
from trainer import Trainer, add_metric, tap
from trainer.data import from_arrays
from trainer.methods import ASAM, SAM
from trainer.replicas.distribution import make_strategy, replica_values

SGD, L = keras.optimizers.SGD, keras.layers
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(48, 3)).astype(np.float32), RNG.normal(size=(48, 1)).astype(np.float32)
A = np.array([[3.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]], np.float32)
W = np.array([1.0, -2.0, 0.5], np.float32)


class Vector(keras.Model):
    """One trainable vector `w`."""

    def __init__(self, value):
        super().__init__()
        value = np.array(value, np.float32)
        self.w = self.add_weight(name="w", shape=value.shape, initializer=lambda shape, dtype=None: tf.constant(value))

    def call(self, x):
        return x


class Quadratic(keras.Model):
    """Says w A w / 2 for each example."""

    def __init__(self, w=W):
        super().__init__()
        self.vector = Vector(w)

    def call(self, x):
        w = self.vector.w.value
        return x[:, :1] * 0 + tf.reduce_sum(w * tf.linalg.matvec(A, w)) / 2


def value_of(targets, predictions):
    return predictions[:, 0]


def network(dropout=0.0, normalize=True):
    layers = [L.Dense(5, "tanh"), L.Dropout(dropout)] + [
        L.BatchNormalization(synchronized=True, momentum=0.5)
    ] * normalize
    return keras.Sequential([keras.Input((3,)), *layers, L.Dense(1, dtype="float32", kernel_regularizer="l2")])


def fit(method, model, steps, strategy="default", arrays=(X, Y), size=8, **arguments):
    """Trains `steps` steps in order; returns (metrics of the last call, {name: array}, trainer)."""
    keras.utils.set_random_seed(0)
    with make_strategy(strategy).scope():
        arguments = {"loss": "mse", "optimizers": lambda: SGD(0.1), **arguments}
        arguments["optimizers"] = arguments["optimizers"]()
        trainer = method(model=model(), **arguments)
    chunk = steps if trainer.compile == "xla_loop" else None
    metrics = train(trainer, from_arrays(arrays, size, shuffle=False), steps, chunk=chunk)
    return metrics, arrays_of(trainer.variables), trainer


def same(one, two, tolerance=2e-6):
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(one[name], two[name], atol=tolerance, rtol=tolerance, err_msg=name)


# ---- against closed forms and a plain implementation --------------------------------------------------------------


@pytest.mark.parametrize(
    "method, compile", [(SAM, "eager"), (SAM, "graph"), (SAM, "xla_step"), (SAM, "xla_loop"), (ASAM, "eager")]
)
def test_a_quadratic_in_closed_form(method, compile):
    metrics, weights, _ = fit(method, Quadratic, 1, loss=value_of, rho=0.3, compile=compile)
    t, g = np.abs(W) if method is ASAM else np.ones(3), A @ W
    e = 0.3 * t**2 * g / np.linalg.norm(t * g)
    np.testing.assert_allclose(weights["vector/w"], W - 0.1 * A @ (W + e), rtol=1e-6)
    assert metrics["loss"] == pytest.approx(W @ A @ W / 2, rel=1e-6)  # at w, not at w + e
    assert metrics["grad_norm/main"] == pytest.approx(np.linalg.norm(A @ (W + e)), rel=1e-6)  # of what is applied


def by_hand(method, rho, steps):
    """Two passes written out, with dropout's seed and the moving statistics put back."""
    keras.utils.set_random_seed(0)
    model = network(dropout=0.3)
    variables, others = model.trainable_variables, model.non_trainable_variables
    for step in range(steps):
        x, y = (array[8 * step : 8 * step + 8] for array in (X, Y))

        def gradient(x=x, y=y):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(model(x, training=True) - y)) + model.losses[0]
            return tape.gradient(loss, [v.value for v in variables])

        before = [v.numpy() for v in others]
        first = gradient()
        after, weights = [v.numpy() for v in others], [v.numpy() for v in variables]
        t = [np.abs(w) if method is ASAM else np.ones_like(w) for w in weights]
        norm = np.sqrt(sum(np.sum((a * g.numpy()) ** 2) for a, g in zip(t, first)))
        for v, w, a, g in zip(variables, weights, t, first):
            v.assign(w + rho * a**2 * g.numpy() / norm)
        for v, value in zip(others, before):
            v.assign(value)
        second = gradient()
        for v, w, g in zip(variables, weights, second):
            v.assign(w - 0.1 * g.numpy())
        for v, value in zip(others, after):
            v.assign(value)
    return [v.numpy() for v in model.variables]


@pytest.mark.parametrize("method, compile", [(SAM, "graph"), (ASAM, "eager")])
def test_it_equals_a_plain_eager_implementation(method, compile):
    """With dropout and batch normalization: weights, moving statistics and seeds."""
    _, _, trainer = fit(method, lambda: network(dropout=0.3), 4, rho=0.2, compile=compile)
    for ours, theirs in zip(trainer.model.variables, by_hand(method, 0.2, 4), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-6, err_msg=ours.path)


@pytest.mark.slow
@pytest.mark.parametrize("compile", ["xla_step", "xla_loop"])
def test_xla_gives_the_same(compile):
    _, graph, _ = fit(SAM, network, 3, rho=0.2)
    _, xla, _ = fit(SAM, network, 3, rho=0.2, compile=compile)
    same(graph, xla)


def test_a_radius_of_0_is_the_plain_step():
    (metrics, sam, _), (plain_metrics, plain, _) = fit(SAM, network, 4, rho=0), fit(Trainer, network, 4)
    same(sam, plain, 1e-7)
    same(metrics, plain_metrics, 1e-6)


# ---- replicas, micro-batches, groups ------------------------------------------------------------------------------


def clipped():
    return OptimizerGroup(optimizer=keras.optimizers.Adam(0.02), transforms=[clip_by_global_norm(0.3)])


@pytest.mark.parametrize("method, parts", [(ASAM, 1), (SAM, 3)])
def test_replicas_and_micro_batches_change_nothing(method, parts):
    """e is taken from the reduced gradient; batches of 7 do not divide by 2 or 3."""
    arguments = {"size": 7, "optimizers": clipped, "rho": 0.2}
    one, two = (
        fit(method, lambda: network(normalize=parts == 1), 6, strategy, micro_batches=n, **arguments)
        for strategy, n in (("default", 1), ("mirrored", parts))
    )
    same(*({name: value for name, value in run[1].items() if "seed" not in name} for run in (one, two)))
    same(one[0], two[0], 2e-5)
    for name, v in two[2].trainable_variables.items():
        copies = [copy.numpy() for copy in replica_values(make_strategy("mirrored"), v.value)]
        np.testing.assert_array_equal(*copies, err_msg=name)


class Speaking(keras.Model):
    """Reports its weights and looks at its gradient."""

    def __init__(self):
        super().__init__()
        self.vector = Vector(W)

    def call(self, x):
        add_metric(self.vector.w[0], "w0")
        return tf.reduce_sum(tap(x * self.vector.w.value, "product", every=1) ** 2, 1, keepdims=True)


@pytest.mark.parametrize("parts", [1, 2])
def test_what_is_reported_is_of_the_first_pass(parts):
    runs = [fit(method, Speaking, 1, loss=value_of, micro_batches=parts, compile="eager") for method in (Trainer, SAM)]
    (plain, _, _), (sam, _, _) = runs
    assert sam["metrics/w0"] == W[0]
    told = [tag for tag in plain if tag.startswith(("loss", "metrics/", "taps/"))]
    assert any("gradient" in tag for tag in told)
    same({tag: plain[tag] for tag in told}, {tag: sam[tag] for tag in told}, 1e-6)
    assert abs(plain["grad_norm/main"] - sam["grad_norm/main"]) > 1e-3


def test_how_variables_are_split_into_groups_does_not_matter():
    def groups():
        return [
            OptimizerGroup("dense/.*|batch_normalization/.*", optimizer=SGD(0.1), name="lower"),
            OptimizerGroup("dense_1/.*", optimizer=SGD(0.1), name="upper"),
        ]

    (_, one, _), (_, two, _) = fit(SAM, network, 4, rho=0.3), fit(SAM, network, 4, rho=0.3, optimizers=groups)
    same(one, two)


def test_both_passes_drop_the_same_units():
    """The gradient of a linear loss is the mask itself, and powers of two tell which units made up the loss."""

    class Dropped(keras.Model):
        def __init__(self):
            super().__init__()
            self.vector, self.dropout = Vector(2.0 ** np.arange(12)), L.Dropout(0.5, seed=7)

        def call(self, x, training=False):
            mask = self.dropout(tf.ones([12]), training=training)  # 0 or 2
            return x[:, :1] * 0 + tf.reduce_sum(mask * self.vector.w.value)

    metrics, weights, _ = fit(SAM, Dropped, 1, loss=value_of, optimizers=lambda: SGD(0.5))
    dropped = np.array([bit == "0" for bit in reversed(f"{int(metrics['loss'] / 2):012b}")])
    assert 0 < dropped.sum() < 12
    np.testing.assert_array_equal(weights["vector/w"], 2.0 ** np.arange(12) - ~dropped)


def test_repeated_rows_of_an_embedding():
    ids = np.array([[1, 1, 2], [0, 1, 1]] * 4, np.int32)

    def model():
        return keras.Sequential([keras.Input((3,), dtype="int32"), L.Embedding(4, 2), L.Flatten(), L.Dense(1)])

    _, ours, _ = fit(SAM, model, 1, arrays=(ids, Y[:8]), rho=0.5)
    keras.utils.set_random_seed(0)
    reference = model()
    weights = reference.get_weights()

    def gradient():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(reference(ids) - Y[:8]))
        return [
            tf.convert_to_tensor(g).numpy()
            for g in tape.gradient(loss, [v.value for v in reference.trainable_variables])
        ]

    first = gradient()
    norm = np.sqrt(sum(np.sum(g**2) for g in first))
    reference.set_weights([w + 0.5 * g / norm for w, g in zip(weights, first)])
    for (name, our), w, g in zip(ours.items(), weights, gradient()):
        np.testing.assert_allclose(our, w - 0.1 * g, atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(ours["embedding/embeddings"][3], weights[0][3])  # an untouched row


# ---- gradients that are not finite, half precision ----------------------------------------------------------------


class Fragile(keras.Model):
    """A gradient that is infinite at the weights and 0 where they are NaN."""

    def __init__(self):
        super().__init__()
        self.vector, self.normalization = Vector(W), L.BatchNormalization()

    def call(self, x, training=False):
        w = self.vector.w.value
        bad = tf.cond(w[0] < 2, lambda: w * np.inf, lambda: tf.nn.relu(w))
        return tf.reduce_sum(self.normalization(x, training=training) + bad, 1, keepdims=True)


def test_a_bad_example_on_one_replica_changes_nothing_on_any():
    x = X[:8].copy()
    x[5] = np.nan
    _, _, trainer = fit(SAM, lambda: network(dropout=0.3), 1, "mirrored")
    before = {
        name: [c.numpy() for c in replica_values(trainer.strategy, v.value)] for name, v in trainer.variables.items()
    }
    metrics = train(trainer, from_arrays((x, Y[:8]), 8, shuffle=False), 2)
    assert metrics["skipped_steps"] == 2
    for name, v in trainer.variables.items():
        for old, new in zip(before[name], replica_values(trainer.strategy, v.value)):
            np.testing.assert_array_equal(new.numpy(), old, err_msg=name)


@pytest.mark.parametrize("compile", ["eager", "graph"])
def test_a_bad_first_gradient_is_not_hidden_by_a_finite_second_one(compile):
    metrics, weights, _ = fit(SAM, Fragile, 1, loss=value_of, compile=compile)
    assert metrics["skipped_steps"] == 1
    np.testing.assert_array_equal(weights["vector/w"], W)
    np.testing.assert_array_equal(weights["normalization/moving_mean"], np.zeros(3))


def test_float16_with_its_loss_scale():
    runs = []
    for policy in ("float32", "mixed_float16"):
        keras.mixed_precision.set_dtype_policy(policy)
        runs.append(fit(SAM, lambda: network(normalize=False), 4, rho=0.2))
    (full, weights, _), (half, half_weights, trainer) = runs
    assert half["loss_scale"] == 2.0**15 and half["skipped_steps"] == 0
    assert half["grad_norm/main"] == pytest.approx(full["grad_norm/main"], rel=2e-2)
    for name in trainer.trainable_variables:
        np.testing.assert_allclose(half_weights[name], weights[name], atol=5e-3)
    before = arrays_of(trainer.trainable_variables)
    y = Y[:8].copy()
    y[1] = 1e10  # overflows on the way back
    metrics = train(trainer, from_arrays((X[:8], y), 8, shuffle=False), 1)
    assert metrics["loss_scale"] == 2.0**14 and metrics["skipped_steps"] == 0
    for name, v in trainer.trainable_variables.items():
        np.testing.assert_array_equal(v.numpy(), before[name])


# ---- arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [-0.1, float("nan"), float("inf")])
def test_the_radius_must_be_a_number_of_at_least_0(rho):
    with pytest.raises(ValueError, match="`rho` must be a number >= 0, got"):
        SAM(rho=rho)
