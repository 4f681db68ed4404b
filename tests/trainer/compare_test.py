"""compare: seeds of one config become one curve and one column, against NumPy; mistakes are one sentence."""

import json
import subprocess
import sys

import numpy as np
import pytest

from trainer import compare, config

CONFIG = """# folder: somewhere
import digits

trainer.run.model_dir = '{folder}'
trainer.run.seed = {seed}
trainer.run.train_steps = 300

keras.optimizers.{optimizer}.learning_rate = 0.1
"""
STEPS = [100, 200, 300]


def write(folder, accuracy, seed=0, optimizer="Adam", asked=CONFIG, **more):
    """Writes a run folder as `run` does: training every 100 steps, the validation accuracies after them."""
    folder.mkdir(parents=True)
    (folder / "config.gin").write_text(asked.format(folder=folder, seed=seed, optimizer=optimizer))
    rows = []
    for step, value in zip(STEPS, accuracy):
        rows.append({"step": step, "split": "train", "time": 1.0, "loss": 100 / step, "losses/main": 100 / step,
                     "grad_norm/main": 2.0, "step_milliseconds": 3.0, **more})  # fmt: skip
        rows.append({"step": step, "split": "validation", "time": 1.0, "loss": 1.0, "metrics/accuracy": value})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


@pytest.fixture
def three_seeds(tmp_path):
    """(paths, accuracies [3, 3]): a run per seed."""
    accuracy = np.random.default_rng(0).uniform(0.5, 1, (3, 3))
    return [write(tmp_path / f"adam_seed1{seed}", row.tolist(), seed) for seed, row in enumerate(accuracy)], accuracy


def test_seeds_fold_to_mean_least_and_most(three_seeds):
    paths, accuracy = three_seeds
    groups = compare.fold([compare.read(path) for path in paths])
    assert {name: len(runs) for name, runs in groups.items()} == {"adam": 3}
    steps, *curves = compare.mean_curve(groups["adam"], "validation", "metrics/accuracy")
    np.testing.assert_array_equal(steps, STEPS)
    for curve, expected in zip(curves, (accuracy.mean(0), accuracy.min(0), accuracy.max(0)), strict=True):
        np.testing.assert_allclose(curve, expected, rtol=1e-15)


