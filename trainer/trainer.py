"""The compiled inner loop: the file to read, copy and subclass."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from optimizers.groups import OptimizerGroup, as_groups
from optimizers.transforms import l2_norm, unique_rows
from trainer import data as data_lib
from trainer.diagnosis.missing_gradients import place_of_read, reasons_for_none
from trainer.diagnosis.xla import compiling
from trainer.replicas.cluster import batches_per_call
from trainer.replicas.distribution import distribute, replica_values, sum_replicas
from trainer.step import internals
from trainer.step.autograph import convert, users_errors
from trainer.step.building import Built, build, check_arguments, make_global_step, not_built
from trainer.step.evaluation import Evaluation
from trainer.step.first_batch import build_for, check_first
from trainer.step.loops import CALL_SPEC, check_chunk, count_elements, take_steps
from trainer.step.losses import check_loss, losses_by_output
from trainer.step.metrics import check_metrics, update_by_output
from trainer.step.micro_batches import accumulate
from trainer.step.outputs import by_output, keras_masks, set_keras_mask
from trainer.step.reduction import LossKey, global_shares, make_term, penalty_terms
from trainer.step.replica_pass import CurrentPass, ReplicaPass
from trainer.step.reports import Report, loss_entries
from trainer.step.scopes import check_iterator
from trainer.step.variables import check_watched, read, restore


class Trainer(Evaluation):
    """Trains a model with one or several optimizers, on any number of replicas.

        train(iterator, num_steps)                     eager
          train_loop                                   the one compiled function
            for each batch: train_step(batch)          cross-replica
              compute_gradients(batch)                 per replica: one forward pass, reduced gradients
              finite? which groups are due?            cross-replica
              apply_gradients(gradients, norms)        per replica: transforms, optimizers
              update_metrics(batch, outputs)           per replica: same forward pass, state before the update
              after_update(batch, outputs)             per replica: the state after the update, the same on all
              global_step += 1

    Override `compute_losses`, `update_metrics`, `after_update`, `eval_end`, `compute_gradients`, `eval_step`,
    `train_step`, `train_begin`, `train_end`. Models and variables in a subclass' attributes are trained and saved too.

    Args:
        model: a Keras model, called as `model(inputs, training=...)`.
        loss: a function (targets, predictions) -> [B], a Keras Loss or its name, or a nest of them like the model's
            outputs. Not needed if `compute_losses` is overridden.
        metrics: Keras metrics or names: a list, or a dict by output. `weighted(metric)` uses the sample weights.
        optimizers: one Keras optimizer (or name), one OptimizerGroup, or a list of groups.
        frozen: regular expressions of variables that are not trained. A layer whose variables are all frozen runs in
            inference mode, so that its statistics do not change (unlike in a group that never starts).
        guard: after a non-finite gradient, "skip" skips the step without changing any state; "stop" ends the run at the
            end of the loop, at no cost per step; "off" ignores it.
        compile: "graph"; "eager" runs the same step in Python; "xla_step" and "xla_loop" compile the step, or the loop
            over a chunk of batches, with XLA.
        micro_batches: int >= 1, parts in which a replica computes its batch to save memory; the result is the same.
        averages: optimizers.EMA, SWA or Lookahead: evaluation, prediction and export use its weights.
        max_skipped: int >= 1, skipped steps in a row after which guard="skip" stops.
    """

    def __init__(
        self,
        model: keras.Model | None = None,
        loss: Any = None,
        metrics: Any = (),
        optimizers: Any = "adam",
        frozen: str | Sequence[str] = (),
        guard: str = "skip",
        compile: str = "graph",
        micro_batches: int = 1,
        averages: Any = None,
        max_skipped: int = 10,
    ):
        before = set(vars(self))
        self.model = model
        self.strategy = tf.distribute.get_strategy()
        self.loss = check_loss(loss)
        self.groups = as_groups(optimizers)
        self.frozen, self.guard, self.compile = frozen, guard, compile
        self.micro_batches, self.averages, self.max_skipped = micro_batches, averages, max_skipped
        self.global_step = make_global_step()
        self.summaries = None
        check_arguments(self)
        self.requested_metrics, self.output_metrics, self.report = check_metrics(metrics), {}, None
        self.element_spec = self.batch_spec = self.variables = self.loss_names = self.frozen_variables = None
        self._built, self._passes, self._chunk = None, CurrentPass(), 1
        self._own = frozenset(vars(self)) - before - {"model"} | {"_own"}  # attributes that belong to this class

    # ---- What a subclass defines -----------------------------------------------------------------------------------

    def compute_losses(self, batch: Any, training: bool) -> Any:
        """Returns the losses of `batch`, or (losses, outputs); traced, per replica.

        Args:
            batch: one replica's shard of a global batch.
            training: bool.

        Returns:
            losses: dict name -> values of any rank, a scalar, or (values, weights). The trainer takes their mean over
                the global batch; do not divide by the number of replicas.
            outputs: any nest, for `update_metrics`.
        """
        inputs, targets, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        predictions = self.model(inputs, training=training)
        self.current_pass.default_losses |= batch is self.current_pass.batch
        return losses_by_output(self.loss, by_output(predictions, self.model), targets, sample_weight), predictions

    def update_metrics(self, batch: Any, outputs: Any) -> None:
        """Updates Keras metrics from the outputs of the step's forward pass; traced, per replica."""
        if self.output_metrics:  # else the batch may be any nest
            _, targets, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
            update_by_output(self.output_metrics, by_output(outputs, self.model), targets, sample_weight)

    def after_update(self, batch: Any, outputs: Any) -> None:
        """Runs once a step, after all groups and `averages`, unless the step is skipped; traced, per replica.

        For momentum encoders, queues, codebooks, target networks. Assign variables in attributes, the same values on
        every replica: functions of weights, which are equal, or of `trainer.all_gather(outputs)` or `global_sum(x)`.
        `batch` and `outputs` are those of `update_metrics`: one replica's shard, of the step's first forward pass.
        """

    def predict_step(self, batch: Any) -> Any:
        """Returns the model's outputs for `batch`; traced, per replica."""
        if self.model is None:
            raise ValueError("`model` is None: override `predict_step` to define the prediction.")
        inputs, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
        return self.model(inputs, training=False)

    def eval_end(self, metrics: dict[str, float]) -> dict[str, float]:
        """Returns the metrics of an evaluation; a subclass may add its own. Eager, once after the last batch."""
        return metrics

    def train_begin(self) -> None:
        """Runs before each loop; eager."""

    def train_end(self, metrics: dict[str, float]) -> dict[str, float]:
        """Returns the metrics of a loop; a subclass may add its own. Eager, after each loop."""
        return metrics

    # ---- The loop: eager, then traced ------------------------------------------------------------------------------

    def train(
        self, iterator: Iterator, num_steps: int, since: Report | None = None, call_size: Callable[[int], int] = int
    ) -> dict[str, float]:
        """Takes `num_steps` steps, fewer if the data ends; returns {tag: float} as in TensorBoard; eager.

        Args:
            iterator: `iter(trainer.distribute(...))`.
            num_steps: int > 0.
            since: Report of earlier loops; metrics whose state is not a sum continue from it.
            call_size: function of the elements left: how many the next call of `train_loop` takes; after the first call
                0 ends the loop. The results do not depend on it.

        Raises NonFiniteError if the `guard` stops the run, ValueError for any other iterator.
        """
        check_iterator(self.strategy, iterator)
        self.built.trainability.warn()
        elements = count_elements(num_steps, self._chunk)
        self.built.evaluated.begin()
        self.built.reports.metrics.begin(since and since.carried)
        self.train_begin()
        self.seconds_waited, left, limit = 0.0, elements, batches_per_call(self.strategy, iterator.element_spec)
        with users_errors(), compiling(self, iterator):
            while left and (size := min(left, limit, call_size(left))):
                begins, ends, left = left == elements, left == size, left - size
                vector = self.built.loop(iterator, *map(tf.constant, (np.int64(size), begins, ends)))
                *vector, taken, seconds = vector.numpy()  # the only host-device synchronization point
                self.seconds_waited += seconds
                left = left if taken == size else 0  # the data ended
        self.report = self.built.reports.split(np.array(vector))
        metrics, scalar = self.summarize(self.report), functools.partial(self.built.reports.scalar, self.report)
        self.built.guard.check(int(self.global_step.numpy()), scalar, metrics)
        return self.train_end(metrics)

    def train_loop(self, iterator: Iterator, num_elements: tf.Tensor, begins: tf.Tensor, ends: tf.Tensor) -> tf.Tensor:
        """The compiled function: steps until `num_elements` are taken or the data ends; traced, cross-replica.

        `begins`, `ends`: whether the call is the first and the last one of a loop.

        Returns:
            float64 [n]: all reports since the loop began, and last the elements taken and the seconds waited for data.
        """
        self.built.reports.start(self.strategy, begins)
        taken, waited = take_steps(iterator, num_elements, self.built.advance)
        self.built.replica_state.average(tf.logical_or(ends, taken < num_elements))
        return tf.concat([self.built.reports.read(self.strategy), [tf.cast(taken, tf.float64), waited]], 0)

    # ---- The step, cross-replica -----------------------------------------------------------------------------------

    def train_step(self, batch: Any) -> None:
        """Takes one optimization step; traced, cross-replica. `batch` holds a shard per replica, for `strategy.run`."""
        rounds = []
        for groups in self.built.rounds:
            first = self.strategy.run(self._compute, args=(batch, groups))
            apply = functools.partial(self._apply, batch, first, groups, not rounds)
            if self.built.guard.may_skip:
                finite = replica_values(self.strategy, first["finite"])[0]
                tf.cond(finite, apply, functools.partial(self._skip, first, groups))
            else:
                apply()
            rounds.append(first)
        if self.overrides("after_update"):
            self._finish(batch, rounds)
        self.global_step.assign_add(1)

    def _compute(self, element, groups):
        """First half of a step: gradients, norms and all other inputs of the second half; per replica."""
        state = read(self.built.forward_state) if self.built.guard.may_skip else []
        with self.replica_pass(element, groups) as p:
            losses, gradients, outputs = convert(self.compute_gradients)(p.batch)
        norms = {name: l2_norm(listed) for name, listed in gradients.items()}
        total = [norms[group.name] for group in groups]
        norms["all"] = total[0] if len(total) == 1 else tf.sqrt(tf.add_n([tf.square(norm) for norm in total]))
        return {
            "losses": losses, "gradients": gradients, "outputs": outputs, "masks": keras_masks(outputs),
            "norms": norms, "finite": tf.math.is_finite(norms["all"]), "state": state, "measured": p.measured,
        }  # fmt: skip

    def _apply(self, batch, first, groups, report):
        """Second half: updates the groups that are due; cross-replica. Groups that are always due need no condition."""
        always = [group for group in groups if group.always_due]
        self.strategy.run(self._update, args=(batch, first, always, report))
        for group in groups:
            if not group.always_due:

                def update(group=group):
                    self.strategy.run(self._update, args=(batch, first, [group], False))
                    return tf.constant(True)

                tf.cond(group.due(self.global_step), update, functools.partial(tf.constant, True))
        if self.averages is not None and groups is self.built.rounds[-1]:
            convert(self.averages.update)(self.global_step + 1)
        self.built.guard.count_good()
        return tf.constant(True)

    def _skip(self, first, groups):
        """Instead of the second half: restores the state that the forward pass changed, and counts; cross-replica."""
        self.strategy.run(functools.partial(restore, self.built.forward_state), args=(first["state"],))
        named = [(n, g) for group in groups for n, g in zip(group.variable_names, first["gradients"][group.name])]
        self.built.guard.count_bad(self.strategy, self.global_step, dict(named))
        return tf.constant(True)

    def _finish(self, batch, rounds):
        """Calls `after_update` unless a round was skipped; cross-replica."""

        def call():
            self.strategy.run(self.call_after_update, args=(batch, rounds[0]["outputs"]))
            return tf.constant(True)

        if self.built.guard.may_skip:
            finite = tf.reduce_all([replica_values(self.strategy, first["finite"])[0] for first in rounds])
            tf.cond(finite, call, functools.partial(tf.constant, True))
        else:
            call()

    # ---- The step, per replica -------------------------------------------------------------------------------------

    def compute_gradients(self, batch: Any) -> tuple[dict, dict, Any]:
        """Takes one forward pass; returns its losses, reduced gradients and outputs; traced, per replica.

        Returns:
            losses: dict name -> float scalar, this replica's share; the shares of all replicas sum to the global loss.
            gradients: dict group name -> list aligned with the group's variables, reduced; None without a gradient.
            outputs: the second value of `compute_losses`.
        """
        if self.micro_batches > 1:
            p, built = self.current_pass, self.built
            losses, gradients, outputs = accumulate(self.micro_gradients, self.loss_terms, p, self.micro_batches, built)
        else:
            losses, gradients, outputs = self.micro_gradients(batch)
        return losses, self.reduce(gradients), outputs

    def micro_gradients(self, batch: Any) -> tuple[dict, dict, Any]:
        """`compute_gradients` without the reduction, for a batch or a micro-batch; traced, per replica."""
        p, built = self.current_pass, self.built
        first_pass = p.measured is None
        with tf.GradientTape(persistent=len(p.groups) > 1) as tape:
            losses, outputs = self.forward(batch, training=True)
            weighted = internals.weigh(losses, built.internals.weights, self.global_step)
            objective = {g.name: built.guard.scale(g.objective(weighted, self.global_step)) for g in p.groups}
        check_watched(tape.watched_variables(), self.variables, place_of_read)
        gradients, tapped, of_taps = {}, internals.tapped(p.collected), []
        for group in p.groups:
            taken = tape.gradient(objective[group.name], [v.value for v in group.variables] + tapped)
            gradients[group.name] = taken[: len(group.variables)]
            explain = functools.partial(reasons_for_none, self, group, batch, losses)
            group.check_connected(gradients[group.name], losses, explain)
            of_taps.append(built.guard.unscale(taken[len(group.variables) :]))
        if tapped and first_pass:
            built.internals.measure_gradients(p, of_taps, self.global_step)
        return losses, gradients, outputs

    def forward(self, batch: Any, training: bool) -> tuple[dict, Any]:
        """Returns (losses, outputs), each loss being this replica's share of the global one; traced, per replica."""
        terms, outputs = self.loss_terms(batch, training)
        return global_shares(terms, self.current_pass), outputs

    def loss_terms(self, batch: Any, training: bool) -> tuple[dict, Any]:
        """Returns ({LossKey: Term}, outputs), internal losses included; traced, per replica."""
        p, built = self.current_pass, self.built if training else self.built.evaluation()
        losses, outputs, p.collected = internals.collect(self, batch, training)
        if p.measured is None:  # of several forward passes in a step, the first is reported
            p.measured = built.internals.measure(p.collected, p.examples, self.global_step)
        terms = {LossKey(n): make_term(n, value, p.examples, n in built.counted) for n, value in losses.items()}
        terms.update(built.internals.terms(p.collected, p.examples))
        terms.update(penalty_terms(self.trainable_variables.values(), p.examples))
        return terms, outputs

    def reduce(self, gradients: dict[str, list]) -> dict[str, list]:
        """Sums gradients over replicas in one all-reduce and removes the loss scale; traced, per replica."""
        # tf.nest would sort the names of the groups
        flat = [(name, g) for name, listed in gradients.items() for g in listed if g is not None]
        dense = {group.name for group in self.current_pass.groups if group.takes_dense_gradients}
        xla, summed = self.compile.startswith("xla"), zip(flat, sum_replicas([g for _, g in flat]))
        reduced = iter(self.built.guard.unscale([unique_rows(g, xla or name in dense) for (name, _), g in summed]))
        return {name: [None if g is None else next(reduced) for g in listed] for name, listed in gradients.items()}

    def apply_gradients(self, gradients: dict[str, list], norms: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Updates the variables of each group in `gradients`; traced, per replica.

        Args:
            gradients: dict group name -> list aligned with the group's variables, reduced.
            norms: dict group name -> float32 scalar, L2 norms before any transform, and `all`.

        Returns:
            dict tag -> float32 scalar, the reports of the transforms, e.g. `clipped/<group>`.
        """
        reports = {}
        for group in self.groups:
            if group.name in gradients:
                done = group.apply(gradients[group.name], norms)
                reports.update({f"{key}/{group.name}": value for key, value in done.items()})
        return reports

    def _update(self, element, first, groups, report):
        """Applies `groups` and, once a step, updates the metrics; per replica."""
        gradients = {group.name: first["gradients"][group.name] for group in groups}
        share = 1.0 / self.strategy.num_replicas_in_sync  # norms are equal on all replicas; reports sum over them
        entries = {f"grad_norm/{name}": (first["norms"][name] * share, share) for name in gradients}
        for tag, value in self.apply_gradients(gradients, first["norms"]).items():
            entries[tag] = (value * share, share)
        if report:
            entries.update(loss_entries(first["losses"], self.loss_weights(self.global_step), share))
            for output, mask in zip(tf.nest.flatten(first["outputs"]), first["masks"]):
                set_keras_mask(output, mask)
            with self._passes.of(element, groups):
                self.update_replica_metrics(self.built.reports, first["outputs"])
            entries.update(first["measured"]["sums"])
            self.built.reports.folds.add(first["measured"])
        self.built.reports.tally.add(entries)

    def call_after_update(self, element, outputs):
        """Calls `after_update` for an element; per replica. In this pass, frozen layers keep their `trainable`."""
        with self._passes.of(element, ()) as p:
            convert(self.after_update)(p.batch, outputs)

    # ---- Data, building, properties --------------------------------------------------------------------------------

    def distribute(
        self, data: Any, start: int = 0, chunk: int | None = None, batch_size: int | None = None
    ) -> Iterable:
        """Returns an iterable of elements for `train`, from step `start` on; builds the trainer first; eager.

        Args:
            data: a source, a tf.data.Dataset of global batches, or anything else that `trainer.data.as_source` accepts.
            start: int, first step.
            chunk: int, batches per element; compile="xla_loop" needs it, the other modes ignore it.
            batch_size: int, examples per global batch, if `data` is arrays.
        """
        source = data_lib.as_source(data, batch_size=batch_size)
        build_for(self, source, start)
        check_first(self, source, start)
        if self.compile != "xla_loop":
            return distribute(self.strategy, source, start)
        self._chunk = check_chunk(chunk)
        return source.batches(start, chunk=self._chunk)

    def build(self, element_spec: Any, batch_spec: Any = None) -> None:
        """Creates the variables of models, optimizers and metrics; eager, in the strategy's scope. Changes no state.

        Traces `compute_losses` once for a replica's shard of a batch, names variables, assigns them to groups.

        Args:
            element_spec: nest of tf.TypeSpec, [B, ...] or [None, ...]: a global batch.
            batch_spec: the spec of one batch, for None dimensions of `element_spec`; default: 2 examples per replica.

        Raises ValueError if batch, model, losses or groups are inconsistent.
        """
        with self.strategy.scope(), users_errors():
            self._built = build(self, element_spec, batch_spec, place_of_read)

    @property
    def built(self) -> Built:
        """The step.building.Built of this trainer, the results of `build`; RuntimeError before it."""
        return self._built or not_built(self)

    @property
    def is_built(self) -> bool:
        """True after `build`, which `distribute`, `evaluate` and `predict` call."""
        return self._built is not None

    def held(self) -> dict[str, Any]:
        """Returns {attribute: value} of `model` and a subclass' attributes, which may hold variables; eager."""
        return {name: value for name, value in vars(self).items() if name not in self._own}

    @contextlib.contextmanager
    def replica_pass(self, element: Any, groups: Sequence[OptimizerGroup] | None = None) -> Iterator[ReplicaPass]:
        """A context with the ReplicaPass that per-replica methods need for one element; traced or eager, per replica.

            with trainer.replica_pass(batch) as p:
                losses, gradients, outputs = trainer.compute_gradients(p.batch)

        Args:
            element: an element of `distribute`'s iterator; on one replica a global batch.
            groups: the OptimizerGroups whose gradients are computed; None: all.
        """
        frozen = self.built.frozen_layers.inference() if self.is_built else contextlib.nullcontext()
        with frozen, self._passes.of(element, self.groups if groups is None else groups) as p:
            yield p

    @property
    def current_pass(self) -> ReplicaPass:
        """The innermost ReplicaPass of this thread; RuntimeError outside of `replica_pass`."""
        return self._passes.get()

    @property
    def trainable_variables(self) -> dict[str, keras.Variable]:
        """{name: keras.Variable} of the groups' variables, in order."""
        return {name: v for group in self.groups for name, v in zip(group.variable_names, group.variables)}

    def explain_gradients(self, batch: Any) -> list:
        """Returns a report on the gradients of one global batch: which are None, zero or not finite, and why; eager."""
        from trainer.diagnosis.diagnostics import explain_gradients  # only imported if needed

        return explain_gradients(self, batch)

    def loop_graph(self, iterator: Iterator) -> tf.Graph | None:
        """Returns the graph of `train_loop` for `iterator`, traced if necessary; None with compile="eager"; eager."""
        if self.compile == "eager":
            return None
        with users_errors():
            return self.built.loop.get_concrete_function(iterator, *CALL_SPEC).graph
