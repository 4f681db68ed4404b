"""Price of each method of trainer.methods: time per step against the plain Trainer on the same model.

    python -m tests.benchmarks.method_time [--models=mlp,cnn] [--steps=300] [--rounds=9]

SAM and ASAM take two passes; PCGrad one forward pass and a backward pass for
each of its losses, here three on one trunk; a gradient penalty differentiates a gradient.
"""

import argparse

import keras
import tensorflow as tf

from losses import discriminator_loss, generator_loss
from optimizers import OptimizerGroup
from tests.benchmarks.step_time import BATCH, MODELS, loss, source_of, take_turns
from trainer.data import from_arrays
from trainer.methods import ASAM, SAM, PCGrad, PenalizedGAN, UncertaintyWeighting
from trainer.trainer import Trainer

NAMES = ("a", "b", "c")


def stepper(trainer, source):
    iterator = iter(trainer.distribute(source))
    return lambda num_steps: trainer.train(iterator, num_steps)


def one_loss(method, make_model, **arguments):
    model, inputs = make_model()
    return stepper(
        method(model=model, loss=loss(), optimizers=keras.optimizers.Adam(1e-3), **arguments), source_of(inputs)
    )


def three_losses(method, make_model, **arguments):
    """Three heads on the trunk of the model, each with the same labels."""
    model, inputs = make_model()
    hidden = model.layers[-2].output
    heads = {name: keras.layers.Dense(10, name=name)(hidden) for name in NAMES}
    trainer = method(
        model=keras.Model(model.inputs[0], heads), loss={name: loss() for name in NAMES},
        optimizers=keras.optimizers.Adam(1e-3), **arguments,
    )  # fmt: skip
    batches = source_of(inputs)
    (x, y) = next(iter(batches.batches(0)))
    return stepper(trainer, from_arrays((x.numpy(), {name: y.numpy() for name in NAMES}), BATCH))


class PlainGAN(Trainer):
    """The same GAN without its penalty."""

    def __init__(self, generator, discriminator, **kwargs):
        super().__init__(**kwargs)
        self.generator, self.discriminator = generator, discriminator

    def compute_losses(self, batch, training):
        fake = self.generator(batch["noise"], training=training)
        on_real, on_fake = (self.discriminator(x, training=training) for x in (batch["real"], fake))
        return {
            "discriminator": discriminator_loss(on_real, on_fake, "wgan"), "generator": generator_loss(on_fake, "wgan"),
        }  # fmt: skip


def gan(method, **arguments):
    def network(outputs, activation):
        return keras.Sequential([*(keras.layers.Dense(128, activation) for _ in range(2)), keras.layers.Dense(outputs)])

    losses = ["discriminator"] + ["penalty"] * (method is PenalizedGAN)
    groups = [
        OptimizerGroup("discriminator/.*", losses, keras.optimizers.Adam(1e-3), name="discriminator"),
        OptimizerGroup("generator/.*", ["generator"], keras.optimizers.Adam(1e-3), name="generator"),
    ]
    trainer = method(network(2, "relu"), network(1, "tanh"), optimizers=groups, **arguments)
    random = tf.random.Generator.from_seed(0)
    arrays = {"real": random.normal([1024, 2]), "noise": random.normal([1024, 8]), "epsilon": random.uniform([1024])}
    return stepper(trainer, from_arrays({name: array.numpy() for name, array in arrays.items()}, BATCH))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="mlp,cnn")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    tables = {}
    for name in arguments.models.split(","):
        model = MODELS[name]
        tables[f"{name}, one loss"] = {
            "Trainer": one_loss(Trainer, model), "SAM": one_loss(SAM, model), "ASAM": one_loss(ASAM, model),
        }  # fmt: skip
        tables[f"{name}, three losses"] = {
            "Trainer": three_losses(Trainer, model),
            "PCGrad": three_losses(PCGrad, model),
            "UncertaintyWeighting": three_losses(
                UncertaintyWeighting, model, tasks=dict.fromkeys(NAMES, "classification")
            ),
        }
    tables["gan on points"] = {
        "Trainer": gan(PlainGAN), "WGAN-GP": gan(PenalizedGAN), "R1": gan(PenalizedGAN, penalty="r1"),
    }  # fmt: skip
    for title, contestants in tables.items():
        take_turns(title, contestants, {"Trainer": "Trainer"}, arguments.steps, arguments.rounds)


if __name__ == "__main__":
    main()
