"""The state of one replica while it computes its shard of a global batch."""

import contextlib
import dataclasses
import threading
from typing import Any

import numpy as np
import tensorflow as tf

from losses.global_batch import in_pass
from trainer.inputs.batches import batch_size_of
from trainer.replicas.distribution import unpack
from trainer.replicas.shards import Shard


@dataclasses.dataclass
class ReplicaPass:
    """The batch of one replica, its counts, and the results of a forward pass; created by `Trainer.replica_pass`.

    Methods that run per replica read it as `trainer.current_pass`. It exists inside the `with` statement only.

    Attributes:
        batch: the replica's shard of the global batch.
        examples: int32 scalar, real examples in `batch`; 0 for the copy on a replica without examples.
        global_examples: int32 scalar, real examples on all replicas.
        whole: whether `batch` is the whole global batch, so that its mean is the global mean.
        is_part: whether `batch` is a micro-batch, without access to the rest of the global batch.
        groups: the OptimizerGroups whose gradients are taken.
        loss_weights: {loss key: sum of its weights over the global batch} if known before the forward pass, else None.
            Set by micro_batches.accumulate.
        collected: layers.internals.Collector of the last forward pass. Set by `Trainer.loss_terms`.
        measured: internal metrics and taps of the first forward pass, None before it. Set by `Trainer.loss_terms`
            and, for gradients of taps, by `Trainer.micro_gradients`.
        default_losses: whether Trainer.compute_losses itself computed losses of `batch`, also via `super()`.
    """

    batch: Any
    examples: Any
    global_examples: Any
    whole: bool
    groups: Any
    loss_weights: Any = None
    collected: Any = None
    measured: Any = None
    default_losses: bool = False
    is_part: bool = False

    @property
    def may_be_copy(self):
        """Whether `batch` may be the copy on a replica without examples; a batch of static size is none."""
        return not self.whole and not isinstance(batch_size_of(self.batch), int)

    @contextlib.contextmanager
    def using(self, **fields):
        """A context that sets the given fields and restores their values at its end."""
        before = {name: getattr(self, name) for name in fields}
        vars(self).update(fields)
        try:
            yield self
        finally:
            vars(self).update(before)


class CurrentPass(threading.local):
    """The nested passes of this thread, innermost last. MirroredStrategy traces each replica in its own thread."""

    def __init__(self):
        self._passes = []

    @contextlib.contextmanager
    def of(self, element, groups):
        """A context with the ReplicaPass of an element of an iterator, or of a batch of arrays."""
        element = tf.nest.map_structure(lambda x: tf.convert_to_tensor(x) if isinstance(x, np.ndarray) else x, element)
        batch, examples, global_examples = unpack(element)
        whole = not isinstance(element, Shard)
        self._passes.append(ReplicaPass(batch, examples, global_examples, whole, groups))
        try:
            with in_pass(self._passes[-1]):
                yield self._passes[-1]
        finally:
            self._passes.pop()

    def get(self):
        """Returns the innermost pass.

        Raises:
            RuntimeError: outside of `Trainer.replica_pass`.
        """
        if not self._passes:
            raise RuntimeError(
                "This method needs the counts and groups of a step, but no step is running. Call it in `with "
                "trainer.replica_pass(batch) as p: trainer.compute_gradients(p.batch)`; on several replicas inside of "
                "`strategy.run`, with an element of `trainer.distribute(...)`."
            )
        return self._passes[-1]
