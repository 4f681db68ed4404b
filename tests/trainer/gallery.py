"""Broken models and losses, each with what is wrong with it: the examples by which gradient diagnostics are judged.

A case is a function (net, x, y) -> losses. The line that is to blame ends in
`# guilty`; a case without one has no guilty line (a layer that nobody calls).
`first` is the layer behind it, `second` is healthy.
"""

import dataclasses
import inspect
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from trainer import OptimizerGroup, Trainer

FIRST = ("first/kernel", "first/bias")


class Net(keras.Model):
    """Two layers that a case calls as it likes, and a variable to misuse."""

    def __init__(self, bias=0.0, scale=1.0, zeros=False, dtype=None):
        super().__init__(dtype=dtype)
        kernel = "zeros" if zeros else keras.initializers.RandomUniform(0.1 * scale, scale, seed=1)
        self.first = keras.layers.Dense(
            3, kernel_initializer=kernel, bias_initializer=keras.initializers.Constant(bias), dtype=dtype
        )
        self.second = keras.layers.Dense(1, dtype=dtype)
        self.store = self.add_weight(name="store", shape=(3,), trainable=False, initializer="ones")

    def call(self, x):
        return self.second(x)


class FromFunction(Trainer):
    """A Trainer whose losses are `function(model, x, y)`."""

    def __init__(self, function, **arguments):
        super().__init__(**arguments)
        self.function = function

    def compute_losses(self, batch, training):
        return self.function(self.model, *batch)


@dataclasses.dataclass
class Case:
    """A broken model.

    Attributes:
        name: of the function.
        function: (net, x, y) -> losses.
        status: of the variables' gradients: None, "zero" or "not finite".
        kind: the reason.
        variables: names of the variables that suffer; all others are fine.
        net, batch, trainer: arguments and functions to make them.
    """

    name: str
    function: Callable
    status: str | None
    kind: str
    variables: tuple = FIRST
    net: dict = dataclasses.field(default_factory=dict)
    batch: Callable = lambda: good_batch()
    trainer: Callable = lambda: {}

    def build(self):
        """Returns (trainer, batch), made in the current strategy's scope."""
        keras.utils.set_random_seed(1)
        return FromFunction(self.function, model=Net(**self.net), **self.trainer()), self.batch()

    def guilty_line(self):
        """Returns the number of the marked line, or None."""
        lines, start = inspect.getsourcelines(self.function)
        marked = [start + i for i, line in enumerate(lines) if line.rstrip().endswith("# guilty")]
        assert len(marked) <= 1, self.name
        return marked[0] if marked else None


GALLERY: list[Case] = []


def broken(status, kind, **rest):
    def register(function):
        GALLERY.append(Case(function.__name__, function, status, kind, **rest))
        return function

    return register


def good_batch():
    rng = np.random.default_rng(0)
    return rng.uniform(0.2, 1.0, size=(4, 2)).astype(np.float32), rng.normal(size=(4, 1)).astype(np.float32)


def with_zeros():
    x, y = good_batch()
    return np.zeros_like(x), y


def with_nan():
    x, y = good_batch()
    x[2, 1] = np.nan
    return x, y


def error(net, x, y, features=0.0):
    """A healthy loss of `second`, plus what the case makes of `first`."""
    return tf.square(net.second(x) - y) + tf.reduce_sum(tf.cast(features, tf.float32))


# ---- None: not used ----------------------------------------------------------------------------------------------


@broken(None, "unused")
def a_layer_that_nobody_uses(net, x, y):
    net.first(x)
    return {"main": error(net, x, y)}


@broken(None, "unused")
def only_its_shape_is_used(net, x, y):
    width = tf.shape(net.first(x))[-1]
    return {"main": error(net, x, y) / tf.cast(width, tf.float32)}


def _two_groups():
    return {
        "optimizers": [OptimizerGroup("first/.*", ["right"], "sgd", name="a"), OptimizerGroup("second/.*", name="b")]
    }


@broken(None, "other losses", trainer=_two_groups)
def a_group_that_names_other_losses(net, x, y):
    return {"left": tf.square(net.first(x)), "right": tf.square(net.second(x) - y)}


# ---- None: no operation on the way has a gradient ----------------------------------------------------------------


@broken(None, "argmax")
def argmax_of_logits(net, x, y):
    h = net.first(x)
    picked = tf.argmax(h, axis=-1)  # guilty
    return {"main": error(net, x, y, picked)}


