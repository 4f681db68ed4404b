"""A small student learns scikit-learn's digits from a large, frozen teacher (Hinton et al. 2015, 1503.02531)."""

import keras

from losses import distill
from trainer import Trainer, configurable, data


@configurable
def load(held_out=360):
    """Loads the images.

    Returns:
      ((train images, train labels), (test images, test labels)): float32 [n, 64] in [0, 1], int32 [n].
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        (pixels / 16).astype("float32"), labels.astype("int32"), test_size=held_out, stratify=labels, random_state=0
    )
    return (train_x, train_y), (test_x, test_y)


@configurable
def train_data(batch_size=64, examples=None, seed=0):
    """Endless shuffled batches, of the first `examples` images only if that is given."""
    return data.from_arrays(tuple(array[:examples] for array in load()[0]), batch_size, seed=seed)


@configurable
def eval_data(batch_size=360):
    """The held-out images, in order, each once."""
    return data.from_arrays(load()[1], batch_size, repeat=False)


@configurable
def classifier(units=(512, 512), name=None):
    """Returns a perceptron of images to logits, [B, 10]."""
    layers = [keras.layers.Dense(width, activation="relu", name=f"hidden_{i}") for i, width in enumerate(units)]
    return keras.Sequential([keras.Input((64,)), *layers, keras.layers.Dense(10, name="logits")], name=name)


class DistillTrainer(Trainer):
    """The student, `model`, learns from the labels and from the teacher's softened probabilities.

    Args:
      model: the student.
      teacher: a model of the same inputs and classes, frozen; `--init_from` loads its weights.
      temperature: number > 0 that divides both models' logits.
      alpha: number in [0, 1], the teacher's part of the loss; 0 is training without a teacher.
    """

    def __init__(self, model, teacher, temperature=4.0, alpha=0.9, **kwargs):
        super().__init__(model, **kwargs)
        self.teacher, self.temperature, self.alpha = teacher, temperature, alpha

    def compute_losses(self, batch, training):
        """Returns the loss per image, [B], and the student's logits; traced, per replica."""
        images, labels = batch
        logits = self.model(images, training=training)
        return {"distill": distill(labels, logits, self.teacher(images), self.temperature, self.alpha)}, logits
