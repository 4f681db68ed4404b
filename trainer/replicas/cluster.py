"""Clusters of worker processes: finding, joining, synchronizing, and errors when a worker is lost.

TF_CONFIG (by hand, Kubernetes, Cloud) or SLURM describes the cluster. Worker 0
is the chief: it writes files; the others compute the same values and write none.
"""

import contextlib
import faulthandler
import functools
import json
import os
import signal
import socket
import time
from typing import NamedTuple

import numpy as np
import tensorflow as tf

PATIENCE = 60.0  # seconds within which every worker must start
ENDLESS = 2**62
_START = 30  # seconds for TensorFlow's handshake after all workers have started
# Errors of a collective when another process has ended, is frozen or was restarted.
_LOST = (
    tf.errors.UnavailableError, tf.errors.DeadlineExceededError, tf.errors.AbortedError, tf.errors.CancelledError,
    tf.errors.FailedPreconditionError, tf.errors.InternalError, tf.errors.UnknownError,
)  # fmt: skip


class WorkerLost(RuntimeError):
    """Another process of the cluster ended or does not respond; all workers must be restarted."""

    is_nobodys_code = True  # no line of code explains it (explain.py)


class Cluster(NamedTuple):
    """The worker processes of a run.

    Attributes:
        resolver: tf.distribute.cluster_resolver.ClusterResolver.
        addresses: host:port of every worker, the chief's first.
        index: int, the index of this process in `addresses`.
    """

    resolver: tf.distribute.cluster_resolver.ClusterResolver
    addresses: list
    index: int


def find_cluster():
    """Returns the Cluster that the environment describes, or None for a single process.

    Raises:
        ValueError: if TF_CONFIG is invalid.
    """
    if os.environ.get("TF_CONFIG"):
        return _from_tf_config()
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in os.environ:
        return _from_slurm()
    return None


def _from_tf_config():
    text = os.environ["TF_CONFIG"]
    try:
        parsed = json.loads(text)
        jobs, task = parsed.get("cluster", {}), parsed.get("task", {})
        addresses = [*jobs.get("chief", ()), *jobs.get("worker", ())]
        if len(addresses) < 2:
            return None
        index = int(task["index"]) + (len(jobs.get("chief", ())) if task["type"] == "worker" else 0)
        if task["type"] not in ("chief", "worker") or index >= len(addresses):
            raise ValueError(f"task {task}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'`TF_CONFIG` must be JSON like {{"cluster": {{"worker": ["host:port", ...]}}, "task": {{"type": "worker", '
            f'"index": 0}}}} with a task that is a chief or a worker of the cluster, got {text} ({error}).'
        ) from error
    return Cluster(tf.distribute.cluster_resolver.TFConfigClusterResolver(), addresses, index)


def _from_slurm():
    """Returns the Cluster of SLURM from TensorFlow's resolver; `srun --gpus-per-task` assigns the GPUs of each task."""
    slurm = tf.distribute.cluster_resolver.SlurmClusterResolver(
        gpus_per_node=int(os.environ["SLURM_STEP_NUM_TASKS"]), gpus_per_task=1, auto_set_gpu=False
    )  # the numbers make it count tasks; otherwise it calls nvidia-smi, and fails without it
    spec = slurm.cluster_spec()
    kind, index = slurm.get_task_info()
    gpus = {"GPU": len(tf.config.list_physical_devices("GPU"))}
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(spec, "", kind, index, num_accelerators=gpus)
    return Cluster(resolver, list(spec.as_dict()["worker"]), index)


def join(cluster):
    """Returns the MultiWorkerMirroredStrategy of `cluster` when every worker has started; eager, before any other
    operation.

    Raises:
        WorkerLost: if a worker does not start within `PATIENCE` seconds.
    """
    meet(cluster.addresses, cluster.index)
    previous = signal.getsignal(signal.SIGTERM)
    # The handshake holds Python's lock while it waits. If another worker ends meanwhile, a C thread ends this process.
    faulthandler.dump_traceback_later(_START, exit=True)
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy(cluster.resolver)
    except RuntimeError as error:
        if "program startup" not in str(error):
            raise
        raise ValueError(
            "A cluster must be joined before TensorFlow creates its first tensor. A module that your config "
            "imports creates one at import; create it inside a function."
        ) from error
    except tf.errors.OpError as error:
        raise WorkerLost(f"The cluster of {', '.join(cluster.addresses)} did not form: {error.message}") from error
    finally:
        faulthandler.cancel_dump_traceback_later()
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGTERM, previous)  # the strategy's handler ignores it
    return strategy


def meet(addresses, index, patience=None):
    """Waits until every process of `addresses` has called it; the others connect to the chief.

    Raises:
        WorkerLost: after `patience` seconds, in every process, with the addresses of the missing ones.
    """
    deadline = time.monotonic() + (PATIENCE if patience is None else patience)
    missing = _wait_for_all(addresses, deadline) if index == 0 else _tell_chief(addresses[0], index, deadline)
    if missing:
        names = ", ".join(f"worker {i} ({addresses[i]})" for i in missing)
        raise WorkerLost(
            f"{names} did not start within {PATIENCE if patience is None else patience:.0f} s. Start all "
            f"{len(addresses)} "
            "workers at about the same time, with the same command and reachable addresses."
        )


