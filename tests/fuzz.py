"""Draws small training programs, and compares the ways in which a Trainer can run one.

`write(seed)` returns a program as Python code: a model, a Trainer and batches. `compare` runs
it eagerly on one replica, and then compiled, on two replicas, and in micro-batches: losses,
metrics, weights and evaluations are equal to float tolerance.

Left out, because the promise leaves them out: BatchNormalization with micro-batches or without
`synchronized`, dropout, and layers that count calls or carry states from micro-batch to micro-batch.
"""

import random

import keras
import numpy as np

STEPS, LOOPS = 4, 2
ACTIVATIONS = ["tanh", "gelu", "sigmoid", "softplus", None]  # without kinks, which rounding may cross

PROGRAM = '''"""Program {seed} of tests/fuzz_test.py. Run it from the repository: PYTHONPATH=. python FILE"""

from tests import conftest  # isort: skip  # two logical devices

import keras
import numpy as np
import tensorflow as tf

import optimizers
from optimizers import OptimizerGroup
from tests import fuzz
from trainer import Trainer, add_loss, add_metric, weighted


class CountCalls(keras.layers.Layer):
    supports_masking = True

    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", dtype="{calls}", trainable=False, name="calls")

    def call(self, x, training=False):
        if training:
            self.calls.assign_add(1)
        return x / (1 + 0.1 * keras.ops.cast(self.calls, x.dtype))


class Model(keras.Model):
    def __init__(self, replicas):
        super().__init__()
        self.body = keras.Sequential([{body}])
        self.head = keras.layers.{head}

    def call(self, x, training=False):
        hidden = self.body(x, training=training){inside}
        return self.head(hidden)


def make(compile, micro_batches, replicas):
    return Trainer(
        Model(replicas),
        {loss},
        [{metrics}],
        [{groups}],
        frozen={frozen},
        guard="{guard}",
        compile=compile,
        micro_batches=micro_batches,
        averages={averages},
    )


def batches():
    random = np.random.default_rng({seed})
    x = {x}
    y = {y}{weights}
    return tf.data.Dataset.from_tensor_slices((x, y{w})).batch({batch}{drop})


VARIANTS = {variants}

if __name__ == "__main__":
    fuzz.compare(make, batches, VARIANTS)
'''


def write(seed):
    """Returns the program of `seed` as Python code."""
    r = random.Random(seed)
    kind = r.choice(["vector", "image", "ids", "sequence"])
    batch = r.randint(4, 8)
    rows = batch * 3 + r.choice([0, 1, 2, batch - 1])  # the last batch is smaller, down to one row for two replicas
    traits = {"stateful": kind == "sequence" and r.random() < 0.25, "normalized": False, "counted": r.random() < 0.2}
    body, length = _body(r, kind, batch, traits)
    fields = {"seed": seed, "calls": r.choice(["int32", "float32"]), "batch": batch, "drop": ""}
    if traits["stateful"]:
        batch = fields["batch"] = 6
        fields["drop"] = ", drop_remainder=True"
    fields["body"] = ", ".join(body)
    fields["x"] = _inputs(kind, rows)
    fields |= _targets(r, rows, length)
    fields |= _groups(r)
    fields["inside"] = "".join("\n        " + line for line in _inside(r))
    fields["guard"] = r.choice(["skip", "stop", "off"])
    fields["averages"] = r.choice(
        ["None"] * 3 + ["optimizers.EMA(0.5)", "optimizers.SWA(start=2, data=batches)", "optimizers.Lookahead(every=3)"]
    )
    fields["variants"] = repr(_variants(r, traits))
    return PROGRAM.format(**fields)


def _variants(r, traits):
    """Returns [(compile, micro_batches, replicas)] to compare with eager steps on one replica; most complex first."""
    parts = 1 if traits["normalized"] or traits["counted"] or traits["stateful"] else r.choice([1, 2, 2, 3])
    return list(dict.fromkeys([("graph", parts, 2), ("graph", parts, 1), ("graph", 1, 2), ("graph", 1, 1)]))


