"""Unpaired translation of filled shapes into hollow ones, and back (CycleGAN)."""

import keras
import numpy as np
import tensorflow as tf

from trainer import Trainer, all_gather, configurable, data

SIZE = 12


@configurable
def shapes(count, seed=0, hollow=False):
    """Returns random discs and squares, float32 [count, SIZE, SIZE, 1] in [-1, 1]; those of one seed are a pair."""
    random = np.random.default_rng(seed)
    centers, radii = random.uniform(3.5, SIZE - 3.5, [count, 2, 1, 1]), random.uniform(2.0, 3.5, [count, 1, 1])
    places = np.arange(SIZE) + 0.5
    down, right = np.abs(places[:, None] - centers[:, 0]), np.abs(places - centers[:, 1])
    depth = radii - np.where(random.integers(2, size=[count, 1, 1]), np.hypot(down, right), np.maximum(down, right))
    images = 1.6 * np.clip(np.minimum(depth, 1.2 - depth) if hollow else depth, -0.5, 0.5)
    return images[..., None].astype("float32")


class Pairs(data.Source):
    """Batches of {"one", "two"}: unpaired images of the domains; {"slot", "swap"}, [B]: see CycleTrainer.

    Args:
      one, two: sources of images.
      pool: int, images in a pool; the slots of a batch differ.
      seed: int, of slots and swaps, which depend on the step alone.
    """

    infinite = True

    def __init__(self, one, two, pool, seed):
        self._sources, self.batch_size, self._pool, self._seed = {"one": one, "two": two}, one.batch_size, pool, seed

    def batches(self, start=0, chunk=None):
        """See `Source.batches`."""
        images = tf.data.Dataset.zip({name: source.batches(start) for name, source in self._sources.items()})

        def with_slots(images, step):
            seeds = tf.random.split(tf.random.fold_in([self._seed, 0], step), 2)
            slots = tf.argsort(tf.random.stateless_uniform([self._pool], seeds[0]))[: self.batch_size]
            return {**images, "slot": slots, "swap": tf.random.stateless_uniform([self.batch_size], seeds[1]) < 0.5}

        steps = tf.data.Dataset.range(start, np.iinfo(np.int64).max)
        pairs = tf.data.Dataset.zip(images, steps).map(with_slots)
        return pairs.batch(chunk) if chunk else pairs


@configurable
def train_data(batch_size=16, examples=2_000, pool=50, seed=0):
    """Endless batches of both domains, each in its own order."""
    one, two = (
        data.from_arrays(shapes(examples, seed=hollow, hollow=hollow), batch_size, seed=seed + hollow)
        for hollow in (False, True)
    )
    return Pairs(one, two, pool, seed)


@configurable
def eval_data(examples=200):
    """Other images, in pairs, each once."""
    one, two = (shapes(examples, seed=2, hollow=hollow) for hollow in (False, True))
    numbers = np.arange(examples, dtype="int32")
    batch = {"one": one, "two": two, "slot": 0 * numbers, "swap": numbers < 0}
    return data.from_arrays(batch, examples, repeat=False)


@configurable
def generator(filters=16):
    """Returns a convolutional network of images to images of the other domain."""
    conv = keras.layers.Conv2D
    layers = [conv(filters, 5, padding="same", activation="leaky_relu") for _ in range(2)]
    return keras.Sequential([keras.Input((SIZE, SIZE, 1)), *layers, conv(1, 3, padding="same", activation="tanh")])


@configurable
def discriminator(filters=16):
    """Returns a convolutional network of images to scores of their patches, near 1 for real ones."""
    conv = keras.layers.Conv2D
    layers = [conv(filters * n, 3, strides=2, padding="same", activation="leaky_relu") for n in (1, 2)]
    return keras.Sequential([keras.Input((SIZE, SIZE, 1)), *layers, conv(1, 3, padding="same")])


