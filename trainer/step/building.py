"""Builds a Trainer: traces its losses once, names variables, assigns them to groups, compiles the loops."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from optimizers.averages import WeightAverage
from optimizers.base import check_count
from optimizers.groups import assign, check_patterns
from trainer.inputs.batches import leaves, map_leaves, shard_spec, sized_spec, static_batch_size, without_none
from trainer.step.autograph import convert
from trainer.step.evaluated_weights import EvaluatedWeights
from trainer.step.fit_parts import warn_of_unused
from trainer.step.frozen import FrozenLayers
from trainer.step.guard import GUARDS, Guard
from trainer.step.internals import Internals, collect, varies
from trainer.step.measured import check_names, make_evaluation, make_reports
from trainer.step.metrics import find_metrics, make_metrics, make_states
from trainer.step.outputs import by_output, keras_masks, match
from trainer.step.replica_state import ReplicaState, seed_replicas, tracing_context
from trainer.step.reports import Reports
from trainer.step.scopes import check_scope
from trainer.step.trainability import Trainability
from trainer.step.variables import check_watched, name_layers, name_variables

COMPILE_MODES = ("eager", "graph", "xla_step", "xla_loop")


@dataclasses.dataclass(frozen=True)
class Built:
    """The results of `build`, in addition to models, variables and groups; written once, at the end of `build`.

    Attributes:
        outputs: nest of TypeSpec: the second value of `compute_losses`; None if it returns only losses.
        masks: list with a TypeSpec or None for each leaf of `outputs`: the masks that Keras attaches.
        loss_names: names of the step's losses, internal ones included.
        counted: names of losses whose number of elements per example varies.
        internals: Internals, the losses and metrics that layers add.
        default_losses: whether Trainer.compute_losses computes losses of the unchanged batch of the data.
        rounds: lists of OptimizerGroups; the gradients of a round come from one forward pass.
        forward_state: non-trainable variables that a forward pass may assign; a skipped step restores them.
        replica_state: ReplicaState, the state that each replica assigns separately.
        frozen_layers: FrozenLayers, which run in inference mode.
        reports: Reports.
        evaluation: function that returns the Measured of evaluations; its first call traces `compute_losses`, eager.
        no_training: text on why nothing can be trained, or None.
        guard: Guard.
        evaluated: EvaluatedWeights.
        trainability: Trainability.
        advance: function of one element: `train_step`, wrapped for the compile mode.
        loop, eval_loop, predict: `train_loop`, `eval_loop` and the loop's part of `predict`, compiled.
    """

    outputs: Any
    masks: list
    loss_names: list
    counted: set
    internals: Internals
    default_losses: bool
    rounds: list
    forward_state: list
    replica_state: ReplicaState
    frozen_layers: FrozenLayers
    reports: Reports
    evaluation: Callable
    no_training: str | None
    guard: Guard
    evaluated: EvaluatedWeights
    trainability: Trainability
    advance: Callable
    loop: Callable
    eval_loop: Callable
    predict: Callable


def check_arguments(trainer):
    """Validates the arguments of the Trainer's constructor; raises ValueError."""
    if trainer.model is not None and not isinstance(trainer.model, keras.layers.Layer):
        raise ValueError(
            f"`model` must be a Keras model, got {trainer.model!r:.80}. In gin, call the function: @my_model()."
        )
    for argument, value, known in (("guard", trainer.guard, GUARDS), ("compile", trainer.compile, COMPILE_MODES)):
        if value not in known:
            raise ValueError(f"`{argument}` must be one of {', '.join(known)}, got {value!r}.")
    if not isinstance(trainer.averages, (WeightAverage, type(None))):
        raise ValueError(
            f"`averages` must be None or a weight average such as optimizers.EMA(), got {trainer.averages!r:.80}."
            + (" Call it, in gin with ()." if isinstance(trainer.averages, type) else "")
        )
    trainer.micro_batches = check_count("micro_batches", trainer.micro_batches, 1, "1 computes the batch as a whole.")
    trainer.max_skipped = check_count("max_skipped", trainer.max_skipped, 1, "It counts skipped steps in a row.")
    check_patterns("frozen", trainer.frozen)
    if trainer.compile.startswith("xla") and trainer.strategy.num_replicas_in_sync > 1:
        raise ValueError(
            f"`compile` {trainer.compile!r} needs one replica, got {trainer.strategy.num_replicas_in_sync}: one XLA "
            "program cannot reach the variables of another device. Use compile='graph' (which a TPU compiles anyway) "
            "or strategy 'default'."
        )


def make_global_step():
    """Returns the int64 scalar variable that counts steps, skipped ones included; eager, in the strategy's scope."""
    only_first = tf.VariableAggregation.ONLY_FIRST_REPLICA
    return tf.Variable(0, trainable=False, name="global_step", dtype=tf.int64, aggregation=only_first)


