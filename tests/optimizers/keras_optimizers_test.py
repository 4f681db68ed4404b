"""All optimizers of Keras, and three written in the old way, train as in `fit`; on 2 replicas as on 1."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from optimizers import LearningRateMultipliers, OptimizerGroup
from tests.runs import train
from trainer import Trainer
from trainer.data import from_arrays
from trainer.replicas.distribution import make_strategy

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(32, 4)).astype("float32"), RNG.normal(size=(32, 1)).astype("float32")
KERAS = sorted(
    name for name, kind in vars(keras.optimizers).items()
    if inspect.isclass(kind) and issubclass(kind, keras.optimizers.Optimizer)
    and name not in ("Optimizer", "LossScaleOptimizer", "MultiOptimizer")
)  # fmt: skip


class Centralized(keras.optimizers.SGD):
    """The form of many papers' code: changes the gradients, then calls Keras."""

    def apply_gradients(self, grads_and_vars, name=None, **kwargs):
        gradients, variables = zip(*grads_and_vars)
        halved = [0.5 * (g - tf.reduce_mean(g)) for g in gradients]
        return super().apply_gradients(zip(halved, variables))


class DecayedAdam(keras.optimizers.Adam):
    """The form of Hugging Face's AdamWeightDecay: decays in apply_gradients, keeps a clip, and has TF 2's arguments."""

    def __init__(self, learning_rate=0.1, decay_rate=0.1, **kwargs):
        super().__init__(learning_rate, **kwargs)
        self.decay_rate = decay_rate

    def apply_gradients(self, grads_and_vars, name=None, experimental_aggregate_gradients=True):
        grads_and_vars = list(grads_and_vars)
        for _, variable in grads_and_vars:
            if "bias" not in variable.path:
                variable.assign_sub(variable * self.decay_rate * tf.cast(self.learning_rate, variable.dtype))
        return super().apply_gradients(grads_and_vars)


class ByHand(keras.optimizers.Optimizer):
    """Does everything itself, the sum over replicas too, and never calls Keras."""

    def build(self, variables):
        super().build(variables)
        self.momenta = [self.add_variable_from_reference(v, name="momentum") for v in variables]

    def apply_gradients(self, grads_and_vars):
        gradients, variables = zip(*grads_and_vars)
        context = tf.distribute.get_replica_context()
        if context is not None and context.num_replicas_in_sync > 1:
            gradients = context.all_reduce("SUM", list(gradients))
        if not self.built:
            self.build(list(variables))
        for gradient, variable, momentum in zip(gradients, variables, self.momenta):
            momentum.assign(0.9 * momentum + gradient)
            variable.assign_sub(self.learning_rate * momentum)
        self.iterations.assign_add(1)

    def get_config(self):
        return {**super().get_config()}


OLD = {
    "Centralized": lambda: Centralized(0.1),
    "DecayedAdam": lambda: DecayedAdam(0.1, global_clipnorm=0.5),
    "ByHand": lambda: ByHand(0.05),
}
MAKE = {**{name: getattr(keras.optimizers, name) for name in KERAS}, **OLD}
STEPS = 4


def _model():
    keras.utils.set_random_seed(3)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "tanh"), keras.layers.Dense(1)])


class Side(Trainer):
    """Trains one model with each optimizer, side by side: one trace for all of them."""

    def __init__(self, names):
        groups = [
            OptimizerGroup(f"models/{name}/.*", losses=[name], optimizer=MAKE[name](), name=name) for name in names
        ]
        super().__init__(optimizers=groups, guard="stop")
        self.models = {name: _model() for name in names}

    def compute_losses(self, batch, training):
        x, y = batch
        return {name: tf.square(model(x, training=training) - y) for name, model in self.models.items()}

    def update_metrics(self, batch, outputs):
        pass


@pytest.fixture(scope="module")
def trained():
    """{strategy: {optimizer: its model's weights after STEPS steps}}."""
    weights = {}
    for strategy in ("default", "mirrored"):
        with make_strategy(strategy).scope():
            trainer = Side(list(MAKE))
        train(trainer, from_arrays((X, Y), 8, shuffle=False), STEPS)
        weights[strategy] = {name: model.get_weights() for name, model in trainer.models.items()}
    return weights


@pytest.mark.parametrize("name", MAKE)
def test_an_optimizer_trains_as_in_fit(trained, name):
    fitted = _model()
    fitted.compile(MAKE[name](), "mse", run_eagerly=True)
    fitted.fit(X, Y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    assert len(X) / 8 == STEPS
    for ours, theirs in zip(trained["default"][name], fitted.get_weights()):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5)
    assert np.abs(trained["default"][name][0] - _model().get_weights()[0]).max() > 0


@pytest.mark.parametrize("name", MAKE)
def test_two_replicas_train_as_one(trained, name):
    for one, two in zip(trained["default"][name], trained["mirrored"][name]):
        np.testing.assert_allclose(two, one, rtol=2e-4, atol=2e-5)


def test_an_optimizer_with_an_update_of_its_own_keeps_its_clip():
    group = OptimizerGroup(optimizer=DecayedAdam(0.1, clipnorm=1.0))
    assert group.transforms == [] and group.optimizer.clipnorm == 1.0
    assert len(OptimizerGroup(optimizer=keras.optimizers.Adam(0.1, clipnorm=1.0)).transforms) == 1


def test_what_cannot_be_wrapped_or_split_is_refused():
    with pytest.raises(ValueError, match="has its own `apply_gradients`"):
        LearningRateMultipliers(Centralized(0.1), {".*": 0.5})
    with pytest.raises(ValueError, match="Use one OptimizerGroup for each of its optimizers"):
        OptimizerGroup(optimizer=keras.optimizers.MultiOptimizer(lambda variable: keras.optimizers.SGD()))
