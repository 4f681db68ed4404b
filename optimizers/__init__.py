"""Optimizer groups and gradient transforms."""

from optimizers.groups import OptimizerGroup
from optimizers.transforms import (
    adaptive_clip,
    add_noise,
    centralize,
    clip_by_global_norm,
    clip_by_norm,
    clip_by_value,
    zclip,
)

__all__ = [
    "OptimizerGroup",
    "adaptive_clip",
    "add_noise",
    "centralize",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "zclip",
]
