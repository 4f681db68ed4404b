"""`--init_from`: whose weights are taken from which file, what is left out, and what is said of it."""

import re
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from optimizers import EMA, ScheduleFreeSGD
from tests.trainer.saving.checkpoints_test import _flip
from trainer import Trainer, load, main
from trainer.data import from_arrays
from trainer.experiment import run
from trainer.replicas.distribution import make_strategy
from trainer.saving.loading import init_from

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(16, 4)).astype(np.float32), RNG.normal(size=(16, 1)).astype(np.float32)


class Scale(keras.layers.Layer):
    """Custom, unknown to Keras, with a weight of another order than its name's."""

    def build(self, shape):
        self.shift = self.add_weight(shape=(shape[-1],), name="shift", trainable=False)
        self.factor = self.add_weight(shape=(shape[-1],), name="factor")

    def call(self, x):
        return x * self.factor + self.shift


class Net(keras.Model):
    """Layers as attributes, under the name of the backbone; `width` is that of the head."""

    def __init__(self, backbone="encoder", width=1):
        super().__init__()
        self.backbone_name = backbone
        setattr(self, backbone, keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), Scale()]))
        self.head = keras.layers.Dense(width)

    def call(self, x):
        return self.head(getattr(self, self.backbone_name)(x))


def layers():
    """A Sequential with statistics, a seed and a layer of our own."""
    found = [
        keras.layers.Dense(3),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.5),
        Scale(),
        keras.layers.Dense(1),
    ]
    return keras.Sequential([keras.Input((4,)), *found])


def trainer_of(model, strategy="default", width=1):
    with make_strategy(strategy).scope():
        made = Trainer(model(), "mse", optimizers="sgd")
        made.build(from_arrays((X, np.repeat(Y, width, 1)), 4).element_spec)
    return made


def numbers(trainer):
    return {name: v.numpy() for name, v in trainer.variables.items() if "seed" not in name}


def fill(model):
    """Gives a model weights that nothing else has; returns it."""
    model(X)
    for variable in model.weights:
        variable.assign(RNG.normal(size=variable.shape))
    return model


def write(kind, model, folder):
    if kind == "checkpoint of a model":
        return tf.train.Checkpoint(model).save(folder / "ck")
    if kind == "folder, with an optimizer":  # whose paths to the weights are shorter than the model's
        optimizer = keras.optimizers.Adam()
        optimizer.build(model.trainable_variables)
        tf.train.Checkpoint(net=model, optimizer=optimizer).save(folder / "ck")
        return folder
    if kind == "keras, compiled":
        model.compile("adam", "mse")
        model.optimizer.build(model.trainable_variables)  # its slots are in the file as well
        model.save(folder / "a.keras")
        return folder / "a.keras"
    model.save_weights(folder / "a.weights.h5")
    return folder / "a.weights.h5"


KINDS = ["checkpoint of a model", "folder, with an optimizer", "keras, compiled", "weights.h5"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", [layers, Net])
def test_weights_are_those_that_were_saved(kind, model, tmp_path, capsys):
    keras.layers.Dense(1), keras.layers.Dropout(0.1)  # Keras counts its names on: they must not matter
    saved = fill(model())
    path = write(kind, saved, tmp_path)
    trainer = trainer_of(model)
    init_from(path)(trainer)
    own = [v for v in saved.weights if "seed" not in v.path]
    ours = [v for v in trainer.model.weights if "seed" not in v.path]
    assert [v.shape for v in own] == [v.shape for v in ours]
    for a, b in zip(own, ours, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), a.path)
    np.testing.assert_array_equal(saved(X, training=False), trainer.model(X, training=False))
    said = capsys.readouterr().out
    count = len(trainer.variables)
    assert f"{count} of {count} variables" in said or "seed_generator" in said.partition("not in the file")[2]
    assert "in the file only" not in said


