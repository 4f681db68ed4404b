"""Optimizer groups, gradient transforms, and the optimizers and schedules that Keras lacks."""

from optimizers.averages import EMA, SWA, Lookahead
from optimizers.groups import OptimizerGroup
from optimizers.large_batch import LAMB, LARS
from optimizers.lazy_adam import LazyAdam
from optimizers.momentum import MomentumSGD
from optimizers.multipliers import LearningRateMultipliers, layer_wise_decay
from optimizers.schedule_free import ScheduleFreeAdamW, ScheduleFreeSGD
from optimizers.schedules import Cyclical, InverseSqrt, LinearWarmup, OneCycle, WarmupStableDecay
from optimizers.soap import SOAP
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
    "EMA",
    "LAMB",
    "LARS",
    "SOAP",
    "SWA",
    "Cyclical",
    "InverseSqrt",
    "LazyAdam",
    "LearningRateMultipliers",
    "LinearWarmup",
    "Lookahead",
    "MomentumSGD",
    "OneCycle",
    "OptimizerGroup",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "WarmupStableDecay",
    "adaptive_clip",
    "add_noise",
    "centralize",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "layer_wise_decay",
    "zclip",
]
