"""Groups: every trainable variable in exactly one of them (O1), slots under names, one sum over replicas."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optimizers import OptimizerGroup
from optimizers.groups import as_groups, assign
from optimizers.transforms import clip_by_norm, unique_rows
from trainer.replicas.distribution import make_strategy

SGD = keras.optimizers.SGD


class Stub:
    """A group as `assign` sees it: making an optimizer for each would cost the property test its speed."""

    def __init__(self, patterns, name):
        self.patterns, self.name = patterns, name


def _assign(patterns, frozen=(), names=("encoder/kernel", "encoder/bias", "head/kernel", "head/bias")):
    groups = [Stub(pattern, f"g{i}") for i, pattern in enumerate(patterns)]
    split, frozen_names = assign(groups, frozen, {name: object() for name in names})
    return [list(split[f"g{i}"]) for i in range(len(groups))], frozen_names


def test_patterns_match_whole_names():
    assert _assign(["encoder/.*", "head/.*"])[0] == [["encoder/kernel", "encoder/bias"], ["head/kernel", "head/bias"]]
    with pytest.raises(ValueError, match="matches no trainable variable"):
        _assign(["encoder", ".*"])


def test_a_list_of_patterns_and_a_callable():
    split, _ = _assign([[".*/kernel"], lambda name: name.endswith("bias")])
    assert split == [["encoder/kernel", "head/kernel"], ["encoder/bias", "head/bias"]]


def test_patterns_of_one_group_may_overlap():
    assert _assign([[".*", "head/.*"]])[0] == [["encoder/kernel", "encoder/bias", "head/kernel", "head/bias"]]


def test_frozen_patterns_win_and_are_returned_with_the_names():
    split, frozen = _assign([".*"], ["encoder/.*"])
    assert split == [["head/kernel", "head/bias"]]
    assert frozen == {"encoder/kernel": "encoder/.*", "encoder/bias": "encoder/.*"}


def test_strays_doubles_and_patterns_without_a_match_are_one_error_with_the_nearest_name():
    with pytest.raises(ValueError) as raised:
        _assign(["encoder/.*", "encoder/kernel", "head/kernal"], ["encodr/bias"])
    text = str(raised.value)
    assert re.search(r"no group.*\n +head/kernel\n +head/bias", text)
    assert "encoder/kernel belongs to 2 groups: g0, g1" in text
    assert "'head/kernal' matches no trainable variable. Did you mean 'head/kernel'?" in text
    assert "'encodr/bias' matches no trainable variable. Did you mean 'encoder/bias'?" in text


def test_a_group_whose_variables_are_all_frozen_is_an_error():
    with pytest.raises(ValueError, match="'g0' has no variables"):
        _assign(["encoder/.*", "head/.*"], ["encoder/.*"])


def test_a_pattern_that_is_no_regular_expression_is_an_error():
    with pytest.raises(ValueError, match=r"regular expression, got '\*/kernel'"):
        _assign(["*/kernel"])


_ATOMS = st.sampled_from(["a", "b", "c", "[ab]", ".", ".*", "a|b", "c?", "z"])
_PATTERNS = st.lists(_ATOMS, min_size=1, max_size=3).map("/".join)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.sets(st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join), min_size=1, max_size=8),
    groups=st.lists(st.lists(_PATTERNS, min_size=1, max_size=2), min_size=1, max_size=3),
    frozen=st.lists(_PATTERNS, max_size=2),
)
def test_any_patterns_give_each_variable_one_place_or_an_error(names, groups, frozen):
    names = sorted(names)

    def hits(patterns):
        return {name for name in names if any(re.fullmatch(pattern, name) for pattern in patterns)}

    frozen_names = hits(frozen)
    owners = {name: [i for i, patterns in enumerate(groups) if name in hits(patterns)] for name in names}
    every_pattern_matches = all(hits([pattern]) for patterns in [*groups, frozen] for pattern in patterns)
    once = all(len(own) == 1 for name, own in owners.items() if name not in frozen_names)
    none_empty = all(hits(patterns) - frozen_names for patterns in groups)
    try:
        split, returned = _assign(groups, frozen, names)
    except ValueError:
        assert not (every_pattern_matches and once and none_empty)
        return
    assert every_pattern_matches and once and none_empty
    placed = [name for part in split for name in part] + list(returned)
    assert sorted(placed) == names
    assert set(returned) == frozen_names
    for i, part in enumerate(split):
        assert all(owners[name] == [i] for name in part)


# ---- how groups are made ------------------------------------------------------------------------------------------


def test_one_optimizer_is_the_case_of_one_group_called_main():
    (group,) = as_groups(SGD(0.1))
    assert group.name == "main" and group.always_due
    (group,) = as_groups("adam")
    assert isinstance(group.optimizer, keras.optimizers.Adam)


def test_groups_without_a_name_are_numbered():
    named = as_groups([OptimizerGroup("a"), OptimizerGroup("b", name="mine"), OptimizerGroup("c")])
    assert [group.name for group in named] == ["group_0", "mine", "group_2"]


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: as_groups([SGD(0.1), SGD(0.1)]), "item 0 is"),
        (lambda: as_groups([OptimizerGroup("a", name="x"), OptimizerGroup("b", name="x")]), "two groups of one name"),
        (
            lambda: as_groups([OptimizerGroup("a", optimizer=(o := SGD(0.1))), OptimizerGroup("b", optimizer=o)]),
            "one optimizer object",
        ),
        (lambda: OptimizerGroup(every=0), "`every` must be a whole number >= 1, got 0"),
        (lambda: OptimizerGroup(every=1.5), "`every` must be a whole number >= 1, got 1.5"),
        (lambda: OptimizerGroup(every="a"), "`every` must be a whole number >= 1, got 'a'"),
        (lambda: OptimizerGroup(offset="a"), "`offset` must be a whole number, got 'a'"),
        (lambda: OptimizerGroup(start=None), "`start` must be a whole number >= 0, got None"),
        (lambda: OptimizerGroup(stop="a"), "`stop` must be a whole number >= 1, got 'a'"),
        (lambda: OptimizerGroup(sequential="a"), "`sequential` must be True or False, got 'a'"),
        (lambda: OptimizerGroup(name=3), "`name` must be a str, got 3"),
        (lambda: OptimizerGroup(3), "`variables` must be a regular expression"),
        (lambda: OptimizerGroup(losses=3), "`losses` must be names of losses"),
        (lambda: OptimizerGroup(losses={"main": "a"}), "`losses` must be names of losses"),
        (lambda: OptimizerGroup(transforms=3), "`transforms` must hold callables"),
        (lambda: OptimizerGroup(transforms=clip_by_norm), r"in gin @clip_by_norm\(\)"),
        (lambda: OptimizerGroup(start=3, stop=3), "start=3, stop=3"),
        (lambda: OptimizerGroup(start=-1), "`start` must be a whole number >= 0, got -1"),
        (lambda: OptimizerGroup(optimizer=SGD), "class SGD"),
        (lambda: OptimizerGroup(optimizer=SGD(0.1, gradient_accumulation_steps=2)), "micro_batches"),
        (lambda: OptimizerGroup(optimizer=SGD(0.1, use_ema=True)), "use_ema"),
        (lambda: OptimizerGroup(optimizer=3), "must be a Keras optimizer"),
    ],
)
def test_mistakes_are_reported(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_keras_own_clipping_becomes_transforms():
    group = OptimizerGroup(optimizer=SGD(0.1, clipvalue=2.0))
    assert [t.clip_value for t in group.transforms] == [2.0] and group.optimizer.clipvalue is None
    group = OptimizerGroup(optimizer=SGD(0.1, clipnorm=3.0))
    assert [t.clip_norm for t in group.transforms] == [3.0] and group.optimizer.clipnorm is None
    group = OptimizerGroup(optimizer=SGD(0.1, global_clipnorm=4.0), transforms=[lambda g, v, n: g])
    assert group.transforms[0].clip_norm == 4.0 and len(group.transforms) == 2
    assert (
        len(group.notes) == 1
        and "global_clipnorm=4.0 of SGD became the transform clip_by_global_norm" in group.notes[0]
    )


def test_a_loss_scale_optimizer_is_unwrapped_and_the_group_says_so():
    inner = SGD(0.1, clipnorm=1.0)
    group = OptimizerGroup(optimizer=keras.optimizers.LossScaleOptimizer(inner))
    assert group.optimizer is inner
    assert "LossScaleOptimizer is unwrapped" in group.notes[0] and "clipnorm=1.0 of SGD" in group.notes[1]
    assert OptimizerGroup(optimizer=SGD(0.1)).notes == []


def _two_adam_steps(rows, values):
    """The second row of a [3, 1] embedding after two steps of Keras' Adam with a gradient of these `rows`."""
    v, optimizer = keras.Variable(np.zeros([3, 1], np.float32)), keras.optimizers.Adam(0.1)
    optimizer.build([v])
    for extra in (0.0, 1.0):
        gradient = tf.IndexedSlices(
            tf.constant([[x + extra / len(rows)] for x in values]), tf.constant(rows), tf.constant([3, 1])
        )
        yield v, optimizer, gradient


