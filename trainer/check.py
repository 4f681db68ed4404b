"""Examines a config instead of training it: `python -m trainer.check gradients --gin_file=FILE`.

The flags are those of trainer.main that select the config. Exit codes: 0 the
check passes, 1 it fails, 2 an error in flags, config or data.
"""

import difflib
import inspect
import os
import sys
import tempfile
import traceback
from typing import NamedTuple

from absl import flags

from trainer import config, main
from trainer.config import usage
from trainer.config.paths import local_path
from trainer.config.run_folder import config_of
from trainer.diagnosis import explain

_USED = {"gin_file", "gin_param", "gin_search_paths", "strategy", "cpu_devices", "debug", "flagfile", "undefok"}


def check(argv: list[str] | None = None) -> int:
    """Runs the check given as the first argument and returns the exit code, 0, 1 or 2."""
    argv = sys.argv if argv is None else argv
    if {"--help", "-h", "--helpshort", "--helpfull"}.intersection(argv[1:]):
        print(_help())
        return 0
    try:
        found = _check_named(argv)
        flags_of_main, arguments = _ARGUMENTS.get(argv[1], lambda rest: (rest, {}))(argv[2:])
        _bind(argv[:2], flags_of_main)
        return 0 if found(**arguments) else 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if "--debug" in argv:
            traceback.print_exc()
        mistake = isinstance(error, flags.Error) or explain.is_teaching(error)
        print(f"error: {explain.lesson(error)}" if mistake else explain.explain(error), file=sys.stderr)
        return 2 if mistake else 1


def show_config() -> bool:
    """Builds everything; prints each value with its file and line, or "default", and unused bindings."""
    from trainer.outer_loop.arguments import Arguments

    unset = {} if config.is_bound("trainer.run", "model_dir") else {"model_dir": None}
    arguments = Arguments(**config.injected("trainer.run")(**unset))
    _build()
    arguments.eval_sources()
    print(config.resolved_text())
    usage.drop_overridden()
    unused = usage.unused()
    print("\n".join(unused))
    return not unused


def gradients() -> bool:
    """Prints for each variable the gradient of the first batch, and why it is None, zero or not finite."""
    from trainer.diagnosis.diagnostics import explain_gradients

    built, source = _build()
    report = explain_gradients(built, next(iter(source.batches(0))))
    print(report)
    return report.ok


def learning_rate(steps: int, out: str) -> bool:
    """Prints and draws the loss while the rate rises from 1e-6 to 10: `learning_rate [--steps=100] [--out=F.png]`."""
    from trainer.diagnosis.learning_rate import range_test

    tested = range_test(*_build(), steps)
    print(tested)
    print(f"The curve is in {out}." if tested.draw(out) else "No plot: `pip install 'gradloom[examples]'`.")
    return tested.ok


def speed(seconds: float) -> bool:
    """Times compile modes, guard, fused updates, loop lengths, micro-batches and the input: `speed [--seconds=0.5]`."""
    from trainer.diagnosis.speed import Speed
    from trainer.replicas.distribution import make_strategy

    source, make = _parts()
    strategy, kind = make_strategy(_bound("strategy")), getattr(_bound("trainer"), "__name__", "Trainer")
    print(Speed(lambda changes: make(strategy, changes), source, _bound("steps_per_loop"), kind, seconds).measure())
    return True


class Sweep(NamedTuple):
    """The watcher of `metrics --monitor=TAG`."""

    monitor: str | None


def metrics(monitor: str | None) -> bool:
    """Prints the tags that a run reports; checks one that is to be monitored: `metrics [--monitor=TAG]`."""
    from trainer.outer_loop.arguments import Arguments
    from trainer.outer_loop.preflight import check_monitors, reported_tags

    unset = {} if config.is_bound("trainer.run", "model_dir") else {"model_dir": None}
    evals = Arguments(**config.injected("trainer.run")(**unset)).eval_sources()
    built, _ = _build()
    check_monitors(built, evals, [Sweep(monitor)])
    print("\n".join(sorted(reported_tags(built, evals))))
    return True