def _wait_for_all(addresses, deadline):
    """The chief's part: answers all workers when all have connected, or at the deadline.

    Returns:
        The indices of the missing workers.
    """
    host, port = addresses[0].rsplit(":", 1)
    arrived = {}
    # A name that is not loopback may be that of a service, whose address cannot be bound.
    with socket.create_server((host if host in ("localhost", "127.0.0.1") else "", int(port))) as server:
        while len(arrived) < len(addresses) - 1 and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            with contextlib.suppress(OSError, ValueError):  # a timeout, or a client that is not a worker
                connection, _ = server.accept()
                connection.settimeout(5)
                arrived[int(connection.recv(16))] = connection
        missing = [i for i in range(1, len(addresses)) if i not in arrived]
        for connection in arrived.values():
            with contextlib.suppress(OSError), connection:
                connection.sendall(json.dumps(missing).encode() + b"\n")
                connection.recv(1)  # the worker closes the connection first, so that the port is free at once
    return missing


def _tell_chief(address, index, deadline):
    host, port = address.rsplit(":", 1)
    while (left := deadline - time.monotonic()) > 0:
        with (
            contextlib.suppress(OSError, ValueError),
            socket.create_connection((host, int(port)), timeout=left) as connection,
        ):
            connection.sendall(str(index).encode())
            connection.settimeout(left + 5)  # the chief answers at its own deadline
            return json.loads(connection.makefile().readline())
        time.sleep(0.1)
    return [0]


def worker_count(strategy):
    """Returns how many processes take part in `strategy`."""
    return len(_tasks(strategy)) or 1


def worker_index(strategy):
    """Returns the index of this process among those of `strategy`; the chief has 0."""
    resolver = strategy.cluster_resolver
    return _tasks(strategy).index((resolver.task_type, resolver.task_id)) if worker_count(strategy) > 1 else 0


def is_chief(strategy):
    """True if this process writes the run folder."""
    return worker_index(strategy) == 0


def _tasks(strategy):
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return []
    jobs = strategy.cluster_resolver.cluster_spec().as_dict()
    return [(job, i) for job in ("chief", "worker") for i in range(len(jobs.get(job, ())))]


def agree(strategy, received, stop):
    """Makes all workers end at the same step by one small all-reduce per loop; eager.

    Args:
        received: None, "SIGINT" or "SIGTERM", the signal that this worker received.
        stop: bool, whether a hook of this worker ends the run.

    Returns:
        (received, stop), combined over all workers.
    """
    if worker_count(strategy) == 1:
        return received, stop
    interrupted, terminated, stop = exchange(strategy, [received == "SIGINT", received == "SIGTERM", stop]).any(axis=0)
    return "SIGTERM" if terminated else "SIGINT" if interrupted else None, bool(stop)


def check_same_step(strategy, step):
    """Raises ValueError unless all workers restored the same step; eager."""
    steps = exchange(strategy, [step])[:, 0]
    if len(set(steps)) > 1:
        raise ValueError(
            f"The workers are at different steps ({', '.join(map(str, steps))}). `model_dir` must be one folder "
            "that all workers share; only the chief writes it."
        )


def wait(strategy):
    """Waits until every worker has called it; eager."""
    exchange(strategy, [0])


def exchange(strategy, numbers):
    """Returns the numbers of all workers, int64 [workers, n], on every worker; eager. Waits for all of them.

    Args:
        numbers: list of n ints or bools.
    """
    workers = worker_count(strategy)
    table = np.zeros([workers, len(numbers)], np.int64)
    table[worker_index(strategy)] = numbers
    if workers == 1:
        return table
    total = strategy.experimental_local_results(_sum(strategy)(tf.constant(table)))[0]
    return total.numpy() // (strategy.num_replicas_in_sync // workers)  # all replicas of a worker have the same numbers


@functools.cache
def _sum(strategy):
    def add(table):
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(table))

    return tf.function(lambda table: strategy.run(add, args=(table,)), reduce_retracing=True, autograph=False)


def gathered(strategy, outputs, examples):
    """Returns [(nest of tensors [n, ...], n)] of all replicas of all workers, in order, on every worker; eager.

    Args:
        outputs: a result of `strategy.run`, a nest of tensors [max(n, 1), ...] per replica.
        examples: n, an int32 scalar per replica.
    """
    local = strategy.experimental_local_results
    counts = exchange(strategy, [int(n) for n in local(examples)]).reshape(-1)
    if worker_count(strategy) == 1:
        return list(zip(local(outputs), counts))
    rows = np.maximum(counts, 1)
    split = [tf.split(strategy.gather(x, 0), rows) for x in tf.nest.flatten(outputs)]
    return [(tf.nest.pack_sequence_as(outputs, parts), n) for *parts, n in zip(*split, counts)]


@contextlib.contextmanager
def worker_lost_errors(strategy):
    """A context that raises WorkerLost for the error of a collective after another process has ended."""
    try:
        yield
    except _LOST as error:
        if worker_count(strategy) == 1 or getattr(
            error, "is_nobodys_code", False
        ):  # an error in the data (diagnosis/inputs.py)
            raise
        raise WorkerLost(
            f"another worker ended or does not respond ({type(error).__name__}), so this one, worker "
            f"{worker_index(strategy)}, "
            "stops as well; the reason is in the output of the other worker. Start all workers again with the "
            "same command to continue from the last checkpoint."
        ) from error


def batches_per_call(strategy, spec):
    """Returns how many batches of `spec` one call of a compiled loop may take.

    TensorFlow's processes identify a collective by a number that is new in each
    call, and the shape for a number must not change ("Shape mismatch in the
    collective instance"). If batches differ in size, as the last one of a pass,
    or in the sizes of their ragged dimensions, each batch takes a separate call.
    """
    leaves = tf.nest.flatten(spec, expand_composites=True)  # components of per-replica, ragged or sparse specs
    steady = all(leaf.shape.is_fully_defined() for leaf in leaves)
    return 1 if worker_count(strategy) > 1 and not steady else ENDLESS
