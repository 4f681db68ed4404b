"""Arguments of `run` that are checked before anything is trained or written: hooks, and the tags that they watch."""

import keras
import numpy as np
import pytest

from trainer import Trainer, run
from trainer.data import from_arrays
from trainer.hooks import EarlyStopping, ReduceOnPlateau, SpikeRecovery
from trainer.outer_loop import preflight
from trainer.saving.checkpoints import Checkpoints

X = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
Y = X.sum(1, keepdims=True)


def _trainer(kind=Trainer):
    mae = keras.metrics.MeanAbsoluteError(name="mae")
    return kind(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]), "mse", [mae], "sgd")


def _data():
    return from_arrays((X, Y), 8)


def _held_out():
    return from_arrays((X, Y), 8, repeat=False)


def _run(folder, eval_data=_held_out, make=_trainer, **arguments):
    return run(
        folder, make, _data, eval_data, **{"train_steps": 4, "steps_per_loop": 2, "strategy": "default", **arguments}
    )


class Counting:
    """A hook of the user's own."""

    def __init__(self, every=1):
        self.every, self.seen = every, []

    def __call__(self, trainer, step, metrics):
        self.seen.append(step)


@pytest.mark.parametrize(
    "hook, message",
    [
        (
            EarlyStopping,
            r"item 0 is the class EarlyStopping, not an object. Call it: EarlyStopping\(\), in gin @EarlyStopping\(\)",
        ),
        (Counting, "is the class Counting"),
        (keras.callbacks.EarlyStopping(), "is the Keras callback EarlyStopping"),
        (keras.callbacks.EarlyStopping, "is the class EarlyStopping"),
        ("EarlyStopping", r"must be a callable \(trainer, step, metrics\), got 'EarlyStopping'"),
        (lambda trainer: None, r"must be a callable \(trainer, step, metrics\)"),
    ],
)
def test_an_invalid_hook_is_refused_before_building(tmp_path, hook, message):
    def never():
        raise AssertionError

    for hooks in ([hook], hook):
        with pytest.raises(ValueError, match=message):
            run(tmp_path / "run", never, never, hooks=hooks)
    assert not (tmp_path / "run").exists()


def test_hooks_are_a_list_one_callable_or_none():
    hook = Counting()
    assert preflight.hooks_of([hook]) == preflight.hooks_of((hook,)) == preflight.hooks_of(hook) == [hook]
    assert preflight.hooks_of(None) == preflight.hooks_of(()) == []
    preflight.hooks_of(lambda trainer, step, metrics, bound_in_gin: None)
    preflight.hooks_of(lambda *everything: None)


def _monitors(monitor):
    yield {"hooks": [EarlyStopping(monitor, mode="min")]}
    yield {"hooks": [ReduceOnPlateau(monitor, mode="min")]}
    yield {"checkpoints": Checkpoints(monitor=monitor, mode="min")}


@pytest.mark.parametrize(
    "monitor, eval_data, near",
    [
        ("val_loss", _held_out, "validation/loss"),
        ("validation/los", _held_out, "validation/loss"),
        ("validation/mae", _held_out, "validation/metrics/mae"),
        ("validation/loss", {"test": _held_out}, "validation_test/loss"),
        ("validation_tset/loss", {"test": _held_out}, "validation_test/loss"),
        ("validation/loss", None, "loss"),
        ("metrics/mse", None, "metrics/mae"),
        ("grad_norm/mian", None, "grad_norm/main"),
        ("grad_norms", None, "grad_norm/main"),
    ],
)
def test_a_monitor_that_nothing_reports_is_refused_with_the_nearest_tag(tmp_path, monitor, eval_data, near):
    trainer = _trainer()
    trainer.build(_data().element_spec)
    for arguments in _monitors(monitor):
        with pytest.raises(ValueError, match=f"`monitor` '{monitor}' of .* never be reported.* Did you mean '{near}'"):
            _run(tmp_path / "run", eval_data, lambda: trainer, **arguments)
    assert not (tmp_path / "run").exists()


def test_monitors_that_are_reported_are_taken(tmp_path):
    for number, monitor in enumerate(["validation_test/metrics/mae", "losses/main", "step_milliseconds"]):
        for arguments in _monitors(monitor):
            assert _run(tmp_path / str(number), {"test": _held_out}, **arguments).status == "done"


def test_looking_at_the_tags_measures_nothing(tmp_path):
    """The numbers of a run with a monitor are those of a run without."""
    plain, watched = (_run(tmp_path / name, make=lambda: _seeded(), **more).metrics for name, more in
                      (("plain", {}), ("watched", {"hooks": [EarlyStopping()]})))  # fmt: skip
    for tag in ("loss", "metrics/mae"):
        assert plain["train"][tag] == watched["train"][tag] and plain["validation"][tag] == watched["validation"][tag]


def _seeded():
    keras.utils.set_random_seed(1)
    return _trainer()


def test_tags_that_a_subclass_adds_may_be_monitored(tmp_path):
    class Own(Trainer):
        def eval_end(self, metrics):
            return {**metrics, "own": 1.0}

    _run(tmp_path / "own", make=lambda: _trainer(Own), hooks=[EarlyStopping("validation/own", mode="min")])
    with pytest.raises(ValueError, match="`monitor` 'validation_x/own' of EarlyStopping will never be reported"):
        _run(tmp_path / "x", make=lambda: _trainer(Own), hooks=[EarlyStopping("validation_x/own", mode="min")])


def test_mode_train_reports_that_nothing_is_evaluated(tmp_path, capsys):
    assert _run(tmp_path, mode="train", hooks=[EarlyStopping()]).status == "done"
    assert "`monitor` 'validation/loss' of EarlyStopping is not reported, because this mode" in "".join(
        capsys.readouterr()
    )


def test_a_spike_is_looked_for_in_each_loop():
    with pytest.raises(ValueError, match="`monitor` must be a tag of the training loop"):
        SpikeRecovery("validation/loss")
