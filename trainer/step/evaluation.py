"""Evaluation and prediction: the methods of Trainer that read weights and change none."""

import numpy as np
import tensorflow as tf

from trainer.data import NoBatches
from trainer.replicas.cluster import batches_per_call, gathered
from trainer.replicas.distribution import distribute, unpack
from trainer.step.autograph import convert, users_errors
from trainer.step.first_batch import finite_source
from trainer.step.loops import take_batches


class Evaluation:
    """Methods of Trainer for one pass over finite data with the evaluated weights. Each example counts once."""

    def evaluate(self, dataset, batch_size=None):
        """Returns the metrics over the whole finite `dataset`, each example once; eager. Arguments as in `predict`."""
        source = finite_source(self, dataset, "evaluation", batch_size)
        reports = self.built.evaluation().reports
        reports.metrics.begin()
        with users_errors(), self.averaged():
            iterator, report, total, taken = iter(distribute(self.strategy, source)), None, 0, None
            size = batches_per_call(self.strategy, source.element_spec)
            while taken is None or taken == size:
                *vector, taken = self.built.eval_loop(iterator, tf.constant(size, tf.int64)).numpy()
                part, total = reports.split(np.array(vector)), total + taken
                report = report.then(part) if report else part
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
            self.update_replica_metrics(reports, element, p.batch, p.examples, outputs)
        reports.tally.add(entries)

    def predict(self, dataset, batch_size=None):
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

    def predict_part(self, element):
        """Returns (outputs, number of real examples) of one element; traced, per replica."""
        batch, examples, _ = unpack(element)
        return convert(self.predict_step)(batch), tf.cast(examples, tf.int32)
