"""Hooks that show predictions in TensorBoard: ConfusionMatrix, PRCurve, Images, Projector.

They write to TensorBoard's run `train`. All are eager, and run on every worker.
"""

import itertools
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import keras
import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from PIL import Image, ImageDraw
from tensorboard.compat.proto import summary_pb2
from tensorboard.plugins.pr_curve import metadata as pr_metadata
from tensorboard.plugins.projector import projector_config_pb2
from tensorboard.util import tensor_util

from optimizers.base import check_count
from trainer.data import as_source

if TYPE_CHECKING:
    from trainer.trainer import Trainer

__all__ = ["ConfusionMatrix", "Images", "PRCurve", "Projector"]
_THRESHOLDS = 201  # of a precision-recall curve
_CELL = 34  # pixels of a cell of a confusion matrix, of a small image, and of a caption's width in letters


class _OfEvaluation:
    """Base of hooks that show predictions after each evaluation of the run.

    Args:
        data: a function that returns a finite source or dataset of (inputs, targets); None: the run's first
            evaluation set.
    """

    def __init__(self, data=None):
        self.data, self._source = data, None

    def begin(self, run):
        """Takes the data of the run; called once, before its first loop."""
        if self.data is None and not run.evals:
            raise ValueError(f"`data` of {type(self).__name__} must be given: the run has no `eval_data`.")
        self._source = next(iter(run.evals.values())) if self.data is None else as_source(self.data, repeat=False)

    def __call__(self, trainer: "Trainer", step: int, metrics: dict[str, float]):
        """Shows predictions if the loop ended with an evaluation; eager."""
        if any(tag.startswith("validation") for tag in metrics):
            self.show(trainer)

    def _predictions(self, trainer):
        """Returns (predictions, targets), arrays [n, ...] of all examples."""
        return _one(trainer.predict(self._source), "model output"), _one(_parts(self._source)[1], "target")


def _parts(source, batches=None):
    """Returns [inputs, targets] of all examples of `source`, or of its first `batches`, as nests of arrays [n, ...]."""
    found = [keras.utils.unpack_x_y_sample_weight(b)[:2] for b in itertools.islice(source.batches(0), batches)]
    return [tf.nest.map_structure(lambda *x: np.concatenate([np.asarray(a) for a in x]), *part) for part in zip(*found)]


def _one(nest, what):
    leaves = tf.nest.flatten(nest)
    if len(leaves) != 1 or leaves[0] is None:
        raise ValueError(f"`data` must have one {what}, got {len(leaves)}. Write a hook that selects one of them.")
    return np.asarray(leaves[0])


