"""Input that cannot be meant, to every loss, called or through the Trainer: an error that helps, or a defined value."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import losses
from tests.losses.contract_test import CASES, TAKES_IDS, WITHOUT_TARGETS
from tests.runs import train
from trainer import Trainer
from trainer.replicas.distribution import make_strategy

L, SGD = keras.layers, keras.optimizers.SGD
RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 3)).astype(np.float32)
MAPS = (RNG.uniform(size=(6, 4, 1)) < 0.5).astype(np.float32)
OVERLAPS = {name: (getattr(losses, name)(), MAPS, (4, 1)) for name in ("SoftDice", "SoftTversky", "FocalTversky")}
ALL = {**CASES, **OVERLAPS}
COUPLED = [name for name in CASES if name.startswith(("NTXent", "InfoNCE", "SupCon", "Triplet"))]
OF_ZEROS_AND_ONES = [
    "BinaryFocal",
    "BinaryFocal of many",
    "Asymmetric",
    "Asymmetric without margin",
    "Contrastive",
    *OVERLAPS,
]


def key_of(name):
    return name.replace(" ", "_")


def model_of(names, units=3):
    """One head for each loss, on common inputs."""
    inputs = keras.Input((units,))
    outputs = {}
    for name in names:
        shape = ALL[name][2]
        head = L.Dense(int(np.prod(shape)), "sigmoid" if name in OVERLAPS else None, name=f"{key_of(name)}_head")(
            inputs
        )
        outputs[key_of(name)] = L.Reshape(shape, name=key_of(name))(head)
    return keras.Model(inputs, outputs)


def trainer_of(names, strategy="default", **arguments):
    keras.utils.set_random_seed(0)
    with make_strategy(strategy).scope():
        given = {key_of(name): ALL[name][0] for name in names}
        return Trainer(model_of(names), given, (), SGD(0.05), **arguments)


def batch_of(names, rows):
    return X[rows], {key_of(name): np.asarray(ALL[name][1], np.float32)[rows] for name in names}


def _dataset(names, *sizes):
    """A dataset of one batch for each of `sizes`, of the first examples there are."""
    spec = tf.nest.map_structure(
        lambda x: tf.TensorSpec([None, *x.shape[1:]], tf.float32), batch_of(names, slice(0, 6))
    )
    return tf.data.Dataset.from_generator(lambda: (batch_of(names, slice(0, n)) for n in sizes), output_signature=spec)


# ---- one example, none of its class, nothing that counts -----------------------------------------------------------


@pytest.mark.parametrize("strategy", ["default", "mirrored"])
def test_one_example_is_enough_for_every_loss(strategy):
    """A batch of one per replica: where there is nobody to compare with a loss is 0, and no weight becomes NaN."""
    replicas = 2 if strategy == "mirrored" else 1
    names = ALL if replicas == 1 else COUPLED
    trainer = trainer_of(names, strategy, compile="eager")
    iterator = iter(trainer.distribute(_dataset(names, 6, replicas)))
    whole, least = trainer.train(iterator, 1), trainer.train(iterator, 1)
    for metrics in (whole, least):
        assert metrics["skipped_steps"] == 0 and all(np.isfinite(value) for value in metrics.values())
    assert all(np.isfinite(v.numpy()).all() for v in trainer.variables.values())
    assert all(whole[f"losses/{key_of(name)}"] > 0 for name in COUPLED)
    if strategy == "default":  # with two there is somebody, of another class
        assert all(least[f"losses/{key_of(name)}"] == pytest.approx(0, abs=1e-6) for name in COUPLED)
    assert all(least[f"losses/{key_of(name)}"] == 0 for name in COUPLED if name.startswith(("SupCon", "Triplet")))


@pytest.mark.parametrize("name", COUPLED)
@pytest.mark.parametrize("size", [0, 1])
def test_an_example_alone_is_worth_nothing(name, size):
    loss, targets, shape = CASES[name]
    predictions = tf.Variable(RNG.normal(size=(size, *shape)))
    with tf.GradientTape() as tape:
        values = loss.call(targets[:size], predictions)
    gradient = tape.gradient(values, predictions)
    np.testing.assert_allclose(values, np.zeros(size), atol=1e-6)
    np.testing.assert_allclose(gradient, np.zeros((size, *shape)), atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_an_empty_batch_gives_no_values(name):
    loss, targets, shape = ALL[name]
    assert loss.call(targets[:0], tf.zeros([0, *shape])).shape == (0,)


@pytest.mark.parametrize("name", ALL)
def test_nan_is_not_hidden(name):
    """A prediction of NaN is NaN in the loss: 0 in its place would let a broken model train on."""
    loss, targets, shape = ALL[name]
    predictions = RNG.uniform(0.1, 0.9, size=(6, *shape))
    predictions[4] = np.nan
    values = tf.function(loss.call)(targets, predictions)
    assert np.isnan(values[4])


@pytest.mark.parametrize("name", ["SupCon", "Triplet all", "Triplet hard", "Triplet semi_hard"])
@pytest.mark.parametrize("ids", [np.arange(6), np.zeros(6, int)], ids=["no positives", "no negatives"])
def test_without_positives_or_negatives(name, ids):
    """Triplets need both; SupCon without negatives is the entropy of its positives, and finite."""
    loss, _, shape = CASES[name]
    predictions = tf.Variable(RNG.normal(size=(6, *shape)))
    with tf.GradientTape() as tape:
        values = loss.call(ids, predictions)
    gradient = tape.gradient(values, predictions)
    assert np.isfinite(values).all() and np.isfinite(gradient).all()
    if name != "SupCon" or ids[1]:
        assert not values.numpy().any() and not gradient.numpy().any()


@pytest.mark.parametrize("name", OF_ZEROS_AND_ONES)
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_labels_of_one_kind(name, label):
    loss, targets, shape = ALL[name]
    predictions = tf.Variable(RNG.uniform(0.1, 0.9, size=(6, *shape)))
    with tf.GradientTape() as tape:
        values = loss.call(np.full_like(targets, label), predictions)
    assert np.isfinite(values).all() and (values.numpy() >= 0).all()
    assert np.isfinite(tape.gradient(values, predictions)).all()


@pytest.mark.parametrize("strategy", ["default", "mirrored"])
def test_sequences_of_which_nothing_counts(strategy):
    """A batch that is all padding: the loss is 0, nothing moves, nothing is NaN."""
    with make_strategy(strategy).scope():
        inputs = keras.Input((4,), dtype="int32")
        x = L.Embedding(5, 3, mask_zero=True)(inputs)
        heads = {
            "ids": L.Dense(3, name="ids")(x),
            "bits": L.Dense(2, name="bits")(x),
            "numbers": L.Dense(1, name="numbers")(x),
        }
        given = {"ids": losses.Poly1(), "bits": losses.BinaryFocal(), "numbers": losses.PseudoHuber()}
        trainer = Trainer(keras.Model(inputs, heads), given, (), SGD(0.5))
    x = np.array([[1, 2, 0, 0], [3, 0, 0, 0], [4, 4, 1, 2], [1, 0, 0, 0]], np.int32)
    y = {"ids": x % 3, "bits": np.stack([x % 2, x // 2 % 2], -1).astype(np.float32), "numbers": x[..., None] / 4}
    data = tf.data.Dataset.from_tensor_slices(
        (np.concatenate([x, 0 * x]), tf.nest.map_structure(lambda v: np.concatenate([v, v]), y))
    )
    iterator = iter(trainer.distribute(data.batch(4)))
    some = trainer.train(iterator, 1)
    before = [v.numpy() for v in trainer.variables.values()]
    none = trainer.train(iterator, 1)
    assert all(some[f"losses/{name}"] > 0 for name in y) and none["skipped_steps"] == 0
    assert [none[f"losses/{name}"] for name in y] == [0, 0, 0] and none["loss"] == 0
    for v, old in zip(trainer.variables.values(), before):
        np.testing.assert_array_equal(v.numpy(), old)


@pytest.mark.parametrize("strategy", ["default", "mirrored"])
def test_a_batch_that_turns_out_empty_is_worth_nothing(strategy):
    """The first batch is looked at; a later one of no example moves nothing, and its losses are 0."""
    names = ALL if strategy == "default" else ["Poly1", "SoftDice"]
    trainer = trainer_of(names, strategy, compile="eager")
    iterator = iter(trainer.distribute(_dataset(names, 6, 0)))
    trainer.train(iterator, 1)
    before = [v.numpy() for v in trainer.variables.values()]
    none = trainer.train(iterator, 1)
    assert none["loss"] == 0 and none["skipped_steps"] == 0
    for v, old in zip(trainer.variables.values(), before):
        np.testing.assert_array_equal(v.numpy(), old)


# ---- labels that cannot be meant -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TAKES_IDS)
@pytest.mark.parametrize("wrong", [-1, 4])
def test_an_id_that_does_not_exist_is_found_on_the_first_batch(name, wrong):
    loss, _, shape = CASES[name]
    trainer = Trainer(model_of([name]), loss, compile="eager")
    with pytest.raises(ValueError, match=f"has 4 scores, for the class ids 0 to 3, but the targets hold {wrong}"):
        trainer.distribute(tf.data.Dataset.from_tensors((X, np.array([0, 1, 2, 3, 1, wrong]))))


@pytest.mark.parametrize("name", OF_ZEROS_AND_ONES)
@pytest.mark.parametrize("wrong", [-1.0, 255.0])
def test_a_label_that_is_neither_0_nor_1(name, wrong):
    """It is an error where it can be seen, else NaN in value and gradient, which the guard sees."""
    loss, targets, shape = ALL[name]
    targets = np.array(targets, np.float32)
    targets[4] = wrong
    predictions = tf.constant(RNG.uniform(0.1, 0.9, size=(6, *shape)), tf.float32)
    with pytest.raises(ValueError, match=rf"`(labels|targets)` must be in \[0, 1\], got {wrong:g}\. "):
        loss.call(targets, predictions)

    @tf.function
    def traced(predictions):
        with tf.GradientTape() as tape:
            tape.watch(predictions)
            values = loss.call(targets, predictions)
        return values, tape.gradient(values, predictions)

    values, gradient = traced(predictions)
    assert list(np.isnan(values)) == [i == 4 for i in range(6)]
    assert np.isnan(gradient[4]).any() and np.isfinite(np.delete(gradient, 4, 0)).all()
    trainer = Trainer(model_of([name]), loss, compile="eager")
    with pytest.raises(ValueError, match=f"for labels of 0 and 1, but the targets hold {wrong:g}. Map -1 and 1"):
        trainer.distribute(tf.data.Dataset.from_tensors((X, targets)))


@pytest.mark.parametrize(
    "loss", [keras.losses.BinaryCrossentropy(), "binary_crossentropy", keras.losses.BinaryFocalCrossentropy()]
)
def test_keras_own_binary_losses_are_looked_at_too(loss):
    trainer = Trainer(keras.Sequential([keras.Input((3,)), L.Dense(1, "sigmoid")]), loss, compile="eager")
    with pytest.raises(ValueError, match="targets hold -1"):
        trainer.distribute(tf.data.Dataset.from_tensors((X, np.sign(X[:, :1]))))


def first_loss(model, loss, *batch):
    """The loss of the first step, after the look at the batch."""
    trainer = Trainer(model, loss, (), SGD(0.0), compile="eager")
    return train(trainer, tf.data.Dataset.from_tensors(batch), 1)["loss"]


@pytest.mark.parametrize(
    "loss",
    [
        keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1),
        losses.WeightedCrossentropy([1, 1, 1, 1], ignore_class=-1),
    ],
    ids=lambda loss: loss.name,
)
def test_an_ignored_id_is_no_wrong_one(loss):
    model, ids = keras.Sequential([keras.Input((3,)), L.Dense(4)]), np.array([0, 1, -1, 3, -1, 0])
    want = -np.mean(tf.nn.log_softmax(model(X[ids >= 0])).numpy()[range(4), ids[ids >= 0]])
    assert first_loss(model, loss, X, ids) == pytest.approx(want, rel=1e-5)
    with pytest.raises(ValueError, match="targets hold -2.*or a loss with `ignore_class`"):
        first_loss(model, loss, X, np.where(ids < 0, -2, ids))


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_a_label_without_weight_may_be_any(shape):
    """Keras' binary losses are finite for it; ours, NaN whatever the weight, go on to refuse it."""
    labels, weights = np.array([0, 1, -1, 1, 255, 0], np.float32)[:, None], np.array([1, 1, 0, 1, 0, 1], np.float32)
    model = keras.Sequential([keras.Input((3,)), L.Dense(1)])
    z = model(X).numpy()
    want = np.mean(weights * (np.logaddexp(0, z) - labels * z)[:, 0])
    batch = (X, labels, weights.reshape(shape))
    assert first_loss(model, keras.losses.BinaryCrossentropy(from_logits=True), *batch) == pytest.approx(want, rel=1e-5)
    for loss, counts in ((keras.losses.BinaryCrossentropy(from_logits=True), 1.0), (losses.BinaryFocal(), 0.0)):
        with pytest.raises(ValueError, match="targets hold -1.*use label 0 and weight 0"):
            first_loss(model, loss, X, labels, np.maximum(weights, counts))


