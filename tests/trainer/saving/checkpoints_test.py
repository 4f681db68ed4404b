"""Checkpoints: whole or none, equal bit for bit, readable under design names, and nothing lost in silence."""

import json
import pathlib
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from optimizers import OptimizerGroup
from tests.runs import random_arrays, train
from trainer import Trainer
from trainer.saving.checkpoints import Checkpoints
from trainer.saving.state import copy_state, learning_rates, restore, state_of

SGD, L = keras.optimizers.SGD, keras.layers
DETAILS = {"element_spec": None, "learning_rates": {}}


def _model(units=4):
    return keras.Sequential(
        [keras.Input((3,)), L.Dense(units, "tanh"), L.BatchNormalization(), L.Dropout(0.2), L.Dense(1)]
    )


def _data(seed=0):
    return tf.data.Dataset.from_tensor_slices(random_arrays(40, seed=seed)).batch(4)


def _trainer(optimizers="adam", model=None, steps=3):
    trainer = Trainer(model or _model(), "mse", optimizers=optimizers)
    iterator = iter(trainer.distribute(_data()))
    if steps:
        trainer.train(iterator, steps)
    return trainer


def _save(folder, trainer, step=3, keep=3):
    checkpoints = Checkpoints(keep).open(folder)
    checkpoints.save(step, copy_state(trainer), {**DETAILS, "learning_rates": learning_rates(trainer)}, wait=True)
    return checkpoints


def _arrays(**values):
    return {name: np.asarray(value, np.float32) for name, value in values.items()}


OPTIMIZERS = {
    "sgd": lambda: SGD(0.1), "momentum": lambda: SGD(0.1, momentum=0.9), "adam": lambda: keras.optimizers.Adam(0.1),
    "amsgrad": lambda: keras.optimizers.Adam(0.1, amsgrad=True),
    "schedule": lambda: SGD(keras.optimizers.schedules.CosineDecay(0.1, 9)),
    **{name: (lambda name=name: getattr(keras.optimizers, name)(0.01)) for name in (
        "AdamW", "RMSprop", "Adagrad", "Adadelta", "Adamax", "Nadam", "Ftrl", "Lion", "Lamb", "Adafactor", "Muon")},
}  # fmt: skip


def _each_on_its_layer():
    """Returns a deep model and groups: one optimizer for each layer."""
    layers = [L.Dense(3, "tanh", name=name.lower()) for name in OPTIMIZERS]
    model = keras.Sequential(
        [keras.Input((3,)), *layers, L.BatchNormalization(), L.Dropout(0.2), L.Dense(1, name="head")]
    )
    groups = [OptimizerGroup(f"{name.lower()}/.*", optimizer=make(), name=name) for name, make in OPTIMIZERS.items()]
    return model, [*groups, OptimizerGroup("(batch_normalization|head)/.*", optimizer="adam", name="rest")]


