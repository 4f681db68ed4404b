"""Installs Gradloom: `pip install .`, or `pip install -e '.[dev]'` to work on it."""

from setuptools import setup

TEST = [
    "setuptools>=70", "pytest>=8", "pytest-timeout>=2.3", "pytest-xdist>=3.6", "hypothesis>=6.100", "scikit-learn>=1.4",
    "matplotlib>=3.8", "jedi>=0.19",
]  # fmt: skip
TFDS = ["tensorflow-datasets>=4.9.9", "importlib_resources>=6"]  # tfds 4.9.10 imports the second without requiring it
NOTEBOOK = ["nbclient>=0.10", "ipykernel>=6.29", "pandas>=2.2"]
EXPORT = ["ai-edge-litert>=2.0"]
SWEEP = ["optuna>=4.2"]

setup(
    name="gradloom",
    version="0.1.0",
    description="A training loop for people who research the training step, on TensorFlow and Keras 3.",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        "trainer",
        "trainer.config",
        "trainer.diagnosis",
        "trainer.inputs",
        "trainer.methods",
        "trainer.outer_loop",
        "trainer.replicas",
        "trainer.saving",
        "trainer.step",
        "layers",
        "losses",
        "optimizers",
        "configs",
    ],
    package_data={
        "configs": ["*.gin", "*.md", "*.png"],
        **{package: ["py.typed", "*.html"] for package in ("trainer", "layers", "losses", "optimizers")},
    },
    install_requires=[
        "tensorflow>=2.21,<2.22",
        "keras>=3.15,<3.16",
        "tensorboard>=2.20,<2.22",
        "absl-py>=2.1",
        "gin-config==0.5.0",
        "rich>=13",
        "numpy>=1.26",
    ],
    extras_require={
        "test": TEST,
        "examples": ["scikit-learn>=1.4", "matplotlib>=3.8"],
        "tfds": TFDS,
        "gpu": ["tensorflow[and-cuda]>=2.21,<2.22"],
        "profile": ["xprof>=2.20"],
        "export": EXPORT,
        "hub": ["keras-hub>=0.32"],
        "sweep": SWEEP,
        "dev": [*TEST, *TFDS, *NOTEBOOK, *SWEEP, "ruff>=0.6"],
    },
)