@broken(None, "argmax")
def one_hot_of_argmax(net, x, y):
    hard = tf.one_hot(  # guilty
        tf.argmax(net.first(x), -1),
        3,
    )
    return {"main": error(net, x, y, hard * tf.constant([1.0, 2.0, 3.0]))}


@broken(None, "argmax")
def argmax_of_keras(net, x, y):
    i = keras.ops.argmax(keras.ops.softmax(net.first(x)), axis=-1)  # guilty
    return {"main": error(net, x, y, i)}


@broken(None, "cast")
def cast_to_int(net, x, y):
    h = 10.0 * net.first(x)
    h = tf.cast(h, tf.int32)  # guilty
    return {"main": error(net, x, y, tf.cast(h, tf.float32) / 10.0)}


@broken(None, "cast")
def keras_cast_to_int(net, x, y):
    whole = keras.ops.cast(net.first(x), "int64")  # guilty
    return {"main": error(net, x, y, whole)}


@broken(None, "round")
def round_to_whole_numbers(net, x, y):
    return {"main": error(net, x, y, tf.round(net.first(x) * 8.0) / 8.0)}  # guilty


@broken(None, "round")
def floor(net, x, y):
    h = net.first(x)
    h = tf.floor(h)  # guilty
    return {"main": error(net, x, y, h)}


@broken(None, "comparison")
def a_threshold(net, x, y):
    positive = net.first(x) > 0.3  # guilty
    return {"main": error(net, x, y, tf.cast(positive, tf.float32))}


@broken(None, "comparison")
def accuracy_as_a_loss(net, x, y):
    h = net.first(x)
    right = tf.equal(h, tf.reduce_max(h, -1, keepdims=True))  # guilty
    return {"main": error(net, x, y, tf.where(right, 0.0, 1.0))}


@broken(None, "comparison")
def python_if_on_a_tensor(net, x, y):
    h = tf.reduce_mean(net.first(x))
    if h > 0.0:  # guilty
        value = tf.constant(1.0)
    else:
        value = tf.constant(2.0)
    return {"main": error(net, x, y, value)}


@broken(None, "stop_gradient")
def a_stop_gradient_too_many(net, x, y):
    h = net.first(x)
    h = tf.stop_gradient(h)  # guilty
    return {"main": error(net, x, y, tf.square(h))}


@broken(None, "stop_gradient")
def keras_stop_gradient_deep_inside(net, x, y):
    def detach(h):
        return keras.ops.stop_gradient(tf.tanh(h))  # guilty

    return {"main": error(net, x, y, tf.square(detach(net.first(x))))}


@broken(None, "stop_gradient")
def an_innocent_top_k_before_it(net, x, y):
    best, _ = tf.math.top_k(net.first(x), 2)
    best = tf.stop_gradient(best)  # guilty
    return {"main": error(net, x, y, tf.square(best))}


@broken(None, "numpy_function")
def a_numpy_function(net, x, y):
    h = net.first(x)
    h = tf.numpy_function(np.sin, [h], tf.float32)  # guilty
    return {"main": error(net, x, y, h)}


@broken(None, "string")
def through_text(net, x, y):
    text = tf.strings.as_string(net.first(x))  # guilty
    return {"main": error(net, x, y, tf.strings.to_number(text))}


@broken(None, "assignment")
def assigned_and_read_again(net, x, y):
    h = tf.reduce_mean(net.first(x), 0)
    net.store.assign(h)  # guilty
    return {"main": error(net, x, y, tf.square(net.store.value))}


@broken(None, "assignment")
def added_to_a_variable(net, x, y):
    net.store.value.assign_add(net.first(x)[0])  # guilty
    return {"main": error(net, x, y, tf.square(net.store + 1.0))}


@broken(None, "indices")
def gather_with_computed_indices(net, x, y):
    order = tf.argsort(net.first(x), -1)  # guilty
    return {"main": error(net, x, y, tf.gather(tf.constant([1.0, 2.0, 4.0]), order[:, 0]))}


@broken(None, "indices")
def indices_of_top_k(net, x, y):
    _, best = tf.math.top_k(net.first(x), 2)  # guilty
    return {"main": error(net, x, y, tf.cast(best, tf.float32))}