def test_everything_that_a_step_depends_on_comes_back_bit_for_bit(tmp_path):
    def state(trainer):
        held = [v for g in trainer.groups for v in g.optimizer.variables]
        values = [v.numpy() for v in (*trainer.model.variables, *held)]
        return [*values, trainer.global_step.numpy()]

    model, groups = _each_on_its_layer()
    saved = _trainer(groups, model)
    checkpoints = _save(tmp_path, saved)
    keras.utils.set_random_seed(99)
    model, groups = _each_on_its_layer()
    fresh = _trainer(groups, model, steps=0)
    assert not np.array_equal(fresh.model.get_weights()[0], saved.model.get_weights()[0])
    restore(fresh, checkpoints.latest())
    for a, b in zip(state(saved), state(fresh), strict=True):
        np.testing.assert_array_equal(a, b)
    for trainer in (saved, fresh):  # and the next steps are the same
        train(trainer, _data(1), 2)
    for a, b in zip(state(saved), state(fresh), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_layer_that_computes_with_copies_of_its_variables_gets_them_too(tmp_path):
    """Keras' Normalization: its statistics come from the checkpoint alone."""

    def make(adapt):
        normalization = L.Normalization()
        normalization.build([None, 3])
        if adapt:
            normalization.adapt(np.array([[5.0, 6.0, 7.0], [7.0, 9.0, 11.0]], np.float32))
        return _trainer(model=keras.Sequential([keras.Input((3,)), normalization, L.Dense(1)]), steps=0)

    saved, fresh = make(adapt=True), make(adapt=False)
    restore(fresh, _save(tmp_path, saved, step=0).latest())
    np.testing.assert_array_equal(fresh.predict(_data()), saved.predict(_data()))


def test_a_checkpoint_is_readable_by_tensorflow_under_design_names(tmp_path):
    trainer = _trainer(
        [OptimizerGroup("dense/.*", optimizer="adam", name="body"), OptimizerGroup("(dense_1|batch.*)/.*", name="head")]
    )
    checkpoints = _save(tmp_path, trainer)
    reader = tf.train.load_checkpoint(str(checkpoints.latest().path))
    names = set(reader.get_variable_to_shape_map())
    assert {
        "dense/kernel",
        "dense_1/bias",
        "batch_normalization/moving_mean",
        "optimizers/body/dense/kernel/momentum",
        "optimizers/head/dense_1/kernel/velocity",
        "optimizers/body/learning_rate",
        "global_step",
    } <= names
    np.testing.assert_array_equal(reader.get_tensor("dense/kernel"), trainer.model.get_weights()[0])
    assert reader.get_tensor("global_step") == 3 and reader.get_tensor("optimizers/body/learning_rate") == np.float32(
        0.001
    )
    assert names == set(state_of(trainer))


def test_a_save_changes_nothing_and_holds_the_values_of_its_moment(tmp_path):
    trainer = _trainer()
    before = {name: variable.numpy().copy() for name, variable in state_of(trainer).items()}
    checkpoints, held = Checkpoints().open(tmp_path), copy_state(trainer)
    train(trainer, _data(), 2)
    checkpoints.save(3, held, DETAILS)  # in the background, and later than the steps
    saved = checkpoints.latest().read()
    assert saved.keys() == before.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(saved[name], value, err_msg=name)


# ---- damage --------------------------------------------------------------------------------------------------------


def _two(folder):
    checkpoints = Checkpoints().open(folder)
    for step in (1, 2):
        checkpoints.save(step, _arrays(v=[step, 7.0]), DETAILS, wait=True)
    return checkpoints, folder / "checkpoints/step_000000002"


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("file", ["manifest.json", "variables.index", "variables.data-00000-of-00001", "checkpoint"])
@pytest.mark.parametrize("damage", [_truncate, _flip, pathlib.Path.unlink, lambda path: path.write_bytes(b"")],
                         ids=["cut", "one_bit", "deleted", "emptied"])  # fmt: skip
def test_a_damaged_newest_checkpoint_falls_back_to_the_previous_with_a_warning(damage, file, tmp_path, capsys):
    checkpoints, newest = _two(tmp_path)
    damage(newest / file)
    found = checkpoints.latest()
    assert found.step == 1
    np.testing.assert_array_equal(found.read()["v"], [1.0, 7.0])
    message = capsys.readouterr().err
    assert "step_000000002 is damaged" in message and file in message
    assert checkpoints.at(2) is None and checkpoints.at(1).step == 1


@pytest.mark.parametrize("megabytes", [0.001, 0.5, 20])
def test_one_bit_of_a_tensor_of_any_size_is_noticed(megabytes, tmp_path):
    """TensorFlow's own checksum of each tensor is checked; it reads large tensors in another way."""
    checkpoints = Checkpoints().open(tmp_path)
    values = np.random.default_rng(0).normal(size=int(megabytes * 250_000)).astype(np.float32)
    for step in (1, 2):
        checkpoints.save(step, {"v": tf.constant(values), "names": tf.constant(["a", "b"])}, DETAILS, wait=True)
    file = tmp_path / "checkpoints/step_000000002/variables.data-00000-of-00001"
    whole = file.read_bytes()
    for place in (0, len(whole) // 3, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 64
        file.write_bytes(bytes(damaged))
        assert checkpoints.at(2) is None, place
    file.write_bytes(whole)
    np.testing.assert_array_equal(checkpoints.at(2).read()["v"], values)


def test_latest_is_none_if_all_checkpoints_are_damaged(tmp_path):
    checkpoints, newest = _two(tmp_path)
    for step in (1, 2):
        shutil.rmtree(checkpoints.directory / f"step_{step:09d}")
        (checkpoints.directory / f"step_{step:09d}").mkdir()
    assert checkpoints.latest() is None


def test_latest_is_none_without_a_checkpoint(tmp_path):
    checkpoints = Checkpoints().open(tmp_path / "never")
    assert checkpoints.latest() is None and checkpoints.steps() == [] and checkpoints.at(3) is None


def test_a_damaged_checkpoint_of_the_same_step_is_written_again(tmp_path):
    checkpoints, newest = _two(tmp_path)
    _flip(newest / "variables.data-00000-of-00001")
    checkpoints.save(2, _arrays(v=[5.0, 5.0]), DETAILS, wait=True)
    np.testing.assert_array_equal(checkpoints.latest().read()["v"], [5.0, 5.0])


def test_a_whole_one_of_the_same_step_that_another_run_wrote_is_no_save(tmp_path, capsys):
    _save(tmp_path, _trainer())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    checkpoints, other = Checkpoints().open(tmp_path), _trainer(steps=2)
    checkpoints.save(3, copy_state(other), {**DETAILS, "learning_rates": learning_rates(other)})
    assert not checkpoints.finish(3) and "is there already" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_leftovers_of_a_save_that_never_ended_do_not_count_and_are_removed(tmp_path):
    checkpoints, _ = _two(tmp_path)
    leftover = checkpoints.directory / ".writing-step_000000009"
    shutil.copytree(checkpoints.directory / "step_000000002", leftover)
    assert checkpoints.latest().step == 2 and checkpoints.steps() == [1, 2]
    checkpoints.save(3, _arrays(v=[0.0]), DETAILS, wait=True)
    assert not leftover.exists()
    assert sorted(p.name for p in checkpoints.directory.iterdir()) == [f"step_{s:09d}" for s in (1, 2, 3)]


def test_the_newest_checkpoints_are_kept(tmp_path):
    checkpoints = Checkpoints(keep=2).open(tmp_path)
    for step in (5, 100, 20, 1000):
        checkpoints.save(step, _arrays(v=[step]), DETAILS, wait=True)
    assert checkpoints.steps() == [100, 1000]


def test_a_damaged_checkpoint_does_not_displace_a_whole_one(tmp_path):
    """The last good checkpoint is never deleted, whatever `keep` says."""
    checkpoints = Checkpoints(keep=1).open(tmp_path)
    checkpoints.save(1, _arrays(v=[1.0]), DETAILS, wait=True)
    broken = checkpoints.directory / "step_000000009"
    broken.mkdir()
    checkpoints.save(2, _arrays(v=[2.0]), DETAILS, wait=True)
    assert checkpoints.latest() is not None and checkpoints.latest().step == 2


@pytest.mark.parametrize("keep", [0, -1, None, 2.5, "3", True])
def test_keep_must_be_a_count(keep):
    with pytest.raises(ValueError, match="`keep` must be an int >= 1, got"):
        Checkpoints(keep)


@pytest.mark.parametrize("follow", [-1, None, "x"])
def test_follow_must_be_seconds(follow):
    with pytest.raises(ValueError, match=f"`follow` must be seconds >= 0, got {follow!r}"):
        Checkpoints(follow=follow)


# ---- saves that fail -----------------------------------------------------------------------------------------------


def test_a_failing_save_is_reported_and_the_next_one_works(tmp_path, capsys, monkeypatch):
    checkpoints, _ = _two(tmp_path)
    real = tf.raw_ops.SaveV2

    def full(**arguments):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(tf.raw_ops, "SaveV2", full)
    checkpoints.save(3, _arrays(v=[3.0]), DETAILS, wait=True)
    assert "step 3 was NOT saved" in capsys.readouterr().err
    assert checkpoints.latest().step == 2
    monkeypatch.setattr(tf.raw_ops, "SaveV2", real)
    checkpoints.save(4, _arrays(v=[4.0]), DETAILS, wait=True)
    assert checkpoints.latest().step == 4


def test_a_failed_save_of_a_step_that_was_rolled_back_is_not_made_up_for(tmp_path, monkeypatch):
    checkpoints, _ = _two(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(tf.raw_ops, "SaveV2", lambda **arguments: 1 / 0)
        checkpoints.save(3, _arrays(v=[3.0]), DETAILS)
        assert not checkpoints.finish(3)
    assert checkpoints.finish(2) and checkpoints.steps() == [1, 2]
    assert checkpoints.finish(3) and checkpoints.steps() == [1, 2, 3]


def test_a_save_succeeds_though_old_checkpoints_cannot_be_deleted(tmp_path, monkeypatch, capsys):
    checkpoints = Checkpoints(keep=1).open(tmp_path)
    checkpoints.save(1, _arrays(v=[1.0]), DETAILS, wait=True)
    with monkeypatch.context() as patched:
        patched.setattr("trainer.saving.checkpoints.shutil.rmtree", lambda path: 1 / 0)
        checkpoints.save(2, _arrays(v=[2.0]), DETAILS)
        assert checkpoints.finish(2) and checkpoints.latest().step == 2
    said = capsys.readouterr().err
    assert "could not be deleted" in said and "NOT saved" not in said
    checkpoints.save(3, _arrays(v=[3.0]), DETAILS, wait=True)
    assert [path.name for path in checkpoints.directory.iterdir()] == ["step_000000003"]


def test_what_was_written_here_is_not_read_again(tmp_path, monkeypatch):
    checkpoints, verified = Checkpoints().open(tmp_path), []
    monkeypatch.setattr(checkpoints, "_verify", lambda step: verified.append(step) or (None, "unknown"))
    for step in (1, 2, 3):
        checkpoints.save(step, _arrays(v=[step]), DETAILS, wait=True)
    assert checkpoints.steps() == [1, 2, 3] and verified == []


def test_a_damaged_checkpoint_is_not_pinned(tmp_path):
    checkpoints, newest = _two(tmp_path)
    _flip(newest / "manifest.json")
    assert Checkpoints().open(tmp_path).pin(5) == 1


def test_a_save_that_dies_before_the_rename_leaves_the_old_one(tmp_path, monkeypatch, capsys):
    checkpoints, _ = _two(tmp_path)

    def die(*arguments):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("trainer.saving.checkpoints.os.rename", die)
    checkpoints.save(3, _arrays(v=[3.0]), DETAILS, wait=True)
    assert checkpoints.latest().step == 2 and "NOT saved" in capsys.readouterr().err


# ---- what has no partner -------------------------------------------------------------------------------------------


def test_a_mismatch_names_variables_both_ways_and_changes_nothing(tmp_path):
    checkpoints = _save(tmp_path, _trainer())
    inputs = [keras.Input((3,)), L.Dense(4, "tanh"), L.Dense(1, name="tail")]
    other = _trainer(model=keras.Sequential(inputs), steps=0)
    before = copy_state(other)
    with pytest.raises(ValueError) as raised:
        restore(other, checkpoints.latest())
    text = str(raised.value)
    assert "tail/kernel: not in the checkpoint" in text
    assert "dense_1/kernel: in the checkpoint only" in text
    assert "batch_normalization/moving_mean: in the checkpoint only" in text
    after = copy_state(other)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_another_shape_is_named_with_both_shapes(tmp_path):
    checkpoints = _save(tmp_path, _trainer())
    with pytest.raises(ValueError, match=r"dense/kernel: \[3, 4\] in the checkpoint, \[3, 6\] in the program"):
        restore(_trainer(model=_model(6), steps=0), checkpoints.latest())


def test_another_optimizer_is_named_by_its_slots(tmp_path):
    checkpoints = _save(tmp_path, _trainer("adam"))
    with pytest.raises(ValueError, match="optimizers/main/dense/kernel/velocity: in the checkpoint only"):
        restore(_trainer(SGD(0.1, momentum=0.9), steps=0), checkpoints.latest())


def test_a_changed_learning_rate_takes_effect_and_is_reported(tmp_path, capsys):
    checkpoints = _save(tmp_path, _trainer(SGD(0.1)))
    fresh = _trainer(SGD(0.05), steps=0)
    restore(fresh, checkpoints.latest())
    assert float(fresh.groups[0].optimizer.learning_rate) == np.float32(0.05)
    assert "0.1" in (out := capsys.readouterr().out) and "0.05" in out


def test_a_learning_rate_that_a_hook_changed_comes_back(tmp_path):
    trainer = _trainer(SGD(0.1))
    trainer.groups[0].optimizer.learning_rate = 0.025
    checkpoints = _save(tmp_path, trainer)
    fresh = _trainer(SGD(0.1), steps=0)
    restore(fresh, checkpoints.latest())
    assert float(fresh.groups[0].optimizer.learning_rate) == np.float32(0.025)


def test_layers_in_another_order_do_not_swap_slots_in_silence(tmp_path):
    """Keras keys slots by position; ours come back by name."""

    class Two(keras.Model):
        def __init__(self, order):
            super().__init__()
            for name in order:
                setattr(self, name, L.Dense(3, use_bias=False))

        def call(self, x):
            return keras.ops.sum(self.a(self.b(x)), -1, keepdims=True)

    saved = _trainer(model=Two("ab"))
    checkpoints = _save(tmp_path, saved)
    fresh = _trainer(model=Two("ba"), steps=0)
    restore(fresh, checkpoints.latest())
    old, new = copy_state(saved), copy_state(fresh)
    assert old.keys() == new.keys()
    for name in old:
        np.testing.assert_array_equal(old[name], new[name], err_msg=name)


def test_the_manifest_lists_variables_in_order_with_shapes(tmp_path):
    trainer = _trainer()
    manifest = json.loads((_save(tmp_path, trainer).latest().path / "manifest.json").read_text())
    assert [row["name"] for row in manifest["variables"]] == list(state_of(trainer))
    assert manifest["variables"][0] == {"name": "dense/kernel", "shape": [3, 4], "dtype": "float32"}
    assert manifest["step"] == 3
