"""run(): the eager outer loop, and the only gin root."""

import dataclasses
import pathlib
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer import config, console
from trainer import data as data_lib
from trainer.config import registry
from trainer.diagnosis import audit
from trainer.diagnosis.inputs import cause_in_data, located
from trainer.hooks import STOP, Rollback
from trainer.inputs.batches import spec_to_json, without_none
from trainer.outer_loop import preflight
from trainer.outer_loop.bad_steps import BadSteps
from trainer.outer_loop.banner import show
from trainer.outer_loop.intervals import Intervals, is_due
from trainer.outer_loop.reporting import Reporter
from trainer.outer_loop.signals import Signals
from trainer.outer_loop.summaries import Summaries
from trainer.replicas import cluster
from trainer.replicas.distribution import make_strategy
from trainer.saving import checkpoints as checkpoints_lib
from trainer.saving import export, loading
from trainer.saving import state as state_lib
from trainer.step.autograph import convert, users_errors
from trainer.step.guard import NonFiniteError
from trainer.trainer import Trainer

_request = {"dry_run": False, "init_from": None, "from_main": False}  # what main asks for beside gin


@dataclasses.dataclass
class Result:
    """How a run ended.

    Attributes:
        status: "done", "stopped_nonfinite", "SIGINT", "SIGTERM", or "unsaved": the last checkpoint is not on disk.
        trainer: the Trainer.
        metrics: {split: {tag: value}} of the last reports, split being "train", "validation" or "validation_NAME".
    """

    status: str
    trainer: Any
    metrics: dict


def run(
    model_dir,
    trainer,
    train_data,
    eval_data=None,
    train_steps=None,
    epochs=None,
    steps_per_loop=100,
    eval_interval=1_000,
    checkpoint_interval=1_000,
    summary_interval=100,
    seed=0,
    deterministic=False,
    precision=None,
    strategy="auto",
    checkpoints=None,
    hooks=(),
    mode="train_and_eval",
    resume="auto",
):
    """Builds, restores, trains, reports, evaluates and saves; eager. Intervals are in steps.

    Args:
        model_dir: the run folder. Started again with the same folder, a run resumes.
        trainer: Trainer, a subclass, or a function that returns one; uncalled, it is built in the strategy's scope.
        train_data: a function that returns a source or a tf.data.Dataset of global batches.
        eval_data: the same, finite; or a dict name -> function; None: no evaluation.
        train_steps: int, global step to end at. None: `epochs`, or where the data ends.
        epochs: float, passes over the training data, instead of `train_steps`.
        steps_per_loop: int, steps between two looks of the host at the device.
        eval_interval, checkpoint_interval, summary_interval: int, or None: at the end only.
        seed: int, of Python, NumPy, TensorFlow and Keras.
        deterministic: whether TensorFlow picks deterministic kernels.
        precision: a Keras dtype policy such as "mixed_bfloat16"; None: float32.
        strategy: a name (trainer/strategies.py) or a tf.distribute.Strategy.
        checkpoints: a Checkpoints, which says how many are kept.
        hooks: callables (trainer, step, metrics), run after each loop.
        mode: train_and_eval, train, eval or export.
        resume: auto; never: refuse a folder that has checkpoints; must: refuse one that has none.

    Returns:
        A Result.

    Raises:
        ValueError: what is wrong with the arguments, the data or the folder.
    """
    settings = Intervals(steps_per_loop, eval_interval, checkpoint_interval, summary_interval)
    preflight.check_arguments(mode, resume, train_steps, epochs)
    hooks = preflight.hooks_of(hooks)
    keras.mixed_precision.set_dtype_policy(precision or "float32")
    keras.utils.set_random_seed(seed)
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = make_strategy(strategy)
    console.only_warn(not cluster.is_chief(strategy))
    with strategy.scope():
        source = data_lib.as_source(train_data, epochs)
        built = trainer if isinstance(trainer, Trainer) else trainer()
    evals = preflight.eval_sources(eval_data) if mode in ("train_and_eval", "eval") else {}
    with located(source, 0, 1):
        built.build(source.element_spec, preflight.first_spec(source))
    if built.compile == "xla_loop":
        settings.check_multiples()
    train_steps = preflight.last_step(source, train_steps, epochs)
    if mode in ("train_and_eval", "train"):
        changed = {
            "train": Trainer.train_end is not type(built).train_end,
            "validation": Trainer.eval_end is not type(built).eval_end,
        }
        watchers, open_splits = [*hooks, checkpoints], [split for split, may_add in changed.items() if may_add]
        preflight.check_monitors(built, evals, watchers, open_splits, evaluates=mode == "train_and_eval")
    session = _Run(model_dir, built, source, evals, train_steps, settings, checkpoints, hooks, resume)
    if mode == "train_and_eval":  # the other modes leave parts of a config aside on purpose
        preflight.report_unused()
    with cluster.telling_of_loss(strategy):
        return session.start(mode)