def test_a_label_under_the_mask_may_be_any():
    x, labels = np.ones([2, 3, 1], np.float32), np.array([[1, 0, -1], [0, -1, -1]], np.float32)[..., None]
    x[labels < 0] = 0
    model = keras.Sequential([keras.Input((3, 1)), L.Masking(), L.Dense(1)])
    z = model(x).numpy()
    want = np.mean((np.logaddexp(0, z) - labels * z)[labels >= 0])
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    assert first_loss(model, loss, x, labels) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("name", OVERLAPS)
def test_logits_where_probabilities_are_meant(name):
    with pytest.raises(ValueError, match=r"`probabilities` must be in \[0, 1\], got 1\.5\. Apply a sigmoid or softmax"):
        OVERLAPS[name][0].call(MAPS, 3 * MAPS - 1.5)


@pytest.mark.parametrize("name", [name for name in CASES if name not in WITHOUT_TARGETS])
def test_targets_of_a_wrong_shape_are_refused_by_the_trainer(name):
    """[B] and [B, 1] go together (contract_test.py); what would make [B, B] of them does not."""
    loss, targets, _ = CASES[name]
    trainer = Trainer(model_of([name]), loss, compile="eager")
    with pytest.raises(ValueError, match=r"shape.*(Give|Reshape)"):
        trainer.build(tf.data.Dataset.from_tensors((X, np.stack([targets] * 5, 1))).element_spec)


