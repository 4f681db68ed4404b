"""Loss functions and metrics that Keras lacks; they return one value per example.

The names load on first use, so that a config with one loss imports one file.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers, which run nothing
    from losses.adversarial import discriminator_loss, generator_loss, gradient_penalty, interpolate
    from losses.contrastive import (
        Contrastive,
        InfoNCE,
        NPairs,
        NTXent,
        SupCon,
        contrastive_pairs,
        info_nce,
        n_pairs,
        nt_xent,
        sup_con,
    )
    from losses.crossentropy import (
        LDAM,
        CostSensitive,
        Poly1,
        WeightedCrossentropy,
        class_balanced_weights,
        cost_sensitive,
        ldam,
        poly1,
        weighted_crossentropy,
    )
    from losses.distillation import Distillation, distill
    from losses.focal import Asymmetric, BinaryFocal, CategoricalFocal, asymmetric, binary_focal, categorical_focal
    from losses.metrics import CohenKappa, ExpectedCalibrationError, MatthewsCorrelation
    from losses.redundancy import BarlowTwins, VICReg, barlow_twins, vic_reg
    from losses.regression import (
        HeteroscedasticNLL,
        Pinball,
        PseudoHuber,
        Winsorised,
        heteroscedastic_nll,
        pinball,
        pseudo_huber,
        winsorised,
    )
    from losses.robust import (
        BiTempered,
        GeneralizedCrossentropy,
        SymmetricCrossentropy,
        bi_tempered,
        generalized_crossentropy,
        symmetric_crossentropy,
    )
    from losses.segmentation import FocalTversky, SoftDice, SoftTversky, focal_tversky, soft_dice, soft_tversky
    from losses.triplets import LiftedStructure, Triplet, lifted_structure, triplet

_NAMES = {
    "crossentropy": (
        "weighted_crossentropy", "WeightedCrossentropy", "cost_sensitive", "CostSensitive", "poly1", "Poly1",
        "class_balanced_weights", "ldam", "LDAM",
    ),
    "focal": ("binary_focal", "BinaryFocal", "categorical_focal", "CategoricalFocal", "asymmetric", "Asymmetric"),
    "robust": (
        "generalized_crossentropy", "GeneralizedCrossentropy", "symmetric_crossentropy", "SymmetricCrossentropy",
        "bi_tempered", "BiTempered",
    ),
    "regression": (
        "pseudo_huber", "PseudoHuber", "pinball", "Pinball", "winsorised", "Winsorised",
        "heteroscedastic_nll", "HeteroscedasticNLL",
    ),
    "contrastive": (
        "nt_xent", "NTXent", "info_nce", "InfoNCE", "sup_con", "SupCon", "contrastive_pairs", "Contrastive",
        "n_pairs", "NPairs",
    ),
    "redundancy": ("vic_reg", "VICReg", "barlow_twins", "BarlowTwins"),
    "triplets": ("triplet", "Triplet", "lifted_structure", "LiftedStructure"),
    "distillation": ("distill", "Distillation"),
    "adversarial": ("discriminator_loss", "generator_loss", "interpolate", "gradient_penalty"),
    "segmentation": ("soft_dice", "SoftDice", "soft_tversky", "SoftTversky", "focal_tversky", "FocalTversky"),
    "metrics": ("CohenKappa", "MatthewsCorrelation", "ExpectedCalibrationError"),
}  # fmt: skip
_HOME = {name: f"losses.{file}" for file, names in _NAMES.items() for name in names}

__all__ = [
    "Asymmetric",
    "BarlowTwins",
    "BiTempered",
    "BinaryFocal",
    "CategoricalFocal",
    "CohenKappa",
    "Contrastive",
    "CostSensitive",
    "Distillation",
    "ExpectedCalibrationError",
    "FocalTversky",
    "GeneralizedCrossentropy",
    "HeteroscedasticNLL",
    "InfoNCE",
    "LDAM",
    "LiftedStructure",
    "MatthewsCorrelation",
    "NPairs",
    "NTXent",
    "Pinball",
    "Poly1",
    "PseudoHuber",
    "SoftDice",
    "SoftTversky",
    "SupCon",
    "SymmetricCrossentropy",
    "Triplet",
    "VICReg",
    "WeightedCrossentropy",
    "Winsorised",
    "asymmetric",
    "barlow_twins",
    "bi_tempered",
    "binary_focal",
    "categorical_focal",
    "class_balanced_weights",
    "contrastive_pairs",
    "cost_sensitive",
    "discriminator_loss",
    "distill",
    "focal_tversky",
    "generalized_crossentropy",
    "generator_loss",
    "gradient_penalty",
    "heteroscedastic_nll",
    "info_nce",
    "interpolate",
    "ldam",
    "lifted_structure",
    "n_pairs",
    "nt_xent",
    "pinball",
    "poly1",
    "pseudo_huber",
    "soft_dice",
    "soft_tversky",
    "sup_con",
    "symmetric_crossentropy",
    "triplet",
    "vic_reg",
    "weighted_crossentropy",
    "winsorised",
]


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'losses' has no attribute {name!r}; its public names are {', '.join(_HOME)}.")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(__all__)