@broken(None, "integer")
def buckets(net, x, y):
    bucket = tf.raw_ops.Bucketize(input=net.first(x), boundaries=[0.2, 0.4])  # guilty
    return {"main": error(net, x, y, bucket)}


# TensorFlow's gradient of a loop is zero, not None, where nothing in it has one.
@broken("zero", "argmax")
def a_while_loop_that_hides_an_argmax(net, x, y):
    h = net.first(x)
    total = tf.constant(0.0)
    for i in tf.range(3):
        best = tf.argmax(h[i])  # guilty
        total += tf.cast(best, tf.float32)
    return {"main": error(net, x, y, total)}


@broken("zero", "round")
def a_map_that_hides_a_round(net, x, y):
    def quantize(row):
        doubled = 2.0 * row
        return tf.round(doubled)  # guilty

    return {"main": error(net, x, y, tf.map_fn(quantize, net.first(x)))}


@broken(None, "stop_gradient")
def a_cond_whose_branches_stop_it(net, x, y):
    h = net.first(x)

    def branch():
        return tf.stop_gradient(h)  # guilty

    return {"main": error(net, x, y, tf.cond(tf.reduce_sum(x) > 0.0, branch, lambda: tf.zeros_like(h)))}


@broken(None, "cast")
def a_function_that_hides_a_cast(net, x, y):
    @tf.function
    def quantize(h):
        whole = tf.cast(4.0 * h, tf.int32)  # guilty
        return tf.cast(whole, tf.float32) / 4.0

    return {"main": error(net, x, y, quantize(net.first(x)))}


@broken(None, "custom_gradient")
def a_custom_gradient_that_returns_none(net, x, y):
    @tf.custom_gradient
    def quantize(h):
        return 2.0 * h, lambda dy: None

    h = quantize(net.first(x))  # guilty
    return {"main": error(net, x, y, h)}


@broken(None, "no gradient")
def an_operation_without_a_gradient(net, x, y):
    images = tf.reshape(net.first(x), [-1, 1, 1, 3])
    images = tf.image.adjust_hue(images, 0.1)  # guilty
    return {"main": error(net, x, y, images)}


@broken(None, "random")
def sampled_classes(net, x, y):
    sampled = tf.random.categorical(net.first(x), 2)  # guilty
    return {"main": error(net, x, y, sampled)}


# ---- zeros -------------------------------------------------------------------------------------------------------


@broken("zero", "sign")
def sign(net, x, y):
    h = tf.sign(net.first(x))  # guilty
    return {"main": error(net, x, y, h)}


@broken("zero", "dead", net={"bias": -100.0})
def dead_relus(net, x, y):
    h = tf.nn.relu(net.first(x))  # guilty
    return {"main": error(net, x, y, tf.square(h - 1.0))}


@broken("zero", "dead", net={"bias": -100.0})
def dead_keras_relus(net, x, y):
    h = net.first(x)
    h = keras.layers.ReLU()(h)  # guilty
    return {"main": error(net, x, y, tf.square(h - 1.0))}


@broken("zero", "saturated", net={"bias": 200.0})
def saturated_sigmoid(net, x, y):
    h = tf.sigmoid(net.first(x))  # guilty
    return {"main": error(net, x, y, tf.square(h))}


@broken("zero", "saturated", net={"bias": 20.0})
def saturated_sigmoid_in_float16(net, x, y):
    h = tf.cast(net.first(x), tf.float16)
    h = tf.sigmoid(h)  # guilty
    return {"main": error(net, x, y, tf.square(h))}


@broken("zero", "saturated", net={"bias": -50.0})
def saturated_tanh(net, x, y):
    h = tf.tanh(net.first(x))  # guilty
    return {"main": error(net, x, y, tf.square(h))}


@broken("zero", "clipped", net={"bias": 5.0})
def a_clipped_region(net, x, y):
    h = tf.clip_by_value(net.first(x), 0.0, 1.0)  # guilty
    return {"main": error(net, x, y, tf.square(h))}


@broken("zero", "clipped", net={"bias": 5.0})
def a_region_clipped_by_keras(net, x, y):
    h = keras.ops.clip(net.first(x), 0.0, 1.0)  # guilty
    return {"main": error(net, x, y, tf.square(h))}


@broken("zero", "clipped", net={"bias": 20.0})
def relu6_above_six(net, x, y):
    h = tf.nn.relu6(net.first(x))  # guilty
    return {"main": error(net, x, y, tf.square(h))}


