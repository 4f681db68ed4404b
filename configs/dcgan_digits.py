"""A convolutional GAN of scikit-learn's digits: smoothed labels, spectral normalization, sequential updates."""

import keras
import numpy as np
import tensorflow as tf

from trainer import Trainer, configurable, data


@configurable
def load(held_out=360):
    """Loads the images.

    Returns:
      ((train images, train labels), (test images, test labels)): float32 [n, 8, 8, 1] in [-1, 1], int32 [n].
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    images = (pixels.reshape(-1, 8, 8, 1) / 8 - 1).astype("float32")
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels.astype("int32"), test_size=held_out, stratify=labels, random_state=0
    )
    return (train_x, train_y), (test_x, test_y)


@configurable
def train_data(batch_size=64, latent=16, seed=0):
    """Endless shuffled batches of {"image", "noise"}; the noise belongs to the place in the data, and so resumes."""

    def with_noise(image, seed):
        return {"image": image, "noise": tf.random.stateless_normal([2, latent], seed)}  # for each of two updates

    return data.from_arrays(load()[0][0], batch_size, seed=seed, augment=with_noise)


@configurable
def eval_data(latent=16, seed=1):
    """The held-out images with fixed noise, one batch."""
    images = load()[1][0]
    noise = np.random.default_rng(seed).normal(size=(len(images), 2, latent)).astype("float32")
    return data.from_arrays({"image": images, "noise": noise}, len(images), repeat=False)


@configurable
def generator(filters=32, latent=16):
    """Returns a model of noise [B, latent] to images in [-1, 1]."""
    up = keras.layers.Conv2DTranspose
    layers = [
        keras.layers.Dense(4 * 2 * filters, activation="relu"),
        keras.layers.Reshape((2, 2, 2 * filters)),
        up(2 * filters, 4, strides=2, padding="same", activation="relu"),  # [B, 4, 4, 2 filters]
        up(filters, 4, strides=2, padding="same", activation="relu"),  # [B, 8, 8, filters]
        keras.layers.Conv2D(1, 3, padding="same", activation="tanh"),
    ]
    return keras.Sequential([keras.Input((latent,)), *layers])


class SpectralConv(keras.layers.Conv2D):
    """A convolution whose kernel, [h * w * inputs, outputs], has spectral norm 1 (Miyato et al. 2018, 1802.05957).

    The norm has a gradient, and its power iteration is moved once a step by `iterate`, not by each call.
    """

    def build(self, shape):
        super().build(shape)
        self.left = self.add_weight(name="left", shape=(self.filters,), trainable=False, initializer="random_normal")
        self.iterate()

    def _matrix(self):
        return tf.reshape(self.kernel.value, [-1, self.filters])

    def iterate(self):
        """Takes one step of the power iteration."""
        matrix, normalize = self._matrix(), tf.math.l2_normalize
        right = normalize(tf.linalg.matvec(matrix, self.left.value))
        self.left.assign(normalize(tf.linalg.matvec(matrix, right, transpose_a=True)))

    def call(self, inputs):
        """Returns the convolution with the normalized kernel."""
        along = tf.linalg.matvec(self._matrix(), self.left.value)
        norm = tf.tensordot(tf.stop_gradient(tf.math.l2_normalize(along)), along, 1)
        outputs = keras.ops.conv(inputs, self.kernel / norm, self.strides, self.padding)
        return self.activation(outputs + self.bias)


@configurable
def discriminator(filters=32):
    """Returns a model of images to logits [B]: real or not."""
    layers = [
        SpectralConv(filters, 3, strides=2, padding="same", activation="leaky_relu"),
        SpectralConv(2 * filters, 3, strides=2, padding="same", activation="leaky_relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(1),
        keras.layers.Reshape(()),
    ]
    return keras.Sequential([keras.Input((8, 8, 1)), *layers])


class DCGANTrainer(Trainer):
    """The discriminator is updated, then the generator against it, on fresh fakes (Radford et al. 2016, 1511.06434).

    Args:
      generator, discriminator: models.
      smoothing: number, 1 minus the label of real images (Salimans et al. 2016, 1606.03498, section 3.4).
    """

    def __init__(self, generator, discriminator, smoothing=0.1, **kwargs):
        super().__init__(**kwargs)
        self.generator, self.discriminator, self.smoothing = generator, discriminator, smoothing

    def compute_losses(self, batch, training):
        """Returns both losses, [B]; traced, per replica. The `sequential` group gets a new pass after the first."""
        fake = self.generator(batch["noise"][:, 0], training=training)
        on_real, on_fake = self.discriminator(batch["image"]), self.discriminator(tf.stop_gradient(fake))
        fresh = self.discriminator(self.generator(batch["noise"][:, 1], training=training))
        crossentropy = tf.nn.sigmoid_cross_entropy_with_logits
        real = (1 - self.smoothing) * tf.ones_like(on_real)
        return {
            "discriminator": crossentropy(real, on_real) + tf.nn.softplus(on_fake),
            "generator": tf.nn.softplus(-fresh),
        }

    def after_update(self, batch, outputs):
        """Takes a step of the power iterations; traced, per replica, the same on all."""
        for layer in self.discriminator.layers:
            if isinstance(layer, SpectralConv):
                layer.iterate()

    def predict_step(self, batch):
        """Returns generated images; traced, per replica."""
        return self.generator(batch["noise"][:, 0])

    def eval_end(self, metrics):
        """Adds the distance of generated from held-out images; eager."""
        fake = self.predict(eval_data())
        return {**metrics, "metrics/distance": distance(load()[1][0], fake)}


def distance(real, fake, components=16):
    """Returns the Frechet distance of two sets of images between Gaussians of their principal components.

    As the FID (Heusel et al. 2017, 1706.08500, eq. 6), with the first components of the training images for features.
    """
    from scipy.linalg import sqrtm
    from sklearn.decomposition import PCA

    pca = PCA(components, whiten=True).fit(load()[0][0].reshape(-1, 64))
    one, two = (pca.transform(images.reshape(-1, 64)) for images in (real, fake))
    covariances = [np.cov(features.T) for features in (one, two)]
    apart = np.sum((one.mean(0) - two.mean(0)) ** 2)
    return float(apart + np.trace(sum(covariances) - 2 * sqrtm(covariances[0] @ covariances[1]).real))


@configurable
class DrawImages:
    """A hook: generated images, as a picture in TensorBoard every `every` steps."""

    def __init__(self, every=1_000, rows=4, columns=12):
        self.every, self.rows, self.columns = every, rows, columns

    def __call__(self, trainer, step, metrics):
        """Draws where it is due; eager, after each loop."""
        if step % self.every == 0:
            images = trainer.predict(eval_data())[: self.rows * self.columns]
            trainer.summaries.image("generated", draw(images, self.columns)[None])


def draw(images, columns, scale=4):
    """Returns a picture, uint8 [height, width, 1], of images in [-1, 1]."""
    rows = [np.concatenate(images[i : i + columns], 1) for i in range(0, len(images), columns)]
    return (127.5 * (np.concatenate(rows) + 1)).clip(0, 255).repeat(scale, 0).repeat(scale, 1).astype("uint8")
