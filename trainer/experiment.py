"""run(): the eager outer loop, and the only gin root."""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from trainer import config, console, history
from trainer.config import registry
from trainer.diagnosis import audit
from trainer.diagnosis.inputs import cause_in_data, located
from trainer.diagnosis.xla import check_compilable
from trainer.hooks import STOP, Rollback
from trainer.inputs.limited import FirstBatches
from trainer.outer_loop import dashboards, folder_lock, starts
from trainer.outer_loop.arguments import Arguments, Request, Result, check_all_bindings_used, one_loop
from trainer.outer_loop.bad_steps import BadSteps
from trainer.outer_loop.banner import show, show_end
from trainer.outer_loop.intervals import Loop
from trainer.outer_loop.numerics import numerics_checked
from trainer.outer_loop.pace import Pace
from trainer.outer_loop.preflight import check_monitors, first_spec, has_ended, warn_of_unused_bindings
from trainer.outer_loop.profile import Profile
from trainer.outer_loop.progress import Progress
from trainer.outer_loop.reporting import Reporter
from trainer.outer_loop.signals import Signals
from trainer.outer_loop.summaries import Summaries
from trainer.replicas import cluster
from trainer.replicas.distribution import make_strategy
from trainer.saving import export, loading
from trainer.saving.checkpoints import Checkpoints
from trainer.saving.run_state import RunState
from trainer.step.guard import NonFiniteError
from trainer.trainer import Trainer


def run(
    model_dir: str | os.PathLike | None,
    trainer: Callable,
    train_data: Any,
    eval_data: Any = None,
    train_steps: int | None = None,
    epochs: float | None = None,
    steps_per_loop: int = 100,
    loop_seconds: float = 5.0,
    eval_interval: int | None = 1_000,
    checkpoint_interval: int | None = 1_000,
    summary_interval: int | None = 100,
    seed: int = 0,
    deterministic: bool = False,
    precision: str | None = None,
    strategy: str | tf.distribute.Strategy = "auto",
    checkpoints: Checkpoints | None = None,
    hooks: Sequence[Callable] = (),
    mode: str = "train_and_eval",
    resume: str = "auto",
    overfit_batches: int | None = None,
    sanity_eval_batches: int = 0,
    limit_eval_batches: int | None = None,
    profile: tuple[int, int] | None = None,
    debug_nans: bool = False,
    progress: str = "auto",
) -> Result:
    """Builds, restores, trains, reports, evaluates and saves; returns a Result; eager. Intervals are in steps.

    Args:
        model_dir: the run folder. A run resumes if it is started with the same folder. None: nothing is written, so
            that nothing can be resumed or rolled back.
        trainer: Trainer, a subclass, or a function that returns one; uncalled, it is built in the strategy's scope.
        train_data: a function that returns a source or a tf.data.Dataset of global batches.
        eval_data: the same, finite; or a dict name -> function; None: no evaluation.
        train_steps: int, the last global step. None: `epochs`, or the end of the data.
        epochs: float, passes over the training data, instead of `train_steps`.
        steps_per_loop: int, steps between two calls of the hooks, `train_begin` and `train_end`.
        loop_seconds: float > 0, longest time between two host-device synchronizations: slow loops are split into
            calls, between which signals take effect. No result depends on it.
        eval_interval, checkpoint_interval, summary_interval: int, or None: only at the end.
        seed: int, of Python, NumPy, TensorFlow and Keras.
        deterministic: whether TensorFlow uses deterministic kernels.
        precision: a Keras dtype policy such as "mixed_bfloat16"; None: float32.
        strategy: a name (trainer/replicas/strategies.py) or a tf.distribute.Strategy.
        checkpoints: a Checkpoints, which determines how many are kept.
        hooks: callables (trainer, step, metrics), run after each loop.
        mode: train_and_eval, train, eval, export, or fast_dev_run: one loop, one evaluation and one checkpoint, in a
            folder that is removed.
        resume: auto; never: refuse a folder that has checkpoints; must: refuse one that has none.
        overfit_batches: int, number of first batches to train on, repeated; None: all data.
        sanity_eval_batches: int, batches of each evaluation set to evaluate before step 0, so that a mistake shows at
            once.
        limit_eval_batches: int, number of first batches that evaluations use; None: all.
        profile: (first, last), steps first to last - 1 to profile for TensorBoard.
        debug_nans: whether steps run eagerly, and the first NaN or infinity is an error with file and line.
        progress: auto: a live region on a terminal, else a line every few seconds; plain: lines; none.

    Raises:
        ValueError: for invalid arguments or data, or a folder that cannot be used.
    """
    return start(Request(), locals())


