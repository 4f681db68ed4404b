"""A small file of MNIST's format, for configs that can read one."""

import numpy as np


def write_mnist(path):
    """Writes images, uint8 [n, 28, 28], and labels, uint8 [n]: 70 to train on, 20 to test; returns the arrays."""
    random = np.random.default_rng(0)
    arrays = {f"x_{part}": random.integers(0, 256, [n, 28, 28], np.uint8) for part, n in (("train", 70), ("test", 20))}
    arrays |= {f"y_{part}": random.integers(0, 10, [n], np.uint8) for part, n in (("train", 70), ("test", 20))}
    np.savez(path, **arrays)
    return arrays
