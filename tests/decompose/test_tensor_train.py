"""Tensor-train solvers: bounds, tolerance, rounding, weighted sweeps, tokens, options that hold."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrjax import ops
from lrjax.decompose import TensorTrain, TokenTrain, solve, spec_from_json
from lrjax.decompose.chain.digits import aligned, balanced
from lrjax.decompose.tensor_train import rounded, token_train, train_ranks, tt_als, tt_svd
from lrjax.errors import RankError, ShapeError
from lrjax.formats import Network
from lrjax.formats.layout import Layout
from lrjax.linalg import Status
from lrjax.metrics import Diagonal, Gram, Metric

RNG = np.random.default_rng(0)
ROWS, COLS, RANKS = (5, 4, 6), (3, 2, 5), (6, 7)  # one compilation for most tests
M, N = 113, 30  # seven rows of padding


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def table():
    """A table whose rows and columns matter less and less."""
    w = normal(M, N) * np.arange(1, M + 1)[:, None] ** -0.4
    return (w * np.arange(1, N + 1) ** -0.6).astype(np.float32)


def unfoldings(w):
    """The unfoldings of the padded tensor of digit pairs, in NumPy."""
    x = np.zeros((math.prod(ROWS), math.prod(COLS)))
    x[: w.shape[0], : w.shape[1]] = w
    x = x.reshape(*ROWS, *COLS).transpose(0, 3, 1, 4, 2, 5)
    return [x.reshape(math.prod(x.shape[: 2 * k]), -1) for k in (1, 2)]


def error(w, train):
    return float(np.linalg.norm(w - np.asarray(train.densify(), np.float64)))


def test_the_error_is_within_its_bounds():
    w = table()
    train, info = tt_svd(jnp.asarray(w), ROWS, COLS, RANKS)
    assert train.shape == w.shape
    assert train.rank == RANKS
    values = [np.linalg.svd(u, compute_uv=False) for u in unfoldings(w)]
    tails = [np.sum(s[r:] ** 2) for s, r in zip(values, RANKS, strict=True)]
    assert error(w, train) <= math.sqrt(sum(tails)) * (1 + 1e-5)
    assert error(w, train) <= float(info.certificate) * math.sqrt(max(tails)) * (1 + 1e-5)
    assert float(info.residual) == pytest.approx(error(w, train), rel=1e-4)


def test_planted_ranks_are_recovered():
    planted = tt_svd(jnp.asarray(normal(M, N)), ROWS, COLS, (3, 4))[0].densify()
    padded = jnp.pad(planted, ((0, 7), (0, 0)))
    cores = tt_svd(padded, ROWS, COLS, (15, 30))[0]
    low = rounded(cores, (3, 4))
    w = np.asarray(low.densify())  # exactly of these ranks, padding included
    assert train_ranks(jnp.asarray(w), ROWS, COLS, 1e-5) == (3, 4)
    train, _ = tt_svd(jnp.asarray(w), ROWS, COLS, (3, 4))
    assert error(w, train) <= 1e-6 * np.linalg.norm(w)
    more, info = tt_svd(jnp.asarray(w), ROWS, COLS, RANKS)
    assert Status(int(info.status)) is Status.RANK_DEFICIENT
    assert error(w, more) <= 1e-6 * np.linalg.norm(w)


@pytest.mark.parametrize("tol", [pytest.param(0.5, marks=pytest.mark.slow), 0.1, 1e-4])
def test_a_tolerance_is_kept(tol):
    w = table()
    ranks = train_ranks(jnp.asarray(w), ROWS, COLS, tol)
    train, _ = tt_svd(jnp.asarray(w), ROWS, COLS, ranks)
    assert error(w, train) <= tol * np.linalg.norm(w) * 1.001
    assert tol < 1e-3 or sum(ranks) < 15 + 30


def test_rounding_is_the_truncation_of_the_weight_itself():
    w = table()
    full, _ = tt_svd(jnp.asarray(w), ROWS, COLS, (15, 30))
    assert error(w, full) <= 1e-6 * np.linalg.norm(w)
    low, direct = rounded(full, RANKS), tt_svd(jnp.asarray(w), ROWS, COLS, RANKS)[0]
    assert low.rank == RANKS
    assert error(w, low) == pytest.approx(error(w, direct), rel=1e-4)


def test_all_digits_of_peers_agree():
    tensorly = pytest.importorskip("tensorly.decomposition")
    w = table()
    x = np.pad(w, ((0, 7), (0, 0))).reshape(*ROWS, *COLS).transpose(0, 3, 1, 4, 2, 5)
    pairs = [m * n for m, n in zip(ROWS, COLS, strict=True)]
    theirs = tensorly.tensor_train(x.reshape(pairs), [1, *RANKS, 1]).to_tensor()
    ours = tt_svd(jnp.asarray(w), ROWS, COLS, RANKS)[0]
    full = x.reshape(pairs)
    assert error(w, ours) <= np.linalg.norm(full - theirs) * (1 + 1e-4)


METRICS = {
    "none": Metric(),
    "frequencies": Metric(Diagonal(jnp.asarray(RNG.pareto(1.0, M).astype(np.float32)))),
    "gram": Metric(
        Gram(jnp.asarray(np.cov(normal(M, 300) * np.arange(1, M + 1)[:, None] ** -0.5)))
    ),
    "both": Metric(
        Diagonal(jnp.arange(1.0, M + 1) ** -1), Gram(jnp.asarray(np.cov(normal(N, 90))))
    ),
}


@pytest.mark.parametrize(
    "name", ["none", "frequencies", pytest.param("gram", marks=pytest.mark.slow), "both"]
)
def test_sweeps_never_rise_and_beat_their_start(name):
    w, metric = jnp.asarray(table()), METRICS[name]
    start, _ = tt_svd(w, ROWS, COLS, RANKS)
    runs = [tt_als(w, start, metric=metric, sweeps=s, tol=0.0) for s in (0, 1, 2, 4, 12)]
    losses = [float(metric.loss(w - train.densify())) for train, _ in runs]
    assert all(b <= a * (1 + 1e-4) for a, b in itertools.pairwise(losses))
    assert losses[-1] < (0.999 if name == "none" else 0.85) * losses[0]
    assert float(runs[-1][1].residual) ** 2 == pytest.approx(losses[-1], rel=1e-3)


@pytest.mark.slow
def test_two_site_sweeps_turn_where_single_cores_cannot():
    """From ranks of one, and from a train of zeros, to a train of other ranks, under a metric."""
    w, metric = jnp.asarray(table()), METRICS["frequencies"]
    small, _ = tt_svd(w, ROWS, COLS, (1, 1))
    start, _ = tt_svd(w, ROWS, COLS, RANKS)
    single = tt_als(w, start, metric=metric, sweeps=12, tol=0.0)[1].residual
    runs = [tt_als(w, small, metric=metric, sweeps=s, tol=0.0, ranks=RANKS) for s in (0, 1, 12)]
    losses = [float(jnp.sqrt(metric.loss(w - train.densify()))) for train, _ in runs]
    assert runs[0][0].rank == runs[-1][0].rank == RANKS
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] < 1.05 * float(single)
    assert float(runs[-1][1].residual) == pytest.approx(losses[2], rel=1e-3)
    lower, info = tt_als(w, start, sweeps=2, ranks=(3, 4))
    assert lower.rank == (3, 4)
    direct = tt_svd(w, ROWS, COLS, (3, 4))[1]
    assert float(info.residual) <= float(direct.residual) * (1 + 1e-4)


def test_frequency_weights_pay_on_held_out_tokens():
    """Weights from one sample of a skewed distribution, loss on another, at equal bytes."""
    w, p = jnp.asarray(normal(M, N)), np.arange(1, M + 1) ** -1.5
    seen, held = (np.bincount(RNG.choice(M, 4000, p=p / p.sum()), minlength=M) for _ in range(2))
    metric = Metric(Diagonal(jnp.asarray(seen / 4000, jnp.float32)))
    spec = TensorTrain(RANKS, rows=ROWS, cols=COLS)
    plain, weighted = solve(spec, w)[0], solve(spec, w, metric=metric)[0]
    score = lambda train: float(np.sum(held[:, None] * np.square(w - train.densify())))
    assert score(weighted) < 0.9 * score(plain)


def test_a_key_fixes_the_bits_and_a_stack_is_a_loop():
    w = jnp.asarray(table())
    runs = [tt_svd(w, ROWS, COLS, RANKS, key=jax.random.key(1))[0] for _ in range(2)]
    assert all((a == b).all() for a, b in zip(*map(jax.tree.leaves, runs), strict=True))
    stacked, info = tt_svd(jnp.stack([w, 3 * w]), ROWS, COLS, RANKS)
    assert stacked.shape == (2, M, N)
    assert info.residual.shape == (2,)
    np.testing.assert_allclose(stacked.densify()[1], 3 * runs[0].densify(), atol=1e-5)
    both = Metric(Diagonal(jnp.ones((2, M))))
    swept, info = tt_als(jnp.stack([w, 3 * w]), stacked, metric=both, sweeps=2)
    assert (swept.shape, info.status.shape) == ((2, M, N), (2,))


@pytest.mark.parametrize("scale", [1e25, 1e-25])
def test_any_unit(scale):
    w, metric = jnp.asarray(table()), METRICS["frequencies"]
    train, info = solve(TensorTrain(RANKS, rows=ROWS, cols=COLS), scale * w, metric=metric)
    plain, same = solve(TensorTrain(RANKS, rows=ROWS, cols=COLS), w, metric=metric)
    np.testing.assert_allclose(train.densify() / scale, plain.densify(), atol=1e-4)
    assert float(info.residual) / scale == pytest.approx(float(same.residual), rel=1e-3)


def test_bad_values_have_a_status():
    w, spec = jnp.asarray(table()), TensorTrain(RANKS, rows=ROWS, cols=COLS)
    zero, info = solve(spec, 0 * w)
    assert (Status(int(info.status)), float(info.residual)) == (Status.RANK_DEFICIENT, 0.0)
    assert not zero.densify().any()
    broken, info = solve(spec, w.at[3, 4].set(jnp.inf))
    assert Status(int(info.status)) is Status.NON_FINITE
    assert np.isnan(info.residual)
    assert not broken.densify().any()
    bad = Metric(Diagonal(jnp.full(M, jnp.nan)))
    assert Status(int(solve(spec, w, metric=bad)[1].status)) is Status.NON_FINITE


@pytest.mark.parametrize("ranks", [(0, 7), (16, 7), (6, 31), (2, 30)])
def test_impossible_ranks_are_refused(ranks):
    with pytest.raises(RankError):
        tt_svd(jnp.asarray(table()), ROWS, COLS, ranks)


@pytest.mark.parametrize(
    ("rows", "cols"), [((5, 4, 5), COLS), ((6, 4, 6), COLS), (ROWS, (3, 10)), ((), ())]
)
def test_digits_that_do_not_hold_the_weight_are_refused(rows, cols):
    with pytest.raises(ShapeError):
        tt_svd(jnp.asarray(table()), rows, cols, RANKS)


def test_tokens_are_independent():
    w = table()
    digits, ranks = (5, 6), (2,)
    train, info = token_train(jnp.asarray(w), digits, ranks)
    best = 0.0  # each row's own truncated SVD
    for row, got in zip(w, np.asarray(train.densify()), strict=True):
        s = np.linalg.svd(row.reshape(digits), compute_uv=False)
        tail = math.sqrt(np.sum(s[2:] ** 2))
        assert np.linalg.norm(row - got) <= tail * (1 + 1e-4) + 1e-6
        best += tail**2
    assert float(info.residual) == pytest.approx(math.sqrt(best), rel=1e-4)
    shards = [token_train(jnp.asarray(part), digits, ranks)[0] for part in (w[:100], w[100:])]
    np.testing.assert_allclose(shards[0].append(shards[1]).densify(), train.densify(), atol=1e-6)
    np.testing.assert_allclose(ops.take(train, jnp.array([7])), train.densify()[7:8], atol=1e-6)
    padded, _ = token_train(jnp.asarray(w), (4, 8), (4,))
    assert padded.shape == w.shape
    np.testing.assert_allclose(padded.densify(), w, atol=1e-6)


def test_options_are_losses_that_are_reached():
    w, metric = jnp.asarray(table()), METRICS["frequencies"]
    layout = Layout((0,), (1,))
    spec = TensorTrain(rows=ROWS, cols=COLS)
    measured = np.asarray(jax.jit(spec.measure)(w, metric))
    options = spec.options(w.shape, w.dtype, layout, measured)
    assert np.sum(measured**2) == pytest.approx(float(metric.loss(w)), rel=1e-4)
    assert (np.diff(options.params) > 0).all()
    assert (np.diff(options.error) <= 0).all()
    pick = 4
    chosen = spec.with_rank(options.ranks[pick])
    assert spec_from_json(chosen.to_json()) == chosen
    found, info = solve(chosen, w, metric=metric)
    assert ops.cost(found).params == options.params[pick]
    assert float(info.residual) ** 2 <= options.error[pick] * (1 + 1e-4)
    tokens = TokenTrain((2,), (5, 6))
    measured = np.asarray(tokens.measure(w, Metric()))
    options = tokens.options(w.shape, w.dtype, layout, measured)
    found, info = solve(tokens, w)
    assert ops.cost(found).params == options.params[0]
    assert float(info.residual) ** 2 == pytest.approx(options.error[0], rel=1e-3)


@pytest.mark.parametrize("size", [30522, 50257, 768, 97, 1])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_digits_are_balanced_and_pad_little(size, count):
    digits = balanced(size, count)
    assert len(digits) == count
    assert size <= math.prod(digits) <= max(1.01 * size, size + 4)
    assert (digits[0] - 1) * math.prod(digits[1:]) < size


@pytest.mark.parametrize(
    ("dims", "count", "digits"),
    [((3, 3, 10), 3, (3, 6, 5)), ((12, 64), 3, (12, 8, 8)), ((97, 2), 2, (97, 2)), ((5,), 1, (5,))],
)
def test_digits_may_meet_the_dims_of_a_kernel(dims, count, digits):
    assert aligned(dims, count) == digits
    whole = Network.parse("a b c d -> (a b c d)", jnp.zeros((*digits, *(1,) * (4 - len(digits)))))
    assert whole.reshape(dims).shape == dims
