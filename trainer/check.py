"""Examines a config instead of training it: `python -m trainer.check gradients --gin_file=FILE`.

Flags are those of trainer.main that say what is built; exit codes: 0 all is
fine, 1 something is not, 2 a mistake in flags, config or data.
"""

import difflib
import inspect
import os
import sys
import traceback

from absl import flags

from trainer import config, explain, main

_USED = {"gin_file", "gin_param", "gin_search_paths", "strategy", "cpu_devices", "debug", "flagfile", "undefok"}


def check(argv: list[str] | None = None) -> int:
    """Runs the check that the first argument names and returns the exit code: 0, 1 or 2."""
    argv = sys.argv if argv is None else argv
    if {"--help", "-h", "--helpshort", "--helpfull"}.intersection(argv[1:]):
        print(_help())
        return 0
    try:
        found = _check_named(argv)
        _bind(argv)
        return 0 if found() else 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if "--debug" in argv:
            traceback.print_exc()
        mistake = isinstance(error, flags.Error) or explain.is_teaching(error)
        print(f"error: {explain.message(error)}" if mistake else explain.explain(error), file=sys.stderr)
        return 2 if mistake else 1


def gradients() -> bool:
    """Prints the gradients of the first batch, variable by variable, and why some are None, zero or not finite."""
    from trainer.diagnostics import explain_gradients

    built, source = _build()
    report = explain_gradients(built, next(iter(source.batches(0))))
    print(report)
    return report.ok


CHECKS = {"gradients": gradients}


def _check_named(argv):
    known = ", ".join(CHECKS)
    if len(argv) < 2 or argv[1].startswith("-"):
        raise flags.Error(f"`trainer.check` needs the name of a check first: {known}.")
    if argv[1] not in CHECKS:
        near = difflib.get_close_matches(argv[1], CHECKS, 1)
        raise flags.Error(f"There is no check `{argv[1]}`; there is {known}." + (f" Did you mean `{near[0]}`?" if near else ""))
    return CHECKS[argv[1]]


def _bind(argv):
    """Reads and binds the config as main does."""
    main._parse([argv[0], *argv[2:]])
    for name in main.FLAGS:
        if main.FLAGS[name].present and name not in _USED | {"gin_bindings"}:
            raise flags.Error(f"`--{name}` says how to run; a check only builds. Leave it out.")
    of_run = {} if main.FLAGS.strategy is None else {"strategy": main.FLAGS.strategy}
    search_paths = [os.path.expanduser(path) for paths in main.FLAGS.gin_search_paths for path in paths.split(",")]
    config.read(main.FLAGS.gin_file, main.FLAGS.gin_param, search_paths, of_run)
    config.quiet_import()
    main._set_cpu_devices(main.FLAGS.cpu_devices)
    config.bind()
    config.require("trainer.run", besides=("model_dir",))


def _build():
    """Returns (trainer, source of the training data) of the config, built in the strategy's scope as `run` builds them."""
    import keras

    from trainer import data, experiment
    from trainer.distribution import make_strategy

    def bound(name):
        if config.is_bound("trainer.run", name):
            return config.bound_value("trainer.run", name)
        return inspect.signature(experiment.run).parameters[name].default

    keras.mixed_precision.set_dtype_policy(bound("precision") or "float32")
    keras.utils.set_random_seed(bound("seed"))
    strategy = make_strategy(bound("strategy"))
    with strategy.scope():
        source = data.as_source(bound("train_data"), bound("epochs"))
        built = bound("trainer")()
    built.build(source.element_spec)
    return built, source


def _help():
    lines = [__doc__, "Checks:"]
    lines += [f"  {name:<12}{inspect.getdoc(check).splitlines()[0]}" for name, check in CHECKS.items()]
    lines += ["", "Flags:"]
    lines += [f"  --{name:<18}{main.FLAGS[name].help.splitlines()[0].rstrip(';')}" for name in sorted(_USED - {"flagfile", "undefok"})]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(check())
