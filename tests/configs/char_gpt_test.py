"""configs/char_gpt: two optimizers, one norm, micro-batches; generation with a cache."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from optimizers import LinearWarmup, OptimizerGroup, clip_by_global_norm
from tests.configs.plain_loops import assert_like_the_plain_loop, load_config, run
from tests.runs import read_last_rows, run_config

gpt = load_config("char_gpt")


def make_model(context=8):
    return gpt.GPT(len(gpt.load()[2]), context=context, width=8, blocks=1, heads=2)


def plain(trainer, batches):
    """The whole batch at once; the schedule, clipping and the choice of decayed weights written out."""
    model = trainer.model
    model(batches[0][0])
    matrices = [v for v in model.trainable_variables if "block" in v.path and "kernel" in v.path]
    rest = [v for v in model.trainable_variables if not any(v is matrix for matrix in matrices)]
    decayed = [v for v in rest if len(v.shape) > 1]
    muon, adam = keras.optimizers.Muon(ns_steps=2), keras.optimizers.Adam(beta_2=0.95)
    muon.build(matrices)
    adam.build(rest)
    rate, number = tf.Variable(0.0), iter(range(len(batches)))
    entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function
    def update(ids, following):
        with tf.GradientTape() as tape:
            loss = entropy(following, model(ids)[0])
        gradients = tape.gradient(loss, [v.value for v in matrices + rest])
        gradients, norm = tf.clip_by_global_norm([tf.convert_to_tensor(g) for g in gradients], 1.0)
        muon.learning_rate.assign(rate)
        adam.learning_rate.assign(rate)
        for variable in decayed:
            variable.assign(variable - 0.1 * rate * variable)
        muon.apply(gradients[: len(matrices)], matrices)
        adam.apply(gradients[len(matrices) :], rest)
        return {"losses/crossentropy": loss, "metrics/perplexity": tf.exp(loss)}

    def step(batch):
        step = next(number)
        rate.assign(1e-3 * (step / 5 if step < 5 else (1 + math.cos(math.pi * (step - 5) / 40)) / 2))
        return update(*batch)

    return run(step, batches, compiled=False)


def _make(micro_batches=2):
    rates = [LinearWarmup(keras.optimizers.schedules.CosineDecay(1e-3, 40), 5) for _ in range(2)]
    transforms, matrices = [clip_by_global_norm(1.0)], "blocks/.*/kernel"
    groups = [
        OptimizerGroup(matrices, None, keras.optimizers.Muon(rates[0], ns_steps=2), transforms, name="matrices"),
        OptimizerGroup(f"(?!{matrices}).*", None, gpt.adamw(rates[1]), transforms, name="rest"),
    ]
    return gpt.GPTTrainer(make_model(), metrics=[gpt.Perplexity()], optimizers=groups, micro_batches=micro_batches)


def test_it_is_the_plain_loop_on_one_and_two_replicas_and_resumes():
    assert_like_the_plain_loop(_make, gpt.train_data(batch_size=15, length=8), plain)


def test_the_likeliest_text_is_the_same_without_a_cache():
    model, alphabet = make_model(context=12), gpt.load()[2]
    keras.utils.set_random_seed(1)
    text = gpt.generate(model, "The", temperature=0)
    ids = [alphabet.index(character) for character in "The"]
    for weight in model.weights:  # else it would write one character for ever
        weight.assign(20 * weight)
    text = gpt.generate(model, "The", temperature=0)
    while len(ids) < 12:
        logits, _ = model(np.array([ids], "int32"))
        ids.append(int(np.argmax(logits[0, -1])))
    assert text == "".join(alphabet[i] for i in ids) and len(set(text[3:])) > 2


def test_windows_are_followed_by_themselves_one_character_later():
    ids, following = next(iter(gpt.train_data(batch_size=3, length=8).batches()))
    np.testing.assert_array_equal(ids[:, 1:], following[:, :-1])
    known, _, alphabet = gpt.load()
    text, window = ("".join(alphabet[i] for i in some) for some in (known, [*ids[0].numpy(), following[0, -1]]))
    assert window in text


@pytest.mark.slow
def test_it_learns(tmp_path):
    assert read_last_rows(run_config("char_gpt", tmp_path))["validation"]["metrics/perplexity"] < 7
