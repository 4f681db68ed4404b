"""Optimizer groups and gradient transforms."""

from optimizers.groups import OptimizerGroup
from optimizers.transforms import clip_by_global_norm, clip_by_norm, clip_by_value

__all__ = ["OptimizerGroup", "clip_by_global_norm", "clip_by_norm", "clip_by_value"]
