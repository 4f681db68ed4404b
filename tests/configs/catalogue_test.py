"""configs/ADDONS.md lists every exported name with its purpose; configs/README.md lists every example."""

import functools
import pathlib
import re

import keras
import pytest
import tensorflow as tf

import configs
import layers
import losses
import optimizers
import trainer
from tests.benchmarks.layer_time import LAYERS
from tests.benchmarks.loss_time import LOSSES, METRICS
from trainer.config import registry

FOLDER = pathlib.Path(configs.__path__[0])

# What each package of tensorflow_addons 0.23.0 imports into its `__init__.py`.
ADDONS = {
    "activations": "gelu hardshrink lisht mish rrelu snake softshrink sparsemax tanhshrink",
    "callbacks": "AverageModelCheckpoint TQDMProgressBar TimeStopping",
    "image": """
        adjust_hsv_in_yiq angles_to_projective_transforms blend compose_transforms connected_components
        cutout dense_image_warp equalize euclidean_dist_transform gaussian_filter2d interpolate_bilinear
        interpolate_spline mean_filter2d median_filter2d random_cutout random_hsv_in_yiq resampler rotate
        sharpness shear_x shear_y sparse_image_warp transform translate translate_xy
        translations_to_projective_transforms
    """,
    "layers": """
        AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D AdaptiveMaxPooling1D
        AdaptiveMaxPooling2D AdaptiveMaxPooling3D CRF CorrelationCost ESN EmbeddingBag
        FilterResponseNormalization GELU GroupNormalization InstanceNormalization MaxUnpooling2D
        MaxUnpooling2DV2 Maxout MultiHeadAttention NoisyDense PoincareNormalize PolynomialCrossing Snake
        Sparsemax SpatialPyramidPooling2D SpectralNormalization StochasticDepth TLU WeightNormalization
    """,
    "losses": """
        ContrastiveLoss GIoULoss LiftedStructLoss NpairsLoss NpairsMultilabelLoss PinballLoss
        SigmoidFocalCrossEntropy SparsemaxLoss TripletHardLoss TripletSemiHardLoss WeightedKappaLoss
        contrastive_loss giou_loss lifted_struct_loss npairs_loss npairs_multilabel_loss pinball_loss
        sigmoid_focal_crossentropy sparsemax_loss triplet_hard_loss triplet_semihard_loss
    """,
    "metrics": """
        CohenKappa F1Score FBetaScore GeometricMean HammingLoss HarmonicMean KendallsTauB KendallsTauC
        MatthewsCorrelationCoefficient MeanMetricWrapper MultiLabelConfusionMatrix PearsonsCorrelation
        RSquare SpearmansRank hamming_distance hamming_loss_fn
    """,
    "optimizers": """
        AdaBelief AdamW AveragedOptimizerWrapper COCOB ConditionalGradient CyclicalLearningRate
        DecoupledWeightDecayExtension ExponentialCyclicalLearningRate KerasLegacyOptimizer LAMB LazyAdam
        Lookahead MovingAverage MultiOptimizer NovoGrad ProximalAdagrad RectifiedAdam SGDW SWA
        Triangular2CyclicalLearningRate TriangularCyclicalLearningRate Yogi
        extend_with_decoupled_weight_decay
    """,
    "rnn": "ESNCell LayerNormLSTMCell LayerNormSimpleRNNCell NASCell PeepholeLSTMCell",
    "seq2seq": """
        AttentionMechanism AttentionWrapper AttentionWrapperState BahdanauAttention
        BahdanauMonotonicAttention BaseDecoder BasicDecoder BasicDecoderOutput BeamSearchDecoder
        BeamSearchDecoderOutput BeamSearchDecoderState CustomSampler Decoder FinalBeamSearchDecoderOutput
        GreedyEmbeddingSampler InferenceSampler LuongAttention LuongMonotonicAttention
        SampleEmbeddingSampler Sampler ScheduledEmbeddingTrainingSampler ScheduledOutputTrainingSampler
        SequenceLoss TrainingSampler dynamic_decode gather_tree gather_tree_from_array hardmax
        monotonic_attention safe_cumprod sequence_loss tile_batch
    """,
    "text": """
        CRFModelWrapper CrfDecodeForwardRnnCell crf crf_binary_score crf_constrained_decode crf_decode
        crf_decode_backward crf_decode_forward crf_filtered_inputs crf_forward crf_log_likelihood
        crf_log_norm crf_multitag_sequence_score crf_sequence_score crf_unary_score parse_time
        skip_gram_sample skip_gram_sample_with_text_vocab viterbi_decode
    """,
}


