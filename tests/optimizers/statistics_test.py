"""Adaptive clipping, centralization, noise and ZClip against NumPy and the papers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from optimizers import OptimizerGroup, adaptive_clip, add_noise, centralize, zclip
from tests.runs import train
from trainer import Trainer
from trainer.data import from_arrays
from trainer.replicas.distribution import make_strategy, replica_values
from trainer.saving.checkpoints import Checkpoints
from trainer.saving.state import copy_state, restore, state_of

RNG = np.random.default_rng(0)


def _apply(transform, gradients, weights):
    variables = [keras.Variable(w) for w in weights]
    if hasattr(transform, "build"):
        transform.build(variables)

    @tf.function
    def apply(*gradients):
        return transform(list(gradients), variables, {}), transform.report() if hasattr(transform, "report") else {}

    return lambda *g: apply(*(tf.constant(x) if isinstance(x, np.ndarray) else x for x in g))


def _unit_norms(w):
    return np.sqrt(np.sum(w**2, axis=tuple(range(w.ndim - 1)), keepdims=True)) if w.ndim > 1 else np.linalg.norm(w)


@pytest.mark.parametrize("shape", [(4, 3), (3, 3, 2, 5), (6,)])
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_adaptive_clip_limits_each_unit_by_its_own_weights(shape, scale):
    """Brock et al. 2021, eq. 3, with eps for weights of zero; a unit is a column or an output channel."""
    weight, gradient = scale * RNG.normal(size=shape).astype(np.float32), RNG.normal(size=shape).astype(np.float32)
    gradient[..., 0] *= 1e-5 if scale else 1e-9  # a unit that stays below its limit
    limit = 0.05 * np.maximum(_unit_norms(weight), 1e-3)
    norm = _unit_norms(gradient)
    wanted = np.where(norm > limit, gradient * limit / np.maximum(norm, 1e-30), gradient)
    (out,), report = _apply(adaptive_clip(0.05), [gradient], [weight])(gradient)
    np.testing.assert_allclose(out, wanted, rtol=1e-5)
    assert float(report["clipped"]) == 1
    np.testing.assert_array_less(_unit_norms(out.numpy()), limit * (1 + 1e-5))


def test_adaptive_clip_of_a_sparse_gradient_is_that_of_the_dense_one():
    weight = RNG.normal(size=(5, 3)).astype(np.float32)
    gradient = tf.IndexedSlices(
        tf.constant(RNG.normal(size=(2, 3)).astype(np.float32)), tf.constant([4, 1]), tf.constant([5, 3])
    )
    apply = _apply(adaptive_clip(0.05), [gradient], [weight])
    (sparse,), _ = apply(gradient)
    (dense,), _ = apply(tf.convert_to_tensor(gradient))
    assert isinstance(sparse, tf.IndexedSlices)
    np.testing.assert_allclose(tf.convert_to_tensor(sparse), dense, rtol=1e-6)


@pytest.mark.parametrize("shape", [(4, 3), (3, 3, 2, 5)])
def test_centralized_gradients_sum_to_zero_for_each_unit(shape):
    gradient = RNG.normal(size=shape).astype(np.float32)
    axes = tuple(range(len(shape) - 1))
    (out,), _ = _apply(centralize(), [gradient], [np.zeros(shape, np.float32)])(gradient)
    np.testing.assert_allclose(out, gradient - gradient.mean(axes, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(np.sum(out, axes), 0, atol=1e-5)


def test_centralize_leaves_vectors_and_embeddings_alone():
    vector, table = RNG.normal(size=3).astype(np.float32), RNG.normal(size=(5, 2)).astype(np.float32)
    variables = [keras.Variable(vector, name="bias"), keras.Variable(table, name="embeddings")]
    out = centralize()([tf.constant(vector), tf.constant(table)], variables, {})
    np.testing.assert_array_equal(out[0], vector)
    np.testing.assert_array_equal(out[1], table)


def test_noise_has_the_variance_of_the_paper_at_each_update():
    """Neelakantan et al. 2015, eq. 1: eta / (1 + t)^gamma."""
    zeros = np.zeros([200, 200], np.float32)
    apply = _apply(add_noise(eta=0.3, gamma=0.55), [zeros], [zeros])
    drawn = [apply(zeros)[0][0].numpy() for _ in range(4)]
    for t, noise in enumerate(drawn):
        assert noise.var() == pytest.approx(0.3 / (1 + t) ** 0.55, rel=0.03)
        assert abs(noise.mean()) < 0.01
    assert abs(np.corrcoef(drawn[0].ravel(), drawn[1].ravel())[0, 1]) < 0.02


def test_noise_differs_between_variables_and_follows_the_seed():
    zeros = np.zeros([64], np.float32)
    first = _apply(add_noise(seed=1), [zeros, zeros], [zeros, zeros])(zeros, zeros)[0]
    again = _apply(add_noise(seed=1), [zeros, zeros], [zeros, zeros])(zeros, zeros)[0]
    other = _apply(add_noise(seed=2), [zeros, zeros], [zeros, zeros])(zeros, zeros)[0]
    assert not np.array_equal(first[0], first[1]) and not np.array_equal(first[0], other[0])
    np.testing.assert_array_equal(first[0], again[0])


def _zclip_by_hand(norms, threshold=2.5, decay=0.97, warmup=25):
    """The algorithm of section 3 of the paper with its buffer for the warm-up."""
    buffer, mean, variance, kept = [], None, None, []
    for norm in norms:
        if mean is None:
            buffer.append(norm)
            kept.append(norm)
            if len(buffer) == warmup:
                mean, variance = np.mean(buffer), np.var(buffer)
            continue
        deviation = np.sqrt(variance)
        z = (norm - mean) / deviation
        new = mean + threshold**2 / z * deviation if z > threshold else norm
        mean = decay * mean + (1 - decay) * new
        variance = decay * variance + (1 - decay) * (new - mean) ** 2
        kept.append(new)
    return np.array(kept)


def test_zclip_follows_the_paper():
    norms = np.abs(RNG.normal(1.0, 0.2, size=60)).astype(np.float32)
    norms[[30, 45, 46]] = 9.0, 5.0, 40.0
    direction = np.array([0.6, 0.8], np.float32)
    apply = _apply(zclip(), [direction], [direction])
    got, clipped = [], []
    for norm in norms:
        (out,), report = apply(norm * direction)
        got.append(np.linalg.norm(out))
        clipped.append(float(report["clipped"]))
    wanted = _zclip_by_hand(norms.astype(np.float64))
    np.testing.assert_allclose(got, wanted, rtol=2e-4)
    np.testing.assert_array_equal(np.flatnonzero(clipped), np.flatnonzero(wanted < norms * (1 - 1e-5)))
    assert {30, 45, 46} <= set(np.flatnonzero(clipped))


def test_zclip_with_equal_norms_clips_nothing_and_stays_finite():
    direction = np.array([0.6, 0.8], np.float32)
    apply = _apply(zclip(warmup=3), [direction], [direction])
    for _ in range(8):
        (out,), report = apply(direction)
        np.testing.assert_allclose(out, direction, rtol=1e-5)


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: adaptive_clip(0), "`clipping` must be > 0"),
        (lambda: adaptive_clip(eps=0), "`eps` must be > 0"),
        (lambda: add_noise(eta=0), "`eta` must be > 0"),
        (lambda: zclip(z_threshold=-1), "`z_threshold` must be > 0"),
        (lambda: zclip(decay=1), r"`decay` must be in \(0, 1\)"),
        (lambda: zclip(warmup=1), "`warmup` must be >= 2"),
    ],
)
def test_mistakes_are_reported(make, match):
    with pytest.raises(ValueError, match=match):
        make()


# ---- in the trainer ------------------------------------------------------------------------------------------------


def _trainer(strategy, transforms):
    keras.utils.set_random_seed(0)
    with make_strategy(strategy).scope():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(1)])
        return Trainer(
            model, "mse", optimizers=OptimizerGroup(optimizer=keras.optimizers.SGD(0.05), transforms=transforms)
        )


SOURCE = from_arrays((RNG.normal(size=(32, 3)).astype(np.float32), RNG.normal(size=(32, 1)).astype(np.float32)), 8)


def test_noise_is_the_same_on_all_replicas():
    trainer = _trainer("mirrored", [add_noise(eta=1.0)])
    train(trainer, SOURCE, 3)
    for variable in trainer.variables.values():
        first, second = (np.array(x) for x in replica_values(trainer.strategy, variable.value))
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("strategy", ["default", "mirrored"])
def test_state_of_transforms_is_in_the_checkpoint_and_the_run_goes_on_as_if_it_never_stopped(strategy, tmp_path):
    def transforms():
        return [zclip(warmup=2, z_threshold=0.5), add_noise(eta=0.1)]

    whole = _trainer(strategy, transforms())
    iterator = iter(whole.distribute(SOURCE))
    whole.train(iterator, 3)
    names = {name for name in state_of(whole) if name.startswith("transforms/")}
    assert names == {"transforms/group_0/0_zclip/moments", "transforms/group_0/1_add_noise/updates"}
    saved = Checkpoints().open(tmp_path)
    saved.save(3, copy_state(whole), {}, wait=True)
    whole.train(iterator, 4)
    resumed = _trainer(strategy, transforms())
    resumed.build(SOURCE.element_spec)
    restore(resumed, saved.latest())
    train(resumed, SOURCE, 4, start=3)
    for name, value in copy_state(whole).items():
        np.testing.assert_array_equal(copy_state(resumed)[name], value, err_msg=name)
