"""The workers of cluster_test.py: `python -m trainer.launch --module=tests.trainer.cluster_worker -- FOLDER PART ...`.

Each part asserts what a worker can know by itself; what it returns, {name:
array}, the chief writes to FOLDER/PART.npz for the test to compare with one process.
"""

import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf

from tests.losses.global_batch_test import _train
from tests.trainer import matrix_test
from trainer import STOP, Trainer, run
from trainer.data import from_arrays
from trainer.replicas.cluster import agree, exchange, is_chief, worker_count, worker_index
from trainer.replicas.distribution import distribute, make_strategy, replica_values

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(40, 3)).astype(np.float32), RNG.normal(size=(40, 1)).astype(np.float32)


def towers(strategy, shift, scenario, optimizers=matrix_test.OPTIMIZERS):
    """Keras' optimizers, each on a tower of its own, as in matrix_test.py."""
    trainer = matrix_test._make(strategy, optimizers, scenario, shift)
    metrics = trainer.train(iter(trainer.distribute(matrix_test._batches(scenario))), matrix_test.STEPS)
    return {**metrics, **{name: v.numpy() for name, v in trainer.variables.items()}}


def matrix(strategy, folder):
    few = {name: matrix_test.OPTIMIZERS[name] for name in ("SGD", "Adam", "RMSprop", "Ftrl")}
    return towers(strategy, 2, "uneven last batch", few)


def whole_matrix(strategy, folder):
    found = {}
    for scenario in matrix_test.SCENARIOS:
        for shift in range(len(matrix_test.TRANSFORMS)):
            found.update({f"{scenario}/{shift}/{name}": x for name, x in towers(strategy, shift, scenario).items()})
    return found


def pairwise(strategy, folder):
    found = {}
    for shift in range(len(matrix_test.TRANSFORMS)):
        scenario = matrix_test.SCENARIOS[shift % len(matrix_test.SCENARIOS)]
        found.update({f"{scenario}/{shift}/{name}": x for name, x in towers(strategy, shift, scenario).items()})
    return found


def coupled(strategy, folder):
    """Losses that compare the examples of the global batch, which `all_gather` brings together."""
    metrics, weights, evaluated = _train(strategy, ["nt_xent", "sup_con"])
    return {**metrics, **weights, **{f"evaluated/{tag}": value for tag, value in evaluated.items()}}


def shares(strategy, folder):
    """Worker i gets the rows i*n//N to (i+1)*n//N of each global batch, of features of every kind."""
    features = {
        "ragged": tf.ragged.constant([list(range(i)) for i in range(7)]),
        "sparse": tf.sparse.from_dense(np.eye(7, dtype=np.float32)),
        "words": np.array([f"w{i}" for i in range(7)]),
    }
    _check_share(
        strategy, tf.data.Dataset.from_tensor_slices(features).batch(3), 0
    )  # 3, 3 and 1: some have none of the last
    _check_share(strategy, from_arrays((np.arange(7), features["words"]), 3, repeat=False), 0)
    _check_share(strategy, from_arrays((X, Y), 7), 3)
    _check_share(
        strategy,
        from_arrays((X, Y), 7, augment=lambda e, seed: (e[0] + tf.random.stateless_normal([3], seed), e[1])),
        3,
    )
    return {}