def _body(r, kind, batch, traits):
    """Returns (source of each layer, length of the sequence that it returns, or None)."""
    layers, length = [], None
    if kind == "vector":
        layers = ["keras.Input((4,))", _dense(r)]
    elif kind == "image":
        layers = ["keras.Input((6, 6, 2))", r.choice(["Conv2D(3, 3", "SeparableConv2D(3, 3", "DepthwiseConv2D(3"])]
        layers[-1] = f"keras.layers.{layers[-1]}, activation={r.choice(ACTIVATIONS)!r})"
        layers += _normalization(r, traits)
        layers += [f"keras.layers.{r.choice(['MaxPooling2D()', 'AveragePooling2D(2)'])}"] * (r.random() < 0.5)
        layers.append(f"keras.layers.{r.choice(['Flatten()', 'GlobalAveragePooling2D()'])}")
    else:
        shape = "batch_shape=(6 // replicas, 5, 3)" if traits["stateful"] else "(5, 3)"
        masked = r.random() < 0.6
        if kind == "ids":
            layers = ["keras.Input((5,))", f"keras.layers.Embedding(9, 4, mask_zero={masked})"]
        else:
            layers = [f"keras.Input({shape})"] + ["keras.layers.Masking()"] * masked
        length = r.choice([None, 5])
        cell = r.choice(["LSTM", "GRU", "SimpleRNN"])
        options = f"4, return_sequences={length is not None}" + ", stateful=True" * traits["stateful"]
        layer = f"keras.layers.{cell}({options})"
        bidirectional = r.random() < 0.25 and not traits["stateful"]
        layers.append(f"keras.layers.Bidirectional({layer})" if bidirectional else layer)
        if kind == "ids" and r.random() < 0.3:  # no recurrent layer: gradients of an embedding alone
            layers[-1], length = "keras.layers.GlobalAveragePooling1D()", None
    if r.random() < 0.5:
        layers.append(_dense(r))
    if length is None:
        layers += _normalization(r, traits) if kind != "image" else []
    if traits["counted"]:
        layers.append("CountCalls()")
    return layers, length


def _dense(r):
    regularizer = r.choice(["", "", ", kernel_regularizer='l2'", ", activity_regularizer='l2'"])
    return f"keras.layers.Dense(4, {r.choice(ACTIVATIONS)!r}{regularizer})"


def _normalization(r, traits):
    chosen = r.choice(["", "", "BatchNormalization(momentum=0.5, synchronized=True)", "LayerNormalization()"])
    traits["normalized"] |= chosen.startswith("Batch")
    return [f"keras.layers.{chosen}"] if chosen else []


def _inputs(kind, rows):
    """Source of the inputs; sequences end with zeros, which masks leave out."""
    if kind == "vector":
        return f"random.normal(size=({rows}, 4)).astype('float32')"
    if kind == "image":
        return f"random.normal(size=({rows}, 6, 6, 2)).astype('float32')"
    mask = f"(np.arange(5) < random.integers(1, 6, ({rows}, 1)))"
    if kind == "ids":
        return f"random.integers(1, 9, ({rows}, 5)) * {mask}"
    return f"(random.normal(size=({rows}, 5, 3)) * {mask}[..., None]).astype('float32')"


def _targets(r, rows, length):
    """Head, loss, metrics, targets and sample weights."""
    shape = f"({rows}, {length})" if length else f"({rows},)"
    if r.random() < 0.5:
        loss = "keras.losses.SparseCategoricalCrossentropy(from_logits=True)"
        fields = {"head": "Dense(3)", "loss": loss, "y": f"random.integers(0, 3, {shape})"}
        metrics = [
            "'accuracy'",
            "weighted(keras.metrics.SparseCategoricalAccuracy('weighted'))",
            "keras.metrics.SparseTopKCategoricalAccuracy(2)",
        ]
        metrics.append("keras.metrics.SparseCategoricalCrossentropy(from_logits=True)")
    else:
        loss = r.choice(["'mse'", "keras.losses.Huber(0.5)", "'log_cosh'", "keras.losses.MeanSquaredError()"])
        fields = {
            "head": "Dense(1)",
            "loss": loss,
            "y": f"random.normal(size={shape[:-1].rstrip(',')}, 1)).astype('float32')",
        }
        metrics = ["'mae'", "keras.metrics.RootMeanSquaredError()", "weighted('mse')"]
        metrics.append("keras.metrics.MeanSquaredError()" if length else "keras.metrics.R2Score()")
    fields["metrics"] = ", ".join(r.sample(metrics, r.randint(0, 2)))
    fields |= {"weights": "", "w": ""}
    if r.random() < 0.5:
        zeros = " * (random.random(w.shape) < 0.7)" if r.random() < 0.5 else ""
        w_shape = shape if length and r.random() < 0.5 else f"({rows},)"
        fields["weights"] = f"\n    w = random.uniform(0.1, 2, {w_shape}).astype('float32')"
        fields["weights"] += f"\n    w = (w{zeros}).astype('float32')" if zeros else ""
        fields["w"] = ", w"
    return fields