def test_the_table_has_a_column_per_config_and_says_what_differs(three_seeds, tmp_path, capsys):
    paths, accuracy = three_seeds
    other = write(tmp_path / "sgd", [0.1, 0.2, 0.25], optimizer="SGD")
    assert compare.compare(["compare", *paths, other, f"--out={tmp_path / 'a.png'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    last = accuracy[:, -1]
    assert lines[1].split() == ["adam", "sgd"]
    assert ["runs", "3", "1"] in [line.split() for line in lines]
    found = next(line.split() for line in lines if line.startswith("validation metrics/accuracy"))
    assert found == [
        "validation",
        "metrics/accuracy",
        f"{last.mean():.4f}",
        f"({last.min():.4f}",
        "to",
        f"{last.max():.4f})",
        "0.2500",
    ]
    i = lines.index("sgd (+) differs from adam (-) in")
    assert lines[i + 1 : i + 3] == [
        "-keras.optimizers.Adam.learning_rate = 0.1",
        "+keras.optimizers.SGD.learning_rate = 0.1",
    ]
    assert not [line for line in lines if "model_dir" in line or "run.seed" in line or "step_milliseconds" in line]
    assert (tmp_path / "a.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize("out", ["a.png", "a.svg", "a.pdf"])
def test_one_run_only(out, tmp_path, capsys):
    assert compare.compare(["compare", write(tmp_path / "run", [0.1, 0.2, 0.3]), f"--out={tmp_path / out}"]) == 0
    assert "differs" not in capsys.readouterr().out
    assert (tmp_path / out).stat().st_size > 1000


def test_nan_is_read_and_shown(tmp_path):
    paths = [
        write(tmp_path / f"a{seed}", values, seed)
        for seed, values in enumerate([[0.5, "NaN", 0.7], [0.5, 0.6, "Infinity"]])
    ]
    (runs,) = compare.fold([compare.read(path) for path in paths]).values()
    _, mean, least, most = compare.mean_curve(runs, "validation", "metrics/accuracy")
    np.testing.assert_array_equal(mean, [0.5, np.nan, np.inf])
    np.testing.assert_array_equal(least, [0.5, np.nan, 0.7])
    np.testing.assert_array_equal(most, [0.5, np.nan, np.inf])
    assert compare.last_values(runs)["validation metrics/accuracy"] == "inf (0.7000 to inf)"
    assert compare.compare(["compare", *paths, f"--out={tmp_path / 'a.png'}"]) == 0


def test_a_shorter_run_ends_the_curve_and_is_told(tmp_path, capsys):
    """A mean over those that are left would rise where the worst run died."""
    paths = [write(tmp_path / f"a{seed}", values, seed) for seed, values in enumerate([[0.1, 0.2, 0.3], [0.1, 0.2]])]
    (runs,) = compare.fold([compare.read(path) for path in paths]).values()
    np.testing.assert_array_equal(compare.mean_curve(runs, "train", "loss")[0], [100, 200])
    compare.print_table({"a": runs})
    assert "The runs of a end at 200 to 300 steps" in capsys.readouterr().err


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    path = write(tmp_path / "a", [0.1, 0.2])
    before = compare.read(path).curves
    with open(tmp_path / "a" / "metrics.jsonl", "a") as file:
        file.write('{"step": 300, "split": "tr')
    assert compare.read(path).curves == before


def test_runs_without_bindings_are_never_taken_for_seeds(tmp_path):
    paths = [write(tmp_path / name, [0.1], asked="# folder: x\n\n") for name in ("a", "b")]
    assert list(compare.fold([compare.read(path) for path in paths])) == ["a", "b"]


@pytest.mark.parametrize("folders, names", [
    (["adam/0", "adam/1", "sgd/0"], ["adam", "sgd/0"]),
    (["sam2-0", "sam2-1", "SGD-0"], ["sam2", "SGD-0"]),
    (["x/seed1", "x/seed2", "y/x-0"], ["x", "x-0"]),
])  # fmt: skip
def test_names(folders, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, folder in enumerate(folders):
        write(tmp_path / folder, [0.1], i, "SGD" if i == 2 else "Adam")
    groups = compare.fold([compare.read(folder) for folder in folders])
    assert list(groups) == names


def test_names_that_agree_become_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [
        write(tmp_path / folder, [0.1], optimizer=o) and folder for folder, o in (("a/run", "SGD"), ("b/run", "Adam"))
    ]
    assert list(compare.fold([compare.read(path) for path in paths])) == paths


def test_a_folder_given_twice_is_one_run(tmp_path, capsys):
    path = write(tmp_path / "a", [0.1, 0.2, 0.3])
    assert compare.compare(["compare", path, path + "/", f"--out={tmp_path / 'a.png'}"]) == 0
    assert ["runs", "1"] in [line.split() for line in capsys.readouterr().out.splitlines()]


def test_many_tags_are_told_where_they_are_not_drawn(tmp_path, capsys):
    path = write(tmp_path / "a", [0.1, 0.2, 0.3], **{f"metrics/m{i}": 0.5 for i in range(8)})
    assert compare.compare(["compare", path, f"--out={tmp_path / 'a.png'}"]) == 0
    assert (
        "Not drawn, because the plot is full: metrics/m5, metrics/m6, metrics/m7, loss, grad_norm/main."
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("arguments, message", [
    ([], "No run is given"),
    (["{}/nothing"], "There is no folder '{}/nothing'"),
    (["{}"], "'{}' has no reports in metrics.jsonl"),
    (["{}/bad"], "metrics.jsonl:1 is not a report: 'oops'"),
    (["{}/a", "--out=a.gif"], "`--out` must end in .png, .pdf or .svg, got 'a.gif'"),
    (["{}/a", "--out={}/none/a.png"], "`--out` must be in an existing folder"),
    (["{}/a", "--outt=a.png"], "outt"),
])  # fmt: skip
def test_mistakes_are_one_sentence(arguments, message, tmp_path, capsys):
    write(tmp_path / "a", [0.1])
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "metrics.jsonl").write_text("oops\n")
    assert compare.compare(["compare", *(argument.format(tmp_path) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert message.format(tmp_path) in error and len(error.splitlines()) == 1


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert compare.compare(["compare", write(tmp_path / "a", [0.1]), f"--out={tmp_path / 'a.png'}"]) == 2
    captured = capsys.readouterr()
    assert "pip install 'gradloom[examples]'" in captured.err and "0.1000" in captured.out


def test_what_run_saves_folds(tmp_path, monkeypatch):
    """The text of config.gin as config writes it, not as this file imitates it."""
    texts = []
    for seed in range(2):
        config.read([], ["run.train_steps = 5"], flags={"seed": seed, "model_dir": f"/a/{'long_' * 40}{seed}"})
        config.bind()
        texts.append(config.config_text())
    runs = [compare.Run(f"a{seed}", text, {}) for seed, text in enumerate(texts)]
    assert texts[0] != texts[1] and len(compare.fold(runs)) == 1


def test_it_loads_no_tensorflow(tmp_path):
    path = write(tmp_path / "a", [0.1])
    code = (
        f"import sys; from trainer.compare import compare; code = "
        f"compare(['', {path!r}, '--out={tmp_path}/a.png']);"
        "sys.exit(code or 'tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
