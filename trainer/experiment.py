"""run(): the eager outer loop, and the only gin root."""

import dataclasses
import pathlib
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer import checkpoints as checkpoints_lib
from trainer import cluster, config, console, export, loading, specs
from trainer import data as data_lib
from trainer import state as state_lib
from trainer.banner import show
from trainer.building import check_batch
from trainer.distribution import make_strategy
from trainer.guard import NonFiniteError
from trainer.hooks import STOP
from trainer.intervals import Intervals, is_due
from trainer.signals import Signals
from trainer.staging import users_errors
from trainer.summaries import Summaries
from trainer.tally import Report
from trainer.trainer import Trainer

MODES = ("train_and_eval", "train", "eval", "export")
RESUMES = ("auto", "never", "must")
_request = {"dry_run": False, "init_from": None}  # what main asks for beside gin


@dataclasses.dataclass
class Result:
    """How a run ended.

    Attributes:
        status: "done", "stopped_nonfinite", "SIGINT" or "SIGTERM".
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
    _check(mode, resume, train_steps, epochs)
    keras.mixed_precision.set_dtype_policy(precision or "float32")
    keras.utils.set_random_seed(seed)
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = make_strategy(strategy)
    console.only_warn(not cluster.is_chief(strategy))
    with strategy.scope():
        source = data_lib.as_source(train_data, epochs)
        built = trainer if isinstance(trainer, Trainer) else trainer()
    evals = _eval_sources(eval_data) if mode in ("train_and_eval", "eval") else {}
    built.build(source.element_spec)
    if built.compile == "xla_loop":
        settings.check_multiples()
    if train_steps is None and epochs is not None:
        if source.steps_per_epoch is None:
            raise ValueError("`epochs` needs data of known size, which this source does not say. Give `train_steps`.")
        train_steps = int(np.ceil(epochs * source.steps_per_epoch))
    elif train_steps is None and source.infinite:
        raise ValueError("`train_steps` or `epochs` must be given: the training data never ends.")
    session = _Run(model_dir, built, source, evals, train_steps, settings, checkpoints, hooks, resume)
    if mode == "train_and_eval":  # the other modes leave parts of a config aside on purpose
        _report_unused()
    with cluster.telling_of_loss(strategy):
        return session.start(mode)


def launch(dry_run=False, init_from=None):
    """Calls the gin-configured `run`, as main does; returns its Result."""
    _request.update(dry_run=dry_run, init_from=init_from)
    try:
        unset = {"model_dir": None} if dry_run and not config.is_bound("trainer.run", "model_dir") else {}
        return config.injected("trainer.run")(**unset)
    finally:
        _request.update(dry_run=False, init_from=None)


def _check(mode, resume, train_steps, epochs):
    for argument, value, known in (("mode", mode, MODES), ("resume", resume, RESUMES)):
        if value not in known:
            raise ValueError(f"`{argument}` must be one of {', '.join(known)}, got {value!r}.")
    if train_steps is not None and epochs is not None:
        raise ValueError(f"`train_steps` ({train_steps}) and `epochs` ({epochs}) both say when to end. Give one of them.")
    for argument, value in (("train_steps", train_steps), ("epochs", epochs)):
        if value is not None and value <= 0:
            raise ValueError(f"`{argument}` must be > 0, got {value}.")


def _eval_sources(eval_data):
    if eval_data is None:
        return {}
    named = eval_data if isinstance(eval_data, dict) else {None: eval_data}
    sources = {f"validation_{name}" if name else "validation": data_lib.as_source(data) for name, data in named.items()}
    for split, source in sources.items():
        if source.infinite:
            raise ValueError(f"`eval_data` of {split} never ends. Use from_arrays(..., repeat=False) or dataset.take(n).")
    return sources


def _report_unused():
    """Nothing that was bound is ignored in silence."""
    lines = config.unused()
    if lines:
        raise config.ConfigError("\n".join(lines))


class _Run:
    """One call of `run`, after everything was built."""

    def __init__(self, model_dir, trainer, source, evals, train_steps, settings, checkpoints, hooks, resume):
        self.trainer, self.source, self.evals, self.settings = trainer, source, evals, settings
        self.train_steps, self.resume = train_steps, resume
        self.hooks = hooks if isinstance(hooks, (list, tuple)) else (hooks,)
        self.model_dir = None if model_dir is None else pathlib.Path(model_dir).expanduser()
        self.checkpoints = checkpoints or checkpoints_lib.Checkpoints()
        if self.model_dir is not None:
            self.checkpoints.open(self.model_dir)
        self.metrics = {}
        self._chief = cluster.is_chief(trainer.strategy)  # it writes; the others compute the same numbers
        self._report = None  # sums since the last line of metrics.jsonl
        self._elapsed, self._saved_at, self._signals = np.zeros(3), None, Signals()

    @property
    def step(self):
        return int(self.trainer.global_step.numpy())

    def start(self, mode):
        """Restores, then does what `mode` asks; returns the Result."""
        if _request["dry_run"]:
            return self._dry_run()
        if self.model_dir is None:
            raise ValueError("`model_dir` must be given. Bind run.model_dir, or use --model_dir=DIR.")
        self._restore(must=mode in ("eval", "export"))
        cluster.check_same_step(self.trainer.strategy, self.step)
        if mode == "export":
            if self._chief:
                export.export(self.trainer, self.source, self.model_dir / "export")
            cluster.wait(self.trainer.strategy)
            return Result("done", self.trainer, {})
        iterator = None if mode == "eval" else self._iterator()  # looks at the first batch before anything is written
        if self._chief:
            self._warn_of_recurrence()
            config.save(self.model_dir)
        self.trainer.summaries = Summaries(self.model_dir if self._chief else None, start_step=self.step)
        if self.step == 0:
            prediction = tf.function(self.trainer.predict_step).get_concrete_function(self.trainer.element_spec)
            self.trainer.summaries.graph(prediction.graph)
        show(self.trainer, self.source, self.step, self.train_steps, self.model_dir)
        try:
            status = self._train(iterator) if iterator is not None else self._evaluate() or "done"
        finally:
            self.checkpoints.wait()
            self.trainer.summaries.close()
        console.closing_table(f"{status} at step {self.step}", self.metrics)
        if status in ("SIGINT", "SIGTERM"):
            console.line("Saved. The same command again goes on from here.")
        return Result(status, self.trainer, self.metrics)

    def _restore(self, must):
        checkpoint = self.checkpoints.latest()
        if checkpoint is None:
            if must or self.resume == "must":
                raise ValueError(f"There is no whole checkpoint in {self.checkpoints.directory}.")
            if _request["init_from"]:
                loading.init_from(self.trainer, _request["init_from"])
            return
        if self.resume == "never":
            raise ValueError(f"`resume` is 'never', but {self.model_dir} has a checkpoint of step {checkpoint.step}. Use another folder.")
        extra = state_lib.restore(self.trainer, checkpoint)
        self._report = Report(**{name.removeprefix("report/"): value for name, value in extra.items()}) if extra else None
        self._saved_at = checkpoint.step
        console.line(f"Resuming from {checkpoint.path}")
        if not self.source.exact:
            console.line("The position in this data cannot be restored exactly: batches are skipped, a shuffle differs.")

    @property
    def _stopped_note(self):
        return self.model_dir / "stopped.txt"

    def _warn_of_recurrence(self):
        """A run that the guard stopped comes to the same step again, because it resumes exactly."""
        if self._stopped_note.exists() and self.trainer.guard != "skip":
            console.warning(
                f"The last run was stopped: {self._stopped_note.read_text().strip()} The same step will come again. "
                "Trainer.guard = 'skip' leaves such steps out."
            )
        self._stopped_note.unlink(missing_ok=True)

    def _iterator(self):
        return iter(self.trainer.distribute(self.source, start=self.step, chunk=self.settings.steps_per_loop))

    def _train(self, iterator):
        status = None
        progress = console.Progress(self.train_steps, self.step)
        with self._signals:
            while status is None and (self.train_steps is None or self.step < self.train_steps):
                status = self._loop(iterator, progress)
            progress.close()
            if status != "stopped_nonfinite":
                self._finish()  # signals are still noted: the other workers' may come a little later
        return status or "done"

    def _loop(self, iterator, progress):
        """One loop and what is due after it; returns a status where the run ends."""
        began_at, began = self.step, time.perf_counter()
        stop = self.settings.next_stop(began_at, self.train_steps)
        try:
            metrics = self.trainer.train(iterator, stop - began_at)
        except NonFiniteError as error:
            self._check_batches(began_at, stop)
            console.error(str(error))
            if self._chief:
                self._stopped_note.write_text(f"{error}\n")
            return "stopped_nonfinite"
        step = self.step
        self._elapsed += [time.perf_counter() - began, self.trainer.seconds_waited, step - began_at]
        self._report = self._report.then(self.trainer.report) if self._report else self.trainer.report
        metrics.update(self._speed())
        self.trainer.summaries.step = step
        progress.update(step, metrics)
        ended = step < stop
        last = ended or step == self.train_steps
        if last or is_due(step, self.settings.summary_interval):
            self._write_report(step)
        if self.evals and (last or is_due(step, self.settings.eval_interval)):
            self._evaluate()
        verdicts = [hook(self.trainer, step, metrics) for hook in self.hooks]
        if is_due(step, self.settings.checkpoint_interval):
            self._save()
        received, stop = cluster.agree(self.trainer.strategy, self._signals.received, STOP in verdicts)
        if ended and not received:
            console.line(f"The training data ended at step {step}.")
        return received or ("done" if ended or stop else None)

    def _finish(self):
        if self._saved_at != self.step:
            self._save()
        self.checkpoints.wait()
        cluster.wait(self.trainer.strategy)

    def _evaluate(self):
        step = self.step
        for split, source in self.evals.items():
            self.metrics[split] = self.trainer.evaluate(source)
            self.trainer.summaries.scalars(split, step, self.metrics[split])

    def _write_report(self, step):
        self.metrics["train"] = {**self.trainer.summarize(self._report), **self._speed()}
        self.trainer.summaries.scalars("train", step, self.metrics["train"])
        self._report, self._elapsed = None, np.zeros(3)

    def _speed(self):
        seconds, waited, steps = map(float, self._elapsed)
        speed = {"step_milliseconds": 1e3 * seconds / max(steps, 1), "input_wait_fraction": waited / max(seconds, 1e-9)}
        if self.source.batch_size and seconds:
            speed["examples_per_second"] = self.source.batch_size * steps / seconds
        return speed

    def _save(self):
        step, tensors = self.step, state_lib.copy_state(self.trainer)
        self._saved_at = step
        if not self._chief:
            return
        if self._report is not None:
            tensors.update({f"report/{name}": value for name, value in self._report._asdict().items()})
        self.checkpoints.save(
            step,
            tensors,
            {
                "element_spec": specs.spec_to_json(self.trainer.element_spec),
                "learning_rates": state_lib.learning_rates(self.trainer),
            },
        )

    def _check_batches(self, start, stop):
        """A class id out of range is found by name before a non-finite stop is reported."""
        for batch in self.source.batches(start).take(stop - start):
            check_batch(self.trainer, batch)

    def _dry_run(self):
        if self.trainer.compile != "eager":
            with users_errors():
                self.trainer._state.loop.get_concrete_function(self._iterator(), tf.constant(1, tf.int64))
        show(self.trainer, self.source, self.step, self.train_steps, self.model_dir)
        console.line("Dry run: the step was traced; nothing was written.")
        return Result("done", self.trainer, {})