def replicas() -> bool:
    """Compares losses, gradients, updates and state of one batch on 1 and on 2 replicas; explains each difference."""
    from trainer.diagnosis.replicas import compare

    source, make = _parts()
    comparison = compare(make, source)
    print(comparison)
    return comparison.ok


def tpu() -> bool:
    """Compiles the step with XLA for static shapes, on the CPU, and lists what a TPU would refuse."""
    from trainer.diagnosis.tpu import examine

    source, make = _parts()
    findings = examine(make, source)
    print(findings)
    return findings.ok


def replay(folder: str, step: int | None) -> bool:
    """Repeats a non-finite step of a run and prints its first bad operation: `replay DIR [--step=N]`."""
    from trainer.diagnosis.replay import Replay
    from trainer.outer_loop.intervals import Intervals

    built, source = _build()
    settings = Intervals(
        *(_bound(name) for name in ("steps_per_loop", "eval_interval", "checkpoint_interval", "summary_interval"))
    )
    report = Replay(built, source, settings, folder).explain(step)
    print(report)
    return report.ok


def resume(flags_of_runs: list[str], steps: int) -> bool:
    """Compares a run with one that stops halfway and resumes in a new process, bit for bit: `resume [--steps=10]`."""
    from trainer.diagnosis import resume as check_resume

    with tempfile.TemporaryDirectory() as folder:
        runs = check_resume.Runs(flags_of_runs, folder, steps)
        comparison = runs.compare()
        if not comparison.ok:
            hooks = _bound("hooks")
            hooks = hooks if isinstance(hooks, (list, tuple)) else (hooks,)
            check_resume.add_causes(comparison, runs, *_build(), hooks, _bound("deterministic"))
    print(comparison)
    return comparison.ok


CHECKS = {
    "config": show_config,
    "gradients": gradients,
    "learning_rate": learning_rate,
    "metrics": metrics,
    "replay": replay,
    "replicas": replicas,
    "resume": resume,
    "speed": speed,
    "tpu": tpu,
}


def _check_named(argv):
    known = ", ".join(CHECKS)
    if len(argv) < 2 or argv[1].startswith("-"):
        raise flags.Error(f"`trainer.check` needs the name of a check first: {known}.")
    if argv[1] not in CHECKS:
        near = difflib.get_close_matches(argv[1], CHECKS, 1)
        raise flags.Error(
            f"There is no check `{argv[1]}`; the checks are {known}." + (f" Did you mean `{near[0]}`?" if near else "")
        )
    return CHECKS[argv[1]]


def _replay_arguments(argv):
    """Returns main's flags for the config in the run folder, and the arguments of `replay`."""
    step, argv = _take_number(argv, "--step=")
    given = [argument for argument in argv if not argument.startswith("-")]
    folders = [local_path("DIR", argument) for argument in given]
    if len(folders) != 1 or not config_of(folders[0]).is_file():
        raise flags.Error(
            f"`trainer.check replay` needs one run folder with a config.gin, got {' '.join(given) or 'none'}."
        )
    rest = [argument for argument in argv if argument.startswith("-")]
    return [f"--gin_file={config_of(folders[0])}", *rest], {"folder": str(folders[0]), "step": step}


def _resume_arguments(argv):
    """Returns main's flags, which the runs get as well, and the arguments of `resume`."""
    steps, argv = _take_number(argv, "--steps=")
    if steps is not None and (steps < 2 or steps % 2):
        raise flags.Error(
            f"`--steps` must be even and at least 2: half of them are trained before the stop; got {steps}."
        )
    return argv, {"flags_of_runs": argv, "steps": steps or 10}


def _learning_rate_arguments(argv):
    """Returns main's flags and the arguments of `learning_rate`."""
    steps, argv = _take_number(argv, "--steps=")
    if steps is not None and steps < 10:
        raise flags.Error(f"`--steps` must be at least 10, got {steps}.")
    out, rest = _take(argv, "--out=")
    return rest, {"steps": steps or 100, "out": out or "learning_rate.png"}


def _speed_arguments(argv):
    """Returns main's flags and the arguments of `speed`."""
    given, rest = _take(argv, "--seconds=")
    try:
        seconds = float(given or 0.5)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise flags.Error(f"`--seconds`, the time of each measurement, must be a number > 0, got {given}.")
    return rest, {"seconds": seconds}


