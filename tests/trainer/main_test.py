"""The entry point: flags in, exit code out."""

import os
import subprocess
import sys
import types

import gin
import pytest

from trainer import config, main
from trainer.config import files as gin_files


@pytest.fixture(autouse=True)
def fresh_config():
    yield
    gin.clear_config()


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """Replaces the run: what it got, and the status or the exception with which it answers."""
    from trainer import experiment

    seen = types.SimpleNamespace(status="done", error=None, dry_run=None, init_from=None, bindings=None)

    def run_bound(request):
        seen.dry_run, seen.init_from, seen.bindings = (
            request.dry_run,
            request.init_from,
            gin.get_bindings("trainer.run"),
        )
        if seen.error is not None:
            raise seen.error
        return types.SimpleNamespace(status=seen.status)

    monkeypatch.setattr(experiment, "run_bound", run_bound)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "a.gin").write_text("run.trainer = @Trainer\nrun.train_data = @from_arrays\nrun.mode = 'eval'\n")
    return seen


def call(*flags):
    return main.main(["main.py", *flags])


def test_at_most_twelve_flags():
    aliases = {"gin_bindings"}
    assert len(set(main.FLAGS) - aliases - {"flagfile", "undefok"}) <= 12


@pytest.mark.parametrize("status, code", [("done", 0), ("stopped_nonfinite", 3), ("SIGINT", 130), ("SIGTERM", 143)])
def test_exit_codes_of_the_run(launched, status, code):
    launched.status = status
    assert call("--gin_file=a.gin", "--model_dir=runs/x") == code


def test_flags_become_bindings_and_win(launched):
    flags = ["--model_dir=~/x", "--mode=train", "--strategy=mirrored", "--resume=never", "--init_from=y", "--dry_run"]
    params = ["--gin_param=run.seed = 1", "--gin_bindings=run.seed = 2", "--gin_param=run.mode = 'export'"]
    assert call("--gin_file=a.gin", *flags, *params) == 0
    got = launched.bindings
    assert got["model_dir"] == "~/x"  # `run` expands it, wherever it comes from
    assert (got["mode"], got["strategy"], got["resume"], got["seed"]) == ("train", "mirrored", "never", 2)
    assert (launched.dry_run, launched.init_from) == (True, "y")


def test_flags_of_one_call_do_not_reach_the_next(launched):
    call("--gin_file=a.gin", "--gin_param=run.seed = 1", "--mode=train", "--model_dir=x", "--dry_run")
    assert call("--gin_file=a.gin", "--model_dir=x") == 0
    assert launched.bindings["mode"] == "eval" and "seed" not in launched.bindings and launched.dry_run is False


@pytest.mark.parametrize(
    "flags, text",
    [
        (["--gin_fil=a.gin"], "Did you mean: gin_file"),
        (["--gin_file=a.gin", "--mode=nope"], "train_and_eval, train, eval, export"),
        (["a.gin"], "write `--gin_file=a.gin`"),
        ([], "`--gin_file` is missing"),
        (["--gin_file=b.gin"], "the gin file `b.gin` does not exist"),
        (["--gin_file=a.gin", "--cpu_devices=0"], "cpu_devices"),
        (["--gin_file=a.gin"], "`run.model_dir` has no value"),
        (["--gin_file=a.gin", "--model_dir=x", "--gin_param=run.sed = 1"], "Did you mean `seed`?"),
    ],
)
def test_mistakes_exit_2_on_one_screen(launched, capsys, flags, text):
    assert call(*flags) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and text in said and "Traceback" not in said


def test_a_wrong_argument_of_run_exits_2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.gin").write_text("run.trainer = @Trainer\nrun.train_data = @from_arrays\nrun.train_steps = 'many'\n")
    assert call("--gin_file=a.gin", "--model_dir=x") == 2
    shown = capsys.readouterr().err
    assert (
        shown.startswith("error: a.gin:3: `run.train_steps` must be an int >= 1")
        and "'many'" in shown
        and "Traceback" not in shown
    )
    assert call("--gin_file=a.gin", "--gin_param=run.train_steps = 5", "--model_dir=gs://b/x") == 2
    assert "gs:// is not supported" in capsys.readouterr().err and not (tmp_path / "gs:").exists()


def test_an_exception_of_the_user_exits_1_with_the_users_frames(launched, capsys):
    launched.error = KeyError("boom")
    assert call("--gin_file=a.gin", "--model_dir=x") == 1
    said = capsys.readouterr().err
    assert said.startswith("KeyError: 'boom'\n") and "main_test.py" in said and "Traceback" not in said
    assert call("--gin_file=a.gin", "--model_dir=x", "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_config_error_of_the_run_exits_2(launched, capsys):
    launched.error = config.ConfigError("`batch_size` must be > 0, got 0.")
    assert call("--gin_file=a.gin", "--model_dir=x") == 2
    assert capsys.readouterr().err == "error: `batch_size` must be > 0, got 0.\n"


def test_ctrl_c_before_the_run_exits_130(launched):
    launched.error = KeyboardInterrupt()
    assert call("--gin_file=a.gin", "--model_dir=x") == 130


def test_version(capsys):
    assert call("--version") == 0
    said = capsys.readouterr().out
    assert "tensorflow 2." in said and "keras 3." in said and "Python 3." in said


def test_help_exits_0_and_shows_every_flag(capsys):
    assert call("--help") == 0
    said = capsys.readouterr().out
    assert all(f"  --{name} " in said for name in set(main.FLAGS) - {"flagfile", "undefok"})
    assert said.count("\n  python -m trainer.") == 4
    assert all(f"--{name}" in said for name in ("gin_file", "gin_param", "cpu_devices", "debug", "init_from"))
    assert "train_and_eval, train, eval or export" in said


def test_the_module_runs_imports_no_tensorflow_and_is_quiet(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(gin_files.ROOT)}
    code = "import sys, trainer.main; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path).returncode == 0
    command = [sys.executable, "-m", "trainer.main", "--gin_file=nope.gin"]
    ran = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 2
    looked = f"looked in ., {gin_files.ROOT}/configs"
    assert (
        ran.stderr
        == f"error: --gin_file: the gin file `nope.gin` does not exist ({looked}). Did you mean `base.gin`?\n"
    )


def test_importing_tensorflow_says_nothing(tmp_path):
    env = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"} | {"PYTHONPATH": str(gin_files.ROOT)}
    code = "from trainer import config; config.quiet_import(); import tensorflow as tf; tf.constant(1) + 1"
    ran = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr, ran.stdout) == (0, "", "")


def test_errors_of_the_import_are_passed_on(tmp_path):
    (tmp_path / "keras.py").write_text("import os\nos.write(2, b'libcuda says no\\n')\nraise ImportError('no')\n")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{gin_files.ROOT}"}
    code = "from trainer import config; config.quiet_import()"
    ran = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 1 and "libcuda says no" in ran.stderr
