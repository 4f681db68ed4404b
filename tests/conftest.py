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
