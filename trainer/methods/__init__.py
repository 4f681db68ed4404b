"""Research methods, each a short subclass of Trainer with its paper: bind one to `run.trainer`, or copy its file.

Nothing in the core imports them. To combine two, inherit from both:
`class Mine(SAM, UncertaintyWeighting)`.
"""

from trainer.methods.gradient_penalty import PenalizedGAN
from trainer.methods.pcgrad import PCGrad
from trainer.methods.sam import ASAM, SAM
from trainer.methods.uncertainty import UncertaintyWeighting

__all__ = ["ASAM", "SAM", "PCGrad", "PenalizedGAN", "UncertaintyWeighting"]
