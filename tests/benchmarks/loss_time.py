"""Time of every loss and metric of ours, forward and backward, against its plainest correct formulation in TensorFlow.

    python -m tests.benchmarks.loss_time [--only=binary_focal,info_nce] [--steps=50] [--rounds=9]

The two take turns in one process, on the same numbers; the ratio is the
median over the rounds of ours / plain in the same round. Their values are
compared first. What ours does beyond the plain form (labels outside [0, C),
soft labels, 1 - p where p rounds to 1, equal examples) is what a ratio above
1 pays for.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import losses

BATCH, CLASSES = 1024, 100
RANDOM = np.random.default_rng(0)


def normal(*shape):
    return tf.constant(RANDOM.normal(size=shape), tf.float32)


LOGITS = normal(BATCH, CLASSES)
IDS = tf.constant(RANDOM.integers(CLASSES, size=BATCH), tf.int32)
BITS = tf.constant(RANDOM.integers(2, size=(BATCH, CLASSES)), tf.float32)
TARGETS, TEACHER = normal(BATCH, CLASSES), normal(BATCH, CLASSES)
WEIGHTS = RANDOM.random(CLASSES).tolist()
COSTS = RANDOM.random([CLASSES, CLASSES]).tolist()
COUNTS = RANDOM.integers(1, 1000, CLASSES).tolist()
VECTORS, FEW_IDS = normal(128, 64), tf.constant(RANDOM.integers(10, size=128), tf.int32)
PAIRS = tf.stack(tf.split(VECTORS, 2), 1)
MAPS, MASKS = tf.nn.sigmoid(normal(32, 32, 32, 4)), tf.constant(RANDOM.integers(2, size=(32, 32, 32, 4)), tf.float32)


def crossentropy(z, ids=IDS):
    return tf.nn.sparse_softmax_cross_entropy_with_logits(ids, z)


def binary_focal(z):
    p, crossentropies = tf.sigmoid(z), tf.nn.sigmoid_cross_entropy_with_logits(BITS, z)
    wrong = BITS * (1 - p) + (1 - BITS) * p
    return tf.reduce_mean((BITS * 0.25 + (1 - BITS) * 0.75) * wrong**2 * crossentropies, -1)


def asymmetric(z):
    q = tf.maximum(tf.sigmoid(z) - 0.05, 0)
    return -tf.reduce_mean(BITS * tf.math.log_sigmoid(z) + (1 - BITS) * q**4 * tf.math.log1p(-q), -1)


def ldam(z):
    rare = np.array(COUNTS) ** -0.25
    margins = tf.gather(tf.constant(0.5 * rare / rare.max(), tf.float32), IDS)
    return crossentropy(30 * (z - margins[:, None] * tf.one_hot(IDS, CLASSES)))


def bi_tempered(z, t1=0.8, t2=1.2, times=17):
    def exp_t(x):
        return (1 + (1 - t2) * x) ** (1 / (1 - t2))

    shifted = z - tf.reduce_max(z, -1, keepdims=True)
    x = shifted
    for _ in range(times):
        total = tf.reduce_sum(exp_t(x), -1, keepdims=True)
        x = shifted * total ** (1 - t2)
    total = tf.reduce_sum(exp_t(x), -1, keepdims=True)
    p = exp_t(shifted - (total ** (t2 - 1) - 1) / (t2 - 1))
    own = tf.gather(p, IDS, batch_dims=1)
    return (1 - own ** (1 - t1)) / (1 - t1) - (1 - tf.reduce_sum(p ** (2 - t1), -1)) / (2 - t1)


def nt_xent(x):
    views = tf.math.l2_normalize(x, -1)
    half = len(VECTORS) // 2
    logits = tf.linalg.set_diag(tf.linalg.matmul(views, views, transpose_b=True) / 0.5, tf.fill([2 * half], -1e9))
    values = crossentropy(logits, tf.concat([tf.range(half) + half, tf.range(half)], 0))
    return (values[:half] + values[half:]) / 2


def info_nce(x):
    queries, keys = tf.split(tf.math.l2_normalize(x, -1), 2)
    return crossentropy(tf.linalg.matmul(queries, keys, transpose_b=True) / 0.07, tf.range(len(VECTORS) // 2))


def sup_con(x):
    rows = tf.math.l2_normalize(x, -1)
    logits = tf.linalg.set_diag(tf.linalg.matmul(rows, rows, transpose_b=True) / 0.1, tf.fill([len(VECTORS)], -1e9))
    same = tf.cast(FEW_IDS[:, None] == FEW_IDS, tf.float32)
    positive = tf.linalg.set_diag(same, tf.zeros([len(VECTORS)]))
    return -tf.reduce_sum(positive * tf.nn.log_softmax(logits), 1) / tf.maximum(tf.reduce_sum(positive, 1), 1)


def contrastive(pairs):
    first, second = tf.unstack(pairs, 2, 1)
    alike, squared = BITS[: len(VECTORS) // 2, 0], tf.reduce_sum((first - second) ** 2, -1)
    return alike * squared + (1 - alike) * tf.maximum(1 - tf.sqrt(tf.maximum(squared, 1e-12)), 0) ** 2


def n_pairs(pairs):
    anchors, positives = tf.unstack(pairs, 2, 1)
    ids = FEW_IDS[: len(VECTORS) // 2]
    same = tf.cast(ids[:, None] == ids, tf.float32)
    logits = tf.linalg.matmul(anchors, positives, transpose_b=True)
    return tf.nn.softmax_cross_entropy_with_logits(same / tf.reduce_sum(same, 1, keepdims=True), logits)


def off_diagonal(matrix):
    return tf.reduce_sum(matrix**2) - tf.reduce_sum(tf.linalg.diag_part(matrix) ** 2)


def vic_reg(x):
    first, second = tf.split(x, 2)
    total = 25 * tf.reduce_mean((first - second) ** 2, -1)
    for view in (first, second):
        centred = view - tf.reduce_mean(view, 0)
        matrix = tf.linalg.matmul(centred, centred, transpose_a=True) / (len(VECTORS) // 2 - 1)
        total += 12.5 * tf.reduce_mean(tf.maximum(1 - tf.sqrt(tf.linalg.diag_part(matrix) + 1e-4), 0))
        total += off_diagonal(matrix) / view.shape[1]
    return total


def barlow_twins(x):
    first, second = ((v - tf.reduce_mean(v, 0)) / tf.sqrt(tf.math.reduce_variance(v, 0) + 1e-5) for v in tf.split(x, 2))
    matrix = tf.linalg.matmul(first, second, transpose_a=True) / (len(VECTORS) // 2)
    total = tf.reduce_sum((1 - tf.linalg.diag_part(matrix)) ** 2) + 5e-3 * off_diagonal(matrix)
    return tf.fill([len(VECTORS) // 2], total)


def distances(x):
    square = tf.reduce_sum(x**2, 1)
    return tf.sqrt(tf.maximum(square[:, None] + square - 2 * tf.linalg.matmul(x, x, transpose_b=True), 1e-12))


def lifted(x):
    d, same = distances(x), FEW_IDS[:, None] == FEW_IDS
    pushed = tf.reduce_logsumexp(tf.where(same, -1e9, 1 - d), 1)
    both = tf.reduce_logsumexp(tf.stack(tf.meshgrid(pushed, pushed)), 0)
    positive = tf.cast(tf.linalg.set_diag(same, tf.fill([len(VECTORS)], False)), tf.float32)
    return tf.reduce_sum(positive * tf.maximum(both + d, 0) ** 2 / 2) / tf.reduce_sum(positive)


def triplet(x, mining):
    d = distances(x)
    same = FEW_IDS[:, None] == FEW_IDS
    positive, negative = (
        tf.cast(tf.linalg.set_diag(same, tf.fill([len(VECTORS)], False)), tf.float32),
        tf.cast(~same, tf.float32),
    )
    if mining == "hard":
        hinge = tf.maximum(tf.reduce_max(positive * d, 1) - tf.reduce_min(tf.where(same, 1e9, d), 1) + 1, 0)
        valid = tf.reduce_max(positive, 1) * tf.reduce_max(
            negative, 1
        )  # a triplet needs both; else the mean is another one
        return tf.reduce_sum(valid * hinge) / tf.reduce_sum(valid)
    if mining == "all":
        valid = positive[:, :, None] * negative[:, None, :]
        return tf.reduce_sum(valid * tf.maximum(d[:, :, None] - d[:, None, :] + 1, 0)) / tf.reduce_sum(valid)
    beyond = ~same[:, None, :] & (d[:, None, :] > d[:, :, None])
    near = tf.reduce_min(tf.where(beyond, d[:, None, :], np.inf), 2)
    far = tf.reduce_max(negative * d, 1)[:, None]
    values = tf.maximum(d - tf.where(tf.reduce_any(beyond, 2), near, far) + 1, 0)
    return tf.reduce_sum(positive * values) / tf.reduce_sum(positive)


def distill(z):
    teacher = tf.nn.softmax(TEACHER / 2)
    soft = tf.reduce_sum(teacher * (tf.nn.log_softmax(TEACHER / 2) - tf.nn.log_softmax(z / 2)), -1)
    return 0.5 * 4 * soft + 0.5 * crossentropy(z)


CRITIC = keras.Sequential([keras.Input((CLASSES,)), keras.layers.Dense(64, "tanh"), keras.layers.Dense(1)])


def gradient_penalty(x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        scores = CRITIC(x)
    norm = tf.sqrt(tf.reduce_sum(tape.gradient(scores, x) ** 2, -1) + 1e-12)
    return 10 * (norm - 1) ** 2


def tversky(p, alpha=0.3, beta=0.7, smoothing=1.0):
    hit = tf.reduce_sum(MASKS * p, [1, 2])
    wrong, missed = tf.reduce_sum((1 - MASKS) * p, [1, 2]), tf.reduce_sum(MASKS * (1 - p), [1, 2])
    return 1 - (hit + smoothing) / (hit + alpha * wrong + beta * missed + smoothing)


def halves(function):
    return lambda x: function(*tf.split(x, 2))


def heteroscedastic(x):
    mean, log_variance = tf.split(x, 2, -1)
    log_variance = tf.clip_by_value(log_variance, -20, 20)
    return tf.reduce_mean(0.5 * (log_variance + (TARGETS[:, :50] - mean) ** 2 * tf.exp(-log_variance)), -1)


# name: (ours, plain, where to start), functions of one float tensor
LOSSES = {
    "weighted_crossentropy": (lambda z: losses.weighted_crossentropy(IDS, z, WEIGHTS),
                              lambda z: tf.gather(tf.constant(WEIGHTS), IDS) * crossentropy(z), LOGITS),
    "cost_sensitive": (lambda z: losses.cost_sensitive(IDS, z, COSTS),
                       lambda z: tf.reduce_sum(tf.gather(tf.constant(COSTS), IDS) * tf.nn.softmax(z), -1), LOGITS),
    "poly1": (lambda z: losses.poly1(IDS, z), lambda z: crossentropy(z) + 1 - tf.exp(-crossentropy(z)), LOGITS),
    "ldam": (lambda z: losses.ldam(IDS, z, COUNTS), ldam, LOGITS),
    "binary_focal": (lambda z: losses.binary_focal(BITS, z), binary_focal, LOGITS),
    "categorical_focal": (lambda z: losses.categorical_focal(IDS, z),
                          lambda z: (1 - tf.exp(-crossentropy(z))) ** 2 * crossentropy(z), LOGITS),
    "asymmetric": (lambda z: losses.asymmetric(BITS, z), asymmetric, LOGITS),
    "generalized_crossentropy": (lambda z: losses.generalized_crossentropy(IDS, z),
                                 lambda z: (1 - tf.exp(-0.7 * crossentropy(z))) / 0.7, LOGITS),
    "symmetric_crossentropy": (lambda z: losses.symmetric_crossentropy(IDS, z),
                               lambda z: 0.1 * crossentropy(z) + 4 * (1 - tf.exp(-crossentropy(z))), LOGITS),
    "bi_tempered": (lambda z: losses.bi_tempered(IDS, z), bi_tempered, LOGITS),
    "pseudo_huber": (lambda x: losses.pseudo_huber(TARGETS, x),
                     lambda x: tf.reduce_mean(tf.sqrt(1 + (x - TARGETS) ** 2) - 1, -1), LOGITS),
    "pinball": (lambda x: losses.pinball(TARGETS, x, 0.9),
                lambda x: tf.reduce_mean(tf.maximum(0.9 * (TARGETS - x), -0.1 * (TARGETS - x)), -1), LOGITS),
    "winsorised": (lambda x: losses.winsorised(TARGETS, x, 1.0),
                   lambda x: tf.reduce_mean(tf.minimum(tf.abs(x - TARGETS), 1) ** 2, -1), LOGITS),
    "heteroscedastic_nll": (lambda x: losses.heteroscedastic_nll(TARGETS[:, :50], x), heteroscedastic, LOGITS),
    "nt_xent": (halves(losses.nt_xent), nt_xent, VECTORS),
    "info_nce": (halves(losses.info_nce), info_nce, VECTORS),
    "sup_con": (lambda x: losses.sup_con(FEW_IDS, x), sup_con, VECTORS),
    "n_pairs": (lambda x: losses.n_pairs(FEW_IDS[: len(VECTORS) // 2], x), n_pairs, PAIRS),
    "vic_reg": (halves(losses.vic_reg), vic_reg, VECTORS),
    "barlow_twins": (halves(losses.barlow_twins), barlow_twins, VECTORS),
    "contrastive_pairs": (lambda x: losses.contrastive_pairs(BITS[: len(VECTORS) // 2, 0], x), contrastive, PAIRS),
    **{f"triplet, {mining}": (lambda x, m=mining: tf.reduce_mean(losses.triplet(FEW_IDS, x, mining=m)),
                              lambda x, m=mining: triplet(x, m), VECTORS) for mining in ("all", "hard", "semi_hard")},
    "lifted_structure": (lambda x: tf.reduce_mean(losses.lifted_structure(FEW_IDS, x)), lifted, VECTORS),
    "distill": (lambda z: losses.distill(IDS, z, TEACHER), distill, LOGITS),
    "discriminator_loss": (halves(losses.discriminator_loss),
                           halves(lambda r, f: tf.reduce_mean(tf.nn.softplus(-r) + tf.nn.softplus(f), -1)), LOGITS),
    "generator_loss": (losses.generator_loss, lambda f: tf.reduce_mean(tf.nn.softplus(-f), -1), LOGITS),
    "gradient_penalty": (lambda x: losses.gradient_penalty(CRITIC, x), gradient_penalty, LOGITS),
    "soft_dice": (lambda p: losses.soft_dice(MASKS, p), lambda p: tf.reduce_mean(tversky(p, 0.5, 0.5, 0.5), -1), MAPS),
    "soft_tversky": (lambda p: losses.soft_tversky(MASKS, p), lambda p: tf.reduce_mean(tversky(p), -1), MAPS),
    "focal_tversky": (lambda p: losses.focal_tversky(MASKS, p), lambda p: tf.reduce_mean(tversky(p) ** 0.75, -1), MAPS),
}  # fmt: skip


def metric(ours, plain):
    """A step of a metric: `plain(ids, scores)` is what is added to the state."""
    ours, state = ours(), []

    def update_ours(z):
        ours.update_state(IDS, z)
        return z[:, 0]

    def update_plain(z):
        if not state:
            state.append(tf.Variable(tf.zeros(plain(z).shape)))
        state[0].assign_add(plain(z))
        return z[:, 0]

    return update_ours, update_plain, LOGITS


def confusion(z):
    return tf.math.confusion_matrix(IDS, tf.argmax(z, -1), CLASSES, dtype=tf.float32)


def calibration(z):
    p = tf.nn.softmax(z)
    confidence, hit = tf.reduce_max(p, -1), tf.cast(tf.argmax(p, -1, tf.int32) == IDS, tf.float32)
    place = tf.minimum(tf.cast(confidence * 15, tf.int32), 14)
    return tf.stack([tf.math.unsorted_segment_sum(v, place, 15) for v in (tf.ones_like(hit), confidence, hit)])


METRICS = {
    "CohenKappa": lambda: metric(lambda: losses.CohenKappa(CLASSES), confusion),
    "MatthewsCorrelation": lambda: metric(lambda: losses.MatthewsCorrelation(CLASSES), confusion),
    "ExpectedCalibrationError": lambda: metric(lambda: losses.ExpectedCalibrationError(from_logits=True), calibration),
}


def loop_of(function, start, variables):
    """Returns a function of a number of steps; each step's input depends on the gradients of the one before."""
    trained = [variable.value for variable in variables]

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        gradients = tape.gradient(y, [x, *trained], unconnected_gradients="zero")
        gradient, *others = [tf.convert_to_tensor(g) for g in gradients]
        return x - 1e-9 * (gradient + tf.add_n([0.0, *(tf.reduce_sum(other) for other in others)]))

    @tf.function(autograph=False)
    def loop(num_steps):
        return tf.reduce_sum(tf.while_loop(lambda i, x: i < num_steps, lambda i, x: (i + 1, step(x)), [0, start])[1])

    return lambda num_steps: loop(tf.constant(num_steps)).numpy()


