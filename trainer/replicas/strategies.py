"""Creates strategies by name, each once per process."""

import functools

import tensorflow as tf

from trainer.config.registry import configurable
from trainer.replicas.cluster import find_cluster, join

STRATEGIES = ("auto", "default", "one_device", "mirrored", "multi_worker_mirrored", "tpu")


def make_strategy(name="auto"):
    """Returns the process's strategy of that name, or the given tf.distribute.Strategy itself.

    `auto` is `multi_worker_mirrored` in a cluster (TF_CONFIG or SLURM),
    `mirrored` for several GPUs or several logical CPU devices, `one_device` for
    one GPU, else TensorFlow's default. Each is created once per process, because
    two strategies over the same devices break each other's collectives.

    Raises:
        ValueError: for an unknown name, or one that this environment does not support.
        WorkerLost: if another worker does not start.
    """
    if isinstance(name, tf.distribute.Strategy):
        return name
    if name not in STRATEGIES:
        raise ValueError(f"`strategy` must be one of {', '.join(STRATEGIES)}, got {name!r}.")
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        _grow_memory(gpu)
    if name == "auto" and find_cluster() is not None:
        name = "multi_worker_mirrored"
    elif name == "auto":
        name = "mirrored" if len(_devices()) > 1 else "one_device" if gpus else "default"
    return _make(name)


@configurable(module="trainer.strategies")
def tpu(name: str = "", zone: str | None = None, project: str | None = None) -> tf.distribute.Strategy:
    """Initializes a Cloud TPU and returns its strategy; eager, before any other operation.

    Args:
        name: name of the TPU or its gRPC address; "local" on a TPU VM; "": from the environment.
        zone, project: of Google Cloud, if there is no metadata server.

    Raises:
        ValueError: if there is no such TPU.
    """
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(name, zone=zone, project=project)
        if name != "local":
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, RuntimeError, tf.errors.OpError) as error:  # RuntimeError: no Google API client
        raise ValueError(
            f"There is no TPU {name!r} (zone {zone!r}, project {project!r}): {str(error).splitlines()[0]} "
            "Bind tpu.name, and outside of Google Cloud tpu.zone and tpu.project; 'local' is the TPU of this TPU VM."
        ) from error
    return tf.distribute.TPUStrategy(resolver)


@functools.cache  # two strategies over the same devices break each other's collectives
def _make(name):
    if name == "multi_worker_mirrored":
        if (cluster := find_cluster()) is None:
            raise ValueError(
                "`strategy` 'multi_worker_mirrored' needs a cluster of two processes or more, in TF_CONFIG or from "
                "SLURM's srun. On one machine there is `python -m trainer.launch --workers=2 -- ...`, and 'mirrored' "
                "for several GPUs."
            )
        return join(cluster)
    if name == "tpu":
        return tpu()
    if name == "default":
        return tf.distribute.get_strategy()
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy(_devices()[0])
    reduce = None if tf.config.list_physical_devices("GPU") else tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(_devices(), cross_device_ops=reduce)


def _devices():
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return [device.name for device in devices]


def _grow_memory(gpu):
    try:
        tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError:
        pass  # the GPUs are initialized already, with their memory settings