@pytest.mark.parametrize(
    "loss",
    [
        lambda: losses.WeightedCrossentropy([1.0, 2.0, 3.0]),
        lambda: losses.CostSensitive(np.ones([3, 3])),
        lambda: losses.LDAM([1, 2, 3]),
        lambda: losses.CategoricalFocal(alpha=[1.0, 2.0, 3.0]),
        lambda: losses.BinaryFocal(alpha=[0.1, 0.2, 0.3]),
        lambda: losses.Pinball([0.1, 0.5, 0.9]),
    ],
)
def test_one_number_per_class_means_each_class(loss):
    targets = np.zeros([6, 4] if isinstance(loss(), losses.BinaryFocal) else [6], np.float32)
    trainer = Trainer(keras.Sequential([keras.Input((3,)), L.Dense(4)]), loss(), compile="eager")
    with pytest.raises(ValueError, match="3 numbers for|is 3 x 3 for 4 classes|do not fit 3 quantiles"):
        trainer.build(tf.data.Dataset.from_tensors((X, targets)).element_spec)


# ---- probabilities where logits are meant --------------------------------------------------------------------------

OF_LOGITS = [loss for loss, *_ in (CASES[name] for name in [*TAKES_IDS, "BinaryFocal", "Asymmetric"])] + [
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    keras.losses.BinaryCrossentropy(from_logits=True),
]