@broken("zero", "clipped", net={"bias": 5.0})
def a_minimum_that_always_holds(net, x, y):
    h = tf.minimum(net.first(x), 1.0)  # guilty
    return {"main": error(net, x, y, tf.square(h))}


@broken("zero", "zero factor")
def times_zero(net, x, y):
    mask = tf.zeros_like(x[:, :1])
    h = net.first(x) * mask  # guilty
    return {"main": error(net, x, y, h + 1.0)}


@broken("zero", "selected", net={"bias": 5.0})
def the_other_branch_of_a_where(net, x, y):
    h = net.first(x)
    h = tf.where(h < 1.0, h, 1.0)  # guilty
    return {"main": error(net, x, y, tf.square(h))}


@broken("zero", "py_function")
def a_py_function_that_leaves_tensorflow(net, x, y):
    h = tf.reduce_sum(net.first(x))
    h = tf.py_function(lambda t: np.sin(t.numpy()), [h], tf.float32)  # guilty
    return {"main": error(net, x, y, h)}


# ---- NaN and infinities ------------------------------------------------------------------------------------------


@broken("not finite", "where", net={"zeros": True})
def log_inside_a_where(net, x, y):
    h = net.first(x)
    safe = tf.where(h > 0.0, tf.math.log(h), 0.0)  # guilty
    return {"main": error(net, x, y, safe)}


@broken("not finite", "where", net={"zeros": True})
def a_quotient_inside_a_where(net, x, y):
    h = net.first(x)
    quotient = 1.0 / h  # guilty
    return {"main": error(net, x, y, tf.where(tf.abs(h) > 0.0, quotient, tf.zeros_like(h)))}


@broken("not finite", "root", net={"zeros": True})
def root_of_zero(net, x, y):
    h = tf.sqrt(tf.square(net.first(x)))  # guilty
    return {"main": error(net, x, y, h)}


@broken("not finite", "root", net={"zeros": True})
def norm_of_zero(net, x, y):
    length = tf.norm(net.first(x), axis=-1)  # guilty
    return {"main": error(net, x, y, length)}


@broken("not finite", "root", net={"zeros": True})
def standard_deviation_of_equal_numbers(net, x, y):
    spread = tf.math.reduce_std(net.first(x), axis=-1)  # guilty
    return {"main": error(net, x, y, spread)}


@broken("not finite", "log", net={"zeros": True})
def log_of_zero(net, x, y):
    h = tf.math.log(net.first(x))  # guilty
    return {"main": error(net, x, y, h)}


@broken("not finite", "log", net={"bias": -1.0, "scale": 0.1}, variables=())
def log_of_a_negative_number(net, x, y):
    h = net.first(x)
    return {"main": error(net, x, y, tf.math.log(h))}  # guilty


@broken("not finite", "log", net={"bias": 200.0})
def cross_entropy_of_a_saturated_sigmoid(net, x, y):
    p = tf.sigmoid(net.first(x))
    return {"main": error(net, x, y, -tf.math.log(1.0 - p))}  # guilty


@broken("not finite", "division", net={"zeros": True})
def one_over_zero(net, x, y):
    h = 1.0 / net.first(x)  # guilty
    return {"main": error(net, x, y, h)}


@broken("not finite", "division", net={"zeros": True})
def zero_over_zero(net, x, y):
    h = net.first(x)
    h = h / tf.reduce_sum(h, -1, keepdims=True)  # guilty
    return {"main": error(net, x, y, tf.square(h))}


@broken("not finite", "overflow", net={"bias": 100.0})
def exp_overflows(net, x, y):
    h = tf.exp(net.first(x))  # guilty
    return {"main": error(net, x, y, h / (1.0 + h))}


@broken("not finite", "overflow", net={"bias": 12.0})
def exp_overflows_in_float16(net, x, y):
    h = tf.cast(net.first(x), tf.float16)
    h = tf.exp(h)  # guilty
    return {"main": error(net, x, y, h)}


@broken("not finite", "overflow", net={"bias": 300.0}, variables=())
def matmul_overflows_in_float16(net, x, y):
    h = tf.cast(net.first(x), tf.float16)
    h = tf.matmul(h, h, transpose_b=True)  # guilty
    return {"main": error(net, x, y, h)}