def not_built(trainer):
    """Raises RuntimeError with the ways to build a Trainer."""
    raise RuntimeError(
        f"This {type(trainer).__name__} is not built yet: its variables are created when it gets its first data. Call "
        "`iterator = iter(trainer.distribute(data))`, or `trainer.build(element_spec)`, first."
    )


def build(trainer, element_spec, batch_spec, place_of_read):
    """Builds `trainer` for global batches of `element_spec` and returns its Built; eager, in the strategy's scope.

    See Trainer.build.
    """
    check_scope(trainer)
    spec = sized_spec(element_spec, batch_spec)
    traced = _trace(trainer, spec)
    trainer.element_spec, trainer.batch_spec = element_spec, batch_spec
    layer_names = name_layers(trainer.held())
    internals = Internals(traced["collected"], layer_names, traced["names"])
    trainer.loss_names = [*traced["names"], *internals.weights]
    trainer.variables = name_variables(trainer.held())
    metrics, held = find_metrics(trainer)
    trainable = {
        name: v for name, v in trainer.variables.items() if getattr(v, "trainable", False) and _is_keras(name, v)
    }
    split, trainer.frozen_variables, no_training = _assign(trainer, trainable)
    for group in trainer.groups:
        if not no_training:
            group.build(split[group.name])
        group.convert = convert
    if any(v.regularizer is not None for v in trainer.trainable_variables.values()):
        trainer.loss_names.append("regularization")
    check_names(trainer, internals, metrics)
    if traced["default_losses"]:
        warn_of_unused(trainer)
    guard = Guard(trainer.guard, trainer.max_skipped, trainer.trainable_variables, traced["float16"])
    trained = {id(v) for v in trainer.trainable_variables.values()}
    assigned = {
        n: v for n, v in trainer.variables.items() if id(v) not in trained and n not in trainer.frozen_variables
    }
    check_watched(traced["watched"], trainer.variables, functools.partial(place_of_read, graph=traced["graph"]))
    seed_replicas(trainer.strategy, trainer.variables.values())
    return Built(
        outputs=traced["outputs"],
        masks=traced["masks"],
        loss_names=trainer.loss_names,
        counted=traced["counted"],
        internals=internals,
        default_losses=traced["default_losses"],
        rounds=_rounds(trainer.groups),
        forward_state=[
            *assigned.values(),
            *(v for metric in held for v in metric.variables),  # a layer may update its metric in `call`
        ],
        replica_state=ReplicaState(trainer.strategy, assigned, trainer.variables, layer_names),
        frozen_layers=FrozenLayers(layer_names, trainable, trainer.frozen_variables),
        reports=make_reports(trainer, internals, guard, make_states(trainer, traced, metrics)),
        evaluation=functools.cache(
            lambda: make_evaluation(trainer, lambda: _trace(trainer, spec, training=False), layer_names)
        ),
        no_training=no_training,
        guard=guard,
        evaluated=EvaluatedWeights(trainer, layer_names),
        trainability=Trainability(trainer.variables),
        **_compile(trainer),
    )


def _assign(trainer, trainable):
    """Returns (variables by group, frozen variables, None); if no variable is trained, ({}, frozen ones, a text)."""
    if not trainable:
        name = type(trainer.model).__name__
        return {}, {}, (
            f"`model` {name} has no trainable variables. A keras.Model needs a `call` that uses its layers; a function "
            "given to Trainer.model has to return a model with weights."
        )  # fmt: skip
    try:
        _, frozen = assign([], trainer.frozen, trainable)  # raises unless all are frozen
    except ValueError:
        return *assign(trainer.groups, trainer.frozen, trainable), None
    return {}, frozen, "Nothing is left to train: `frozen` matches all variables. `evaluate` and `predict` work."


