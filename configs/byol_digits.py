"""Bootstrap your own latent on scikit-learn's digits: a slow encoder is what a fast one predicts, without labels."""

import keras
import tensorflow as tf

from trainer import Trainer, configurable, data


@configurable
def load(held_out=360):
    """Loads the images.

    Returns:
      ((train images, train labels), (test images, test labels)): float32 [n, 8, 8, 1] in [0, 1], int32 [n].
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    images = (pixels.reshape(-1, 8, 8, 1) / 16).astype("float32")
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels.astype("int32"), test_size=held_out, stratify=labels, random_state=0
    )
    return (train_x, train_y), (test_x, test_y)


@configurable
def train_data(batch_size=128, seed=0):
    """Endless shuffled batches of pairs: two views of each image."""
    return data.from_arrays(load()[0][0], batch_size, seed=seed, augment=two_views)


@configurable
def eval_data(batch_size=360):
    """Two fixed views of the held-out images, each once."""
    return data.from_arrays(load()[1][0], batch_size, augment=two_views, shuffle=False, repeat=False)


def two_views(image, seed):
    """Returns two views of an image: shifted by up to a pixel each way, darker or brighter, with noise."""
    return tuple(_view(image, seed) for seed in tf.unstack(tf.random.split(seed, 2)))


def _view(image, seed):
    seeds = tf.unstack(tf.random.split(seed, 3))
    shifted = tf.image.stateless_random_crop(tf.pad(image, [[1, 1], [1, 1], [0, 0]]), image.shape, seeds[0])
    bright = tf.random.stateless_uniform([], seeds[1], 0.6, 1.4)
    return shifted * bright + 0.1 * tf.random.stateless_normal(image.shape, seeds[2])


def normalization():
    """Returns a layer that normalizes by the statistics of the global batch; without it the projections collapse."""
    return keras.layers.BatchNormalization(momentum=0.9, synchronized=True)


@configurable
def encoder(filters=32, features=64, projection=32):
    """Returns a model of images to (features [B, F], their projection [B, D])."""
    images = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(filters, 3, padding="same")(images)
    x = keras.layers.Conv2D(2 * filters, 3, strides=2, padding="same")(keras.layers.ReLU()(normalization()(x)))
    x = keras.layers.Flatten()(keras.layers.ReLU()(normalization()(x)))
    x = keras.layers.Dense(features, activation="relu", name="features")(x)
    hidden = keras.layers.ReLU()(normalization()(keras.layers.Dense(features, name="hidden")(x)))
    return keras.Model(images, (x, keras.layers.Dense(projection, name="projection")(hidden)))


@configurable
def predictor(projection=32, hidden=64):
    """Returns a model of projections to those of the slow encoder, [B, D]."""
    layers = [keras.layers.Dense(hidden), normalization(), keras.layers.ReLU()]
    return keras.Sequential([keras.Input((projection,)), *layers, keras.layers.Dense(projection)])


class BYOLTrainer(Trainer):
    """Each view predicts the slow encoder's projection of the other (Grill et al. 2020, 2006.07733, section 3.1).

    Args:
      model, teacher: the fast and the slow encoder.
      predictor: the model on top of the fast encoder.
      momentum: number, the share of its weights that the slow encoder keeps at a step.
    """

    def __init__(self, model, teacher, predictor, momentum=0.99, **kwargs):
        super().__init__(model, **kwargs)
        self.predictor, self.momentum = predictor, momentum
        self.teacher = teacher
        self.teacher.trainable = False
        self.teacher.set_weights(self.model.get_weights())

    def compute_losses(self, batch, training):
        """Returns the loss per image, [B]; traced, per replica."""
        first, second = batch
        return {"regression": self._distance(first, second, training) + self._distance(second, first, training)}

    def _distance(self, view, other, training):
        predictions = self.predictor(self.model(view, training=training)[1], training=training)
        wanted = self.teacher(other)[1]  # its normalization has statistics that follow as its weights do
        return 2 - 2 * tf.reduce_sum(tf.math.l2_normalize(predictions, 1) * tf.math.l2_normalize(wanted, 1), 1)

    def after_update(self, batch, outputs):
        """The slow encoder follows the fast one; traced, per replica, the same on all."""
        for slow, fast in zip(self.teacher.weights, self.model.weights, strict=True):
            slow.assign(self.momentum * slow + (1 - self.momentum) * fast)

    def eval_end(self, metrics):
        """Adds the accuracy of a linear model on the features of the fast encoder; eager."""
        from sklearn.linear_model import LogisticRegression

        (train_x, train_y), (test_x, test_y) = load()
        probe = LogisticRegression(max_iter=2_000).fit(self.model(train_x)[0].numpy(), train_y)
        return {**metrics, "metrics/probe_accuracy": float(probe.score(self.model(test_x)[0].numpy(), test_y))}