def launch(dry_run=False, init_from=None):
    """Calls the gin-configured `run`, as main does; returns its Result."""
    strategy = registry.internals().config.get(("", "trainer.run"), {}).get("strategy", "auto")
    if isinstance(strategy, str) and cluster.find_cluster() is not None:
        make_strategy(
            strategy
        )  # joined before gin builds the hooks: their variables would be TensorFlow's first tensors
    _request.update(dry_run=dry_run, init_from=init_from and loading.init_from(init_from), from_main=True)
    try:
        unset = {"model_dir": None} if dry_run and not config.is_bound("trainer.run", "model_dir") else {}
        return config.injected("trainer.run")(**unset)
    finally:
        _request.update(dry_run=False, init_from=None, from_main=False)


class _Run:
    """One call of `run`, after everything was built."""

    def __init__(self, model_dir, trainer, source, evals, train_steps, settings, checkpoints, hooks, resume):
        self.trainer, self.source, self.evals, self.settings = trainer, source, evals, settings
        self.train_steps, self.resume = train_steps, resume
        self.hooks = hooks
        self.model_dir = None if model_dir is None else pathlib.Path(model_dir).expanduser()
        self.checkpoints = checkpoints or checkpoints_lib.Checkpoints()
        if self.model_dir is not None:
            self.checkpoints.open(self.model_dir)
        self.metrics = {}
        self._chief = cluster.is_chief(trainer.strategy)  # it writes; the others compute the same numbers
        self._bad_steps = BadSteps(self.model_dir if self._chief else None, self.checkpoints)
        self._reporter, self._saved_at, self._signals = (
            Reporter(trainer, source),
            None,
            Signals(leave=_request["from_main"]),
        )
        self._batches, self._skipped_batches, self._audited = None, 0, False  # batches left out after a rollback

    @property
    def step(self):
        return int(self.trainer.global_step.numpy())

    def start(self, mode):
        """Restores, then does what `mode` asks; returns the Result."""
        if _request["dry_run"]:
            return self._dry_run()
        if self.model_dir is None:
            raise ValueError("`model_dir` must be given. Bind run.model_dir, or use --model_dir=DIR.")
        if mode == "eval":
            next(self.checkpoints.newer(-1), None)  # the run to follow may not have saved yet
        self._restore(must=mode in ("eval", "export"))
        cluster.check_same_step(self.trainer.strategy, self.step)
        if mode == "export":
            with self.trainer.averaged():
                if self._chief:
                    export.export(self.trainer, self.source, self.model_dir / "export")
            cluster.wait(self.trainer.strategy)
            return Result("done", self.trainer, {})
        self._batches = (
            None if mode == "eval" else self._iterator()
        )  # looks at the first batch before anything is written
        self._bad_steps.warn_of_recurrence(self.trainer.guard, self.step)
        if self._chief and mode != "eval":  # beside a run that trains, an evaluation changes nothing of it
            config.save(self.model_dir)
        self.trainer.summaries = Summaries(
            self.model_dir if self._chief else None, start_step=self.step, supersede=mode != "eval"
        )
        if self.step == 0:
            prediction = tf.function(
                lambda batch: convert(self.trainer.predict_step)(batch), autograph=False
            ).get_concrete_function(without_none(self.trainer.element_spec))
            self.trainer.summaries.graph(prediction.graph)
        show(self.trainer, self.source, self.step, self.train_steps, self.model_dir)
        try:
            status = self._follow() if mode == "eval" else self._train()
        finally:
            self.checkpoints.wait()
            self.trainer.summaries.close()
        console.closing_table(f"{status} at step {self.step}", self.metrics)
        if status in ("SIGINT", "SIGTERM"):
            command = (self.model_dir / "command.txt").read_text().strip()
            console.line(
                f"Saved. The same command again goes on from here:\n  {command}"
                if command
                else "Saved. The same call again goes on from here."
            )
        return Result(status, self.trainer, self.metrics)

    def _restore(self, must):
        checkpoint = self.checkpoints.latest()
        if checkpoint is None:
            damaged = self.checkpoints.steps()  # starting over would delete the reports of what was trained
            if must or self.resume == "must" or damaged:
                cure = " To start anew, move the damaged ones away; nothing was changed." if damaged else ""
                raise ValueError(f"There is no whole checkpoint in {self.checkpoints.directory}.{cure}")
            if _request["init_from"]:
                _request["init_from"](self.trainer)
            return
        if self.resume == "never":
            raise ValueError(
                f"`resume` is 'never', but {self.model_dir} has a checkpoint of step {checkpoint.step}. Use another folder."
            )
        console.line(f"Resuming from {checkpoint.path}")
        self._show_changes()
        self._take_over(checkpoint, self.hooks)
        if not self.source.exact:
            console.line(
                "The position in this data cannot be restored exactly: batches are skipped, a shuffle differs."
            )

    def _take_over(self, checkpoint, hooks):
        extra = state_lib.restore(self.trainer, checkpoint, hooks)
        self._skipped_batches = int(extra.pop("data/skipped_batches", 0))
        self._reporter.restore(extra)
        self._saved_at = checkpoint.step

    def _show_changes(self):
        """What the user changed since the last start; state that it would make meaningless is refused by `restore`."""
        before = self.model_dir / "config.gin"
        changes = config.difference(before.read_text(), config.config_text()) if before.exists() else ""
        if changes:
            console.line(f"The config changed since the last start:\n{changes}")

    def _roll_back(self, rollback):
        """Goes back to the last checkpoint and leaves out the batches since; hooks keep what they know."""
        self.checkpoints.wait()
        cluster.wait(self.trainer.strategy)  # for the chief's save
        stopped_at, checkpoint = self.step, self.checkpoints.latest()
        console.warning(rollback.reason)
        if checkpoint is None:
            console.warning("There is no checkpoint to go back to yet; the run goes on.")
            return
        self._take_over(checkpoint, ())
        self._skipped_batches += stopped_at - checkpoint.step
        console.line(
            f"Back to step {checkpoint.step}, without the batches of the {stopped_at - checkpoint.step} steps after it."
        )
        self.trainer.summaries.close()
        self.trainer.summaries = Summaries(self.model_dir if self._chief else None, start_step=checkpoint.step)
        self._batches = self._iterator()

    def _iterator(self):
        start = self.step + self._skipped_batches
        with located(self.source, start, start + 1):
            self._ended = preflight.has_ended(self.source, start, self.step, self.train_steps)
            return iter(self.trainer.distribute(self.source, start=start, chunk=self.settings.steps_per_loop))

    def _cause(self, start, stop, labels=True):
        return cause_in_data(
            self.trainer, self.source, start + self._skipped_batches, stop + self._skipped_batches, labels
        )

    def _audit(self):
        """Names the state that no checkpoint would hold, once the loop is traced (by the first `train`, else here)."""
        audited, self._audited = self._audited, True
        if not audited and self.trainer.compile != "eager":
            with users_errors():
                graph = self.trainer._state.loop.get_concrete_function(self._batches, tf.constant(1, tf.int64)).graph
            audit.warn(audit.unsaved_state(self.trainer, graph, self.source))

    def _train(self):
        status = "done" if self._ended or any(getattr(hook, "ended", False) for hook in self.hooks) else None
        progress = console.Progress(self.train_steps, self.step)
        with self._signals:
            while status is None and (self.train_steps is None or self.step < self.train_steps):
                status = self._loop(progress)
                self._audit()
            progress.close()
            # Signals are still noted: the other workers' may come a little later.
            if status != "stopped_nonfinite" and not self._finish():
                status = "unsaved"
        return status or "done"

    def _follow(self):
        """Evaluates the checkpoint that was restored and, as far as `Checkpoints.follow` waits for them, newer ones."""
        with self._signals:
            self._evaluate()
            for checkpoint in self.checkpoints.newer(self.step, lambda: self._signals.received):
                self._take_over(checkpoint, ())
                self._evaluate()
                console.closing_table(f"step {self.step}", self.metrics)
        return self._signals.received or "done"

    def _loop(self, progress):
        """One loop and what is due after it; returns a status where the run ends."""
        began_at, began = self.step, time.perf_counter()
        stop = self.settings.next_stop(began_at, self.train_steps)
        try:
            with located(self.source, began_at + self._skipped_batches, stop + self._skipped_batches):
                metrics = self.trainer.train(self._batches, stop - began_at)
        except NonFiniteError as error:
            console.error(f"{error} {self._cause(began_at, stop)}")
            self._bad_steps.stopped(error, began_at, stop)
            return "stopped_nonfinite"
        step = self.step
        self._reporter.add(time.perf_counter() - began, step - began_at)
        self._signals.check_latency(time.perf_counter() - began, step - began_at)
        bad = self._bad_steps.look(self.trainer, began_at, metrics["skipped_steps"])
        if bad is not None and self.source.exact:  # others would be read from the beginning
            console.warning(f"Step {bad} was skipped. {self._cause(bad, bad + 1, labels=False)}")
        metrics.update(self._reporter.speed())
        self.trainer.summaries.step = step
        progress.update(step, metrics)
        ended = step < stop
        last = ended or step == self.train_steps
        if self._reporter.measured and (last or is_due(step, self.settings.summary_interval)):
            self._write_report(step)
        if self.evals and (last or is_due(step, self.settings.eval_interval)):
            metrics.update(self._evaluate())
        verdicts = [hook(self.trainer, step, metrics) for hook in self.hooks]
        rollback = next((verdict for verdict in verdicts if isinstance(verdict, Rollback)), None)
        if rollback is not None:
            self._roll_back(rollback)
            received, _ = cluster.agree(self.trainer.strategy, self._signals.received, False)
            return "stopped_nonfinite" if rollback.stop else received
        asked = self._signals.take_save_request()
        if is_due(step, self.settings.checkpoint_interval) or asked or self.checkpoints.is_best(metrics):
            self._save(metrics)
        received, stop = cluster.agree(self.trainer.strategy, self._signals.received, STOP in verdicts)
        if ended and not received:
            console.line(f"The training data ended at step {step}.")
        return received or ("done" if ended or stop else None)

    def _finish(self):
        if self._saved_at != self.step:
            self._save({})
        saved = self.checkpoints.finish(self.step)
        cluster.wait(self.trainer.strategy)
        return saved

    def _evaluate(self):
        """Returns the metrics of all evaluations, with their splits in front."""
        step = self.step
        for split, source in self.evals.items():
            with located(source, what=split):
                self.metrics[split] = self.trainer.evaluate(source)
            self.trainer.summaries.scalars(split, step, self.metrics[split])
        return {f"{split}/{tag}": value for split in self.evals for tag, value in self.metrics[split].items()}

    def _write_report(self, step):
        self.metrics["train"] = self._reporter.take()
        self.trainer.summaries.scalars("train", step, self.metrics["train"])

    def _save(self, metrics):
        self._saved_at, tensors = (
            self.step,
            {**state_lib.copy_state(self.trainer, self.hooks), **self._reporter.tensors},
        )
        tensors["data/skipped_batches"] = np.int64(self._skipped_batches)
        details = {
            "element_spec": spec_to_json(self.trainer.element_spec),
            "batch_spec": spec_to_json(self.trainer.batch_spec),
            "learning_rates": state_lib.learning_rates(self.trainer),
            "optimizers": state_lib.optimizer_classes(self.trainer),
        }
        if self._chief:
            self.checkpoints.save(self._saved_at, tensors, details, metrics, flush=self.trainer.summaries.flush)

    def _dry_run(self):
        if _request["init_from"]:
            _request["init_from"](self.trainer)
        self._batches = self._iterator()
        self._audit()
        show(self.trainer, self.source, self.step, self.train_steps, self.model_dir)
        console.line("Dry run: the step was traced; nothing was written.")
        return Result("done", self.trainer, {})
