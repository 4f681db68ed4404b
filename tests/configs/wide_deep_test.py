"""configs/wide_deep: two optimizers by pattern on clicks whose best score is known."""

import importlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.runs import read_checkpoint, read_rows, run_config

DEEP_ALONE = "wide/OptimizerGroup.start = 1_000_000"


@pytest.fixture
def wide_deep():
    return importlib.import_module("wide_deep")


def train(folder, *params):
    """Runs the shipped config; returns (last validation AUC, {name: array} of the last checkpoint)."""
    run_config("wide_deep", folder, *params)
    return read_rows(folder, "validation")[-1]["metrics/auc"], read_checkpoint(folder)


def auc(labels, scores):
    """Area under the ROC curve, from ranks: the share of pairs (1, 0) in the right order."""
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores)] = np.arange(1, len(scores) + 1)
    positive = labels == 1
    return (ranks[positive].mean() - (positive.sum() + 1) / 2) / (~positive).sum()


def test_the_best_score_is_known_and_a_linear_model_is_far_from_it(wide_deep):
    from sklearn.linear_model import LogisticRegression

    features, labels, probabilities = wide_deep.clicks()
    assert len(labels) == 40_000 and auc(labels[32_000:], probabilities[32_000:]) == pytest.approx(0.834, abs=0.005)
    ids = [np.eye(wide_deep.SITES)[[wide_deep.VOCABULARY.index(site) for site in features["site"]]]]
    ids.append(np.eye(wide_deep.DEVICES)[features["device"]])
    x = np.concatenate([*ids, features["numbers"]], 1)
    linear = LogisticRegression(max_iter=200).fit(x[:32_000], labels[:32_000]).decision_function(x[32_000:])
    assert auc(labels[32_000:], linear) == pytest.approx(0.60, abs=0.02)


def test_data_is_repeatable_and_the_parts_share_nothing(wide_deep):
    train_source, held_out = wide_deep.train_data(batch_size=100), wide_deep.eval_data()
    assert train_source.num_examples == 32_000 and held_out.num_examples == 8_000
    first, again = (next(iter(wide_deep.train_data(batch_size=100).batches(7))) for _ in range(2))
    tf.nest.map_structure(np.testing.assert_array_equal, first, again)
    assert first[0]["site"].dtype == tf.string and first[0]["device"].dtype == tf.int64
    numbers = wide_deep.clicks()[0]["numbers"]
    assert len(np.unique(numbers[:, 0])) > 39_900  # so that an example is known by its numbers
    assert not np.intersect1d(numbers[:32_000, 0], numbers[-8_000:, 0]).size > 40  # float32 draws that meet by chance


def test_the_wide_part_starts_at_zero_and_adds_to_the_deep_one(wide_deep):
    model = wide_deep.wide_and_deep()
    features, _ = next(iter(wide_deep.eval_data(batch_size=50).batches()))
    wide, deep = model.get_layer("wide"), model.get_layer("deep")
    np.testing.assert_array_equal(wide(features), np.zeros([50, 1]))
    np.testing.assert_array_equal(model(features), deep(features))
    for variable in wide.trainable_variables:
        variable.assign(tf.random.normal(variable.shape))
    np.testing.assert_allclose(model(features), wide(features) + deep(features), rtol=1e-6)


def test_each_pair_has_its_own_weight_and_an_unknown_site_is_served(wide_deep):
    wide = wide_deep.wide_and_deep().get_layer("wide")
    pairs = wide.get_layer("pair_weights")
    pairs.embeddings.assign(np.arange(pairs.input_dim, dtype="float32")[:, None])
    site, device = np.meshgrid(["never seen", *wide_deep.VOCABULARY], np.arange(wide_deep.DEVICES))
    inputs = {"site": site.ravel(), "device": device.ravel(), "numbers": np.zeros([site.size, 4], "float32")}
    logits = wide({name: tf.constant(values) for name, values in inputs.items()})
    assert len(np.unique(logits)) == site.size == pairs.input_dim


def test_it_learns_what_the_deep_part_alone_cannot(tmp_path):
    """Short form: untrained it is at .5, and the deep part alone stays below .73 for all 4,000 steps."""
    score, tensors = train(tmp_path, "run.train_steps = 600", "run.eval_interval = None")
    assert score > 0.75
    seen = tensors["wide/pair_weights/embeddings"][30:]  # the first 30 belong to sites that never came
    assert 0 < (seen == 0).mean() < 0.5, "L1 leaves out some pairs, not most"
    kinds = {name.rsplit("/", 1)[-1] for name in tensors if name.startswith("optimizers/wide/wide/pair_weights")}
    assert len(kinds) == 2, "FTRL has two slots a weight"


def test_one_binding_turns_the_wide_part_off(tmp_path):
    _, tensors = train(tmp_path, "run.train_steps = 3", "run.eval_interval = None", DEEP_ALONE)
    wide = {name: value for name, value in tensors.items() if name.startswith("wide/")}
    assert len(wide) == 5 and not any(value.any() for value in wide.values())
    assert tensors["deep/logit/bias"].any()


@pytest.mark.slow
def test_full_result_over_three_seeds(tmp_path):
    for seed in range(3):
        keras.backend.clear_session()
        both, tensors = train(tmp_path / f"both_{seed}", f"run.seed = {seed}")
        deep, _ = train(tmp_path / f"deep_{seed}", f"run.seed = {seed}", DEEP_ALONE)
        assert both >= 0.80 and both >= deep + 0.05
        assert (tensors["wide/pair_weights/embeddings"][30:] == 0).any()
    _, tensors = train(tmp_path / "no_l1", "Ftrl.l1_regularization_strength = 0.0")
    assert not (tensors["wide/pair_weights/embeddings"][30:] == 0).any(), "without L1 no seen pair stays at zero"