class CycleTrainer(Trainer):
    """Four networks: a generator into each domain and its discriminator (Zhu et al. 2017, 1703.10593).

    A discriminator sees, for the half of the examples with `swap`, the image in a slot of a pool, which the new fake
    replaces after the update (Shrivastava et al. 2017, 1612.07828, section 2.3).

    Args:
      to_two, to_one: generators.
      judge_two, judge_one: discriminators.
      pool: int, images in each pool, which begin as images of the other domain.
      cycle, identity: numbers, weights of these losses.
    """

    def __init__(self, to_two, to_one, judge_two, judge_one, pool=50, cycle=5.0, identity=1.0, **kwargs):
        super().__init__(**kwargs)
        self.to_two, self.to_one, self.judge_two, self.judge_one = to_two, to_one, judge_two, judge_one
        self.cycle, self.identity = cycle, identity
        self.pool_two = keras.Variable(shapes(pool), trainable=False, name="pool_two")
        self.pool_one = keras.Variable(shapes(pool, hollow=True), trainable=False, name="pool_one")

    def compute_losses(self, batch, training):
        """Returns the losses, [B, ...], and the fakes of both domains; traced, per replica."""
        one, two = batch["one"], batch["two"]
        fake_two, fake_one = self.to_two(one), self.to_one(two)
        cycled = tf.abs(self.to_one(fake_two) - one) + tf.abs(self.to_two(fake_one) - two)
        same = tf.abs(self.to_two(two) - two) + tf.abs(self.to_one(one) - one)
        losses = {
            "fool": tf.square(self.judge_two(fake_two) - 1) + tf.square(self.judge_one(fake_one) - 1),
            "cycle": self.cycle * cycled,
            "identity": self.identity * same,
            "judge": self._judge(self.judge_two, two, self._seen(fake_two, self.pool_two, batch))
            + self._judge(self.judge_one, one, self._seen(fake_one, self.pool_one, batch)),
        }
        if not training:  # of pairs
            losses["translation"] = (tf.abs(fake_two - two) + tf.abs(fake_one - one)) / 2
        return losses, (fake_two, fake_one)

    def _judge(self, judge, real, fake):
        return (tf.square(judge(real) - 1) + tf.square(judge(tf.stop_gradient(fake)))) / 2

    def _seen(self, fakes, pool, batch):
        return tf.where(batch["swap"][:, None, None, None], tf.gather(pool.value, batch["slot"]), fakes)

    def after_update(self, batch, outputs):
        """Puts the fakes that were swapped into the pools; traced, per replica, the same on all."""
        slots, swapped, *fakes = all_gather((batch["slot"], batch["swap"], *outputs))
        for pool, images in zip((self.pool_two, self.pool_one), fakes):
            images = tf.where(swapped[:, None, None, None], images, tf.gather(pool.value, slots))
            pool.assign(tf.tensor_scatter_nd_update(pool.value, slots[:, None], images))

    def predict_step(self, batch):
        """Returns the translations in both directions; traced, per replica."""
        return self.to_two(batch["one"]), self.to_one(batch["two"])


@configurable
class DrawTranslations:
    """A hook: images above their translations, as a picture in TensorBoard every `every` steps."""

    def __init__(self, every=500):
        self.every = every

    def __call__(self, trainer, step, metrics):
        """Draws where it is due; eager, after each loop."""
        if step % self.every == 0:
            trainer.summaries.image("translations", draw(trainer)[None])


def draw(trainer, columns=12, scale=4):
    """Returns a picture, uint8 [height, width, 1]: images of both domains, each row above its translations."""
    one, two = (shapes(columns, seed=2, hollow=hollow) for hollow in (False, True))
    rows = one, trainer.to_two(one).numpy(), two, trainer.to_one(two).numpy()
    picture = np.concatenate([np.concatenate(row, 1) for row in rows])
    return (127.5 * (picture + 1)).clip(0, 255).repeat(scale, 0).repeat(scale, 1).astype("uint8")
