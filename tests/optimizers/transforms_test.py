"""Gradient transforms against closed forms: dense, sparse, half precision, missing gradients, and what they report."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from optimizers import clip_by_global_norm, clip_by_norm, clip_by_value
from optimizers.transforms import l2_norm


def _run(transform, gradients, norms=None, graph=True):
    """Applies a transform inside a tf.function, as a step does; returns (gradients, report) as arrays."""
    variables = [keras.Variable(tf.zeros(g.shape)) if g is not None else keras.Variable(0.0) for g in gradients]
    norms = norms or {"all": l2_norm(gradients)}
    if hasattr(transform, "build"):
        transform.build(variables)

    def apply():
        return transform(gradients, variables, norms), transform.report()

    out, report = (tf.function(apply) if graph else apply)()
    return out, {name: float(value) for name, value in report.items()}


def _sparse(values, indices, rows=5):
    values = tf.constant(values)
    return tf.IndexedSlices(values, tf.constant(indices), tf.constant([rows, *values.shape[1:]]))


CLIPS = [(clip_by_value, 1.0), (clip_by_norm, 1.0), (clip_by_global_norm, 1.0)]


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize(
    "transform, gradients, wanted, clipped",
    [
        (clip_by_value(1.0), [[3.0, -4.0], [0.5]], [[1.0, -1.0], [0.5]], 1),
        (clip_by_value(5.0), [[3.0, -4.0], [0.5]], [[3.0, -4.0], [0.5]], 0),
        (clip_by_norm(1.0), [[3.0, 4.0], [0.5]], [[0.6, 0.8], [0.5]], 1),
        (clip_by_norm(5.0), [[3.0, 4.0], [0.5]], [[3.0, 4.0], [0.5]], 0),
        (clip_by_global_norm(1.0), [[3.0], [4.0]], [[0.6], [0.8]], 1),
        (clip_by_global_norm(6.5), [[3.0, 4.0], [12.0]], [[1.5, 2.0], [6.0]], 1),
        (clip_by_global_norm(13.0), [[3.0, 4.0], [12.0]], [[3.0, 4.0], [12.0]], 0),
    ],
)
def test_clipping_by_the_closed_form(transform, gradients, wanted, clipped, graph):
    out, report = _run(transform, [tf.constant(g) for g in gradients], graph=graph)
    for a, b in zip(out, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert report["clipped"] == clipped


def test_clipping_over_all_groups_takes_the_norm_of_the_step():
    out, report = _run(clip_by_global_norm(1.0, over="all"), [tf.constant([3.0])], {"all": tf.constant(5.0)})
    np.testing.assert_allclose(out[0], [0.6], rtol=1e-6)
    assert report["clipped"] == 1
    out, report = _run(clip_by_global_norm(1.0, over="group"), [tf.constant([0.5])], {"all": tf.constant(5.0)})
    np.testing.assert_allclose(out[0], [0.5])
    assert report["clipped"] == 0


@pytest.mark.parametrize("make, limit", CLIPS)
def test_none_stays_none_and_does_not_count(make, limit):
    out, report = _run(make(limit), [None, tf.constant([0.5])])
    assert out[0] is None
    np.testing.assert_allclose(out[1], [0.5])
    assert report["clipped"] == 0
    out, report = _run(make(limit), [None, None])
    assert out == [None, None] and report["clipped"] == 0


@pytest.mark.parametrize("make, limit", CLIPS)
def test_a_zero_gradient_stays_zero(make, limit):
    out, _ = _run(make(limit), [tf.zeros([2, 2])])
    np.testing.assert_array_equal(out[0], np.zeros([2, 2]))


@pytest.mark.parametrize(
    "transform, wanted",
    [
        (clip_by_value(1.0), [[1.0, 0.5], [-1.0, 0.0]]),
        (clip_by_norm(2.6), None),
        (clip_by_global_norm(2.6), None),
    ],
)
def test_sparse_gradients_stay_sparse_and_equal_the_dense_result(transform, wanted):
    gradient = _sparse([[3.0, 0.5], [-4.0, 0.0]], [4, 1])
    (out,), _ = _run(transform, [gradient])
    (dense,), _ = _run(transform, [tf.convert_to_tensor(gradient)])
    assert isinstance(out, tf.IndexedSlices)
    np.testing.assert_array_equal(out.indices, [4, 1])
    np.testing.assert_array_equal(out.dense_shape, [5, 2])
    np.testing.assert_allclose(tf.convert_to_tensor(out), dense, rtol=1e-6)
    norm = np.sqrt(9 + 0.25 + 16)
    if not isinstance(transform, clip_by_value):
        wanted = np.array([[3.0, 0.5], [-4.0, 0.0]]) * 2.6 / norm
    np.testing.assert_allclose(out.values, wanted, rtol=1e-5)


@pytest.mark.parametrize("make, limit", CLIPS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_the_dtype_stays_and_half_precision_does_not_overflow(make, limit, dtype):
    # The square of 300 is infinite in float16.
    gradient = tf.constant([300.0, 400.0], dtype)
    (out,), report = _run(make(limit), [gradient])
    assert out.dtype == tf.as_dtype(dtype)
    wanted = [1.0, 1.0] if make is clip_by_value else [0.6, 0.8]
    np.testing.assert_allclose(tf.cast(out, tf.float32), wanted, rtol=1e-2)
    assert report["clipped"] == 1


def test_norms_of_mixed_nests():
    sparse = _sparse([[1.0, 2.0]], [3])
    assert float(l2_norm([tf.constant([2.0]), None, sparse, tf.constant(4.0, tf.float16)])) == 5.0
    assert float(l2_norm([])) == 0.0 and float(l2_norm([None])) == 0.0
    assert l2_norm([tf.constant([300.0, 400.0], tf.float16)]).dtype == tf.float32
    assert float(l2_norm([tf.constant([300.0, 400.0], tf.float16)])) == 500.0


@pytest.mark.parametrize("make", [clip_by_value, clip_by_norm, clip_by_global_norm])
@pytest.mark.parametrize("limit", [0, -1.0, None])
def test_a_limit_must_be_positive(make, limit):
    with pytest.raises(ValueError, match="must be > 0"):
        make(limit)


def test_over_must_be_known():
    with pytest.raises(ValueError, match="`over` must be 'group' or 'all'"):
        clip_by_global_norm(1.0, over="al")


def test_a_keras_clip_of_an_infinite_gradient_is_nan_so_the_guard_must_come_first():
    clipped, _ = tf.clip_by_global_norm([tf.constant([np.inf, 1.0])], 1.0)
    assert np.isnan(clipped[0].numpy()).all()