def _metrics_arguments(argv):
    """Returns main's flags and the arguments of `metrics`."""
    tag, rest = _take(argv, "--monitor=")
    return rest, {"monitor": tag}


_ARGUMENTS = {
    "learning_rate": _learning_rate_arguments,
    "metrics": _metrics_arguments,
    "replay": _replay_arguments,
    "resume": _resume_arguments,
    "speed": _speed_arguments,
}  # for the checks with arguments


def _take(argv, flag):
    """Returns (the last value given as `flag`, such as "--out=", or None; the other arguments)."""
    values = [argument.removeprefix(flag) for argument in argv if argument.startswith(flag)]
    return values[-1] if values else None, [argument for argument in argv if not argument.startswith(flag)]


def _take_number(argv, flag):
    """Returns (the number given as `flag`, or None; the other arguments)."""
    number, rest = _take(argv, flag)
    if number is not None and not number.isdigit():
        raise flags.Error(f"`{flag[:-1]}` must be a whole number, got {number!r}.")
    return number and int(number), rest


def _bind(program, argv):
    """Reads and binds the config as main does; `program` is [program, check]."""
    main.parse([program[0], *argv])
    for name in main.FLAGS:
        if main.FLAGS[name].present and name not in _USED | {"gin_bindings"}:
            raise flags.Error(f"`--{name}` selects how to run, but a check only builds. Remove it.")
    of_run = {} if main.FLAGS.strategy is None else {"strategy": main.FLAGS.strategy}
    search_paths = [os.path.expanduser(path) for paths in main.FLAGS.gin_search_paths for path in paths.split(",")]
    config.read(main.FLAGS.gin_file, main.FLAGS.gin_param, search_paths, of_run, optional=("model_dir",))
    config.quiet_import()
    main.set_cpu_devices(main.FLAGS.cpu_devices or (_two_devices() if program[1] == "replicas" else None))
    config.bind()


def _two_devices():
    """Returns the number of CPU devices needed for two replicas, or None if there are several GPUs.

    A single GPU is not used.
    """
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if len(gpus) == 1:
        tf.config.set_visible_devices([], "GPU")
    return None if len(gpus) > 1 else 2


def _build():
    """Returns (trainer, source of the training data) of the config, built in the strategy's scope like in `run`."""
    from trainer.replicas.distribution import make_strategy

    source, make = _parts()
    return make(make_strategy(_bound("strategy"))), source


def _parts():
    """Returns (source of the training data, function that returns the config's trainer, built for it).

    The function takes a strategy and {attribute: value} to change before building: `fused` of the groups, or the
    trainer's own.
    """
    import keras

    from trainer import data
    from trainer.step.building import check_arguments
    from trainer.step.first_batch import build_for

    keras.mixed_precision.set_dtype_policy(_bound("precision") or "float32")
    keras.utils.set_random_seed(_bound("seed"))
    source = data.as_source(_bound("train_data"), _bound("epochs"))

    def make(strategy, changes=None):
        keras.utils.set_random_seed(_bound("seed"))
        with strategy.scope():
            built = _bound("trainer")()
            for name, value in (changes or {}).items():
                for changed in built.groups if name == "fused" else [built]:
                    setattr(changed, name, value)
            check_arguments(built)
        build_for(built, source)
        return built

    return source, make


def _bound(name):
    """Returns the value of `run`'s argument `name` in the config, or its default."""
    from trainer import experiment

    if config.is_bound("trainer.run", name):
        return config.bound_value("trainer.run", name)
    return inspect.signature(experiment.run).parameters[name].default


def _help():
    lines = [__doc__, "Checks:"]
    lines += [f"  {name:<12}{inspect.getdoc(check).splitlines()[0]}" for name, check in CHECKS.items()]
    lines += ["", "Flags:"]
    lines += [
        f"  --{name:<18}{main.FLAGS[name].help.splitlines()[0].rstrip(';')}"
        for name in sorted(_USED - {"flagfile", "undefok"})
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(check())
