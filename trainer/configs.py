"""Lists, prints and copies the shipped experiments, and describes the names that a config can bind.

  python -m trainer.configs                               lists the experiments with their results
  python -m trainer.configs digits                        prints an experiment's gin file
  python -m trainer.configs --copy=digits:my              writes my.gin and my.py, ready to run
  python -m trainer.configs --configurables=clip          lists matching signatures and gin names
  python -m trainer.configs --explain=Trainer.optimizers --gin_file=my.gin

Exit codes: 0 done, 2 an error in the arguments.
"""

import difflib
import pathlib
import re
import sys

from absl import flags

from trainer import config
from trainer.config.paths import ROOT

FLAGS = flags.FlagValues()
flags.DEFINE_string("copy", None, "NAME:MY copies an experiment to MY.gin and MY.py.", flag_values=FLAGS)
flags.DEFINE_string("configurables", None, "Lists the names that match a regular expression.", flag_values=FLAGS)
flags.DEFINE_string("explain", None, "NAME.PARAMETER: prints its documentation and bindings.", flag_values=FLAGS)
flags.DEFINE_multi_string("gin_file", [], "The config of --explain and --configurables.", flag_values=FLAGS)
flags.DEFINE_multi_string("gin_param", [], "A binding; wins over files.", flag_values=FLAGS)

_FOLDER = ROOT / "configs"
_HELP = {"--help", "-help", "-h", "--helpshort", "--helpfull"}


def configs(argv: list[str] | None = None) -> int:
    """Executes the command line and returns the exit code."""
    argv = sys.argv if argv is None else argv
    if _HELP.intersection(argv[1:]):
        print(__doc__.rstrip())
        return 0
    FLAGS.unparse_flags()
    for name in FLAGS:
        FLAGS[name].unparse()
    try:
        # `--configurables` alone lists all of them.
        names = FLAGS([f"{a}=" if a == "--configurables" else a for a in argv])[1:]
        print(_answer(names))
        return 0
    except (flags.Error, config.ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _answer(names: list[str]) -> str:
    if FLAGS.configurables is not None or FLAGS.explain:
        from trainer.config import catalogue

        config.read(FLAGS.gin_file, FLAGS.gin_param)
        return (
            catalogue.explanation(FLAGS.explain)
            if FLAGS.explain
            else "\n".join(catalogue.configurables(FLAGS.configurables))
        )
    if FLAGS.copy:
        return _copy(*_pair(FLAGS.copy))
    if names:
        return "\n".join(_file(name).read_text(encoding="utf-8").rstrip() for name in names)
    return _list()


def _list() -> str:
    """Returns purpose, result and training time of each experiment, from configs/README.md."""
    lines = []
    for row in re.findall(r"^\| (`.*) \|$", (_FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE):
        cells = [cell.strip() for cell in row.split(" | ")]
        if len(cells) != 4:  # another table
            continue
        names, shows, result, seconds = cells
        if (_FOLDER / f"{names.split('`')[1]}.gin").is_file():
            lines += [f"{names.replace('`', '')}: {shows}", f"    {result} ({seconds})"]
    return "\n".join([*lines, "", "`python -m trainer.configs NAME` prints one, `--copy=NAME:MY` copies it."])


def _file(name: str) -> pathlib.Path:
    path = _FOLDER / f"{name.removesuffix('.gin')}.gin"
    if not path.is_file():
        known = sorted(p.stem for p in _FOLDER.glob("*.gin"))
        near = difflib.get_close_matches(path.stem, known, n=1)
        raise config.ConfigError(
            f"There is no experiment `{name}`; the experiments are {', '.join(known)}."
            + (f" Did you mean `{near[0]}`?" if near else "")
        )
    return path


def _pair(text: str) -> tuple[str, str]:
    name, _, copy = text.partition(":")
    if not copy.isidentifier():
        raise config.ConfigError(f"`--copy` must be NAME:MY, with a module name MY, got {text!r}.")
    return name, copy


def _copy(name: str, copy: str) -> str:
    """Writes COPY.gin and COPY.py into the working directory, with the module renamed in both."""
    text = _file(name).read_text(encoding="utf-8")
    module = re.search(r"^import (\w+)$", text, re.MULTILINE)[1]
    source = (_FOLDER / f"{module}.py").read_text(encoding="utf-8")
    defined = "|".join(re.findall(r"^(?:def|class) (\w+)", source, re.MULTILINE))
    written = []
    for suffix, content in ((".gin", text), (".py", source)):
        content = re.sub(rf"configs/{name}\.gin", f"{copy}.gin", content)
        content = re.sub(rf"^import {module}$", f"import {copy}", content, flags=re.MULTILINE)
        content = re.sub(rf"(?<![\w.]){module}\.(?=({defined})\b)", f"{copy}.", content)
        content = re.sub(rf"=/tmp/{name}\b", f"=runs/{copy}", content)
        path = pathlib.Path(copy + suffix)
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(content)
        except FileExistsError:
            raise config.ConfigError(
                f"`{path}` exists; `--copy` does not overwrite files. Choose another name."
            ) from None
        written.append(str(path))
    command = f"python -m trainer.main --gin_file={copy}.gin --model_dir=runs/{copy}"
    return f"Wrote {' and '.join(written)}. Run it:\n  {command}"


if __name__ == "__main__":
    sys.exit(configs())
