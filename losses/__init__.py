"""Loss functions and metrics that Keras lacks; they return one value per example.

The names load on first use, so that a config with one loss imports one file.
"""

import importlib

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

__all__ = list(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'losses' has no attribute {name!r}; its public names are {', '.join(_HOME)}.")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(__all__)
