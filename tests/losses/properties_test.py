"""What holds for every loss on any batch: of any size, dtype and mask, logits up to +-100; and Keras' `fit` agrees.

The normal run takes a few fixed batches for each loss, `pytest -m slow` many.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.losses.bad_input_test import ALL, OVERLAPS, batch_of, key_of, model_of, trainer_of
from tests.runs import arrays_of, train

DTYPES = ("float16", "bfloat16", "float32", "float64")
JUMPS = ("Triplet semi_hard",)  # which negative counts is another one at a tie, and rounding decides


@st.composite
def batches(draw, name):
    """Returns (targets [B, ...], predictions [B, ...] as float64 that the dtype holds, dtype)."""
    _, targets, shape = ALL[name]
    rows, seed = draw(st.integers(1, 7)), draw(st.integers(0, 2**16))
    dtype, size = draw(st.sampled_from(DTYPES)), draw(st.sampled_from([0.0, 1e-3, 1.0, 20.0, 100.0]))
    rng = np.random.default_rng(seed)
    raw = rng.uniform(0, 1, (rows, *shape)) if name in OVERLAPS else rng.uniform(-size, size, (rows, *shape))
    predictions = tf.cast(tf.cast(raw, dtype), tf.float64).numpy()
    return np.asarray(targets)[rng.integers(0, len(targets), rows)], predictions, dtype


def _holds(name, batch, random):
    """Shape, dtype, finite values and gradients; the order of examples is no matter; float64 says the same."""
    loss, (targets, predictions, dtype) = ALL[name][0], batch
    x = tf.cast(predictions, dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        values = loss.call(targets, x)
    assert values.shape == (len(predictions),) and values.dtype == ("float64" if dtype == "float64" else "float32")
    gradient = tf.cast(tape.gradient(values, x), tf.float64).numpy()
    if name.startswith("Heteroscedastic") and dtype == "float16":
        gradient = gradient[~np.isinf(gradient)]  # e^2 / variance, truly larger than float16 holds
    assert np.isfinite(values).all() and np.isfinite(gradient).all()

    wanted = loss.call(targets, predictions)  # of the same numbers, in float64
    if name not in JUMPS:
        np.testing.assert_allclose(values, wanted, rtol=2e-3, atol=2e-4 * max(1, np.abs(predictions).max()))
    order = random.permutation(len(predictions))
    np.testing.assert_allclose(
        loss.call(targets[order], predictions[order]), wanted.numpy()[order], rtol=1e-9, atol=1e-9
    )

    mask, weights = (
        random.uniform(size=len(predictions)) < 0.6,
        random.uniform(size=len(predictions)).astype(np.float32),
    )
    masked = tf.constant(predictions, tf.float32)
    masked._keras_mask = tf.constant(mask)
    own = loss.call(targets, masked).numpy()
    np.testing.assert_allclose(
        loss(targets, masked, weights), (own * weights)[mask].sum() / max(mask.sum(), 1), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("name", ALL)
def test_any_batch(name):
    @settings(max_examples=4, deadline=None, derandomize=True)
    @given(batches(name), st.integers(0, 99))
    def holds(batch, seed):
        _holds(name, batch, np.random.default_rng(seed))

    holds()


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_any_of_many_batches(name):
    @settings(max_examples=150, deadline=None)
    @given(batches(name), st.integers(0, 99))
    def holds(batch, seed):
        _holds(name, batch, np.random.default_rng(seed))

    holds()


def _fit(names, x, y, weights):
    """Returns {variable's path: array} after three steps of Keras' `fit` on one batch."""
    keras.utils.set_random_seed(0)
    model = model_of(names)
    model.compile(keras.optimizers.SGD(0.05), {key_of(name): ALL[name][0] for name in names}, run_eagerly=True)
    model.fit(x, y, sample_weight=weights, batch_size=len(x), epochs=3, verbose=0, shuffle=False)
    return {v.path: v.numpy() for v in model.trainable_variables}


@pytest.mark.parametrize("weighted", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_fit_and_the_trainer_agree_on_every_loss(weighted):
    """One model with a head for each loss: three steps of both give each head the same weights."""
    x, y = batch_of(ALL, slice(0, 6))
    weights = {key: np.linspace(0, 2, 6, dtype=np.float32) for key in y} if weighted else None
    trainer = trainer_of(ALL, compile="eager")
    batch = (x, y, weights) if weighted else (x, y)
    train(trainer, tf.data.Dataset.from_tensors(batch).repeat(), 3)
    fitted = _fit(ALL, x, y, weights)
    assert fitted.keys() == trainer.trainable_variables.keys()
    for name, v in trainer.trainable_variables.items():
        np.testing.assert_allclose(v.numpy(), fitted[name], rtol=1e-4, atol=2e-6, err_msg=name)


SHORT = ["Poly1", "CategoricalFocal", "Asymmetric", "Pinball of quantiles", "SupCon", "NTXent", "FocalTversky"]


@pytest.mark.parametrize("names", [SHORT, pytest.param(list(ALL), marks=pytest.mark.slow)], ids=["some", "all"])
def test_two_replicas_train_on_every_loss_as_one(names):
    """Two steps with sample weights: each loss and each head's weights."""
    x, y = batch_of(names, slice(0, 6))
    batch = (x, y, {key: np.linspace(0, 2, 6, dtype=np.float32) for key in y})
    found = []
    for strategy in ("default", "mirrored"):
        trainer = trainer_of(names, strategy, compile="eager")
        report = train(trainer, tf.data.Dataset.from_tensors(batch).repeat(), 2)
        found.append({**report, **arrays_of(trainer.trainable_variables)})
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, rtol=2e-5, atol=2e-6, err_msg=name)


def test_a_keras_file_brings_every_loss_back(tmp_path):
    model = model_of(ALL)
    model.compile("sgd", {key_of(name): ALL[name][0] for name in ALL})
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras").loss
    for name in ALL:
        assert type(again[key_of(name)]) is type(ALL[name][0])
        assert again[key_of(name)].get_config() == ALL[name][0].get_config()
