"""Denoising diffusion of scikit-learn's digits: a noise schedule, averaged weights, samples from a hook."""

import keras
import numpy as np
import tensorflow as tf

from trainer import Trainer, add_metric, configurable, data


@configurable
def load(held_out=360):
    """Loads the images.

    Returns:
      (train images, test images): float32 [n, 8, 8, 1] in [-1, 1].
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 8 - 1).astype("float32")
    return train_test_split(images, test_size=held_out, stratify=labels, random_state=0)


def with_noise(image, seed):
    """Adds noise and a time in [0, 1) to an example; they belong to its place in the data, and so resume."""
    seeds = tf.random.split(seed, 2)
    noise = tf.random.stateless_normal(image.shape, seeds[0])
    return {"image": image, "noise": noise, "time": tf.random.stateless_uniform([], seeds[1])}


@configurable
def train_data(batch_size=128, seed=0):
    """Endless shuffled batches of {"image", "noise" [B, 8, 8, 1], "time" [B]}."""
    return data.from_arrays(load()[0], batch_size, seed=seed, augment=with_noise)


@configurable
def eval_data(batch_size=360):
    """The held-out images with noise that is always the same, each once."""
    return data.from_arrays(load()[1], batch_size, augment=with_noise, shuffle=False, repeat=False)


def signal_and_noise(time):
    """Returns the factors of a cosine schedule, whose squares add up to 1 (Nichol & Dhariwal 2021, 2102.09672)."""
    angle = (0.02 + 0.96 * time) * np.pi / 2
    return tf.cos(angle), tf.sin(angle)


@configurable
class Denoiser(keras.Model):
    """Noisy images [B, 8, 8, 1] and times [B] to the noise in them."""

    def __init__(self, filters=24, blocks=3, **kwargs):
        super().__init__(**kwargs)
        conv = keras.layers.Conv2D
        self.first = conv(filters, 3, padding="same")
        self.time = keras.Sequential(
            [keras.layers.Dense(filters, activation="swish"), keras.layers.Dense(blocks * filters)]
        )
        self.blocks = [
            {"widen": conv(filters, 3, padding="same", activation="swish"), "add": conv(filters, 3, padding="same")}
            for _ in range(blocks)
        ]
        self.last = conv(1, 3, padding="same", kernel_initializer="zeros")

    def call(self, images, times):
        """Returns the noise, [B, 8, 8, 1]."""
        angles = times[:, None] * np.pi * 2.0 ** np.arange(-1, 4)
        steered = self.time(tf.concat([tf.sin(angles), tf.cos(angles)], 1))[:, None, None]
        x = self.first(images)
        for block, shift in zip(self.blocks, tf.split(steered, len(self.blocks), -1)):
            x += block["add"](block["widen"](x + shift))
        return self.last(x)


class DDPMTrainer(Trainer):
    """Predicts the noise at a random time (Ho et al. 2020, 2006.11239, algorithm 1); reports the error by time."""

    def compute_losses(self, batch, training):
        """Returns the squared error per image, [B]; traced, per replica."""
        signal, noise = (factor[:, None, None, None] for factor in signal_and_noise(batch["time"]))
        predicted = self.model(signal * batch["image"] + noise * batch["noise"], batch["time"])
        errors = tf.reduce_mean(tf.square(predicted - batch["noise"]), (1, 2, 3))
        for quarter in range(4):
            inside = tf.cast(tf.cast(4 * batch["time"], tf.int32) == quarter, errors.dtype)
            add_metric((errors, inside), f"error_of_quarter_{quarter}")
        return {"noise": errors}


def sample(trainer, images, steps=100, seed=0):
    """Returns images drawn with the averaged weights, from noise by `steps` steps (algorithm 2); eager."""
    times = np.linspace(1, 0, steps + 1).astype("float32")

    @tf.function
    def denoise(x, time, following, number):
        signal, noise = signal_and_noise(time)
        clean = tf.clip_by_value((x - noise * trainer.model(x, tf.fill([images], time))) / signal, -1, 1)
        next_signal, next_noise = signal_and_noise(following)
        # The posterior of x at the following time, given x and the clean image (eq. 6 and 7).
        kept = tf.square(next_noise / noise) * signal / next_signal
        mean = kept * x + (next_signal - kept * signal) * clean
        spread = next_noise * tf.sqrt(1 - tf.square(kept * noise / next_noise))
        return mean + spread * tf.random.stateless_normal(x.shape, [seed, number])

    x = tf.random.stateless_normal([images, 8, 8, 1], [seed, -1])
    with trainer.averaged():
        for number in range(steps):
            x = denoise(x, tf.constant(times[number]), tf.constant(times[number + 1]), tf.constant(number))
    return x.numpy()


@configurable
class DrawSamples:
    """A hook: samples, as a picture in TensorBoard every `every` steps."""

    def __init__(self, every=1_200, rows=2, columns=12):
        self.every, self.rows, self.columns = every, rows, columns

    def __call__(self, trainer, step, metrics):
        """Draws where it is due; eager, after each loop."""
        if step % self.every == 0:
            trainer.summaries.image("samples", draw(sample(trainer, self.rows * self.columns), self.columns)[None])


def draw(images, columns, scale=4):
    """Returns a picture, uint8 [height, width, 1], of images in [-1, 1]."""
    rows = [np.concatenate(images[i : i + columns], 1) for i in range(0, len(images), columns)]
    return (127.5 * (np.concatenate(rows) + 1)).clip(0, 255).repeat(scale, 0).repeat(scale, 1).astype("uint8")
