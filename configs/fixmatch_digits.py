"""Forty labels and many images without: scikit-learn's digits, learned from the teacher's confident answers."""

import keras
import numpy as np
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


class Streams(data.Source):
    """Joins the batches of several sources, {name: source}, which may differ in size: {name: batch}."""

    infinite = True

    def __init__(self, sources):
        self._sources, self.batch_size = sources, sum(source.batch_size for source in sources.values())

    def batches(self, start=0, chunk=None):
        """See `Source.batches`."""
        return tf.data.Dataset.zip({name: source.batches(start, chunk) for name, source in self._sources.items()})


@configurable
def train_data(labels_per_class=4, labelled=16, unlabelled=64, seed=0):
    """Endless batches: `labelled` images with labels, and `unlabelled` others in two views.

    The labelled images are the first ones of each class; the others are all training images, without labels.
    """
    images, labels = load()[0]
    chosen = np.concatenate([np.flatnonzero(labels == k)[:labels_per_class] for k in range(10)])

    def views(image, seed):
        return weak(image, seed), strong(image, seed)

    def with_label(example, seed):
        return weak(example[0], seed), example[1]

    return Streams(
        {
            "labelled": data.from_arrays((images[chosen], labels[chosen]), labelled, seed=seed, augment=with_label),
            "unlabelled": data.from_arrays(images, unlabelled, seed=seed + 1, augment=views),
        }
    )


@configurable
def eval_data():
    """The held-out images in one batch: with labels, and in two views."""
    images, labels = load()[1]
    batch = {"labelled": (images, labels), "unlabelled": (images, images)}
    return data.from_arrays(batch, len(images), repeat=False)


def weak(image, seed):
    """Returns the image, shifted by up to a pixel each way."""
    return tf.image.stateless_random_crop(tf.pad(image, [[1, 1], [1, 1], [0, 0]]), image.shape, seed)


def strong(image, seed):
    """Returns the image, shifted, darker or brighter, noisy, and without a square of 3 x 3 pixels."""
    seeds = tf.unstack(tf.random.split(seed, 4))
    bright = tf.random.stateless_uniform([], seeds[1], 0.6, 1.4)
    noise = 0.15 * tf.random.stateless_normal(image.shape, seeds[2])
    corner = tf.random.stateless_uniform([2], seeds[3], maxval=6, dtype=tf.int32)
    inside = [(tf.range(8) >= corner[i]) & (tf.range(8) < corner[i] + 3) for i in range(2)]
    kept = tf.cast(~(inside[0][:, None] & inside[1]), tf.float32)[..., None]
    return (weak(image, seeds[0]) * bright + noise) * kept


@configurable
def classifier(filters=32):
    """Returns a convolutional network of images to logits, [B, 10]."""
    conv = keras.layers.Conv2D
    layers = [
        conv(filters, 3, padding="same", activation="relu"),
        conv(2 * filters, 3, strides=2, padding="same", activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(2 * filters, activation="relu"),
    ]
    return keras.Sequential([keras.Input((8, 8, 1)), *layers, keras.layers.Dense(10)])


class FixMatchTrainer(Trainer):
    """The answer to the weak view is the label of the strong one, where it is sure (Sohn et al. 2020, 2001.07685).

    The answers are those of a mean teacher (Tarvainen & Valpola 2017, 1703.01780), which follows the student's weights.

    Args:
      model, teacher: the student and the teacher.
      threshold: number in [0, 1], the least probability of an answer that counts.
      momentum: number, the share of its weights that the teacher keeps at a step.
    """

    def __init__(self, model, teacher, threshold=0.95, momentum=0.99, **kwargs):
        super().__init__(model, **kwargs)
        self.threshold, self.momentum = threshold, momentum
        self.teacher = teacher
        self.teacher.trainable = False
        self.teacher.set_weights(self.model.get_weights())

    def compute_losses(self, batch, training):
        """Returns the losses per labelled image and per other image; traced, per replica."""
        (images, labels), (weak_view, strong_view) = batch["labelled"], batch["unlabelled"]
        entropy = tf.nn.sparse_softmax_cross_entropy_with_logits
        answers = tf.nn.softmax(self.teacher(weak_view))
        sure = tf.cast(tf.reduce_max(answers, 1) >= self.threshold, tf.float32)
        return {
            "labelled": entropy(labels, self.model(images, training=training)),
            "unlabelled": sure * entropy(tf.argmax(answers, 1), self.model(strong_view, training=training)),
            "sure": sure,  # reported only
        }

    def after_update(self, batch, outputs):
        """The teacher follows; traced, per replica, the same on all."""
        for slow, fast in zip(self.teacher.weights, self.model.weights, strict=True):
            slow.assign(self.momentum * slow + (1 - self.momentum) * fast)

    def eval_end(self, metrics):
        """Adds the accuracy of both on the held-out images; eager."""
        images, labels = load()[1]
        for name, model in ("accuracy", self.model), ("teacher_accuracy", self.teacher):
            metrics[f"metrics/{name}"] = float(np.mean(np.argmax(model(images), 1) == labels))
        return metrics
