"""report: what the page says, that it is whole, and that a browser shows it without an error."""

import json
import re
import shutil
import subprocess

import pytest

from trainer import report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def _write(folder, accuracies, rate):
    folder.mkdir()
    rows = []
    for i, accuracy in enumerate(accuracies, 1):
        rows.append(
            {"step": i, "split": "train", "time": 1.0, "loss": "NaN" if i == 2 else 1 / i, "grad_norm/main": 2.0}
        )
        rows.append({"step": i, "split": "validation", "time": 1.0, "loss": 2 / i, "metrics/accuracy": accuracy})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [
        {
            "config": f"trainer.run.seed = {seed}\nkeras.optimizers.SGD.learning_rate = {rate}",
            "environment": f"git: {git}",
        }
        for seed, git in ((0, "abc"), (1, "def"))
    ]
    starts = [
        {"time": 1e9, "step": 0, "command": "python -m trainer.main --old", "texts": texts[0]},
        {"ended": "SIGINT", "end_step": 2, "spent": []},
        {"time": 2e9, "step": 2, "command": "python -m trainer.main --gin_param='a.b = <1>'", "texts": texts[1]},
        {"ended": "done", "end_step": len(accuracies), "spent": [["compute", "3.0 s", "75%"]]},
    ]
    (folder / "starts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in starts))
    (folder / "bad_steps.jsonl").write_text('{"step": 2}\n')
    for step in (2, 3):
        checkpoint = folder / f"checkpoints/step_{step:09d}"
        checkpoint.mkdir(parents=True)
        monitored = {"monitor": "validation/metrics/accuracy", "mode": "max", "value": accuracies[step - 1]}
        (checkpoint / "manifest.json").write_text(json.dumps({"step": step, "monitored": monitored}))
    return str(folder)


@pytest.fixture
def page(tmp_path):
    runs = [_write(tmp_path / "<script>a", [0.1, 0.9, 0.5], 0.1), _write(tmp_path / "b", [0.2, 0.3, 0.4], 0.5)]
    out = tmp_path / "report.html"
    assert report.report(["report", *runs, f"--out={out}"]) == 0
    return out


def test_it_tells_what_the_folders_hold(page):
    text = page.read_text()
    plain = re.sub(r"<[^>]+>", " ", text)
    for words in (
        "accuracy 0.5000 0.9000 2", "done at step 3", "2 starts",
        "--gin_param=&#x27;a.b = &lt;1&gt;&#x27;", "compute 3.0 s 75%",
        "-git: abc", "+git: def", "+trainer.run.seed = 1", "SGD.learning_rate = 0.5",
        '{&quot;step&quot;: 2}', "validation/metrics/accuracy 0.9000 best",
    ):  # fmt: skip
        assert words in re.sub(r"\s+", " ", plain), words
    data = re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)[1]
    charts = {chart["tag"]: chart["curves"] for chart in json.loads(data)}
    assert list(charts) == ["metrics/accuracy", "loss", "grad_norm/main"]
    assert charts["loss"][0]["steps"] == [1, 2, 3] and charts["loss"][0]["values"] == [1.0, None, 1 / 3]
    assert not re.findall(r'(?:src|href)="(?!data:)', text)  # no other file, no network


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_draws_it_without_an_error(page):
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=2000"]
    done = subprocess.run([CHROMIUM, *flags, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    assert done.stdout.count("<figure>") == 3 and done.stdout.count("<path d=") == 4 + 2 + 2
    assert "NaN" not in "".join(re.findall(r'<path d="[^"]*"', done.stdout))


@pytest.mark.parametrize("arguments", [[], ["none"], ["x", "--out=a.pdf"], ["x", "--out=no/such/a.html"]])
def test_mistakes_are_one_sentence(arguments, capsys):
    assert report.report(["report", *arguments]) == 2
    assert capsys.readouterr().err.startswith("error: ")
