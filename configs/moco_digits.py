"""Momentum contrast on scikit-learn's digits: a slow encoder and a queue of its outputs, without labels."""

import keras
import tensorflow as tf

from trainer import Trainer, all_gather, configurable, data


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


@configurable
def encoder(filters=32, features=64, projection=32):
    """Returns a model of images to (features [B, F], unit vectors of their projection [B, D])."""
    images = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(filters, 3, padding="same", activation="relu")(images)
    x = keras.layers.Conv2D(2 * filters, 3, strides=2, padding="same", activation="relu")(x)
    x = keras.layers.Dense(features, activation="relu", name="features")(keras.layers.Flatten()(x))
    hidden = keras.layers.Dense(features, activation="relu", name="hidden")(x)
    projected = keras.layers.Dense(projection, name="projection")(hidden)
    return keras.Model(images, (x, keras.layers.UnitNormalization()(projected)))


class MoCoTrainer(Trainer):
    """A query must find the key of its image among those in the queue (He et al. 2020, 1911.05722, algorithm 1).

    Args:
      model, teacher: the fast and the slow encoder.
      momentum: number, the share of its weights that the slow encoder keeps at a step.
      queue: int, keys of earlier steps.
      temperature: number.
    """

    def __init__(self, model, teacher, momentum=0.99, queue=1024, temperature=0.2, **kwargs):
        super().__init__(model, **kwargs)
        self.momentum, self.temperature = momentum, temperature
        self.teacher = teacher
        self.teacher.trainable = False
        self.teacher.set_weights(self.model.get_weights())
        rows = keras.random.normal((queue, self.model.output_shape[1][-1]), seed=0)
        self.queue = keras.Variable(keras.ops.normalize(rows), trainable=False, name="queue")

    def compute_losses(self, batch, training):
        """Returns the loss per image, [B], and its keys; traced, per replica."""
        first, second = batch
        _, queries = self.model(first, training=training)
        _, keys = self.teacher(second)
        same = tf.reduce_sum(queries * keys, 1, keepdims=True)  # [B, 1]
        logits = tf.concat([same, tf.matmul(queries, self.queue, transpose_b=True)], 1) / self.temperature
        return {"contrast": tf.reduce_logsumexp(logits, 1) - logits[:, 0]}, keys

    def after_update(self, batch, outputs):
        """The slow encoder follows, and the keys join the queue; traced, per replica, the same on all."""
        keys = all_gather(outputs)
        self.queue.assign(tf.concat([self.queue, keys], 0)[tf.shape(keys)[0] :])
        for slow, fast in zip(self.teacher.weights, self.model.weights, strict=True):
            slow.assign(self.momentum * slow + (1 - self.momentum) * fast)

    def eval_end(self, metrics):
        """Adds the accuracy of a linear model on the features of the fast encoder; eager."""
        from sklearn.linear_model import LogisticRegression

        (train_x, train_y), (test_x, test_y) = load()
        probe = LogisticRegression(max_iter=2_000).fit(self.model(train_x)[0].numpy(), train_y)
        return {**metrics, "metrics/probe_accuracy": float(probe.score(self.model(test_x)[0].numpy(), test_y))}
