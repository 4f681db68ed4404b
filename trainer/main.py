"""Flags in, exit code out: `python -m trainer.main --gin_file=FILE --model_dir=DIR`."""

import importlib.metadata
import platform
import re
import shlex
import sys
import traceback

from absl import flags

from trainer import config
from trainer.config.advice import split_by_shell
from trainer.config.paths import local_path
from trainer.diagnosis import explain

# Our own registry of flags: absl's global one adds its logging flags, and fails on a second import.
FLAGS = flags.FlagValues()

flags.DEFINE_multi_string("gin_file", [], "A gin file; repeatable, later files win.", flag_values=FLAGS)
flags.DEFINE_multi_string("gin_param", [], "A binding ('Adam.epsilon = 1e-8'); wins over files.", flag_values=FLAGS)
flags.DEFINE_alias("gin_bindings", "gin_param", flag_values=FLAGS)
flags.DEFINE_multi_string("gin_search_paths", [], "Folders to look for gin files in.", flag_values=FLAGS)
flags.DEFINE_string("model_dir", None, "The run folder; starting with the same folder resumes.", flag_values=FLAGS)
flags.DEFINE_string("mode", None, "What to do: train_and_eval, train, eval, export, fast_dev_run.", flag_values=FLAGS)
flags.DEFINE_string(
    "strategy", None, "auto, default, one_device, mirrored, multi_worker_mirrored or tpu.", flag_values=FLAGS
)
flags.DEFINE_string("resume", None, "Whether to resume a checkpoint: auto, never or must.", flag_values=FLAGS)
flags.DEFINE_string(
    "init_from",
    None,
    "A run folder, checkpoint, .keras or .weights.h5 file with the initial weights.",
    flag_values=FLAGS,
)
flags.DEFINE_bool("dry_run", False, "Check, build and trace one step; write nothing.", flag_values=FLAGS)
flags.DEFINE_bool("debug", False, "Show the whole traceback of an error.", flag_values=FLAGS)
flags.DEFINE_integer("cpu_devices", None, "Split the CPU into this many devices.", lower_bound=1, flag_values=FLAGS)

_T5X = re.compile(r"\A--gin\.(?=[\w./]+=)")  # `--gin.run.seed=1`, as T5X spells `--gin_param="run.seed=1"`
_OF_RUN = ("model_dir", "mode", "strategy", "resume")  # these flags become bindings of `run`
_GROUPS = {
    "Config (everything that is not a flag is gin; --gin.NAME=VALUE is short for --gin_param)": (
        *("gin_file", "gin_param", "gin_bindings", "gin_search_paths"),
    ),
    "Run": ("model_dir", "mode", "resume", "init_from"),
    "Devices": ("strategy", "cpu_devices"),
    "Debugging": ("dry_run", "debug"),
}
_EXAMPLES = """Examples:
  python -m trainer.configs                                                         the experiments, and how to copy one
  python -m trainer.main --gin_file=configs/digits.gin --model_dir=runs/digits      train; again: resume
  python -m trainer.main --gin_file=configs/digits.gin --gin.run.train_steps=100 --dry_run
  python -m trainer.check config --gin_file=configs/digits.gin                      every value with its origin"""
_HELP = {"--help", "-help", "-h", "--helpshort", "--helpfull"}
_EXIT_CODES = {"done": 0, "unsaved": 1, "stopped_nonfinite": 3, "SIGINT": 130, "SIGTERM": 143}


def main(argv: list[str] | None = None) -> int:
    """Executes the command line and returns the exit code: 0, 1, 2, 3, 130 or 143 (README)."""
    argv = sys.argv if argv is None else argv
    if _HELP.intersection(argv[1:]):
        print(_help())
        return 0
    if "--version" in argv[1:]:
        print(_version())
        return 0
    debug = "--debug" in argv
    try:
        parse(argv)
        debug = FLAGS.debug
        _bind(shlex.join(["python", "-m", "trainer.main", *argv[1:]]))
        from trainer import experiment

        request = experiment.Request(FLAGS.dry_run, FLAGS.init_from, owns_process=True)
        return _EXIT_CODES[experiment.run_bound(request).status]
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        # Our own ValueErrors are complete messages with the rule and the fix.
        teaching = isinstance(error, flags.Error) or explain.is_teaching(error)
        print(f"error: {explain.lesson(error)}" if teaching else explain.explain(error), file=sys.stderr)
        if not teaching and not debug:
            print("  (--debug shows the whole traceback)", file=sys.stderr)
        return 2 if teaching else 1


def _help() -> str:
    lines = [__doc__]
    for title, names in _GROUPS.items():
        lines += ["", f"{title}:"]
        lines += [f"  --{name:<18}{FLAGS[name].help.splitlines()[0].rstrip(';')}" for name in names]
    return "\n".join([*lines, "  --version           Print the versions.", "", _EXAMPLES])


def _version() -> str:
    def of(name):
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            return f"{name} (not installed as a package)"

    return ", ".join(
        [*map(of, ("gradloom", "tensorflow", "keras", "gin-config")), f"Python {platform.python_version()}"]
    )


def parse(argv: list[str]) -> None:
    """Sets FLAGS from `argv`, which starts with the program's name; raises flags.Error."""
    FLAGS.unparse_flags()
    for name in FLAGS:
        FLAGS[name].unparse()
    if split := split_by_shell(argv):
        raise flags.Error(split)
    try:
        positional = FLAGS([_T5X.sub("--gin_param=", argument) for argument in argv])[1:]
    except flags.UnrecognizedFlagError as error:
        name = error.flagname if "." in error.flagname else f"run.{error.flagname}"
        cure = "" if "Did you mean" in str(error) else f". Everything else is gin, such as --gin.{name}=VALUE."
        raise flags.Error(f"{error}{cure}") from error
    except ValueError as error:  # of absl, for --nodebug=1
        raise flags.Error(str(error)) from error
    if positional:
        what = positional[0]
        if "=" in what:
            raise flags.Error(f"`{what}` is not a flag. For a binding write --gin_param={shlex.quote(what)}.")
        raise flags.Error(f"`{what}` is not a flag. For a gin file write `--gin_file={what}`; --help lists the flags.")
    if not FLAGS.gin_file and not FLAGS.gin_param:
        raise flags.Error("`--gin_file` is missing. Try --gin_file=configs/digits.gin.")


def _bind(command: str) -> None:
    """Reads and binds the config that the flags name."""
    of_run = {name: FLAGS[name].value for name in _OF_RUN if FLAGS[name].value is not None}
    search_paths = [path for paths in FLAGS.gin_search_paths for path in paths.split(",")]
    optional = ("model_dir",) if FLAGS.dry_run else ()
    config.read(FLAGS.gin_file, FLAGS.gin_param, search_paths, of_run, command, optional)
    if FLAGS.init_from is not None:
        local_path("init_from", FLAGS.init_from)
    config.quiet_import()
    set_cpu_devices(FLAGS.cpu_devices)
    config.bind()


def set_cpu_devices(count: int | None) -> None:
    """Splits the CPU into `count` logical devices, before TensorFlow starts; None: no change."""
    if count is None:
        return
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError as error:
        if len(tf.config.list_logical_devices("CPU")) != count:
            raise config.ConfigError(
                f"`--cpu_devices={count}` has no effect: TensorFlow is already initialized."
            ) from error


if __name__ == "__main__":
    sys.exit(main())
