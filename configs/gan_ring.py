"""A GAN on eight Gaussians in a ring: two losses, two optimizers, no labels."""

import keras
import numpy as np
import tensorflow as tf

from trainer import Trainer, configurable, data

MODES, RADIUS, DEVIATION = 8, 2.0, 0.05
CLOSE = 0.2  # a sample nearer than this to the centre of a mode belongs to the mode
_ANGLES = 2 * np.pi * np.arange(MODES) / MODES
CENTRES = (RADIUS * np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1)).astype("float32")  # [MODES, 2]


class Ring(data.Source):
    """Points of the ring, and noise for the generator, drawn for each step from (seed, step).

    Noise that comes with the batch needs no state: a resumed run draws the same values as an unstopped one, and so
    does a run on two replicas.
    """

    def __init__(self, batch_size, latent, seed, steps=None):
        self.batch_size, self.infinite, self.cardinality = batch_size, steps is None, steps
        self._latent, self._seed = latent, seed

    def batches(self, start=0, chunk=None):
        """See `Source.batches`."""
        steps = tf.data.Dataset.range(start, np.iinfo(np.int64).max if self.infinite else self.cardinality)
        drawn = steps.map(self._draw, num_parallel_calls=2, deterministic=True)
        return drawn.batch(chunk) if chunk else drawn

    def _draw(self, step):
        seeds = tf.random.split(tf.random.fold_in([self._seed, 0], step), 3)
        mode = tf.random.stateless_uniform([self.batch_size], seeds[0], maxval=MODES, dtype=tf.int32)
        spread = DEVIATION * tf.random.stateless_normal([self.batch_size, 2], seeds[1])
        noise = tf.random.stateless_normal([self.batch_size, self._latent], seeds[2])
        return {"points": tf.gather(CENTRES, mode) + spread, "noise": noise}


@configurable
def train_data(batch_size=256, latent=8, seed=0):
    """Endless batches of new points."""
    return Ring(batch_size, latent, seed)


@configurable
def eval_data(examples=4_000, latent=8, seed=1):
    """One batch, always the same."""
    return Ring(examples, latent, seed, steps=1)


@configurable
def perceptron(outputs, activation, units=(128, 128)):
    """A multilayer perceptron, for generator or discriminator."""
    layers = [keras.layers.Dense(width, activation=activation) for width in units]
    return keras.Sequential([*layers, keras.layers.Dense(outputs, name="output")])


class GANTrainer(Trainer):
    """Two losses, two optimizers, one step (Goodfellow et al. 2014, arXiv:1406.2661, the non-saturating form).

    Groups select losses by name, and a group's gradient is taken with respect to its own variables only, so
    nothing needs stop_gradient or freezing.
    """

    def __init__(self, generator, discriminator, **kwargs):
        super().__init__(**kwargs)
        self.generator, self.discriminator = generator, discriminator
        self.coverage = Coverage()

    def compute_losses(self, batch, training):
        """Returns both losses per example, and the generated points; traced, per replica."""
        fake = self.generator(batch["noise"], training=training)  # [B, 2]
        on_real = self.discriminator(batch["points"], training=training)[:, 0]  # logits, [B]
        on_fake = self.discriminator(fake, training=training)[:, 0]
        return {
            "discriminator": tf.nn.softplus(-on_real) + tf.nn.softplus(on_fake),
            "generator": tf.nn.softplus(-on_fake),
        }, fake

    def update_metrics(self, batch, outputs):
        """Counts the modes; traced, per replica."""
        self.coverage.update_state(outputs)

    def predict_step(self, batch):
        """Returns generated points; traced, per replica."""
        return self.generator(batch["noise"], training=False)


class Coverage(keras.metrics.Metric):
    """Of generated points: the number of modes with at least 1 % of them, and the fraction close to any mode."""

    def __init__(self, name="coverage"):
        super().__init__(name=name)
        self.points = self.add_weight(name="points", shape=(MODES + 1,), initializer="zeros")  # the last: close to none

    def update_state(self, points):
        """Adds points, float32 [B, 2]."""
        distances = tf.norm(points[:, None] - CENTRES, axis=-1)  # [B, MODES]
        nearest = tf.argmin(distances, 1)
        mode = tf.where(tf.reduce_min(distances, 1) < CLOSE, nearest, MODES)
        self.points.assign_add(tf.math.bincount(tf.cast(mode, tf.int32), minlength=MODES + 1, dtype=tf.float32))

    def result(self):
        """Returns the tags `metrics/modes` and `metrics/close`."""
        shares = self.points / tf.maximum(tf.reduce_sum(self.points), 1)
        modes = tf.reduce_sum(tf.cast(shares[:MODES] >= 0.01, tf.float32))
        return {"modes": modes, "close": tf.reduce_sum(shares[:MODES])}


@configurable
class DrawPoints:
    """A hook: draws generated points over real ones, as an image in TensorBoard.

    Args:
      every: int, steps between two images.
      examples: int, points of each kind.
    """

    def __init__(self, every=500, examples=1_000):
        self.every, self.source = every, eval_data(examples)

    def __call__(self, trainer, step, metrics):
        """Draws if due; eager, after each loop."""
        if step % self.every == 0:
            real = next(iter(self.source.batches()))["points"].numpy()
            trainer.summaries.image("points", draw(real, trainer.predict(self.source))[None])


def draw(real, fake):
    """Returns an image, uint8 [height, width, 4], of points [n, 2]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.add_subplot(aspect="equal", xlim=(-3, 3), ylim=(-3, 3))
    axes.scatter(*real.T, s=2, color="silver", label="real")
    axes.scatter(*fake.T, s=2, color="tab:red", label="generated")
    axes.legend(loc="upper right", markerscale=4)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())