def _ends_in(activation, units, *after):
    return keras.Sequential([keras.Input((3,)), L.Dense(units, activation), *after])


@pytest.mark.parametrize("loss", OF_LOGITS, ids=lambda loss: loss.name)
def test_a_softmax_before_a_loss_of_logits_is_refused(loss):
    units = 1 if "binary" in loss.name or loss.name == "asymmetric" else 4
    activation = "sigmoid" if units == 1 else "softmax"
    spec = tf.data.Dataset.from_tensors((X, np.zeros(6, np.float32))).element_spec
    message = f"Output 'main' ends in a {activation}, but its loss '{loss.name}' takes logits .* Remove the activation"
    with pytest.raises(ValueError, match=message):
        Trainer(_ends_in(activation, units), loss, compile="eager").build(spec)
    Trainer(_ends_in(None, units), loss, compile="eager").build(spec)


def test_a_softmax_is_found_behind_a_cast_and_left_alone_where_it_is_right():
    spec = tf.data.Dataset.from_tensors((X, np.zeros(6, np.float32))).element_spec
    cast = L.Identity(dtype="float32")
    with pytest.raises(ValueError, match="ends in a softmax"):
        half = keras.Sequential(
            [keras.Input((3,)), L.Dense(4, dtype="mixed_float16"), L.Softmax(dtype="mixed_float16"), cast]
        )
        Trainer(half, losses.Poly1(), compile="eager").build(spec)
    for model, loss in (
        (_ends_in("softmax", 4), losses.WeightedCrossentropy([1, 1, 1, 1], from_logits=False)),
        (_ends_in("softmax", 4), "sparse_categorical_crossentropy"),
        (_ends_in("softmax", 4, L.Dense(4)), losses.Poly1()),  # inside a model it is nobody's business
        (_ends_in("sigmoid", 1), losses.PseudoHuber()),
    ):
        Trainer(model, loss, compile="eager").build(spec)