def test_a_saver_s_names_count_as_they_are(tmp_path, capsys):
    kernel, bias = RNG.normal(size=(4, 3)).astype(np.float32), RNG.normal(size=(3,)).astype(np.float32)
    names, tensors = ["dense/kernel", "dense/bias", "old/slot"], [kernel, bias, bias]
    tf.raw_ops.SaveV2(prefix=str(tmp_path / "m"), tensor_names=names, shape_and_slices=[""] * 3, tensors=tensors)
    trainer = trainer_of(layers)
    init_from(tmp_path / "m")(trainer)
    np.testing.assert_array_equal(numbers(trainer)["dense/kernel"], kernel)
    np.testing.assert_array_equal(numbers(trainer)["dense/bias"], bias)
    assert "in the file only: old/slot" in capsys.readouterr().out


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if "keras" not in kind]
)  # whose file inside is the .weights.h5
def test_renamed_partial_and_other_shapes(kind, tmp_path, capsys):
    """The encoder of one model is the backbone of the next, whose head has another width."""
    saved = fill(Net())
    path = write(kind, saved, tmp_path)
    trainer = trainer_of(lambda: Net("backbone", width=2), width=2)
    before = numbers(trainer)
    init_from(path, exclude="backbone/scale/shift", rename={"encoder/(.*)": r"backbone/\1"})(trainer)
    after = numbers(trainer)
    np.testing.assert_array_equal(after["backbone/dense/kernel"], saved.encoder.layers[0].kernel.numpy())
    np.testing.assert_array_equal(after["backbone/scale/factor"], saved.encoder.layers[1].factor.numpy())
    for name in ("head/kernel", "head/bias", "backbone/scale/shift"):
        np.testing.assert_array_equal(after[name], before[name])
    said = capsys.readouterr().out
    assert re.search(r"renamed: .*encoder.* -> backbone/dense/kernel", said)
    assert "another shape: head/kernel (3, 1) in the file, (3, 2) here" in said
    assert "excluded: backbone/scale/shift" in said and f"3 of {len(before)} variables" in said


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with averages: its checkpoint holds both weights."""
    folder = tmp_path_factory.mktemp("run")
    result = run(
        folder,
        lambda: Trainer(layers(), "mse", optimizers="sgd", averages=EMA(0.9)),
        lambda: from_arrays((X, Y), 4),
        train_steps=4,
        steps_per_loop=4,
        strategy="default",
    )
    with result.trainer.averaged():
        return folder, numbers(result.trainer)


@pytest.mark.parametrize("strategy", ["default", "mirrored"])
@pytest.mark.parametrize("place", ["", "checkpoints/step_000000004"])
def test_a_run_gives_what_it_evaluates(folder, place, strategy, capsys):
    trainer = trainer_of(layers, strategy)
    init_from(folder[0] / place)(trainer)
    for name, value in folder[1].items():
        np.testing.assert_array_equal(value, trainer.variables[name].numpy(), name)
    trainable = len(trainer.trainable_variables)
    assert (
        f"step 4, {trainable} of its weights averaged: {len(trainer.variables)} of {len(trainer.variables)}"
        in capsys.readouterr().out
    )
    if strategy == "mirrored":  # Dropout still differs between replicas
        (seed,) = [v for name, v in trainer.variables.items() if "seed" in name]
        states = [part.numpy().tolist() for part in trainer.strategy.experimental_local_results(seed.value)]
        assert states[1][0] == states[0][0] + 1
    assert int(trainer.global_step.numpy()) == 0


def test_a_checkpoint_that_was_moved_gives_the_same(folder, tmp_path):
    shutil.copytree(folder[0] / "checkpoints" / "step_000000004", tmp_path / "moved")
    trainer = trainer_of(layers)
    init_from(tmp_path / "moved")(trainer)
    np.testing.assert_array_equal(numbers(trainer)["dense/kernel"], folder[1]["dense/kernel"])


def test_a_schedule_free_run_gives_its_average(tmp_path):
    result = run(
        tmp_path,
        lambda: Trainer(Net(), "mse", optimizers=ScheduleFreeSGD(0.1)),
        lambda: from_arrays((X, Y), 4),
        train_steps=4,
        strategy="default",
    )
    trainer = trainer_of(Net)
    init_from(tmp_path)(trainer)
    training = numbers(result.trainer)
    with result.trainer.averaged():
        for name, value in numbers(result.trainer).items():
            np.testing.assert_array_equal(value, trainer.variables[name].numpy(), name)
    assert (training["head/kernel"] != trainer.variables["head/kernel"].numpy()).any()


def test_a_normalization_computes_with_what_was_loaded(tmp_path):
    def model():
        return keras.Sequential([keras.Input((4,)), keras.layers.Normalization(), keras.layers.Dense(1)])

    saved = model()
    saved.layers[0].adapt(X)
    saved.save_weights(tmp_path / "a.weights.h5")
    trainer = trainer_of(model)
    init_from(tmp_path / "a.weights.h5")(trainer)
    np.testing.assert_allclose(trainer.model.layers[0](X), (X - X.mean(0)) / X.std(0), atol=1e-5)


def test_long_lists_are_folded(folder, capsys):
    trainer = trainer_of(layers)
    init_from(folder[0], include=["dense/kernel"])(trainer)
    rest = len(trainer.variables) - 1
    assert re.search(rf"excluded: dense/bias, .*\.\.\. and {rest - 6} more\n", capsys.readouterr().out)
    init_from(folder[0], include=lambda name: name == "dense/kernel")(trainer)
    assert "1 of " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"include": "dense/kernal"},
            "`init_from.include` 'dense/kernal' matches no whole name. Similar names: dense/kernel",
        ),
        ({"exclude": ["dense.*", "xyz"]}, "`init_from.exclude` 'xyz' matches no whole name. The names: dense/kernel"),
        ({"rename": {"denes/(.*)": "a"}}, "`init_from.rename` 'denes/"),
        (
            {"rename": {"dense/bias": "dense/kernel"}},
            "gives two tensors .* 'dense/kernel'; the second one is 'dense/bias'",
        ),
        ({"include": "(dense"}, r"regular expressions, got '\(dense'"),
    ],
)
def test_wrong_patterns_are_refused(folder, options, text):
    trainer = trainer_of(layers)
    before = numbers(trainer)
    with pytest.raises(ValueError, match=text):
        init_from(folder[0], **options)(trainer)
    assert all((value == before[name]).all() for name, value in numbers(trainer).items())


def test_if_no_name_fits_both_lists_of_names_are_shown(tmp_path):
    fill(Net()).save_weights(tmp_path / "a.weights.h5")
    with pytest.raises(
        ValueError, match=r"no weights for this model(.|\n)*in the file: encoder/dense/0(.|\n)*here: dense/kernel"
    ):
        init_from(tmp_path / "a.weights.h5")(trainer_of(layers))


def _damaged(name, folder):
    path = folder / name
    if name == "run":
        run(
            path,
            lambda: Trainer(Net(), "mse", optimizers="sgd"),
            lambda: from_arrays((X, Y), 4),
            train_steps=1,
            strategy="default",
        )
        _flip(next(path.glob("checkpoints/*/variables.data*")))
        return path
    if name == "ck-1":
        tf.train.Checkpoint(fill(Net())).save(folder / "ck")
        _flip(folder / "ck-1.data-00000-of-00001")
        return path
    if name.startswith("cut"):
        model = fill(Net())
        (model.save_weights if "h5" in name else model.save)(path)
        path.write_bytes(path.read_bytes()[:1000])
    elif name.startswith("text"):
        path.write_text("not weights")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run", "no whole checkpoint"),
        ("ck-1", "damaged"),
        ("cut.weights.h5", "damaged"),
        ("cut.keras", "damaged"),
        ("text.weights.h5", "damaged"),
        ("text.keras", "damaged"),
        ("text.npz", "is none of these"),
        ("missing", "does not exist"),
    ],
)
def test_an_unreadable_file_is_reported_in_one_sentence(name, text, tmp_path):
    path = _damaged(name, tmp_path)
    trainer = trainer_of(Net)
    before = numbers(trainer)
    with pytest.raises(ValueError, match=text) as caught:
        init_from(path)(trainer)
    assert "\n" not in str(caught.value) and name in str(caught.value)
    assert all((value == before[key]).all() for key, value in numbers(trainer).items())


GIN = """
import warm_start
run.trainer = @Trainer
run.train_data = @warm_start.data
run.train_steps = 2
run.strategy = 'default'
Trainer.model = @warm_start.model()
Trainer.loss = 'mse'
Trainer.optimizers = @SGD()
SGD.learning_rate = 0.0
"""
MODULE = """
import keras, numpy as np
from trainer.data import from_arrays
def model(width=1):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(width, name="head")])
def data():
    return from_arrays((np.ones([8, 4], np.float32), np.ones([8, 1], np.float32)), 4)
