"""`after_update` and the trainer's own state: equal on any number of replicas, not changed in skipped steps."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from optimizers import EMA, OptimizerGroup
from trainer import Trainer, all_gather, data, global_mean, global_sum
from trainer.replicas.distribution import make_strategy, replica_values
from trainer.saving.state import state_of
from trainer.step.variables import raw

RANDOM = np.random.default_rng(5)
X = RANDOM.normal(size=(22, 3)).astype("float32")
Y = RANDOM.normal(size=(22, 2)).astype("float32")
QUEUE, RATE, STEPS = 12, 0.1, 6


class Follows(Trainer):
    """A teacher that follows the weights, a queue of outputs, a sum over the global batch, a counter, a generator."""

    def __init__(self, update=None, **kwargs):
        super().__init__(_dense(), optimizers=keras.optimizers.SGD(RATE), **kwargs)
        self.teacher, self.update = _dense(), update
        self.teacher.trainable = False
        self.teacher.set_weights(self.model.get_weights())
        self.queue = keras.Variable(tf.zeros([QUEUE, 2]), trainable=False, name="queue")
        self.counts = {"rows": tf.Variable(0, trainable=False), "forward": tf.Variable(0, trainable=False)}
        self.seed = keras.random.SeedGenerator(1)

    def compute_losses(self, batch, training):
        x, y = batch
        if training:
            self.counts["forward"].assign_add(1)
            keras.random.normal([1], seed=self.seed)
        outputs = self.model(x)
        return {"main": tf.reduce_mean(tf.square(outputs - y) + 0.1 * tf.square(outputs - self.teacher(x)), 1)}, outputs

    def after_update(self, batch, outputs):
        if self.update:
            self.update(self, outputs)
            return
        rows = all_gather(outputs)
        self.queue.assign(tf.concat([self.queue, rows], 0)[-QUEUE:])
        self.counts["rows"].assign_add(tf.shape(rows)[0])
        for slow, fast in zip(self.teacher.variables, self.model.variables, strict=True):
            slow.assign(0.9 * slow + 0.1 * fast)


def _dense():
    return keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(2, kernel_initializer=keras.initializers.Constant(0.1))]
    )


def _batches(x=X):
    return tf.data.Dataset.from_tensor_slices((x, Y)).batch(5)  # the last has 2 rows


def _by_hand():
    """The same research as a plain loop."""
    model, teacher = _dense(), _dense()
    queue, rows = np.zeros([QUEUE, 2], "float32"), 0
    for x, y in _batches().repeat().take(STEPS):
        with tf.GradientTape() as tape:
            outputs = model(x)
            loss = tf.reduce_mean(tf.square(outputs - y) + 0.1 * tf.square(outputs - teacher(x)))
        for v, g in zip(model.trainable_variables, tape.gradient(loss, [v.value for v in model.trainable_variables])):
            v.assign_sub(RATE * g)
        for slow, fast in zip(teacher.variables, model.variables):
            slow.assign(0.9 * slow + 0.1 * fast)
        queue, rows = np.concatenate([queue, outputs])[-QUEUE:], rows + len(x)
    return model.get_weights() + teacher.get_weights() + [queue, rows]


@pytest.mark.parametrize(
    "name, micro_batches, compile",
    [("default", 1, "xla_step"), ("default", 2, "graph"), ("mirrored", 1, "graph"), ("mirrored", 2, "graph")],
)
def test_it_is_the_loop_by_hand_on_every_replica(name, micro_batches, compile):
    strategy = make_strategy(name)
    with strategy.scope():
        trainer = Follows(micro_batches=micro_batches, compile=compile)
    trainer.train(iter(trainer.distribute(_batches().repeat())), STEPS)
    variables = [*trainer.model.variables, *trainer.teacher.variables, trainer.queue, trainer.counts["rows"]]
    for variable, value in zip(variables, _by_hand(), strict=True):
        for own in replica_values(strategy, raw(variable)):
            np.testing.assert_allclose(own.numpy(), value, rtol=1e-5, atol=1e-6)


def test_a_skipped_step_neither_calls_it_nor_keeps_what_the_forward_pass_changed(strategy):
    bad = X.copy()
    bad[7] = np.nan
    with strategy.scope():
        trainer = Follows()
    iterator = iter(trainer.distribute(_batches(bad)))
    taken = []
    for _ in range(3):  # the second has a NaN
        trainer.train(iterator, 1)
        taken.append({name: variable.numpy() for name, variable in state_of(trainer).items()})
    own = ["teacher/dense/kernel", "queue", "counts/rows", "counts/forward", "seed/seed_generator_state"]
    for name in own:
        np.testing.assert_array_equal(taken[1][name], taken[0][name], err_msg=name)
        assert not np.array_equal(taken[2][name], taken[1][name]), name
    assert taken[2]["guard/skipped"] == 1 and taken[2]["counts/rows"] == 10


@pytest.mark.parametrize(
    "update",
    [
        lambda trainer, outputs: trainer.queue.assign(tf.concat([trainer.queue, outputs], 0)[-QUEUE:]),
        lambda trainer, outputs: trainer.counts["rows"].assign_add(tf.shape(outputs)[0]),
        lambda trainer, outputs: trainer.teacher.variables[1].assign(tf.reduce_mean(outputs, 0)),
        lambda trainer, outputs: trainer.queue.assign(keras.random.normal([QUEUE, 2], seed=trainer.seed)),
    ],
    ids=["queue", "count", "frozen weight", "own random numbers"],
)
def test_an_update_from_a_replicas_own_rows_is_refused_by_name(update):
    with make_strategy("mirrored").scope():
        trainer = Follows(update)
    with pytest.raises(ValueError, match="is assigned by `after_update` on each replica .*trainer.all_gather"):
        trainer.distribute(_batches())


def test_it_runs_once_after_all_rounds_and_averages_and_in_no_step_with_a_skipped_round():
    class Rounds(Trainer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.seen = tf.Variable([0.0] * 4, trainable=False)

        def compute_losses(self, batch, training):
            x, scale = batch
            return {"a": self.model["a"](x) * scale, "b": self.model["b"](x)}

        def after_update(self, batch, outputs):
            weights = [self.model[name].weights[0] for name in "ab"]
            averages = [slot for _, slot in self.averages._pairs]
            self.seen.assign([self.seen[0] + 1, *(tf.reduce_sum(w) for w in weights), tf.reduce_sum(averages[1])])
            assert outputs is None

    class Two(keras.Model):
        def __init__(self):
            super().__init__()
            self.parts = {name: keras.layers.Dense(1, use_bias=False) for name in "ab"}

        def __getitem__(self, name):
            return self.parts[name]

    groups = [
        OptimizerGroup(f"parts/{name}/.*", [name], keras.optimizers.SGD(0.1), sequential=name == "b", name=name)
        for name in "ab"
    ]
    trainer = Rounds(model=Two(), optimizers=groups, averages=EMA(0.5))
    scale = np.ones([22, 1], "float32")
    scale[7] = np.nan  # of the first round, in the second step
    iterator = iter(trainer.distribute(tf.data.Dataset.from_tensor_slices((X, scale)).batch(5)))
    counts = []
    for _ in range(3):
        trainer.train(iterator, 1)
        count, *sums = trainer.seen.numpy()
        counts.append(int(count))
        now = [trainer.variables[f"parts/{name}/kernel"].numpy().sum() for name in "ab"]
        now.append(trainer.averages.state["parts/b/kernel"].numpy().sum())
        if len(counts) != 2:
            np.testing.assert_allclose(sums, now, rtol=1e-6)
    assert counts == [1, 1, 2]


def test_a_trainer_without_it_pays_nothing(monkeypatch):
    monkeypatch.setattr(Trainer, "call_after_update", None)  # a call would raise
    trainer = Trainer(_dense(), "mse", optimizers="sgd", compile="eager")
    trainer.train(iter(trainer.distribute(data.from_arrays((X, Y), 8))), 1)


class Coupled(Trainer):
    """Losses of sums and means over the global batch, computed inside the model; the first is equal on all replicas."""

    def compute_losses(self, batch, training):
        z = self.model(batch, training=training)
        mean = global_mean(z)
        covariance = global_mean(z[:, :, None] * z[:, None, :]) - mean[:, None] * mean
        return {
            "spread": tf.reduce_sum(tf.square(covariance - tf.eye(2))),
            "far": tf.reduce_sum(tf.square(z - global_sum(z)), 1),
        }


def test_losses_of_global_sums_train_alike_and_as_one_batch():
    """With batches of 1 row, of which a replica holds a copy; against the formulas on the whole batch."""
    rows = tf.data.Dataset.from_tensor_slices(X[:6]).batch(5)  # of 5 rows and of 1
    ends = []
    for name in ("default", "mirrored"):
        with make_strategy(name).scope():
            trainer = Coupled(_dense(), optimizers=keras.optimizers.SGD(1e-3))
        metrics = trainer.train(iter(trainer.distribute(rows.repeat())), 4)
        ends.append(
            [
                *trainer.model.get_weights(),
                metrics["losses/spread"],
                metrics["losses/far"],
                trainer.evaluate(rows)["loss"],
            ]
        )
    model = _dense()
    for x in rows.repeat().take(4):
        with tf.GradientTape() as tape:
            z = model(x)
            mean = tf.reduce_mean(z, 0)
            covariance = tf.matmul(z, z, transpose_a=True) / len(x) - mean[:, None] * mean
            far = tf.reduce_sum(tf.square(z - tf.reduce_sum(z, 0)), 1)
            loss = tf.reduce_sum(tf.square(covariance - tf.eye(2))) + tf.reduce_mean(far)
        for v, g in zip(model.trainable_variables, tape.gradient(loss, [v.value for v in model.trainable_variables])):
            v.assign_sub(1e-3 * g)
    for one, two in zip(*ends, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-6)
    for ours, by_hand in zip(ends[1], model.get_weights()):
        np.testing.assert_allclose(ours, by_hand, rtol=1e-5, atol=1e-6)


class Inner(Trainer):
    """One step of an inner loop with Keras' `stateless_call`: other weights, the state assigned by hand."""

    def compute_losses(self, batch, training):
        x, y = batch
        weights, state = [v.value for v in self.model.trainable_variables], self.model.non_trainable_variables
        with tf.GradientTape() as tape:
            tape.watch(weights)
            outputs, new = self.model.stateless_call(weights, state, x, training=training)
            inner = tf.reduce_mean(tf.square(outputs - tf.cast(y, outputs.dtype)))
        fast = [w - 0.1 * g for w, g in zip(weights, tape.gradient(inner, weights))]
        outputs, new = self.model.stateless_call(fast, new, x, training=training)
        for variable, value in zip(state, new):
            variable.assign(value)
        return {"main": tf.square(tf.cast(outputs, tf.float32) - y)}, outputs


def test_a_model_called_with_other_weights_keeps_losses_seeds_and_precision():
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    layers = [keras.layers.Dense(4, activity_regularizer=keras.regularizers.L2(0.1)), keras.layers.Dropout(0.5, seed=1)]
    model = keras.Sequential([keras.Input((3,)), *layers, keras.layers.Dense(2)])
    trainer = Inner(model, optimizers=keras.optimizers.SGD(0.1))
    metrics = trainer.train(iter(trainer.distribute(data.from_arrays((X, Y), 8))), 3)
    assert model.outputs[0].dtype == "bfloat16" and trainer.variables["dense/kernel"].dtype == "float32"
    assert int(trainer.variables["dropout/seed_generator/seed_generator_state"][1]) == 2 * 3  # two calls a step
    # The activity of both calls is part of the total, as of any layer that is called twice.
    assert metrics["losses/dense"] > 0
    assert metrics["loss"] == pytest.approx(metrics["losses/main"] + metrics["losses/dense"], rel=1e-5)