arguments_of_run = registry.arguments_of(run, name="run", module="trainer")


def run_bound(request):
    """Starts a run with the arguments that gin binds to `run` and returns its Result; called by main."""
    strategy = registry.internals().config.get(("", "trainer.run"), {}).get("strategy", "auto")
    if isinstance(strategy, str) and cluster.find_cluster() is not None:
        # Joined before gin builds the hooks: their variables would be TensorFlow's first tensors.
        make_strategy(strategy)
    unset = {} if config.is_bound("trainer.run", "model_dir") else {"model_dir": None}  # not needed in some modes
    return start(request, config.injected("trainer.run")(**unset))


def start(request, arguments):
    """Builds a run and executes its `mode`, or a dry run; returns the Result; eager.

    Args:
        request: a Request.
        arguments: {name: value} of all arguments of `run`.
    """
    if arguments["mode"] == "fast_dev_run":
        with tempfile.TemporaryDirectory() as folder:
            return start(request, one_loop(arguments, folder))
    arguments = Arguments(**arguments)
    load_weights = loading.init_from(request.init_from) if request.init_from else lambda trainer: None
    keras.mixed_precision.set_dtype_policy(arguments.precision or "float32")
    keras.utils.set_random_seed(arguments.seed)
    if arguments.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = make_strategy(arguments.strategy)
    console.only_warn(not cluster.is_chief(strategy))
    with Progress(arguments.progress if cluster.is_chief(strategy) else "none") as progress:
        return _execute(request, arguments, strategy, load_weights, progress)


def _execute(request, arguments, strategy, load_weights, progress):
    """Builds what the run consists of and executes its mode."""
    with strategy.scope():
        source = arguments.train_source()
        trainer = arguments.trainer if isinstance(arguments.trainer, Trainer) else arguments.trainer()
    if not isinstance(trainer, Trainer):
        raise ValueError(f"`trainer` must return a Trainer, got {type(trainer).__name__}.")
    if arguments.debug_nans:
        trainer.compile = "eager"
    evals = arguments.eval_sources()
    with located(source, 0, 1):
        trainer.build(source.element_spec, first_spec(source))
    if trainer.compile == "xla_loop":
        arguments.intervals.check_multiples()
    if arguments.mode in ("train_and_eval", "train"):
        watchers = [*arguments.hooks, arguments.checkpoints]
        check_monitors(trainer, evals, watchers, evaluates=arguments.mode == "train_and_eval")
    session = Run(arguments, trainer, source, evals, load_weights, progress, Signals(leave=request.owns_process))
    if arguments.mode == "train_and_eval":  # other modes do not use all of a config
        check_all_bindings_used()
    with cluster.worker_lost_errors(strategy), numerics_checked(arguments.debug_nans):
        if request.dry_run:
            return session.dry_run()
        if arguments.model_dir is None and (request.owns_process or arguments.mode in ("eval", "export")):
            raise ValueError("`model_dir` must be given. Bind run.model_dir, or use --model_dir=DIR.")
        return {"eval": session.evaluate, "export": session.export}.get(arguments.mode, session.train)()


