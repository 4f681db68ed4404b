"""A real cluster of processes on loopback: the numbers of one process, one writer, and an end in time whatever happens.

One cluster of two runs all the parts of cluster_worker.py that the normal run
has; what takes longer is marked slow.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest
import tensorflow as tf

from tests.runs import read_rows
from tests.trainer import cluster_worker, matrix_test
from trainer.config.files import ROOT
from trainer.launch import Workers, free_ports, launch
from trainer.replicas import cluster
from trainer.replicas.distribution import make_strategy
from trainer.step import replica_state


def _command(folder, *parts):
    return [sys.executable, "-m", "tests.trainer.cluster_worker", str(folder), *parts]


def _work(folder, workers, *parts):
    """Runs the parts on that many processes; returns {part: {name: array}}."""
    ended = Workers(workers, _command(folder, *parts)).run()
    assert ended == 0
    found = {}
    for path in folder.glob("*.npz"):
        with np.load(path) as arrays:
            found[path.stem] = {name.replace("|", "/"): arrays[name] for name in arrays.files}
    return found


def _assert_same(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name.split("/")[-1] in ("step_milliseconds", "input_wait_fraction") or "updates" in name:
            continue
        np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=tolerance, err_msg=name)


def test_two_processes_do_what_one_does(tmp_path):
    """Optimizers x transforms, gathered losses, input shards, resume, evaluation; the workers assert most of it."""
    found = _work(tmp_path, 2, "words", "shares", "resume", "coupled", "matrix")
    one = make_strategy("default")
    _assert_same(found["matrix"], cluster_worker.matrix(one, tmp_path), matrix_test.TOLERANCE)
    _assert_same(found["coupled"], cluster_worker.coupled(one, tmp_path), 3e-6)
    assert [row["step"] for row in read_rows(tmp_path / "parts", "train")] == [10, 20]


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("workers, part", [(2, "whole_matrix"), (4, "pairwise")])
def test_the_matrix_over_processes(tmp_path, workers, part):
    found = _work(tmp_path, workers, part)[part]
    expected = getattr(cluster_worker, part)(make_strategy("default"), tmp_path)
    kernels = {name: value for name, value in expected.items() if name.endswith("kernel")}
    assert all(np.abs(value).max() > 0 for value in kernels.values())
    _assert_same(found, expected, matrix_test.TOLERANCE)


# ---- how it ends ---------------------------------------------------------------------------------------------------


class _Endless:
    """A launch of two workers that train until somebody ends them; its output, and when each line came."""

    def __init__(self, folder):
        command = [
            sys.executable,
            "-m",
            "trainer.launch",
            "--workers=2",
            "--module=tests.trainer.cluster_worker",
            "--",
            str(folder),
            "endless",
        ]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.lines = []

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.process.poll() is None:  # a failed test leaves nobody behind
            for pid in self.workers():
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def wait_for(self, text):
        for line in self.process.stdout:
            self.lines.append(line)
            if text in line:
                return
        raise AssertionError("".join(self.lines))

    def workers(self):
        """Process ids of the workers, in order."""
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True, check=True
        )
        return sorted(map(int, listed.stdout.split()))

    def end(self):
        """Returns (exit code, seconds, output) once all have ended."""
        began = time.monotonic()
        out, _ = self.process.communicate(timeout=120)
        return self.process.returncode, time.monotonic() - began, "".join(self.lines) + out


def _steps(folder):
    return sorted(int(path.name.removeprefix("step_")) for path in (folder / "run" / "checkpoints").glob("step_*"))


def test_a_signal_stops_all_at_one_step_and_a_killed_worker_ends_the_rest(tmp_path):
    with _Endless(tmp_path) as run:
        run.wait_for("at step 10\n")
        run.process.send_signal(signal.SIGTERM)
        code, seconds, said = run.end()
    assert code == 0, said  # the program itself goes on after `run`, and ends well
    ends = [line.split("ended SIGTERM ")[1].strip() for line in said.splitlines() if "ended SIGTERM" in line]
    assert len(ends) == 2 and ends[0] == ends[1] == str(_steps(tmp_path)[-1])
    with _Endless(tmp_path) as again:
        again.wait_for("at step")
        assert int(again.lines[-1].split()[-1]) == int(ends[0]) + 5  # it went on
        os.kill(again.workers()[1], signal.SIGKILL)
        code, seconds, said = again.end()
    assert code == 128 + signal.SIGKILL and seconds < 30
    assert "worker 1 was killed by SIGKILL" in said and "WorkerLost: another worker ended or does not respond" in said


@pytest.mark.slow
@pytest.mark.parametrize("number, victim", [(signal.SIGKILL, 0), (signal.SIGSTOP, 0), (signal.SIGSTOP, 1)])
def test_a_worker_that_is_killed_or_frozen_ends_the_rest_within_30_seconds(tmp_path, number, victim):
    with _Endless(tmp_path) as run:
        run.wait_for("at step 10\n")
        os.kill(run.workers()[victim], number)
        code, seconds, said = run.end()
    assert code != 0 and seconds < 30
    assert "WorkerLost: another worker ended or does not respond" in said
    assert (f"worker {victim} did not end" in said) == (number == signal.SIGSTOP)
    with _Endless(tmp_path) as again:
        again.wait_for("at step")
        assert int(again.lines[-1].split()[-1]) in [step + 5 for step in _steps(tmp_path)]


# ---- coming up -----------------------------------------------------------------------------------------------------


def _meet(addresses, indices, patience):
    """Calls `meet` in a thread per index; returns {index: None or the error}."""
    outcomes = {}

    def call(index):
        try:
            outcomes[index] = cluster.meet(addresses, index, patience)
        except cluster.WorkerLost as error:
            outcomes[index] = error

    threads = [threading.Thread(target=call, args=(index,)) for index in indices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_all_workers_that_start_meet():
    addresses = [f"127.0.0.1:{port}" for port in free_ports(4)]
    assert _meet(addresses, [3, 1, 0, 2], patience=20) == {0: None, 1: None, 2: None, 3: None}
    assert _meet(addresses, [0, 1, 2, 3], patience=20) == {
        0: None,
        1: None,
        2: None,
        3: None,
    }  # the ports are free at once


@pytest.mark.parametrize("absent", [0, 2])
def test_a_missing_worker_is_named_by_all_others(absent):
    addresses = [f"127.0.0.1:{port}" for port in free_ports(3)]
    outcomes = _meet(addresses, {0, 1, 2} - {absent}, patience=1)
    assert len(outcomes) == 2
    for error in outcomes.values():
        assert f"worker {absent} ({addresses[absent]}) did not start within 1 s" in str(error)


@pytest.mark.slow
def test_a_run_reports_a_missing_worker_after_a_minute(tmp_path):
    task = {
        "cluster": {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]},
        "task": {"type": "worker", "index": 0},
    }
    command = [sys.executable, "-m", "trainer.main", "--gin_file=configs/digits.gin", f"--model_dir={tmp_path}/run"]
    began = time.monotonic()
    ran = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "TF_CONFIG": json.dumps(task)},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert ran.returncode == 1 and 60 < time.monotonic() - began < 110
    assert "worker 1 (127.0.0.1:" in ran.stderr and "did not start within 60 s" in ran.stderr
    assert not (tmp_path / "run").exists()


def _tf_config(monkeypatch, value):
    monkeypatch.setenv("TF_CONFIG", value if isinstance(value, str) else json.dumps(value))


CLUSTER = {"chief": ["a:1"], "worker": ["b:2", "c:3"]}


@pytest.mark.parametrize("kind, index, place", [("chief", 0, 0), ("worker", 0, 1), ("worker", 1, 2)])
def test_workers_are_read_from_tf_config(monkeypatch, kind, index, place):
    _tf_config(monkeypatch, {"cluster": CLUSTER, "task": {"type": kind, "index": index}})
    found = cluster.find_cluster()
    assert (found.addresses, found.index) == (["a:1", "b:2", "c:3"], place)
    assert (found.resolver.task_type, found.resolver.task_id) == (kind, index)


@pytest.mark.parametrize("value", [{}, {"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}])
def test_a_single_process_is_no_cluster(monkeypatch, value):
    _tf_config(monkeypatch, value)
    assert cluster.find_cluster() is None


@pytest.mark.parametrize(
    "value",
    ["{", "[]", {"cluster": CLUSTER}, {"cluster": CLUSTER, "task": {"type": "ps", "index": 0}},
     {"cluster": CLUSTER, "task": {"type": "worker", "index": 2}}, {"cluster": CLUSTER, "task": {"type": "worker"}}],
)  # fmt: skip
def test_a_wrong_tf_config_is_refused(monkeypatch, value):
    _tf_config(monkeypatch, value)
    with pytest.raises(ValueError, match="`TF_CONFIG` must be JSON like"):
        cluster.find_cluster()


def test_workers_are_read_from_slurm(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    for name, value in {
        "PROCID": 3,
        "STEP_NUM_TASKS": 4,
        "STEP_NODELIST": "node[1-2]",
        "STEP_TASKS_PER_NODE": "2(x2)",
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    found = cluster.find_cluster()
    assert found.addresses == ["node1:8888", "node1:8889", "node2:8888", "node2:8889"] and found.index == 3
    assert (found.resolver.task_type, found.resolver.task_id) == ("worker", 3)
    assert found.resolver.num_accelerators() == {"GPU": 0}


def test_one_process_is_the_chief_and_agrees_with_itself():
    for name in ("default", "mirrored"):
        strategy = make_strategy(name)
        assert (cluster.worker_count(strategy), cluster.worker_index(strategy)) == (1, 0) and cluster.is_chief(strategy)
        assert cluster.agree(strategy, "SIGINT", True) == ("SIGINT", True)
        cluster.check_same_step(strategy, 5)
        assert cluster.exchange(strategy, [3, True]).tolist() == [[3, 1]]


def test_a_lost_worker_is_reported_in_a_cluster_only(monkeypatch):
    lost = tf.errors.UnavailableError(None, None, "gone")
    with pytest.raises(tf.errors.UnavailableError), cluster.worker_lost_errors(make_strategy("default")):
        raise lost
    monkeypatch.setattr(cluster, "worker_count", lambda strategy: 2)
    monkeypatch.setattr(cluster, "worker_index", lambda strategy: 1)
    with (
        pytest.raises(cluster.WorkerLost, match="worker 1, stops as well.*last checkpoint"),
        cluster.worker_lost_errors(None),
    ):
        raise lost


# ---- the launcher --------------------------------------------------------------------------------------------------


def test_output_is_prefixed_by_worker_and_the_first_failure_ends_all(capfd, monkeypatch):
    monkeypatch.setattr("trainer.launch.GRACE", 0.5)
    program = (
        "import json, os, sys, time; i = json.loads(os.environ['TF_CONFIG'])['task']['index']; print('I am', i);"
        "print('err', i, file=sys.stderr); time.sleep(600 * (i == 0)); sys.exit(7)"
    )
    began = time.monotonic()
    assert Workers(2, [sys.executable, "-c", program]).run() == 7
    assert time.monotonic() - began < 30
    out, err = capfd.readouterr()
    assert sorted(out.splitlines()) == ["[0] I am 0", "[1] I am 1"]
    assert "[0] err 0" in err and "[launch] worker 1 ended with exit code 7" in err and "worker 0 did not end" in err


def _is_alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel of Linux ends children with their parent")
def test_a_killed_launcher_leaves_no_process_behind(tmp_path):
    program = "import os, sys, time; print(os.getpid()); time.sleep(600)"
    (tmp_path / "sleeper.py").write_text(program)
    command = [sys.executable, "-m", "trainer.launch", "--workers=2", "--module=sleeper", "--", "x"]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    pids = [int(process.stdout.readline().split()[1]) for _ in range(2)]
    assert all(map(_is_alive, pids))
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while any(map(_is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(_is_alive, pids))


@pytest.mark.parametrize("workers, local, firsts", [(1, 2, [0]), (2, 1, [0, 1]), (4, 1, [0, 1, 2, 3]), (2, 4, [0, 4])])
def test_a_worker_knows_the_number_of_its_first_replica(monkeypatch, workers, local, firsts):
    """The build traces as this replica: the variables of a worker have no value for another worker's."""
    strategy = types.SimpleNamespace(num_replicas_in_sync=workers * local)
    monkeypatch.setattr(replica_state, "worker_count", lambda strategy: workers)
    for index, first in enumerate(firsts):
        monkeypatch.setattr(replica_state, "worker_index", lambda strategy, index=index: index)
        assert replica_state._first_replica(strategy) == first


def test_gpus_are_divided_among_workers(monkeypatch):
    from trainer.launch import deal_gpus

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert [env["CUDA_VISIBLE_DEVICES"] for env in deal_gpus(2)] == ["0,2", "1,3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert [env["CUDA_VISIBLE_DEVICES"] for env in deal_gpus(2)] == ["-1", "-1"]


@pytest.mark.parametrize(
    "flags", [["--workers=0", "--", "x"], ["--worker=2", "--", "x"], ["--workers=2"], ["a.gin", "--", "x"]]
)
def test_mistakes_of_the_launcher_exit_2(capsys, flags):
    assert launch(["launch.py", *flags]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_help_of_the_launcher(capsys):
    assert launch(["launch.py", "--help"]) == 0
    assert "--workers" in capsys.readouterr().out
