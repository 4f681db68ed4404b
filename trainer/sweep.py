"""Trains a config with several values of its parameters and several seeds, and ranks the results.

  python -m trainer.sweep --gin_file=F --model_dir=DIR --grid="Adam.learning_rate=[1e-3, 1e-2]" --seeds=3 --parallel=2
  python -m trainer.sweep --gin_file=F --model_dir=DIR --random="Adam.learning_rate=log_uniform(1e-4, 1e-1)" --trials=20

Each run is a process of `trainer.main` with the folder DIR/trial_000/seed_0; log.txt in it has its output. The same
command continues: finished runs are kept, others resume, failed ones are tried again. DIR/sweep.csv has a row per run;
`tensorboard --logdir DIR` compares the trials under HPARAMS. configs/SWEEPS.md: several machines.

Exit codes: 0 done, 1 some runs failed, 2 an error in flags, config or data, 130 and 143 stopped by SIGINT and SIGTERM.
"""

import collections
import contextlib
import fcntl
import math
import os
import re
import signal
import subprocess
import sys
import time

from absl import flags

from trainer import config, console, launch, main
from trainer.config import search_space
from trainer.config.paths import folder_path
from trainer.diagnosis import explain
from trainer.trials import Run, show, write_csv, write_experiment

FLAGS = flags.FlagValues()
flags.DEFINE_multi_string("grid", [], "NAME.PARAMETER=[values], all of them; repeatable.", flag_values=FLAGS)
flags.DEFINE_multi_string(
    "random",
    [],
    "NAME.PARAMETER=uniform(low, high), log_uniform(...), randint(...) or [values]; repeatable.",
    flag_values=FLAGS,
)
flags.DEFINE_integer("trials", None, "Number of trials with --random.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("seeds", 1, "Seeds of each trial, from `run.seed` on.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("parallel", 1, "Runs at the same time; GPUs are divided.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_string("model_dir", None, "The folder of the sweep.", flag_values=FLAGS)
flags.DEFINE_string("monitor", "validation/loss", "The tag to rank by, its last value.", flag_values=FLAGS)
flags.DEFINE_enum("monitor_mode", None, ["min", "max"], "Which is better; default: min for losses.", flag_values=FLAGS)

_OF_MAIN = ("gin_file", "gin_param", "gin_search_paths", "strategy", "cpu_devices", "init_from")  # given to each run
_SHARED = "shared_config.gin"  # in the folder of the sweep: what its trials share
_HELP = {"--help", "-help", "-h", "--helpshort", "--helpfull"}
_STOPPED = {130: "SIGINT", 143: "SIGTERM", -2: "SIGINT", -15: "SIGTERM"}
_ERROR = re.compile(r"^(?:error|[\w.]*(?:Error|Exception|Interrupt)): .*", re.MULTILINE)


def sweep(argv: list[str] | None = None) -> int:
    """Executes the command line and returns the exit code."""
    argv = sys.argv if argv is None else argv
    if _HELP.intersection(argv[1:]):
        print(__doc__)
        print("\n".join(f"  --{name:<14}{FLAGS[name].help.splitlines()[0].rstrip(';')}" for name in _own_flags()))
        print(f"\nFlags of trainer.main for each run: {', '.join(f'--{name}' for name in _OF_MAIN)}.")
        return 0
    try:
        mode = _parse(argv)
        axes = search_space.read_axes(FLAGS.grid, FLAGS.random)
        trials = search_space.trials_of(axes, FLAGS.trials)
        folder = folder_path("model_dir", FLAGS.model_dir)
        shared, seed = _check(axes, trials, folder)
        gpus = _deal_gpus(FLAGS.parallel)
        runs = _lay_out(folder, trials, range(seed, seed + FLAGS.seeds), shared)
        if code := _first_look(runs):
            print("The first trial cannot be built; no run was started.", file=sys.stderr)
            return code
        with _lock(folder):
            (folder / _SHARED).write_text(shared)
            return _sweep(runs, folder, axes, mode, gpus)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if not isinstance(error, flags.Error) and not explain.is_teaching(error):
            raise
        print(f"error: {explain.lesson(error)}", file=sys.stderr)
        return 2


def _own_flags():
    return [name for name in FLAGS if name not in ("flagfile", "undefok")]


def _parse(argv):
    """Sets the flags of the sweep and of main; returns "min" or "max"."""
    FLAGS.unparse_flags()
    for name in FLAGS:
        FLAGS[name].unparse()
    main.parse(FLAGS(argv, known_only=True))
    for name in main.FLAGS:
        if main.FLAGS[name].present and name not in (*_OF_MAIN, "gin_bindings", "flagfile", "undefok"):
            raise flags.Error(f"`--{name}` is not for sweeps, whose runs train and resume. Remove it.")
    if not FLAGS.grid and not FLAGS.random:
        raise flags.Error('`--grid` or `--random` is missing. Try --grid="Adam.learning_rate=[1e-3, 1e-2]".')
    if not FLAGS.model_dir:
        raise flags.Error("`--model_dir` is missing: the folder of the sweep.")
    is_loss = FLAGS.monitor.rpartition("/")[2] == "loss" or "losses/" in FLAGS.monitor
    if FLAGS.monitor_mode is None and not is_loss:
        raise flags.Error(f"`--monitor={FLAGS.monitor}` is not a loss: give --monitor_mode=max or --monitor_mode=min.")
    return FLAGS.monitor_mode or "min"


def _given(names):
    """Returns flags of main as they were given."""
    values = ((name, main.FLAGS[name].value) for name in names)
    return [f"--{name}={v}" for name, x in values if x is not None for v in (x if isinstance(x, list) else [x])]


def _check(axes, trials, folder):
    """Checks all trials without TensorFlow; returns what the trials share: the config as text, and the first seed."""
    given = main.FLAGS
    search = [path for paths in given.gin_search_paths for path in paths.split(",")]
    of_run = {} if given.strategy is None else {"strategy": given.strategy}

    def read(bindings):
        config.read(given.gin_file, [*given.gin_param, *bindings], search, {**of_run, "model_dir": str(folder)}, "", ())

    search_space.check_trials(axes, trials, read)
    return search_space.shared_config(given.gin_file, given.gin_param, search, of_run)


def _deal_gpus(count):
    """Returns the environment of each of the parallel runs, with its share of the GPUs."""
    if count == 1:
        return [{}]
    ids = launch.deal_gpus(1)[0]["CUDA_VISIBLE_DEVICES"].split(",")
    if ids != ["-1"] and len(ids) < count:
        raise flags.Error(f"`--parallel={count}` must be at most {len(ids)}, the number of GPUs.")
    return launch.deal_gpus(count)


@contextlib.contextmanager
def _lock(folder):
    """A context in which no other sweep of this machine uses the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".sweep_lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise config.ConfigError(f"`--model_dir={folder}` is in use by another sweep.") from None
        yield


def _lay_out(folder, trials, seeds, shared):
    """Returns the runs, seed by seed; a trial whose bindings have a folder already keeps it."""
    path = folder / _SHARED
    if path.exists() and (changed := config.difference(path.read_text(), shared)):
        raise config.ConfigError(
            f"The config has changed since this sweep was started:\n{changed}\nUndo the change, or use another folder."
        )
    known = {file.read_text(): file.parent.name for file in folder.glob("trial_*/trial.gin")}
    free = 1 + max((int(name.rpartition("_")[2]) for name in known.values()), default=-1)
    runs = []
    for values in trials:
        text = _text(values)
        if text not in known:
            known[text] = f"trial_{free:03}"
            free += 1
        runs += [Run(known[text], seed, values, folder / known[text] / f"seed_{seed}") for seed in seeds]
    return sorted(runs, key=lambda run: run.seed)


def _text(values):
    return "\n".join(search_space.bindings_of(values)) + "\n"


def _first_look(runs):
    """Builds the first trial and looks for the monitored tag, in another process; returns 0 or its exit code."""
    if any(FLAGS.monitor in run.last_values() for run in runs):
        return 0  # an earlier start has done it
    bindings = [f"--gin_param={binding}" for binding in search_space.bindings_of(runs[0].values)]
    flags_of_check = _given(name for name in _OF_MAIN if name != "init_from")
    command = [sys.executable, "-m", "trainer.check", "metrics", f"--monitor={FLAGS.monitor}"]
    looked = subprocess.run([*command, *flags_of_check, *bindings], stdout=subprocess.PIPE)
    return looked.returncode


def _sweep(runs, folder, axes, mode, gpus):
    """Runs what is not done, prints and writes the results; returns the exit code."""
    waiting = [run for run in runs if not run.is_done]
    trials = len({run.trial for run in runs})
    console.line(f"{trials} trials, {len(runs)} runs, {len(runs) - len(waiting)} of them done before. Folder: {folder}")
    write_experiment(folder, axes, FLAGS.monitor)
    processes = Processes(waiting, gpus, lambda: write_csv(folder / "sweep.csv", runs, axes, FLAGS.monitor))
    processes.run()
    write_csv(folder / "sweep.csv", runs, axes, FLAGS.monitor)
    show(runs, axes, FLAGS.monitor, mode)
    if processes.received:
        console.line("Stopped. The same command continues.")
        return 128 + processes.received
    return 0 if all(run.is_done for run in runs) else 1


def command_of(run: Run) -> list[str]:
    """Returns the command of a run; the bindings of the trial and the seed override all others."""
    bindings = [*search_space.bindings_of(run.values), f"run.seed = {run.seed}"]
    overrides = [f"--gin_param={binding}" for binding in bindings]
    return [sys.executable, "-m", "trainer.main", *_given(_OF_MAIN), *overrides, f"--model_dir={run.folder}"]


class Processes:
    """Runs processes of trainer.main, as many at a time as there are environments.

    Attributes:
        received: the signal that ended the sweep, or None.
    """

    def __init__(self, runs, environments, ended):
        """ended: function that is called after the end of each run."""
        self._waiting, self._free, self._running = collections.deque(runs), list(environments), []
        self._total, self._count, self._ended, self.received = len(runs), 0, ended, None

    def run(self):
        """Waits for all runs. SIGINT and SIGTERM are passed on: runs save and end, and no further one starts."""
        previous = {n: signal.signal(n, self._pass_on) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            while self._running or (self._waiting and not self.received):
                while self._waiting and self._free and not self.received:
                    self._start(self._waiting.popleft(), self._free.pop(0))
                for running in [r for r in self._running if r[1].poll() is not None]:
                    self._running.remove(running)
                    self._free.append(running[2])
                    self._end(*running)
                time.sleep(0.05)
        finally:
            for _, process, *_ in self._running:
                process.kill()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _start(self, run, environment):
        console.line(f"{run.name} starts: {', '.join(search_space.bindings_of(run.values))}")
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder.parent / "trial.gin").write_text(_text(run.values))
        with open(run.folder / "log.txt", "ab") as log:
            # In a session of its own, so that Ctrl-C reaches it once; if this process is killed, it saves and ends.
            process = subprocess.Popen(
                command_of(run), env={**os.environ, **environment, "GRADLOOM_SWEEP": "1"},
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                preexec_fn=launch.die_with_parent(signal.SIGTERM),
            )  # fmt: skip
            self._running.append((run, process, environment, time.time(), log.tell()))
        if self.received:
            process.send_signal(self.received)

    def _pass_on(self, number, frame):
        self.received = number
        for _, process, *_ in self._running:
            process.send_signal(number)

    def _end(self, run, process, environment, started, begin):
        code, ended = process.returncode, time.time()
        status = "done" if code == 0 else "stopped" if code in _STOPPED else "failed"
        why = _STOPPED[code] if status == "stopped" else _reason(code, run.folder / "log.txt", begin) if code else ""
        run.end(status, why, started, ended)
        self._ended()
        self._count += 1
        value = run.last_values().get(FLAGS.monitor, math.nan)
        shown = f"{FLAGS.monitor} {console.number(value)}" if status == "done" else why
        console.line(f"[{self._count}/{self._total}] {run.name} {status} after {ended - started:.0f} s: {shown}")


def _reason(code, log, begin):
    """Returns in one line why a run failed: the last error in its log, which begins at byte `begin`."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    text = log.read_bytes()[begin:].decode(errors="replace")
    lines = [match[0] for match in _ERROR.finditer(text)] or [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"exit code {code}"


if __name__ == "__main__":
    sys.exit(sweep())
