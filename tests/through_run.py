"""`pytest --through_run` also gives every Trainer that a test trained to `run`, with the same data, for one step.

What `run` adds to `Trainer.train` (the banner, the graph for TensorBoard, the first batch, reports, evaluation,
checkpoints) must not need more of a Trainer or of its batches than training itself does.
"""

import functools

import pytest

from trainer import Trainer, run


def pytest_addoption(parser):
    parser.addoption("--through_run", action="store_true", help="give every trainer that a test trained to `run`, too")


@pytest.fixture(autouse=True)
def through_run(request, monkeypatch, tmp_path_factory):
    if not request.config.getoption("--through_run"):
        yield
        return
    data, trained = {}, []
    distribute, train = Trainer.distribute, Trainer.train

    @functools.wraps(distribute)
    def recorded_distribute(self, source, *args, **kwargs):
        data[id(self)] = source
        return distribute(self, source, *args, **kwargs)

    @functools.wraps(train)
    def recorded_train(self, *args, **kwargs):
        metrics = train(self, *args, **kwargs)
        if self not in trained and id(self) in data:
            trained.append(self)
        return metrics

    monkeypatch.setattr(Trainer, "distribute", recorded_distribute)
    monkeypatch.setattr(Trainer, "train", recorded_train)
    yield
    monkeypatch.undo()
    for trainer in trained:
        model_dir = tmp_path_factory.mktemp("through_run")
        run(
            model_dir,
            trainer,
            data[id(trainer)],
            train_steps=int(trainer.global_step.numpy()) + 1,
            steps_per_loop=1,
            strategy=trainer.strategy,
        )