@broken("not finite", "overflow", net={"bias": 300.0}, variables=())
def square_overflows_in_float16(net, x, y):
    h = tf.cast(net.first(x), tf.float16)
    return {"main": error(net, x, y, tf.square(h))}  # guilty


@broken("not finite", "power", net={"zeros": True})
def power_of_zero(net, x, y):
    h = net.first(x) ** 0.5  # guilty
    return {"main": error(net, x, y, h)}


@broken("not finite", "data", batch=with_nan, variables=("first/kernel", "second/kernel", "second/bias"))
def nan_in_the_batch(net, x, y):
    return {"main": error(net, x, y, net.first(x))}


@broken("not finite", "log", net={"zeros": True})
def a_log_in_a_function(net, x, y):
    @tf.function
    def entropy(h):
        logs = tf.math.log(h)  # guilty
        return -h * logs

    return {"main": error(net, x, y, entropy(net.first(x)))}


@broken("not finite", "division", net={"zeros": True})
def a_division_in_a_loop(net, x, y):
    h = net.first(x)
    total = tf.constant(0.0)
    for i in tf.range(3):
        total += tf.reduce_sum(1.0 / h[i])  # guilty
    return {"main": error(net, x, y, total)}


@broken("not finite", "where", net={"zeros": True})
def a_where_in_a_map(net, x, y):
    def safe_log(row):
        logs = tf.math.log(row)  # guilty
        return tf.where(row > 0.0, logs, tf.zeros_like(row))

    return {"main": error(net, x, y, tf.map_fn(safe_log, net.first(x)))}


@broken("zero", "dead", net={"bias": -100.0})
def dead_relus_in_a_function(net, x, y):
    @tf.function
    def hidden(x):
        h = net.first(x)
        return tf.nn.relu(h)  # guilty

    return {"main": error(net, x, y, tf.square(hidden(x) - 1.0))}


@broken("not finite", "root", net={"zeros": True})
def a_norm_in_a_branch(net, x, y):
    h = net.first(x)

    def length():
        return tf.norm(h, axis=-1)  # guilty

    return {"main": error(net, x, y, tf.cond(tf.reduce_sum(x) > 0.0, length, lambda: tf.zeros_like(h[:, 0])))}


@broken("zero", "clipped", net={"bias": 5.0})
def a_clip_in_a_loop(net, x, y):
    h = net.first(x)
    for _ in tf.range(2):
        h = tf.clip_by_value(2.0 * h, 0.0, 1.0)  # guilty
    return {"main": error(net, x, y, tf.square(h))}


@broken("not finite", "division", net={"zeros": True})
def one_of_two_users_is_to_blame(net, x, y):
    h = net.first(x)
    fine = tf.sin(h)
    angle = tf.atan2(h, h)  # guilty
    return {"main": error(net, x, y, fine + angle)}


@broken("not finite", "slope", net={"zeros": True, "bias": 1.0})
def the_edge_of_arc_cosine(net, x, y):
    angle = tf.math.acos(net.first(x))  # guilty
    return {"main": error(net, x, y, angle)}


@broken("not finite", "log", net={"scale": 900.0})
def log_of_a_softmax(net, x, y):
    p = tf.nn.softmax(net.first(x) * tf.constant([1.0, -1.0, 1.0]))
    return {"main": error(net, x, y, -tf.math.log(p))}  # guilty


@broken("not finite", "root", net={"zeros": True})
def one_over_the_root_of_no_variance(net, x, y):
    h = net.first(x)
    h = h * tf.math.rsqrt(tf.math.reduce_variance(h, 0))  # guilty
    return {"main": error(net, x, y, tf.square(h))}


@broken("zero", "dead", net={"bias": 50.0})
def a_hinge_that_is_met(net, x, y):
    margin = tf.nn.relu(1.0 - net.first(x))  # guilty
    return {"main": error(net, x, y, margin)}


@broken("not finite", "log", net={"zeros": True})
def entropy_of_relus(net, x, y):
    p = tf.nn.relu(net.first(x))
    return {"main": error(net, x, y, p * tf.math.log(p))}  # guilty


@broken("not finite", "division", net={"zeros": True})
def a_quotient_of_norms(net, x, y):
    h = tf.reduce_sum(tf.square(net.first(x)), -1)
    return {"main": error(net, x, y, h / tf.sqrt(h))}  # guilty