def _trace(trainer, spec, training=True):
    """Traces losses and metrics on a replica's shard of the spec, so that lazy layers create their variables.

    keras.StatelessScope creates variables when it ends, in the strategy's
    scope, and discards all assignments.

    Returns:
        dict: `names` of the losses; `counted`, those whose number of elements varies; `collected`, what layers added;
        specs of the `outputs` and of their Keras `masks`; whether `default_losses` and `float16` occurred; ids of the
        variables `assigned`, and of those assigned `in_forward`, the forward pass; `batch`, the traced spec; `graph`.
    """
    found = {}

    def trace(batch):
        with tracing_context(trainer.strategy), trainer.replica_pass(batch, ()) as p:
            with tf.GradientTape() as tape:
                losses, outputs, found["collected"] = collect(trainer, p.batch, training)
            found["watched"] = tape.watched_variables()
            found["names"] = list(losses)
            found["counted"] = {name for name, value in losses.items() if varies(value) or _rows(value) in streams}
            found["in_forward"] = set(scope.state_mapping)
            if training:
                _resolve_metrics(trainer, p.batch, outputs)
            convert(trainer.update_metrics)(p.batch, outputs)
            found["default_losses"] = p.default_losses
        found["outputs"] = tf.nest.map_structure(_spec_of, outputs)
        found["masks"] = [_spec_of(mask) for mask in keras_masks(outputs)]

    replicas = trainer.strategy.num_replicas_in_sync
    part = shard_spec(spec, replicas, f"{replicas} shards, one for each replica")
    # A loss over an element with a different number of rows than the first is a mean over the element's own rows.
    streams = {leaf.shape[0] for _, leaf in leaves(part) if leaf.shape.rank} - {static_batch_size(part), None}
    try:
        with keras.StatelessScope() as scope:
            try:
                graph = tf.function(trace, autograph=False).get_concrete_function(without_none(part)).graph
            except Exception as error:
                if type(error).__name__ != "InaccessibleTensorError":
                    raise
                # A recurrent cell kept a dropout mask of the graph in which Keras built the model.
                graph = tf.function(trace, autograph=False).get_concrete_function(without_none(part)).graph
    except ValueError as error:
        _explain_fixed_batch(trainer, error, static_batch_size(spec), static_batch_size(part))
        raise
    found.update(assigned=set(scope.state_mapping), batch=part, graph=graph)
    found["float16"] = any(tensor.dtype == tf.float16 for op in graph.get_operations() for tensor in op.outputs)
    return found


def _spec_of(value):
    return None if value is None else tf.type_spec_from_value(value)


def _rows(value):
    shape = getattr(value, "shape", None)
    return shape[0] if shape is not None and shape.rank else None


def _explain_fixed_batch(trainer, error, of_all, of_replica):
    """Raises ValueError if the model's inputs have a fixed batch size that differs from that of a replica's shard."""
    for tensor in tf.nest.flatten(getattr(trainer.model, "inputs", None) or ()):
        if tensor.shape and tensor.shape[0] not in (None, of_replica):
            replicas, fixed = trainer.strategy.num_replicas_in_sync, tensor.shape[0]
            raise ValueError(
                f"`Input(batch_shape=({fixed}, ...))` is the batch of one replica, but of a global batch of {of_all} "
                f"examples each of the {replicas} replicas gets {of_replica}. Use batch_shape=({of_replica}, ...), or "
                f"batches of {fixed * replicas}."
            ) from error


def _resolve_metrics(trainer, batch, outputs):
    """Converts `metrics` to Keras metrics for the shapes of targets and outputs."""
    if not trainer.requested_metrics or outputs is None:
        return
    _, targets, _ = keras.utils.unpack_x_y_sample_weight(batch)
    named = by_output(outputs, trainer.model)
    targets = match("targets", targets, named)
    trainer.output_metrics = make_metrics(trainer.requested_metrics, targets, named)


def _is_keras(name, variable):
    if isinstance(variable, keras.Variable):
        return True
    raise ValueError(
        f"{name} is a trainable tf.Variable; Keras optimizers train keras.Variable. Create it with add_weight, or with "
        "trainable=False if it is state that no gradient trains."
    )


def _rounds(groups):
    """Returns lists of groups whose gradients come from one forward pass: a sequential group begins a new one."""
    rounds = [[]]
    for group in groups:
        if group.sequential and rounds[-1]:
            rounds.append([])
        rounds[-1].append(group)
    return rounds


def _compile(trainer):
    """Returns {name: function} of the loops. The compile mode changes how the step is wrapped, not the step."""
    mode = trainer.compile

    def advance(batch):
        convert(trainer.train_step)(batch)

    def advance_chunk(chunk):
        def body(k):
            advance(map_leaves(lambda x: x[k], chunk))
            return k + 1

        size = tf.shape(leaves(chunk)[0][1])[0]
        tf.while_loop(lambda k: k < size, body, [tf.constant(0)], maximum_iterations=size)

    xla = functools.partial(tf.function, autograph=False, jit_compile=True)
    # TensorFlow counts the traces of a bound method over all trainers and would warn of retracing; not of a partial.
    wrap = functools.partial if mode == "eager" else lambda f: tf.function(functools.partial(f), autograph=False)
    return {
        "advance": {"xla_step": xla(advance), "xla_loop": xla(advance_chunk)}.get(mode, advance),
        "loop": wrap(trainer.train_loop),
        "eval_loop": wrap(trainer.eval_loop),
        "predict": wrap(lambda element: trainer.strategy.run(trainer.predict_shard, args=(element,))),
    }
