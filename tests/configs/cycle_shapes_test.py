"""configs/cycle_shapes: four networks, two optimizers, pools of earlier fakes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.configs.plain_loops import assert_like_the_plain_loop, gradients, load_config, run
from tests.runs import read_last_rows, run_config
from trainer import OptimizerGroup

cycle = load_config("cycle_shapes")


def plain(trainer, batches):
    """The loop by hand, the pools row by row, on the networks of `trainer`."""
    to_two, to_one, judge_two, judge_one = trainer.to_two, trainer.to_one, trainer.judge_two, trainer.judge_one
    makers = [v for model in (to_two, to_one) for v in model.trainable_variables]
    judges = [v for model in (judge_two, judge_one) for v in model.trainable_variables]
    optimizers = [keras.optimizers.SGD(0.005), keras.optimizers.SGD(0.005)]
    for optimizer, variables in zip(optimizers, (makers, judges)):
        optimizer.build(variables)
    error, square = keras.losses.MeanAbsoluteError(), keras.losses.MeanSquaredError()

    def step(batch):
        one, two, slots, swap = batch["one"], batch["two"], tf.unstack(batch["slot"]), tf.unstack(batch["swap"])
        with tf.GradientTape() as of_makers, tf.GradientTape() as of_judges:
            fake_two, fake_one = to_two(one), to_one(two)
            fooled_two, fooled_one = judge_two(fake_two), judge_one(fake_one)
            fool = square(tf.ones_like(fooled_two), fooled_two) + square(tf.ones_like(fooled_one), fooled_one)
            cycled = 5 * (error(one, to_one(fake_two)) + error(two, to_two(fake_one)))
            total = fool + cycled + error(two, to_two(two)) + error(one, to_one(one))
            judged = 0.0
            for judge, real, fakes, pool in (
                (judge_two, two, fake_two, trainer.pool_two),
                (judge_one, one, fake_one, trainer.pool_one),
            ):
                seen = [tf.where(swap[i], pool[slots[i]], fakes[i]) for i in range(len(slots))]
                of_real, of_fake = judge(real), judge(tf.stop_gradient(tf.stack(seen)))
                judged += square(tf.ones_like(of_real), of_real) / 2 + square(tf.zeros_like(of_fake), of_fake) / 2
        found = [gradients(of_makers, total, makers), gradients(of_judges, judged, judges)]
        for optimizer, pairs in zip(optimizers, found):
            optimizer.apply_gradients(pairs)
        for pool, fakes in (trainer.pool_two, fake_two), (trainer.pool_one, fake_one):
            rows = tf.unstack(pool.value)
            for place in range(len(rows)):
                for i in range(len(slots)):
                    rows[place] = tf.where(swap[i] & (slots[i] == place), fakes[i], rows[place])
            pool.assign(tf.stack(rows))
        return {"losses/fool": fool, "losses/cycle": cycled, "losses/judge": judged}

    return run(step, batches)


def test_it_is_the_plain_loop_on_one_and_two_replicas_and_resumes():
    """All are updated at once, with the gradients of one forward pass."""

    def make():
        networks = [f(2) for f in (cycle.generator, cycle.generator, cycle.discriminator, cycle.discriminator)]
        groups = [
            OptimizerGroup("to_.*", ["fool", "cycle", "identity"], keras.optimizers.SGD(0.005), name="generators"),
            OptimizerGroup("judge_.*", ["judge"], keras.optimizers.SGD(0.005), name="judges"),
        ]
        return cycle.CycleTrainer(*networks, pool=7, optimizers=groups)

    assert_like_the_plain_loop(make, cycle.train_data(batch_size=5, examples=60, pool=7), plain)


def test_slots_of_a_batch_differ_and_depend_on_the_step_alone():
    source = cycle.train_data(batch_size=16, examples=100, pool=20)
    batches = list(source.batches().take(3))
    assert all(len(set(batch["slot"].numpy())) == 16 for batch in batches)
    for name, value in next(iter(source.batches(2))).items():
        np.testing.assert_array_equal(value, batches[2][name], err_msg=name)


@pytest.mark.slow
def test_it_translates_without_pairs(tmp_path):
    """The two images of a pair are themselves .105 apart."""
    assert read_last_rows(run_config("cycle_shapes", tmp_path))["validation"]["losses/translation"] < 0.06