def compare(name, ours, plain, start, steps, rounds, same=True):
    """Prints microseconds a step of both and the median ratio; `same` compares their values first."""
    variables = ours.trainable_variables if isinstance(ours, keras.layers.Layer) else []
    call = (lambda x: ours(x, training=True)) if variables or isinstance(ours, keras.layers.Layer) else ours
    if same:
        np.testing.assert_allclose(call(start), plain(start), rtol=2e-3, atol=2e-4, err_msg=name)
    contestants, times = [loop_of(function, start, variables) for function in (call, plain)], []
    for turn in range(rounds + 1):
        row = []
        for run in contestants:
            began = time.perf_counter()
            run(steps)
            row.append((time.perf_counter() - began) / steps * 1e6)
        if turn:  # the first one traces
            times.append(row)
    ratio = statistics.median(a / b for a, b in times)
    medians = [statistics.median(column) for column in zip(*times)]
    print(f"{name:28}{medians[0]:10.0f}{medians[1]:10.0f}{ratio:10.2f}{'  slower' if ratio > 1.1 else ''}", flush=True)


def main(table, draws=()):
    """Times the entries of `table`, tuples or functions that make them; compares values but for names in `draws`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    only = [name for name in arguments.only.split(",") if name]
    print(f"{'us/step':28}{'ours':>10}{'plain':>10}{'ratio':>10}")
    for name, entry in table.items():
        if not only or name.split(",")[0] in only:
            made = entry() if callable(entry) else entry
            compare(name, *made, arguments.steps, arguments.rounds, same=name not in draws)


if __name__ == "__main__":
    main({**LOSSES, **METRICS})
