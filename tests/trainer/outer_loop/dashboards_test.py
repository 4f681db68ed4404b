"""What a run writes for TensorBoard, read back with TensorBoard's own readers, also after a resume."""

import io

import keras
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from PIL import Image
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.pr_curve import metadata as pr_metadata
from tensorboard.plugins.projector import projector_config_pb2

from tests.runs import read_checkpoint
from trainer import Trainer, data, main, views
from trainer.hooks import ConfusionMatrix, Histograms, Images, PRCurve, Projector

CONFIG = """
import tests.trainer.outer_loop.dashboards_test as here
run.trainer = @Trainer
run.train_data = @here.train_data
run.eval_data = @here.eval_data
run.train_steps = 20
run.steps_per_loop = 5
run.summary_interval = 10
run.eval_interval = 10
run.checkpoint_interval = 10
Trainer.model = @here.model()
Trainer.loss = @keras.losses.SparseCategoricalCrossentropy()
keras.losses.SparseCategoricalCrossentropy.from_logits = True
Trainer.metrics = ['accuracy']
Trainer.optimizers = @SGD()
SGD.learning_rate = 0.5
"""
HOOKS = "run.hooks = [@Histograms(), @ConfusionMatrix(), @PRCurve(), @Images(), @Projector()]"
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, 48).astype("int32")
IMAGES = (RNG.uniform(0, 0.5, [48, 4, 4, 1]) + LABELS[:, None, None, None] / 6).astype("float32")


def train_data():
    return data.from_arrays((IMAGES, LABELS), 8)


def eval_data():
    return data.from_arrays((IMAGES[:30], LABELS[:30]), 16, repeat=False)


def model():
    layers = [keras.layers.Flatten(), keras.layers.Dropout(0.5), keras.layers.Dense(5, "tanh", name="hidden")]
    return keras.Sequential([keras.Input((4, 4, 1)), *layers, keras.layers.Dense(3, name="logits")])


def _run(folder, *params):
    (folder.parent / "a.gin").write_text(CONFIG)
    flags = [f"--gin_param={param}" for param in params]
    gin = [f"--gin_file={folder.parent / 'a.gin'}", f"--model_dir={folder}", "--strategy=default"]
    assert main.main(["main", *gin, *flags]) == 0
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of 20 steps that was resumed for 10 more, with all hooks."""
    folder = tmp_path_factory.mktemp("dashboards") / "run"
    more = [HOOKS, "Histograms.every = 10", "Projector.layer = 'hidden'"]
    _run(folder, *more)
    return _run(folder, *more, "run.train_steps = 30")


@pytest.fixture(scope="module")
def events(folder):
    return EventAccumulator(str(folder / "train"), {"tensors": 0}).Reload()


def _steps(events, tag):
    return [event.step for event in events.Tensors(tag)]


def _array(events, tag, index=-1):
    return tf.make_ndarray(events.Tensors(tag)[index].tensor_proto)


def test_the_texts_of_a_start_are_written_again_only_if_they_changed(events):
    assert _steps(events, "environment") == _steps(events, "unused_bindings") == [0]
    assert _steps(events, "config") == _steps(events, "resolved_config") == [0, 20]
    assert "trainer.run.train_steps = 30" in _array(events, "config").item().decode()
    environment = _array(events, "environment").item().decode()
    assert f"tensorflow: {tf.__version__}" in environment and "git: " in environment


def test_the_layout_has_train_and_validation_in_one_chart(events):
    assert _steps(events, "custom_scalars__config__") == [0]
    layout = layout_pb2.Layout.FromString(_array(events, "custom_scalars__config__").item())
    charts = {c.title: {chart.title: list(chart.multiline.tag) for chart in c.chart} for c in layout.category}
    assert charts["losses"] == {"loss": ["^loss$"], "losses/main": ["^losses/main$"]}
    assert charts["metrics"] == {"metrics/accuracy": ["^metrics/accuracy$"]}
    assert charts["gradient norms"] == {"gradient norms": ["^grad_norm/main$"]}
    assert set(charts) == {"losses", "metrics", "gradient norms", "learning rates", "throughput"}


def test_hparams_are_the_bindings_and_the_final_values(events, folder):
    content = events.SummaryMetadata(hparams_metadata.SESSION_START_INFO_TAG).plugin_data.content
    start = hparams_metadata.parse_session_start_info_plugin_data(content).hparams
    assert start["keras.optimizers.SGD.learning_rate"].number_value == 0.5
    assert start["trainer.run.hooks"].string_value.startswith("[@")
    assert not any("model_dir" in name for name in start)
    experiment = hparams_metadata.parse_experiment_plugin_data(
        events.SummaryMetadata(hparams_metadata.EXPERIMENT_TAG).plugin_data.content
    )
    assert {info.name for info in experiment.hparam_infos} == set(start)
    tags = [info.name.tag for info in experiment.metric_infos]
    assert sorted(tags) == [f"final/{s}/{t}" for s in ("train", "validation") for t in ("loss", "metrics/accuracy")]
    validation = EventAccumulator(str(folder / "validation"), {"tensors": 0}).Reload()
    for index, step in ((0, 20), (1, 30)):
        assert events.Tensors("final/validation/loss")[index].step == step
        of_step = [e for e in validation.Tensors("loss") if e.step == step]
        assert _array(events, "final/validation/loss", index) == tf.make_ndarray(of_step[0].tensor_proto)


@pytest.mark.parametrize(
    "tag",
    [
        *(f"{kind}/logits/kernel" for kind in ("weights", "gradients", "updates", "update_to_weight")),
        "confusion_matrix", "class_2/pr_curves", "images",
    ],
)  # fmt: skip
def test_nothing_is_written_twice_after_a_resume(events, tag):
    assert _steps(events, tag) == [10, 20, 30]


def test_an_update_of_sgd_is_the_gradient_times_the_rate(events):
    """In buckets: SGD's update is -.5 g, so the ends of both histograms are related."""
    gradients, updates = (_array(events, f"{kind}/logits/kernel") for kind in ("gradients", "updates"))
    np.testing.assert_allclose(updates[0, 0], -0.5 * gradients[-1, 1], rtol=1e-3)
    np.testing.assert_allclose(updates[-1, 1], -0.5 * gradients[0, 0], rtol=1e-3)
    assert updates[:, 2].sum() == 15