class Run:
    """A run: executes `train`, `evaluate`, `export` or `dry_run` with its built parts and returns the Result.

    Attributes:
        trainer, source, evals: the Trainer, the training source and {split: source}; built by `start`.
        metrics: {split: {tag: float}} of the last reports.
        batches: the iterator for `Trainer.train`; created at the start and after a rollback.
        state: the RunState, which saves and restores.
        writes: whether this process writes files: the chief, if there is a folder.
    """

    def __init__(self, arguments, trainer, source, evals, load_weights, progress, signals):
        self.arguments, self.trainer, self.source, self.evals = arguments, trainer, source, evals
        self.intervals, self.hooks, self.last_step = arguments.intervals, arguments.hooks, arguments.last_step(source)
        self.model_dir, self.metrics, self.batches = arguments.model_dir, {}, None
        self.checkpoints = (arguments.checkpoints or Checkpoints()).open(self.model_dir)
        self._load_weights, self._signals, self._looked, self._ended = load_weights, signals, False, False
        self.progress, self._phase = progress, progress.phase
        self._is_chief = cluster.is_chief(trainer.strategy)  # it writes files; the others compute the same values
        self.writes = self._is_chief and self.model_dir is not None
        self._profile = Profile(arguments.profile, self.model_dir / "train" if self.writes else None)
        self._bad_steps = BadSteps(self.model_dir if self._is_chief else None, self.checkpoints, self._cause)
        self._reporter = Reporter(trainer, source)
        self._pace = Pace(arguments.loop_seconds, trainer, [*self.hooks, arguments.checkpoints], signals, progress)
        self.state = RunState(trainer, source, self.hooks, self._reporter, self.checkpoints, self.writes)

    @property
    def step(self):
        return int(self.trainer.global_step.numpy())

    # ---- Modes ----------------------------------------------------------------------------------------------------

    def train(self):
        """Trains from the last checkpoint, or from step 0, to the end."""
        with folder_lock.held(self.model_dir, self.trainer.strategy):
            self._resume()
            self.batches = self._iterator()  # checks the first batch before anything is written
            self._bad_steps.warn_of_recurrence(self.trainer.guard, self.step)
            self._check_evaluation()
            if self.writes:
                config.save(self.model_dir)
            with self._reports(), self._signals:
                self.metrics = history.last(self.progress.rows)  # those of a run that is started again
                begun, status = self.step, self._train()
                if status == "done" and self.step > begun:
                    self._show(dashboards.of_end(self.metrics))
        return self._result(status, training=True)

    def evaluate(self):
        """Evaluates the newest checkpoint, and newer ones while `Checkpoints.follow` waits for them."""
        next(self.checkpoints.newer(-1), None)  # the training run may not have saved yet
        self._resume(must=True)
        with self._reports(supersede=False), self._signals:  # the files belong to the training run
            self._evaluate()
            for checkpoint in self.checkpoints.newer(self.step, lambda: self._signals.received):
                self.state.restore(checkpoint, hooks=False)
                self._evaluate()
                console.closing_table(f"step {self.step}", self.metrics)
        return self._result(self._signals.received or "done")

    def export(self):
        """Exports the newest checkpoint into DIR/export."""
        self._resume(must=True)
        with self.trainer.averaged():
            if self._is_chief:
                export.export(self.trainer, self.source, self.model_dir / "export")
        cluster.wait(self.trainer.strategy)
        return Result("done", self.trainer, {})

    def dry_run(self):
        """Traces a step and prints the settings of the run; writes nothing."""
        self._load_weights(self.trainer)
        self.batches = self._iterator()
        self._look_at_trace()
        check_compilable(self.trainer, self.batches)
        show(self.trainer, self.source, self.step, self.last_step, self.model_dir, all_variables=True)
        console.line("Dry run: the step was traced; nothing was written.")
        return Result("done", self.trainer, {})

    # ---- The loop ------------------------------------------------------------------------------------------------

    def _train(self):
        """Trains loop by loop until the end, a signal, a hook or the guard; returns the status."""
        status = "done" if self._ended or any(getattr(hook, "ended", False) for hook in self.hooks) else None
        with contextlib.closing(self._profile):
            while status is None and (self.last_step is None or self.step < self.last_step):
                status = self._loop()
        # Signals are still recorded: those of other workers may arrive later.
        if status != "stopped_nonfinite":
            with self._phase("saving"):
                status = status or "done" if self.state.finish(self.step) else "unsaved"
            cluster.wait(self.trainer.strategy)
        return status

    def _loop(self):
        """Takes the steps of one loop and does what is due; returns the status if the run ends, else None."""
        loop = self._take_steps()
        if loop is None:
            return "stopped_nonfinite"
        self.progress.reached(loop.step, loop.steps, self.trainer.seconds_waited, loop.metrics)
        if self._pace.ended_early:  # the resumed run ends this loop
            return self._status(loop, stop=False, rollback=None)
        if self._reporter.measured and loop.is_due(self.intervals.summary_interval, at_end=True):
            self._report("train", self._reporter.take())
        if self.evals and loop.is_due(self.intervals.eval_interval, at_end=True):
            loop.metrics.update(self._evaluate())
        with self._phase("hooks"):
            verdicts = [hook(self.trainer, loop.step, loop.metrics) for hook in self.hooks if loop.steps]
        if loop.is_due(self.intervals.eval_interval, at_end=True):
            warn_of_unused_bindings()
        rollback = next((verdict for verdict in verdicts if isinstance(verdict, Rollback)), None)
        if rollback is not None:
            self._roll_back(rollback.reason)
        elif self._is_save_due(loop):
            with self._phase("saving"):
                self.state.save(loop.step, loop.metrics)
        return self._status(loop, STOP in verdicts, rollback)

    def _take_steps(self):
        """Calls `Trainer.train` up to the next due step; returns the Loop, or None if the guard stopped it."""
        began_at, began = self.step, time.perf_counter()
        stop = self._profile.next_stop(began_at, self.intervals.next_stop(began_at, self.last_step))
        self._profile.look(began_at)
        try:
            first = began_at + self.state.skipped_batches
            phase = self._phase("training" if self._looked or self.trainer.compile == "eager" else "compiling")
            with phase, located(self.source, first, stop + self.state.skipped_batches):
                metrics = self._pace.train(self.batches, stop - began_at, self._reporter.report)
        except NonFiniteError as error:
            self._bad_steps.stopped(error, began_at, stop)
            return None
        step, seconds = self.step, time.perf_counter() - began
        self._reporter.add(seconds, step - began_at)
        self._signals.check_latency(seconds, step - began_at, self._pace.may_end_early)
        self._look_at_trace(draw=began_at == 0)
        self._bad_steps.look(self.trainer, began_at, metrics["skipped_steps"])
        self.trainer.summaries.step = step
        ended = step < stop and not self._pace.ended_early
        return Loop(
            step, step - began_at, {**metrics, **self._reporter.speed()}, ended, is_last=ended or step == self.last_step
        )

    def _evaluate(self):
        """Returns the metrics of all evaluations, with their splits as prefix."""
        for split, source in self.evals.items():
            with self._phase("evaluating", split, source.cardinality) as progress, located(source, what=split):
                metrics = self.trainer.evaluate(source, progress=progress)
            self._report(split, metrics)
        return {f"{split}/{tag}": value for split in self.evals for tag, value in self.metrics[split].items()}

    def _show(self, summaries):
        self.trainer.summaries.step = self.step
        for summary in summaries:
            self.trainer.summaries.proto(summary)

    def _report(self, split, metrics):
        self.metrics[split] = metrics
        self.trainer.summaries.scalars(split, self.step, metrics)

    def _check_evaluation(self):
        """Evaluates the first batches of each set before step 0 and drops the result."""
        for split, source in self.evals.items() if self.arguments.sanity_eval_batches and self.step == 0 else ():
            with self._phase("evaluating", split), located(source, what=split):
                self.trainer.evaluate(FirstBatches(source, self.arguments.sanity_eval_batches))

    def _is_save_due(self, loop):
        asked = self._signals.take_save_request()
        return loop.is_due(self.intervals.checkpoint_interval) or asked or self.checkpoints.is_best(loop.metrics)

    def _status(self, loop, stop, rollback):
        """Returns the status if the run ends after this loop, else None; equal on all workers."""
        received, stop = cluster.agree(self.trainer.strategy, self._signals.received, stop and rollback is None)
        if rollback is not None:
            return "stopped_nonfinite" if rollback.stop else received
        if loop.data_ended and not received:
            console.line(f"The training data ended at step {loop.step}.")
        return received or ("done" if loop.data_ended or stop else None)

    # ---- Parts of the loop -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _reports(self, supersede=True):
        """A context in which reports are written. supersede: whether reports of later steps are removed first."""
        try:
            self._open_reports(supersede)
            if supersede and self.model_dir is not None:
                tags, _ = self.trainer.built.reports.tags(self.trainer.strategy)  # on all workers: it sums over them
                if self.writes:
                    self._show(dashboards.of_start(tags, *starts.record(self.model_dir, self.step)))
            show(self.trainer, self.source, self.step, self.last_step, self.model_dir)
            yield
        finally:
            for hook in self.hooks:
                getattr(hook, "end", lambda: None)()
            self.checkpoints.wait()
            if self.trainer.summaries is not None:
                self.trainer.summaries.close()

    def _open_reports(self, supersede=True):
        self.trainer.summaries = Summaries(self.model_dir if self._is_chief else None, self.step, supersede)
        self.progress.begin(self.step, self.last_step, history.read(self.model_dir, self.step) if supersede else ())
        if supersede:
            for hook in self.hooks:
                getattr(hook, "begin", lambda run: None)(self)
        listeners = [hook.report for hook in self.hooks if supersede and self._is_chief and hasattr(hook, "report")]
        self.trainer.summaries.listeners = [self.progress.report, *listeners]

    def _result(self, status, training=False):
        self.progress.close()
        if training and self.writes:
            starts.end(self.model_dir, status, self.step, self.progress.spent())
        show_end(f"{status} at step {self.step}", self.metrics, self.progress, self.model_dir)
        return Result(status, self.trainer, self.metrics, self.progress.rows)

    def _resume(self, must=False):
        if not self.state.resume(self.arguments.resume, must):
            self._load_weights(self.trainer)
        cluster.check_same_step(self.trainer.strategy, self.step)

    def _roll_back(self, reason):
        """Restores the last checkpoint and skips the batches since."""
        self.checkpoints.wait()
        cluster.wait(self.trainer.strategy)  # until the chief has saved
        console.warning(reason)
        if self.state.roll_back(self.step):
            self.trainer.summaries.close()
            self._open_reports()
            self.batches = self._iterator()

    def _iterator(self):
        start = self.step + self.state.skipped_batches
        with located(self.source, start, start + 1):
            self._ended = has_ended(self.source, start, self.step, self.last_step)
            return iter(self.trainer.distribute(self.source, start=start, chunk=self.intervals.steps_per_loop))

    def _cause(self, start, stop, labels):
        """Reads the batches of the steps from `start` to `stop` - 1 again; returns a sentence on them."""
        if not labels and not self.source.exact:
            return ""  # such data would restart from its beginning
        start, stop = start + self.state.skipped_batches, stop + self.state.skipped_batches
        return cause_in_data(self.trainer, self.source, start, stop, labels)

    def _look_at_trace(self, draw=False):
        """Warns once of state that checkpoints do not hold, and writes the traced graph for TensorBoard."""
        looked, self._looked = self._looked, True
        if looked or self.trainer.compile == "eager":
            return
        graph = self.trainer.loop_graph(self.batches)
        audit.warn(audit.unsaved_state(self.trainer, graph, self.source))
        if draw:
            self.trainer.summaries.graph(graph)
