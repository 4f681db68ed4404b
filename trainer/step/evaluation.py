"""Evaluation and prediction: the methods of Trainer that read weights and change none; and the update of metrics."""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.data import NoBatches
from trainer.replicas.cluster import batches_per_call, gathered
from trainer.replicas.distribution import distribute
from trainer.step import internals
from trainer.step.autograph import convert, users_errors
from trainer.step.first_batch import finite_source
from trainer.step.loops import evaluation_calls, take_batches
from trainer.step.metrics import gather_with_masks
from trainer.step.reports import Report


class Evaluation:
    """Methods of Trainer for one pass over finite data with the evaluated weights. Each example counts once."""

    def evaluate(
        self, dataset: Any, batch_size: int | None = None, progress: Callable[[int], None] | None = None
    ) -> dict[str, float]:
        """Returns the metrics over the whole finite `dataset`, each example once; eager.

        Args:
            dataset, batch_size: as in `predict`.
            progress: called with the number of batches evaluated so far, from time to time.
        """
        source = finite_source(self, dataset, "evaluation", batch_size)
        reports = self.built.evaluation().reports
        reports.metrics.begin()
        with users_errors(), self.averaged():
            iterator, report, total = iter(distribute(self.strategy, source)), None, 0
            sizes = evaluation_calls(batches_per_call(self.strategy, source.element_spec))
            size = taken = None
            while taken == size:
                size = next(sizes)
                *vector, taken = self.built.eval_loop(iterator, tf.constant(size, tf.int64)).numpy()
                part, total = reports.split(np.array(vector)), total + taken
                report = report.then(part) if report else part
                if progress is not None:
                    progress(total)
        if not total:
            raise NoBatches("`dataset` for evaluation")
        return self.eval_end(reports.eval_results(report, self.loss_weights(self.global_step)))

    def eval_loop(self, iterator, num_batches):
        """The compiled evaluation of up to `num_batches`; traced, cross-replica.

        Returns:
            float64 [n]: all reports as one vector, and last the number of batches taken.
        """
        reports = self.built.evaluation().reports
        reports.start(self.strategy)
        taken = take_batches(iterator, num_batches, lambda element: convert(self.eval_step)(element))
        return tf.concat([reports.read(self.strategy), [tf.cast(taken, tf.float64)]], 0)

    def eval_step(self, batch):
        """Adds one batch to the evaluation; traced, cross-replica."""
        self.strategy.run(self._evaluate, args=(batch,))

    def _evaluate(self, element):
        with self.replica_pass(element, ()) as p:
            terms, outputs = self.loss_terms(p.batch, training=False)
            entries = {key.tag: term.entry() for key, term in terms.items()}
            entries.update(p.measured["sums"])
            reports = self.built.evaluation().reports
            reports.folds.add(p.measured)
            self.update_replica_metrics(reports, outputs)
        reports.tally.add(entries)

    def update_replica_metrics(self, reports, outputs):
        """Calls `update_metrics` with the real examples of the pass, of all replicas if metrics need them."""
        p = self.current_pass
        batch = p.batch
        if reports.metrics.gathered:
            reads_inputs = self.overrides("update_metrics")
            batch, outputs = gather_with_masks(batch if reads_inputs else (None, *batch[1:]), outputs)
        if reports.metrics.gathered or p.whole:
            convert(self.update_metrics)(batch, outputs)
            return

        def update():
            convert(self.update_metrics)(batch, outputs)
            return tf.constant(True)

        tf.cond(p.examples > 0, update, lambda: tf.constant(False))

    def overrides(self, method):
        """Returns whether a subclass overrides `method`."""
        return getattr(type(self), method).__module__ != "trainer.trainer"

    def loss_weights(self, step: tf.Tensor) -> dict[str, Any]:
        """Returns {loss name: number or scalar tensor}, the weights of losses in the total loss."""
        weights = {}
        for group in self.groups:
            for name, weight in group.loss_weights(self.loss_names).items():
                weights.setdefault(name, convert(weight)(step) if callable(weight) else float(weight))
        return internals.weigh(weights, self.built.internals.weights, step)

    def averaged(self) -> contextlib.AbstractContextManager:
        """A context with the evaluated weights, of `averages` or schedule-free optimizers, in the variables; eager."""
        return self.built.evaluated.use()

    def summarize(self, report: Report) -> dict[str, float]:
        """Returns {tag: float} for a reports.Report of one loop, or of several; eager."""
        return self.built.reports.results(report)

    def predict(self, dataset: Any, batch_size: int | None = None) -> Any:
        """Returns the model's outputs for a finite `dataset`, in order, as a nest of arrays [n, ...]; eager.

        Args:
            dataset: a source or anything that `trainer.data.as_source` accepts; arrays: inputs, or (inputs, targets).
            batch_size: int, examples per batch, for arrays; default: that of training, else 32.
        """
        source = finite_source(self, dataset, "prediction", batch_size)
        parts = []
        with users_errors(), self.averaged():
            for element in distribute(self.strategy, source):
                outputs, examples = self.built.predict(element)
                for output, count in gathered(self.strategy, outputs, examples):
                    parts.append(tf.nest.map_structure(lambda x, n=count: None if x is None else x[:n].numpy(), output))
        if not parts:
            raise NoBatches("`dataset` for prediction")
        return tf.nest.map_structure(lambda *arrays: None if arrays[0] is None else np.concatenate(arrays), *parts)

    def predict_shard(self, element):
        """Returns (outputs, number of real examples) of one element; traced, per replica."""
        with self.replica_pass(element, ()) as p:
            return convert(self.predict_step)(p.batch), tf.cast(p.examples, tf.int32)