def _optimizer(r):
    """Adam with a large epsilon: with the usual one it would enlarge rounding where a gradient is nearly zero."""
    return r.choice(
        [
            "keras.optimizers.SGD(0.1)",
            "keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True)",
            "keras.optimizers.Adam(0.01, epsilon=1e-2)",
            "keras.optimizers.AdamW(0.01, epsilon=1e-2, weight_decay=0.1)",
            "keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 5), clipnorm=0.5)",
            "optimizers.MomentumSGD(0.05)",
        ]
    )


def _transforms(r):
    listed = [
        "optimizers.clip_by_global_norm(0.3)",
        "optimizers.clip_by_norm(0.2)",
        "optimizers.clip_by_value(0.05)",
        "optimizers.adaptive_clip(0.1)",
        "optimizers.centralize()",
    ]
    return "[" + ", ".join(r.sample(listed, r.choice([0, 0, 1, 2]))) + "]"


def _groups(r):
    """One optimizer, one group, or body and head apart, with another time and order."""
    chosen = r.random()
    if chosen < 0.3:
        return {"groups": _optimizer(r), "frozen": "()"}
    if chosen < 0.5:
        return {"groups": f"OptimizerGroup(optimizer={_optimizer(r)}, transforms={_transforms(r)})", "frozen": "()"}
    names = ["body", "head"] if r.random() < 0.7 else ["head"]
    r.shuffle(names)
    groups = []
    for i, name in enumerate(names):
        options = [f"'{name}/.*'", f"optimizer={_optimizer(r)}", f"transforms={_transforms(r)}", f"name='{name}'"]
        if r.random() < 0.4:
            options.append(f"every=2, offset={r.randint(0, 1)}")
        options += r.choice([[], [], ["start=1"], ["stop=3"]])
        if i and r.random() < 0.5:
            options.append("sequential=True")
        groups.append(f"OptimizerGroup({', '.join(options)})")
    return {"groups": ", ".join(groups), "frozen": "()" if len(names) > 1 else "['body/.*']"}


def _inside(r):
    """Losses and metrics from inside of the model."""
    lines = [
        "add_loss(tf.square(hidden), 'size', 0.1)",
        "add_loss((tf.square(hidden), tf.abs(tf.stop_gradient(hidden))), 'weighted_size', 0.1)",
        "self.add_loss(0.01 * tf.reduce_mean(tf.square(hidden)))",
        "add_metric(hidden, 'mean')",
        "add_metric(hidden, 'largest', 'max')",
        "add_metric(hidden, 'smallest', 'min')",
        "add_metric(tf.abs(hidden), 'sum', 'sum')",
        "add_metric(hidden, 'last', 'last')",
    ]
    return r.sample(lines, r.choice([0, 0, 1, 2, 3]))


def compare(make, batches, variants):
    """Trains and evaluates in each way; AssertionError names what differs from eager steps on one replica."""
    expected = _outcome(make, batches, "eager", 1, 1)
    for variant in variants:
        found = _outcome(make, batches, *variant)
        assert found.keys() == expected.keys(), f"{variant}: {found.keys() ^ expected.keys()}"
        for name, value in expected.items():
            message = f"(compile, micro_batches, replicas) = {variant}: {name}"
            np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=5e-6, err_msg=message)


def _outcome(make, batches, compile, micro_batches, replicas):
    """Returns {name: value} of all tags of each loop, of an evaluation, and of the variables."""
    from trainer.replicas.distribution import make_strategy

    keras.utils.set_random_seed(1)
    with make_strategy("mirrored" if replicas > 1 else "default").scope():
        trainer = make(compile, micro_batches, replicas)
    data, found = batches(), {}
    iterator = iter(trainer.distribute(data.repeat()))
    for loop in range(LOOPS):
        metrics = trainer.train(iterator, STEPS // LOOPS)
        found |= {f"{tag} of loop {loop}": value for tag, value in metrics.items()}
    found |= {name: v.numpy() for name, v in trainer.variables.items() if "rnn_state" not in name}  # a replica's own
    return found | {f"{tag} of the evaluation": value for tag, value in trainer.evaluate(data).items()}
