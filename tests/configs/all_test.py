"""Every shipped config: parsed, built, run for two steps through the entry point, and written as the others are."""

import ast
import pathlib

import pytest
import tensorflow as tf

import configs
from tests.configs.tfds_files import write_mnist
from tests.runs import slow
from trainer import check, main
from trainer.config import files as gin_files

FOLDER = pathlib.Path(configs.__path__[0])
GIN_FILES = sorted(path for path in FOLDER.glob("*.gin") if path.name != "base.gin")
MODULES = sorted(path for path in FOLDER.glob("*.py") if path.name != "__init__.py")
PUBLIC = {"trainer", "trainer.data", "trainer.methods", "layers", "losses", "optimizers"}
TINY = ["run.train_steps = 2", "run.steps_per_loop = 1", "run.eval_interval = None", "run.checkpoint_interval = None"]


def local_data(name, folder):
    """Returns the bindings that let a config which downloads its data do without a network; skips it where none can."""
    if name != "mnist_tfds":
        return []
    write_mnist(folder / "data", train=64)
    return [f"mnist_tfds.examples.data_dir = '{folder / 'data'}'"]


def test_there_are_configs():
    assert len(GIN_FILES) >= 5


# Each config has a test of its own that trains its graph on one replica; these have one that compares it with two.
COMPARED = (
    "char_gpt",
    "cycle_shapes",
    "dcgan_digits",
    "ddpm_digits",
    "distill_digits",
    "dqn_gridworld",
    "fixmatch_digits",
    "friedman_reconstruction",
    "gan_ring",
    "gradnorm_tasks",
    "maml_sine",
    "moco_digits",
    "pinn_poisson",
    "ppo_gridworld",
    "ragged_docs",
    "stateful_series",
    "supcon_digits_pretrain",
    "vqvae_digits",
)


@pytest.mark.parametrize(
    "strategy, compile", [("mirrored", "eager"), slow("mirrored", "graph"), slow("default", "graph")]
)
@pytest.mark.parametrize(
    "path", [slow(path) if path.stem in COMPARED else path for path in GIN_FILES], ids=lambda path: path.stem
)
def test_two_steps(path, strategy, compile, tmp_path):
    params = [*TINY, *local_data(path.stem, tmp_path), f"Trainer.compile = '{compile}'"]
    flags, folder = [f"--gin_param={param}" for param in params], tmp_path / "run"
    assert main.main(["main", f"--gin_file={path}", f"--model_dir={folder}", f"--strategy={strategy}", *flags]) == 0
    assert tf.train.load_checkpoint(str(folder / "checkpoints" / "step_000000002")).get_tensor("global_step") == 2
    assert (folder / "operative_config.gin").exists() and (folder / "metrics.jsonl").read_text().count("\n") >= 1


@pytest.mark.parametrize("name", COMPARED)
def test_everything_is_built_and_every_binding_is_used(name, capsys):
    assert check.check(["check", "config", f"--gin_file={FOLDER / name}.gin", "--strategy=default"]) == 0
    assert "run.train_steps" in capsys.readouterr().out


@pytest.mark.parametrize("path", GIN_FILES, ids=lambda path: path.stem)
def test_the_header_says_what_it_shows_and_how_to_run_it(path):
    lines = path.read_text().splitlines()
    header = "\n".join(lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])
    for needed in (f"python -m trainer.main --gin_file=configs/{path.name}", "Result: ", "Time: "):
        assert needed in header, f"{path.name}: the header lacks {needed!r}"
    assert "include 'base.gin'" in lines


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_two_files_are_a_fork(path):
    """An experiment imports nothing of ours but public names, and nothing of another experiment."""
    assert path.with_suffix(".gin").exists()
    ours, others = set(gin_files.PACKAGES), {module.stem for module in MODULES}
    for node in ast.walk(ast.parse(path.read_text())):
        modules = [node.module] if isinstance(node, ast.ImportFrom) else []
        modules += [name.name for name in node.names] if isinstance(node, ast.Import) else []
        for module in modules:
            assert module.split(".")[0] not in others, f"{path.name} imports {module}"
            assert module.split(".")[0] not in ours or module in PUBLIC
