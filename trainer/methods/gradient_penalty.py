"""Adversarial training with a penalty on the norm of the discriminator's gradient."""

import keras

from losses.adversarial import KINDS, PENALTIES, discriminator_loss, generator_loss, gradient_penalty, interpolate
from trainer.trainer import Trainer


class PenalizedGAN(Trainer):
    """A GAN with a penalty: WGAN-GP (Gulrajani et al. 2017, 1704.00028, algorithm 1) or R1 (Mescheder et al. 2018).

    Batches are dicts of `real`, float [B, ...]; `noise`, the generator's input;
    and, for penalties at points between real and generated examples ("wgan_gp",
    "one_sided"), `epsilon`, float [B], uniform in [0, 1). Random numbers in the
    batch are the same on any number of replicas and after a resume.

    The losses are `discriminator`, `penalty` and `generator`. A group for
    'discriminator/.*' takes the first two, one for 'generator/.*' the third;
    its `every` gives several discriminator updates per generator update.

    Args:
        generator: a model of `noise`.
        discriminator: a model of examples -> logits [B] or [B, 1], without BatchNormalization, under which one example
            has no gradient of its own.
        kind: the losses: "wgan", "ns", "hinge" or "lsgan" (losses.discriminator_loss).
        penalty: "wgan_gp", "one_sided", or "r1" (1801.04406, eq. 9), at real examples (losses.gradient_penalty).
        penalty_weight: number >= 0; 10 in the WGAN-GP paper, and R1's gamma.
        **kwargs: of Trainer.
    """

    def __init__(
        self,
        generator: keras.Model,
        discriminator: keras.Model,
        kind: str = "wgan",
        penalty: str = "wgan_gp",
        penalty_weight: float = 10.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        for name, value, known in (("kind", kind, KINDS), ("penalty", penalty, PENALTIES)):
            if value not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {value!r}.")
        if not penalty_weight >= 0:
            raise ValueError(f"`penalty_weight` must be >= 0, got {penalty_weight}.")
        self.generator, self.discriminator = generator, discriminator
        self.kind, self.penalty, self.penalty_weight = kind, penalty, penalty_weight

    def compute_losses(self, batch, training):
        """Returns the three losses per example, and the generated examples; traced, per replica."""
        needed = ["real", "noise"] + ["epsilon"] * (self.penalty != "r1")
        missing = [name for name in needed if name not in batch]
        if missing:
            raise ValueError(f"The batch must be a dict with {', '.join(needed)}; it lacks {', '.join(missing)}.")
        real, fake = batch["real"], self.generator(batch["noise"], training=training)
        on_real, on_fake = (self.discriminator(x, training=training) for x in (real, fake))
        points = real if self.penalty == "r1" else interpolate(real, fake, batch["epsilon"])
        return {
            "discriminator": discriminator_loss(on_real, on_fake, self.kind),
            "penalty": gradient_penalty(
                lambda x: self.discriminator(x, training=training), points, self.penalty, self.penalty_weight
            ),
            "generator": generator_loss(on_fake, self.kind),
        }, fake

    def predict_step(self, batch):
        """Returns generated examples; traced, per replica."""
        return self.generator(batch["noise"], training=False)