def _probabilities(outputs):
    """Returns [n, classes] of logits or probabilities [n, classes], or of [n] or [n, 1] for two classes."""
    outputs = outputs.reshape(len(outputs), -1).astype(np.float64)
    is_probability = outputs.min() >= 0 and outputs.max() <= 1
    if outputs.shape[1] == 1:
        positive = outputs if is_probability else 1 / (1 + np.exp(-outputs))
        return np.concatenate([1 - positive, positive], 1)
    if is_probability and np.allclose(outputs.sum(1), 1, atol=1e-3):
        return outputs
    exp = np.exp(outputs - outputs.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


def _classes(targets):
    """Returns class ids [n] of ids [n] or [n, 1], or of one-hot rows [n, classes]."""
    targets = targets.reshape(len(targets), -1)
    return targets.argmax(1) if targets.shape[1] > 1 else targets[:, 0].astype(int)


class _OfClasses(_OfEvaluation):
    def __init__(self, data: Callable | None = None, names: Sequence[str] | None = None):
        super().__init__(data)
        self.names = names


class ConfusionMatrix(_OfClasses):
    """Shows how often each class is taken for each other one: an image and, up to 20 classes, a table.

    The tags are `confusion_matrix` and `confusion_matrix/counts`; rows are targets, columns predictions. Outputs are
    logits or probabilities [n, classes], or [n, 1] for two classes; targets are class ids or one-hot.

    Args:
        data: a function that returns a finite source or dataset of (inputs, targets); None: the first evaluation set.
        names: the names of the classes; None: their numbers.
    """

    def show(self, trainer):
        """Writes the matrix of the present weights; eager."""
        outputs, targets = self._predictions(trainer)
        counts = confusion_matrix(_classes(targets), _probabilities(outputs))
        names = [str(name) for name in self.names or range(len(counts))]
        trainer.summaries.image("confusion_matrix", _draw_matrix(counts, names)[None])
        if len(counts) <= 20:
            rows = [["target \\ prediction", *names], ["---"] * (len(names) + 1)]
            rows += [[f"**{name}**", *map(str, row)] for name, row in zip(names, counts)]
            trainer.summaries.text("confusion_matrix/counts", "\n".join(f"|{'|'.join(row)}|" for row in rows))


def confusion_matrix(classes, probabilities):
    """Returns counts int [classes, classes]: rows are the true classes [n], columns the most probable ones."""
    size = probabilities.shape[1]
    flat = classes * size + probabilities.argmax(1)
    return np.bincount(flat, minlength=size * size).reshape(size, size)


def _draw_matrix(counts, names):
    """Returns uint8 [height, width, 3]: the share of each row as a shade of blue, with the counts."""
    left = 8 + 7 * max(map(len, names))
    picture = Image.new("RGB", (left + _CELL * len(names), 20 + _CELL * len(names)), "white")
    draw = ImageDraw.Draw(picture)
    for i, (name, row) in enumerate(zip(names, counts)):
        draw.text((4, 20 + _CELL * i + 11), name, "black")
        draw.text((left + _CELL * i + 2, 4), name[: _CELL // 6], "black")
        for j, count in enumerate(row):
            x, y, share = left + _CELL * j, 20 + _CELL * i, count / max(row.sum(), 1)
            draw.rectangle((x, y, x + _CELL - 2, y + _CELL - 2), tuple(int(255 - share * d) for d in (225, 170, 90)))
            draw.text((x + 3, y + 11), str(count), "white" if share > 0.5 else "black")
    return np.asarray(picture)


class PRCurve(_OfClasses):
    """Precision and recall over 201 thresholds in TensorBoard's PR dashboard, each class against all others.

    The tags are `<class>/pr_curves`. Two classes have one curve, of the second one. Outputs and targets are those of
    ConfusionMatrix; targets may also be labels in {0, 1} [n, classes] of several classes per example.

    Args:
        data: a function that returns a finite source or dataset of (inputs, targets); None: the first evaluation set.
        names: the names of the classes; None: their numbers.
    """

    def show(self, trainer):
        """Writes the curves of the present weights; eager."""
        outputs, targets = self._predictions(trainer)
        probabilities = _probabilities(outputs)
        size = probabilities.shape[1]
        wide = targets.reshape(len(targets), -1)
        labels = wide if wide.shape[1] == size else np.eye(size)[_classes(targets)]
        if wide.shape[1] == size and (wide.sum(1) != 1).any():  # several classes per example: independent logits
            logits = outputs.reshape(len(outputs), -1)
            probabilities = logits if 0 <= logits.min() and logits.max() <= 1 else 1 / (1 + np.exp(-logits))
        names = self.names or range(size)
        for i in range(size) if size > 2 else (1,):
            curve = pr_curve(labels[:, i] > 0.5, probabilities[:, i])
            trainer.summaries.proto(_pr_pb(f"class_{names[i]}" if self.names is None else str(names[i]), curve))


def pr_curve(labels, scores):
    """Returns float [6, thresholds]: true and false positives, true and false negatives, precision, recall.

    Args:
        labels: bool [n].
        scores: float [n] in [0, 1]; a score >= threshold is a positive prediction.
    """
    bins = np.floor(np.clip(scores, 0, 1) * (_THRESHOLDS - 1)).astype(int)
    above = [np.bincount(bins[of], minlength=_THRESHOLDS)[::-1].cumsum()[::-1] for of in (labels, ~labels)]
    tp, fp = (counts.astype(np.float64) for counts in above)
    fn, tn = labels.sum() - tp, (~labels).sum() - fp
    least = 1e-7  # as TensorBoard divides
    return np.stack([tp, fp, tn, fn, tp / np.maximum(least, tp + fp), tp / np.maximum(least, tp + fn)])


def _pr_pb(name, curve):
    metadata = pr_metadata.create_summary_metadata(display_name=name, description="", num_thresholds=_THRESHOLDS)
    tensor = tensor_util.make_tensor_proto(curve.astype(np.float32))
    value = summary_pb2.Summary.Value(tag=f"{name}/pr_curves", tensor=tensor, metadata=metadata)
    return summary_pb2.Summary(value=[value])


class Images(_OfEvaluation):
    """A grid of images with prediction and target: as text for classes and numbers, side by side for images.

    The tag is `images`. Inputs are images [n, height, width, 1 or 3], float in [0, 1] or uint8.

    Args:
        data: a function that returns a finite source or dataset of (inputs, targets); None: the first evaluation set.
        count: int >= 1, the number of examples, from the first on.
    """

    def __init__(self, data: Callable | None = None, count: int = 25):
        super().__init__(data)
        self.count = check_count("count", count, 1, "It counts images.")

    def show(self, trainer):
        """Writes the grid of the present weights; eager."""
        inputs, targets = (part[: self.count] for part in map(np.asarray, _first(self._source, self.count)))
        outputs = _one(trainer.predict(inputs), "model output")
        tiles = []
        for image, output, target in zip(inputs, outputs, targets):
            if output.ndim == 3:
                tiles.append(np.concatenate([_rgb(image), _rgb(output), _rgb(target)], 1))
                continue
            shown = [_caption(value) for value in (output, target)]
            tiles.append(_captioned(_rgb(image), " / ".join(shown), wrong=shown[0] != shown[1]))
        trainer.summaries.image("images", _grid(tiles)[None])


def _first(source, count):
    found, batches = 0, 0
    for batch in source.batches(0):
        found, batches = found + len(tf.nest.flatten(batch)[0]), batches + 1
        if found >= count:
            break
    return [_one(part, what) for part, what in zip(_parts(source, batches), ("input", "target"))]


def _caption(value):
    """Returns a class for scores, one-hot targets and class ids, a number for anything else."""
    value = np.atleast_1d(value)
    if value.size > 1:
        return str(int(value.argmax()))
    return f"{float(value.reshape(())):.4g}"


def _rgb(image):
    image = image if image.dtype == np.uint8 else np.clip(image.astype(np.float64) * 255, 0, 255).astype(np.uint8)
    return np.repeat(image, 3, -1) if image.shape[-1] == 1 else image[..., :3]


def _captioned(image, text, wrong):
    """Returns the image, enlarged if it is small, above `text`: prediction / target, red if they differ."""
    scale = max(1, 2 * _CELL // image.shape[0])
    picture = Image.fromarray(image).resize((image.shape[1] * scale, image.shape[0] * scale), Image.Resampling.NEAREST)
    tile = Image.new("RGB", (max(picture.width, 6 * len(text) + 4), picture.height + 14), "white")
    tile.paste(picture)
    ImageDraw.Draw(tile).text((2, picture.height), text, "red" if wrong else "black")
    return np.asarray(tile)


def _grid(tiles):
    """Returns the tiles [height, width, 3] in rows of one picture."""
    columns = int(np.ceil(np.sqrt(len(tiles))))
    height, width = (max(tile.shape[axis] for tile in tiles) + 3 for axis in (0, 1))
    grid = np.full((-(-len(tiles) // columns) * height, columns * width, 3), 255, np.uint8)
    for i, tile in enumerate(tiles):
        y, x = i // columns * height, i % columns * width
        grid[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    return grid


class Projector(_OfEvaluation):
    """Embeddings of the examples for TensorBoard's projector; the last evaluation replaces earlier ones.

    It writes `train/projector/tensors.tsv`, `metadata.tsv` (the targets) and `train/projector_config.pbtxt`.

    Args:
        data: a function that returns a finite source or dataset of (inputs, targets); None: the first evaluation set.
        layer: the name of a layer of a functional or sequential model, whose output is the embedding; None: the
            model's output.
    """

    def __init__(self, data: Callable | None = None, layer: str | None = None):
        super().__init__(data)
        self.layer, self._model = layer, None

    def show(self, trainer):
        """Writes the embeddings of the present weights; eager."""
        inputs, targets = _parts(self._source)
        if self.layer is None:
            embeddings = _one(trainer.predict(self._source), "model output")
        else:
            if self._model is None:
                self._model = keras.Model(trainer.model.inputs, trainer.model.get_layer(self.layer).output)
            with trainer.averaged():
                embeddings = _one(self._model.predict(inputs, verbose=0), "model output")
        if trainer.summaries.folder is None:
            return
        train = trainer.summaries.folder / "train"
        folder = train / "projector"
        folder.mkdir(parents=True, exist_ok=True)
        np.savetxt(folder / ".tensors", embeddings.reshape(len(embeddings), -1), "%.6g", "\t")
        np.savetxt(folder / ".metadata", [_caption(target) for target in _one(targets, "target")], "%s")
        os.replace(folder / ".tensors", folder / "tensors.tsv")
        os.replace(folder / ".metadata", folder / "metadata.tsv")
        config = projector_config_pb2.ProjectorConfig()
        config.embeddings.add(
            tensor_name=self.layer or "outputs",
            tensor_path="projector/tensors.tsv",
            metadata_path="projector/metadata.tsv",
        )
        (train / "projector_config.pbtxt").write_text(text_format.MessageToString(config))