def _check_share(strategy, data, start):
    replicas, mine = strategy.num_replicas_in_sync, worker_index(strategy)
    wholes = iter(data if isinstance(data, tf.data.Dataset) else data.batches(start).take(5))
    for whole, element in zip(wholes, distribute(strategy, data, start)):
        part, examples, size = replica_values(strategy, element)[0]
        low, high = (int(i * size // replicas) for i in (mine, mine + 1))
        assert int(examples) == high - low
        for a, b in zip(tf.nest.flatten(part), tf.nest.flatten(whole), strict=True):
            a, b = (tf.sparse.to_dense(x) if isinstance(x, tf.SparseTensor) else x for x in (a, b))
            a, b = (x.to_list() if isinstance(x, tf.RaggedTensor) else x.numpy().tolist() for x in (a, b))
            assert len(a) == max(high - low, 1) and a[: high - low] == b[low:high], (a, b)
    assert next(wholes, None) is None


def _noisy():
    layers = [
        keras.layers.Dense(8),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(1),
    ]
    return Trainer(keras.Sequential([keras.Input((3,)), *layers]), "mse", ["mae"], keras.optimizers.Adam(0.01))


def _augmented():
    return from_arrays((X, Y), 8, augment=lambda e, seed: (e[0] + tf.random.stateless_normal([3], seed), e[1]))


def resume(strategy, folder):
    """A hook of the last worker stops the run; started again, it ends bit for bit as one that never stopped."""
    last = worker_index(strategy) == worker_count(strategy) - 1
    settings = {
        "train_steps": 20,
        "steps_per_loop": 5,
        "summary_interval": 10,
        "checkpoint_interval": 10,
        "eval_interval": None,
    }
    written = _writes_of_python()
    held_out = lambda: from_arrays((X[:13], Y[:13]), 5, repeat=False)  # noqa: E731
    whole = run(folder / "whole", _noisy, _augmented, held_out, **settings)
    stopped = run(
        folder / "parts", _noisy, _augmented, hooks=lambda t, s, m: STOP if last and s == 15 else None, **settings
    )
    assert int(stopped.trainer.global_step.numpy()) == 15
    again = run(folder / "parts", _noisy, _augmented, **settings)
    for (name, a), b in zip(whole.trainer.variables.items(), again.trainer.variables.values(), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=name)
        seeds = exchange(strategy, a.numpy().astype(np.int64)[:1] if "seed" in name else [0])[:, 0]
        if "seed" in name:
            assert list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))), seeds  # another one on each worker
    assert is_chief(strategy) or not [path for path in written if path.startswith(str(folder))]
    _check_evaluation(whole, held_out)
    return {name: v.numpy() for name, v in whole.trainer.variables.items() if "seed" not in name}


def _check_evaluation(result, held_out):
    """Each of 13 examples counts once, in batches of 5, 5 and 3 over any number of workers; outputs come in order."""
    expected = result.trainer.model(X[:13], training=False).numpy()
    np.testing.assert_allclose(result.trainer.predict(held_out), expected, rtol=1e-5)
    metrics = result.metrics["validation"]
    np.testing.assert_allclose(metrics["loss"], np.mean((expected - Y[:13]) ** 2), rtol=1e-5)
    np.testing.assert_allclose(metrics["metrics/mean_absolute_error"], np.mean(np.abs(expected - Y[:13])), rtol=1e-5)


def _writes_of_python():
    """Returns a list to which Python adds each path that it opens for writing or makes from now on."""
    paths = []

    def note(event, arguments):
        if event in ("os.mkdir", "os.rename", "os.remove") or (
            event == "open" and str(arguments[1] or "r") != "r" and "r" not in str(arguments[1])
        ):
            paths.append(str(arguments[0]))

    sys.addaudithook(note)
    return paths


def words(strategy, folder):
    """What the workers say to each other."""
    index, count = worker_index(strategy), worker_count(strategy)
    np.testing.assert_array_equal(exchange(strategy, [index, 7]), [[i, 7] for i in range(count)])
    assert agree(strategy, "SIGTERM" if index == count - 1 else None, False) == ("SIGTERM", False)
    assert agree(strategy, None, index == 0) == (None, True)
    assert agree(strategy, None, False) == (None, False)
    assert make_strategy("auto") is make_strategy("multi_worker_mirrored") is strategy
    return {}


def endless(strategy, folder):
    """Trains until somebody ends it; the chief says where it is."""
    hook = lambda trainer, step, metrics: print("at step", step, flush=True) if is_chief(strategy) else None  # noqa: E731
    result = run(
        folder / "run",
        _noisy,
        _augmented,
        train_steps=10**9,
        steps_per_loop=5,
        eval_interval=None,
        checkpoint_interval=5,
        hooks=hook,
    )
    print("ended", result.status, int(result.trainer.global_step.numpy()), flush=True)
    return {}


PARTS = {part.__name__: part for part in (matrix, whole_matrix, pairwise, coupled, shares, resume, words, endless)}


def main(folder, *parts):
    strategy = make_strategy()
    for part in parts:
        found = PARTS[part](strategy, pathlib.Path(folder))
        if found and is_chief(strategy):
            np.savez(
                pathlib.Path(folder) / f"{part}.npz", **{name.replace("/", "|"): value for name, value in found.items()}
            )
        print(f"{part} is done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