"""


def test_from_the_command_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "warm_start.py").write_text(MODULE)
    (tmp_path / "a.gin").write_text(GIN)
    monkeypatch.chdir(tmp_path)

    def start(*flags, folder="new"):
        code = main.main(["main", "--gin_file=a.gin", f"--model_dir={folder}", *flags])
        return code, capsys.readouterr()

    options = "--gin_param=init_from.exclude = 'head/.*'"
    code, said = start("--init_from=nowhere")
    assert code == 2 and "nowhere' does not exist" in said.err and "Traceback" not in said.err
    assert not (tmp_path / "new").exists()
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(5, name="head")])
    model.save(tmp_path / "old.keras")
    code, said = start("--init_from=old.keras", "--dry_run", options)
    assert code == 0 and "2 of 4 variables" in said.out and not (tmp_path / "new").exists()
    code, said = start("--init_from=old.keras", options)
    assert code == 0 and "excluded: head/kernel, head/bias" in said.out
    np.testing.assert_array_equal(load("new").variables["dense/kernel"].numpy(), model.layers[0].kernel.numpy())
    (tmp_path / "old.keras").unlink()  # the same command resumes, and needs it no more
    code, said = start("--init_from=old.keras", options, "--gin_param=run.train_steps = 3")
    assert code == 0 and "Resuming" in said.out
    code, said = start(options, folder="other")  # nothing bound is ignored in silence
    assert code == 2 and "init_from.exclude" in said.err