def test_the_hooks_do_not_change_the_run(folder, tmp_path):
    """With dropout, whose seed a forward pass advances."""
    plain = read_checkpoint(_run(tmp_path / "plain", "run.train_steps = 30"))
    seen = read_checkpoint(folder)
    assert {name: value.tobytes() for name, value in plain.items() if not name.startswith(("report/", "hooks/"))} == {
        name: value.tobytes() for name, value in seen.items() if not name.startswith(("report/", "hooks/"))
    }


def test_the_confusion_matrix_counts_the_evaluation_set(events, folder):
    table = _array(events, "confusion_matrix/counts").item().decode().splitlines()[2:]
    counts = np.array([[int(cell) for cell in row.strip("|").split("|")[1:]] for row in table])
    np.testing.assert_array_equal(counts.sum(1), np.bincount(LABELS[:30]))
    validation = EventAccumulator(str(folder / "validation"), {"tensors": 0}).Reload()
    assert counts.trace() / 30 == pytest.approx(float(_array(validation, "metrics/accuracy")))
    picture = Image.open(io.BytesIO(_array(events, "confusion_matrix")[2]))
    assert picture.width >= 3 * 30 and picture.height >= 3 * 30


def test_a_precision_recall_curve_is_that_of_sklearn():
    metrics = pytest.importorskip("sklearn.metrics")
    labels, scores = RNG.random(200) < 0.4, np.round(RNG.random(200), 2)
    _, _, _, _, precision, recall = views.pr_curve(labels, scores)
    for i in range(0, 200, 7):
        predicted = scores >= i / 200
        assert precision[i] == pytest.approx(metrics.precision_score(labels, predicted, zero_division=0))
        assert recall[i] == pytest.approx(metrics.recall_score(labels, predicted))


def test_pr_curves_of_a_run(events):
    data = events.SummaryMetadata("class_2/pr_curves").plugin_data
    assert data.plugin_name == pr_metadata.PLUGIN_NAME
    tp, fp, tn, fn, _, recall = _array(events, "class_2/pr_curves")
    assert (tp + fn == (LABELS[:30] == 2).sum()).all() and (tp + fp + tn + fn == 30).all() and recall[0] == 1


def test_a_confusion_matrix_is_counted_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    np.testing.assert_array_equal(views.confusion_matrix(np.array([0, 0, 1, 1]), probabilities), [[1, 1], [1, 1]])


def test_the_projector_reads_what_was_written(folder):
    config = projector_config_pb2.ProjectorConfig()
    text_format.Parse((folder / "train/projector_config.pbtxt").read_text(), config)
    (embedding,) = config.embeddings
    assert np.loadtxt(folder / "train" / embedding.tensor_path, delimiter="\t").shape == (30, 5)
    labels = (folder / "train" / embedding.metadata_path).read_text().split()
    assert labels == [str(label) for label in LABELS[:30]]


def test_predictions_of_images_are_shown_beside_their_targets():
    class Auto:
        def predict(self, inputs):
            return inputs / 2

        class summaries:
            @staticmethod
            def image(name, images):
                Auto.shown = name, images

    hook = Images(lambda: data.from_arrays((IMAGES, IMAGES), 16, repeat=False), count=3)
    hook.begin(None)
    hook.show(Auto())
    name, grid = Auto.shown
    assert name == "images" and grid.dtype == np.uint8
    tile = grid[0, :4, :12, 0]
    expected = np.concatenate([IMAGES[0], IMAGES[0] / 2, IMAGES[0]], 1)[..., 0] * 255
    np.testing.assert_allclose(tile, np.clip(expected, 0, 255), atol=1)


def test_mistakes():
    class Run:
        evals, step = {}, 0

        class source:
            exact = False

    for hook in (ConfusionMatrix(), PRCurve(), Projector(), Histograms()):
        with pytest.raises(ValueError, match="`data`.* must be given"):
            hook.begin(Run)
    assert Trainer is not None
