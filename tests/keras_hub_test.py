"""Models of KerasHub train unchanged: small ones, compiled or not, equal a loop by hand in every compile mode."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.runs import train
from trainer import Trainer
from trainer.replicas.distribution import make_strategy

pytestmark = pytest.mark.slow
TOKENS, LENGTH, STEPS = 20, 6, 3
SIZES = {
    "vocabulary_size": TOKENS,
    "num_layers": 1,
    "num_heads": 2,
    "hidden_dim": 4,
    "intermediate_dim": 8,
    "dropout": 0.0,
}


def _bert(models):
    backbone = models.BertBackbone(**SIZES, max_sequence_length=LENGTH)
    return models.BertTextClassifier(backbone, num_classes=3, preprocessor=None, dropout=0.0)


def _bert_backbone(models):
    backbone = models.BertBackbone(**SIZES, max_sequence_length=LENGTH)
    return keras.Model(backbone.inputs, keras.layers.Dense(3)(backbone.output["pooled_output"]))


def _gpt2(models):
    return models.GPT2CausalLM(models.GPT2Backbone(**SIZES, max_sequence_length=LENGTH), preprocessor=None)


def _t5(models):
    backbone = models.T5Backbone(**SIZES)
    return keras.Model(backbone.inputs, keras.layers.Dense(TOKENS)(backbone.output["decoder_sequence_output"]))


def _vit(models):
    backbone = models.ViTBackbone(
        image_shape=(8, 8, 3), patch_size=4, num_layers=1, num_heads=2, hidden_dim=4, mlp_dim=8, dropout_rate=0.0
    )
    return models.ViTImageClassifier(backbone, num_classes=3, preprocessor=None, dropout=0.0)


def _data(name):
    """Batches of 5, 5, 3; texts end with padding."""
    random, rows = np.random.default_rng(0), 13
    tokens = random.integers(1, TOKENS, (rows, LENGTH))
    mask = (np.arange(LENGTH) < random.integers(2, LENGTH + 1, (rows, 1))).astype("int32")
    classes = random.integers(0, 3, rows)
    x, y = {
        "bert": ({"token_ids": tokens, "segment_ids": np.zeros_like(tokens), "padding_mask": mask}, classes),
        "gpt2": ({"token_ids": tokens, "padding_mask": mask}, np.roll(tokens, -1, 1)),
        "t5": (
            {
                "encoder_token_ids": tokens,
                "encoder_padding_mask": mask,
                "decoder_token_ids": tokens[:, ::-1],
                "decoder_padding_mask": np.ones_like(mask),
            },
            tokens,
        ),
        "vit": (random.normal(size=(rows, 8, 8, 3)).astype("float32"), classes),
    }[name.partition("_")[0]]
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(5)


MODELS = {"bert": _bert, "bert_backbone": _bert_backbone, "gpt2": _gpt2, "t5": _t5, "vit": _vit}


def _loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _optimizer():
    return keras.optimizers.SGD(0.1, momentum=0.9)


def _by_hand(make, data):
    """Returns (mean loss, weights) after a loop of tf.GradientTape."""
    keras.utils.set_random_seed(0)
    model, loss, optimizer, losses = make(), _loss(), _optimizer(), []
    for x, y in data:
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True))
        gradients = tape.gradient(value, [v.value for v in model.trainable_variables])
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        losses.append(float(value))
    return np.mean(losses), [v.numpy() for v in model.trainable_variables]


@pytest.mark.parametrize("name", MODELS)
def test_models_of_keras_hub_train_as_by_hand(name):
    models = pytest.importorskip("keras_hub").models

    def make():
        return MODELS[name](models)

    loss, weights = _by_hand(make, _data(name))
    ways = [("mirrored", {}), ("mirrored", {"micro_batches": 2}), ("default", {"compile": "xla_step"})]
    for strategy, options in ways:
        keras.utils.set_random_seed(0)
        with make_strategy(strategy).scope():
            model = make()
            trainer = Trainer(model, _loss(), ["accuracy"], _optimizer(), **options)
        metrics = train(trainer, _data(name), STEPS)
        assert metrics["loss"] == pytest.approx(loss, rel=1e-5), (strategy, options)
        for v, expected in zip(model.trainable_variables, weights, strict=True):
            np.testing.assert_allclose(
                v.numpy(), expected, rtol=1e-4, atol=2e-5, err_msg=f"{strategy} {options} {v.path}"
            )