def test_keras_squares_the_parts_of_a_repeated_row_one_by_one_and_ours_their_sum():
    """Closed form: gradients 3 and 4 in Adam, of which each is the sum of two parts."""
    m = v = w = 0.0
    for t, g in ((1, 3.0), (2, 4.0)):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w -= 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-7)
    for unique, right in ((lambda g: g, False), (unique_rows, True)):
        for variable, optimizer, gradient in _two_adam_steps([1, 1], [1.0, 2.0]):
            optimizer.apply([unique(gradient)], [variable])
        assert (abs(float(variable.numpy()[1, 0]) - w) < 1e-5) == right


@pytest.mark.parametrize(
    "rule, steps",
    [
        ({}, range(12)),
        ({"every": 4, "offset": 2}, [2, 6, 10]),
        ({"start": 3, "stop": 5}, [3, 4]),
        ({"every": 5, "start": 1}, [5, 10]),
    ],
)
def test_due(rule, steps):
    group = OptimizerGroup(optimizer=SGD(0.1), **rule)
    due = [step for step in range(12) if bool(group.due(tf.constant(step, tf.int64)))]
    assert due == list(steps)
    assert group.always_due == (rule == {})


OPTIMIZERS = [
    "SGD",
    "Adam",
    "AdamW",
    "RMSprop",
    "Adagrad",
    "Adadelta",
    "Adamax",
    "Nadam",
    "Ftrl",
    "Lion",
    "Lamb",
    "Adafactor",
    "Muon",
]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_slot_of_every_keras_optimizer_has_a_name_of_its_own(name):
    arguments = {"momentum": 0.9} if name == "SGD" else {}
    kernel, bias = keras.Variable(tf.ones([3, 2]), name="kernel"), keras.Variable(tf.ones([2]), name="bias")
    group = OptimizerGroup(optimizer=getattr(keras.optimizers, name)(0.01, **arguments))
    group.build({"a/kernel": kernel, "b/bias": bias})
    held = {id(v) for v in group.optimizer.variables if v is not kernel and v is not bias}
    assert {id(v) for v in group.slots.values()} == held
    per_variable = [slot for slot in group.slots if "/" in slot]
    assert per_variable and all(slot.startswith(("a/kernel/", "b/bias/")) for slot in per_variable)
    assert {"iteration", "learning_rate"} <= set(group.slots)
    assert group.learning_rate == pytest.approx(0.01)


