"""Defects of Keras and TensorFlow that we work around. When one of these tests fails, a workaround can go.

That ours is right stands in the test that each docstring names.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.replicas.distribution import make_strategy, replica_values

L, SGD = keras.layers, keras.optimizers.SGD


def _on_two(function):
    """Runs `function(replica index)` on both replicas inside a tf.function; returns what each returned."""
    strategy = make_strategy("mirrored")

    @tf.function
    def step():
        return strategy.run(lambda: function(tf.distribute.get_replica_context().replica_id_in_sync_group))

    return replica_values(strategy, step())


def _copies(variable):
    return [np.array(copy) for copy in replica_values(make_strategy("mirrored"), variable.value)]


def test_dropout_drops_the_same_on_every_replica():
    """replicas_test.py: test_dropout_differs_between_replicas."""
    with make_strategy("mirrored").scope():
        layer = L.Dropout(0.5)
        layer.build([1, 64])
    first, second = _on_two(lambda _: layer(tf.ones([1, 64]), training=True))
    np.testing.assert_array_equal(first, second)


def test_moving_statistics_drift_apart():
    """replicas_test.py: test_moving_statistics_are_the_mean_of_all_replicas_for_reads_and_evaluation."""
    with make_strategy("mirrored").scope():
        layer = L.BatchNormalization(momentum=0.5)
        layer.build([None, 1])
    _on_two(lambda i: layer(tf.cast(i, tf.float32) + tf.ones([4, 1]), training=True))
    first, second = _copies(layer.moving_mean)
    assert first == pytest.approx(0.5) and second == pytest.approx(1.0)
    assert layer.moving_mean.numpy() == pytest.approx(0.5)  # right: .75


@pytest.mark.parametrize(
    "argument", [{"gradient_accumulation_steps": 2}, {"use_ema": True, "ema_overwrite_frequency": 2}]
)
def test_accumulation_and_ema_fail_on_two_replicas(argument):
    """groups.py refuses them; replicas_test.py: test_micro_batches_equal_the_whole_batch."""
    with make_strategy("mirrored").scope():
        w, optimizer = keras.Variable(1.0), SGD(0.1, **argument)
        optimizer.build([w])
    with pytest.raises(RuntimeError, match="merge_call"):
        _on_two(lambda i: optimizer.apply([tf.constant(1.0)], [w]))


def test_a_condition_around_apply_fails_in_a_replica():
    """Why the step has two halves, with the decision between them."""
    with make_strategy("mirrored").scope():
        w, optimizer = keras.Variable(1.0), SGD(0.1)
        optimizer.build([w])

    def replica(i):
        def apply():
            optimizer.apply([tf.constant(1.0)], [w])
            return tf.constant(True)

        return tf.cond(tf.equal(i, i), apply, lambda: tf.constant(False))

    with pytest.raises(RuntimeError, match="merge_call|control flow"):
        _on_two(replica)


def test_an_optimizer_made_out_of_scope_counts_every_replica():
    """matrix_test.py: updates of groups are those of steps; `run` builds inside the scope."""
    optimizer = SGD(0.1)
    with make_strategy("mirrored").scope():
        w = keras.Variable(1.0)
    optimizer.build([w])
    _on_two(lambda i: optimizer.apply([tf.constant(1.0)], [w]))
    assert int(optimizer.iterations.numpy()) == 2  # right: 1


def _multi():
    model = keras.Sequential([keras.Input((2,)), L.Dense(2, name="a"), L.Dense(1, name="b")])
    by_pattern = keras.optimizers.OptimizerMap(default_optimizer=keras.optimizers.Adam(0.1))
    by_pattern["no_such_layer/.*"] = keras.optimizers.Adam(0.1)
    multi = keras.optimizers.MultiOptimizer(by_pattern)
    multi.build(model.trainable_variables)
    multi.apply([tf.ones(v.shape) for v in model.trainable_variables], model.trainable_variables)
    return model, multi


def test_a_multi_optimizer_in_a_checkpoint_has_no_slots(tmp_path):
    """checkpoints_test.py: test_everything_that_a_step_depends_on_comes_back_bit_for_bit, for each optimizer."""
    model, multi = _multi()
    path = tf.train.Checkpoint(model=model, optimizer=multi).write(str(tmp_path / "c"))
    saved = {name.split("/")[1] for name, _ in tf.train.list_variables(path) if name.startswith("optimizer/")}
    assert saved == {
        "_iterations",
        "_learning_rate",
        "_trainable_variables",
    }  # right: a momentum and a velocity for each weight


def test_a_multi_optimizer_takes_a_pattern_that_matches_nothing_in_silence():
    """groups_test.py: test_patterns_match_whole_names."""
    _multi()


def test_ftrl_wipes_weights_that_have_no_gradient():
    """wide_deep starts its FTRL weights at zero."""
    w, optimizer = keras.Variable([1.0, 1.0]), keras.optimizers.Ftrl(0.1)
    optimizer.build([w])
    optimizer.apply([tf.constant([0.0, 1.0])], [w])
    assert float(w.numpy()[0]) == 0.0


def test_adafactor_turns_a_matrix_nan_that_has_an_empty_row_and_column():
    """The guard sees gradients, not updates: WORKSPACE.md names it, and matrix_test.py compares it step by step."""
    w, optimizer = keras.Variable(np.ones([3, 3], np.float32)), keras.optimizers.Adafactor(0.1)
    optimizer.build([w])
    gradient = np.zeros([3, 3], np.float32)
    gradient[1, 1] = 1.0
    optimizer.apply([tf.constant(gradient)], [w])
    assert np.isnan(w.numpy()).any()


def test_next_in_a_loop_counts_a_step_too_many():
    """trainer_test.py: test_data_that_ends_early_leaves_global_step_at_the_number_of_batches."""
    steps = tf.Variable(0)

    @tf.function
    def loop(iterator):
        for _ in tf.range(10):
            next(iterator)
            steps.assign_add(1)

    with pytest.raises(tf.errors.OutOfRangeError):
        loop(iter(tf.data.Dataset.range(7)))
    assert int(steps.numpy()) >= 7  # 8 where the counter does not wait for the batch


def test_a_checkpoint_of_the_model_loses_seeds_in_silence(tmp_path):
    """checkpoints_test.py and experiment_test.py: test_the_same_command_resumes_bit_for_bit."""

    make = lambda: keras.Sequential([keras.Input((8,)), L.Dropout(0.5, seed=3)])  # noqa: E731
    model, fresh = make(), make()
    for _ in range(3):
        model(tf.ones([1, 8]), training=True)
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / "c"))
    tf.train.Checkpoint(model=fresh).read(path).assert_existing_objects_matched()
    calls = [int(m.layers[0].seed_generator.state.numpy()[1]) for m in (model, fresh)]
    assert calls[0] > calls[1]  # right: equal


def test_a_layer_made_twice_has_another_path_so_that_paths_are_no_names():
    """variables_test.py: names depend on nothing but the model."""
    make = lambda: keras.Sequential([keras.Input((2,)), L.Dense(1)])  # noqa: E731
    first, second = (make().trainable_variables[0].path for _ in range(2))
    assert first != second


def test_keras_weighs_by_examples_where_a_mean_would_divide_by_weights():
    """The default Trainer does as Keras does; (values, weights) is the weighted mean."""
    loss = keras.losses.MeanSquaredError()(
        tf.zeros([4, 1]), tf.constant([[1.0], [2.0], [9.0], [9.0]]), sample_weight=[1.0, 1.0, 0, 0]
    )
    assert float(loss) == pytest.approx(1.25)  # the weighted mean is 2.5


def test_if_on_a_tensor_fails_inside_a_layer():
    """AutoGraph does not enter Keras layers; the error names tf.cond."""

    class Conditional(L.Layer):
        def call(self, x):
            if tf.reduce_sum(x) > 0:
                return x
            return -x

    layer = Conditional()
    with pytest.raises(Exception, match="symbolic `tf.Tensor`"):
        tf.function(lambda x: layer(x)).get_concrete_function(tf.TensorSpec([2]))