@pytest.mark.parametrize("package", [layers, losses, optimizers], ids=lambda package: package.__name__)
def test_every_exported_name_has_a_line_and_every_line_a_name(package):
    page = (FOLDER / "ADDONS.md").read_text()
    section = page.split(f"\n## {package.__name__}\n")[1].split("\n## ")[0]
    lines = re.findall(r"^- (`.+?`): \S.+$", section, re.MULTILINE)
    named = [name for line in lines for name in re.findall(r"`(\w+)`", line)]
    assert sorted(named) == sorted(package.__all__)


def test_every_name_of_addons_has_one_place():
    """In the first column of the table of its family; the second says where it is now."""
    page = (FOLDER / "ADDONS.md").read_text().split("\n## layers\n")[0]
    found = {}
    for section in page.split("\n## Addons: ")[1:]:
        families, rows = section.split("\n", 1)
        rows = re.findall(r"^\| (`.+?) \| \S.* \|$", rows, re.MULTILINE)
        found[families] = sorted(name for row in rows for name in re.findall(r"`(\w+)`", row))
    wanted = {
        families: sorted(" ".join(ADDONS[family] for family in families.split(", ")).split()) for families in found
    }
    assert found == wanted
    assert sorted(family for families in found for family in families.split(", ")) == sorted(ADDONS)


def test_every_place_that_the_page_names_is_there():
    roots = {"keras": keras, "tf": tf, "layers": layers, "losses": losses, "optimizers": optimizers, "trainer": trainer}
    places = set(re.findall(rf"`((?:{'|'.join(roots)})\.[\w.]+)`", (FOLDER / "ADDONS.md").read_text()))
    assert len(places) > 70
    for place in places:
        root, *path = place.split(".")
        functools.reduce(getattr, path, roots[root])  # an AttributeError says which


def test_a_gin_file_takes_what_is_left_to_keras():
    section = (FOLDER / "ADDONS.md").read_text().split("\n## In Keras\n")[1].split("\n## ")[0]
    registry.register()
    names = re.findall(r"`(keras\.[\w.]+)`", section)
    assert len(names) > 30
    for name in names:
        assert registry.find(name, {}).wrapped is functools.reduce(getattr, name.split(".")[1:], keras)


def test_every_loss_metric_and_layer_is_timed():
    """A class is timed as the function that it is made of, a function as the layer; the rest does nothing in a step."""
    timed = {name.split(",")[0] for name in {**LOSSES, **METRICS, **LAYERS}}
    functions = {name for name in losses.__all__ if name.islower()}
    metrics = {"CohenKappa", "MatthewsCorrelation", "ExpectedCalibrationError"}
    wanted = functions | metrics | {name for name in layers.__all__ if not name.islower()}
    assert wanted - timed == {"class_balanced_weights", "interpolate", "ActivationMonitor", "AddLoss", "AddMetric"}


def test_every_example_is_in_the_table_and_is_there():
    table = (FOLDER / "README.md").read_text().split("## ")[0]
    first = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    shipped = {path.stem for path in FOLDER.glob("*.gin")} - {"base"}
    assert {name for cell in first for name in re.findall(r"`(\w+)`", cell)} == shipped


def test_what_the_pages_point_to_is_there():
    examples = {path.stem for path in FOLDER.glob("*.gin")}
    page = (FOLDER / "ADDONS.md").read_text().split("\n## layers\n")[1]
    assert {
        name for cell in re.findall(r"\((`\w+`(?:, `\w+`)*)\)", page) for name in re.findall(r"\w+", cell)
    } <= examples
    for link in re.findall(r"\]\(([\w.]+)\)", (FOLDER / "README.md").read_text()):
        assert (FOLDER / link).exists()
