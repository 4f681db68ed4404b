"""Two logical CPU devices for every test, made once, before TensorFlow starts."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import gin
import keras
import pytest
import tensorflow as tf

pytest_plugins = ["tests.through_run"]

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


# Files that take longest: started first, so that no process is left alone with one of them at the end.
LONGEST = (
    "soak_test.py",
    "fuzz_test.py",
    "replicas_test.py",
    "all_test.py",
    "resume_test.py",
    "char_gpt_test.py",
    "trainer_test.py",
    "experiment_test.py",
    "metrics_test.py",
    "cluster_test.py",
    "internals_test.py",
    "diagnostics_test.py",
    "sweep_test.py",
    "losses_test.py",
    "dcgan_digits_test.py",
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def fresh_state():
    """Seeds, gin bindings and the precision of one test do not reach the next."""
    keras.utils.set_random_seed(0)
    yield
    gin.clear_config()
    keras.mixed_precision.set_dtype_policy("float32")


@pytest.fixture(params=["default", pytest.param("one_device", marks=pytest.mark.slow), "mirrored"])
def strategy(request):
    from trainer.replicas.distribution import make_strategy

    return make_strategy(request.param)