def test_a_schedule_ticks_on_the_groups_own_updates():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [1.0, 10.0])
    v = keras.Variable(0.0)
    group = OptimizerGroup(optimizer=SGD(schedule))
    group.build({"v": v})
    assert group.learning_rate is None
    seen = []
    for _ in range(4):
        group.apply([tf.constant(1.0)], {})
        seen.append(float(v.numpy()))
    assert seen == [-1.0, -2.0, -12.0, -22.0]  # the boundary itself still has the first value


# ---- one sum over replicas: what skip_gradient_reduction rests on --------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_group_applies_gradients_that_are_summed_already_as_they_are(name):
    """Notices when Keras' private `_all_reduce_sum_gradients` goes or is no longer called."""
    strategy = make_strategy("mirrored")
    value, gradient = np.array([[1.0, -2.0], [0.5, 3.0]], np.float32), np.array([[3.0, 0.25], [1.0, -2.0]], np.float32)

    def make():
        v = keras.Variable(value, name="v")
        group = OptimizerGroup(optimizer=getattr(keras.optimizers, name)(0.1))
        group.build({"v": v})
        return v, group

    with strategy.scope():
        v, group = make()
    alone, reference = make()

    @tf.function
    def step():
        def replica():
            # unequal on the replicas before the sum, equal after it
            index = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.float32)
            own = (0.25 + 0.5 * index) * gradient
            group.apply([tf.distribute.get_replica_context().all_reduce("SUM", own)], {})

        strategy.run(replica)

    for _ in range(2):
        step()
        reference.apply([tf.constant(gradient)], {})
    copies = [np.array(x) for x in strategy.experimental_local_results(v.value)]
    np.testing.assert_array_equal(copies[0], copies[1])
    np.testing.assert_allclose(copies[0], alone.numpy(), rtol=1e-6)
    assert int(group.optimizer.iterations.numpy()) == 2


def test_without_the_private_method_a_group_says_so():
    class Other(keras.optimizers.SGD):
        @property
        def _all_reduce_sum_gradients(self):
            raise AttributeError("gone")

    with pytest.raises(RuntimeError, match="_all_reduce_sum_gradients"):
        OptimizerGroup(optimizer=Other(0.1)).build({"v": keras.Variable(0.0)})


def test_keras_itself_still_sums_once_more():
    """The day that this fails, skip_gradient_reduction can go."""
    strategy = make_strategy("mirrored")
    with strategy.scope():
        v, optimizer = keras.Variable(0.0), SGD(1.0)
        optimizer.build([v])

    @tf.function
    def step():
        def replica():
            gradient = tf.distribute.get_replica_context().all_reduce("SUM", tf.constant(0.5))
            optimizer.apply([gradient], [v])

        strategy.run(replica)

    step()
    assert float(v.numpy()) == -2.0  # right: -1.0
