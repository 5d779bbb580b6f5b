"""Tensor rings: planted ones found, sweeps that fall, trains as rings, peers, bad input."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrjax import ops
from lrjax.decompose import TensorRing, TensorTrain, solve, spec_from_json
from lrjax.decompose.tensor_ring import tr_als, tr_svd
from lrjax.errors import RankError, ShapeError
from lrjax.formats.layout import Layout
from lrjax.linalg import Status
from lrjax.metrics import Diagonal, Metric

RNG = np.random.default_rng(0)
ROWS, COLS, RANKS = (5, 4, 6), (3, 2, 5), (2, 3, 3)  # one compilation for most tests
M, N = 120, 30
SPEC = TensorRing(RANKS, rows=ROWS, cols=COLS)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def table():
    """A table whose rows and columns matter less and less."""
    w = normal(M, N) * np.arange(1, M + 1)[:, None] ** -0.4
    return (w * np.arange(1, N + 1) ** -0.6).astype(np.float32)


def rebuilt(cores):
    """The matrix of a ring, in NumPy and double precision."""
    a, b, c = (np.asarray(core, np.float64) for core in cores)
    full = np.einsum("aijb,bklc,cmna->ikmjln", a, b, c)
    return full.reshape(a.shape[1] * b.shape[1] * c.shape[1], -1)


def error(w, ring):
    return float(np.linalg.norm(w - rebuilt(ring.cores)))


def planted(ranks=RANKS):
    bonds = zip(ranks, ROWS, COLS, (*ranks[1:], ranks[0]), strict=True)
    return rebuilt([normal(*shape) for shape in bonds]).astype(np.float32)


@functools.cache
def frequencies():
    return Metric(Diagonal(jnp.asarray(RNG.pareto(1.0, M).astype(np.float32))))


def test_planted_rings_are_recovered():
    """Also those that TR-SVD and sweeps from it alone do not find."""
    for _ in range(4):
        w = planted()
        ring, info = solve(SPEC, jnp.asarray(w))
        assert ring.rank == RANKS
        assert error(w, ring) <= 1e-5 * np.linalg.norm(w)
        assert float(info.residual) <= 1e-5 * np.linalg.norm(w)


def test_a_ring_whose_first_rank_is_one_is_the_train():
    w = jnp.asarray(table())
    ring, info = solve(TensorRing((1, 3, 2), rows=ROWS, cols=COLS), w)
    train, same = solve(TensorTrain((3, 2), rows=ROWS, cols=COLS), w)
    np.testing.assert_allclose(rebuilt(ring.cores), train.densify(), atol=1e-5)
    assert float(info.residual) == pytest.approx(float(same.residual), rel=1e-5)


@pytest.mark.parametrize("weighted", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_sweeps_never_rise_and_beat_their_start(weighted):
    w, metric = jnp.asarray(table()), frequencies() if weighted else Metric()
    start, _ = tr_svd(w, ROWS, COLS, RANKS)
    runs = [tr_als(w, start, metric=metric, sweeps=s, tol=0.0) for s in (0, 1, 2, 4, 12)]
    losses = [float(metric.loss(w - rebuilt(ring.cores))) for ring, _ in runs]
    assert all(b <= a * (1 + 1e-4) for a, b in itertools.pairwise(losses))
    assert losses[-1] < 0.95 * losses[0]
    assert float(runs[-1][1].residual) ** 2 == pytest.approx(losses[-1], rel=1e-3)


def test_a_core_is_the_least_squares_solution():
    """After the last update of a sweep, no change of the first core helps: NumPy's solution."""
    w = table()
    start, _ = tr_svd(jnp.asarray(w), ROWS, COLS, RANKS)
    ring, info = tr_als(jnp.asarray(w), start, sweeps=1, tol=0.0)
    b, c = (np.asarray(core, np.float64) for core in ring.cores[1:])
    design = np.einsum("bklc,cmna->kmlnab", b, c).reshape(-1, RANKS[0] * RANKS[1])
    target = w.reshape(*ROWS, *COLS).transpose(1, 2, 4, 5, 0, 3).reshape(len(design), -1)
    missed = target - design @ np.linalg.lstsq(design, target, rcond=None)[0]
    assert float(info.residual) == pytest.approx(np.linalg.norm(missed), rel=1e-5)


def test_peers_do_not_come_nearer():
    tensorly = pytest.importorskip("tensorly.decomposition")
    w = table()
    pairs = [m * n for m, n in zip(ROWS, COLS, strict=True)]
    x = w.reshape(*ROWS, *COLS).transpose(0, 3, 1, 4, 2, 5).reshape(pairs)
    theirs = tensorly.tensor_ring(x, [*RANKS, RANKS[0]]).to_tensor()
    ours, info = solve(SPEC, jnp.asarray(w))
    assert error(w, ours) <= 0.97 * np.linalg.norm(x - theirs)
    assert float(info.residual) == pytest.approx(error(w, ours), rel=1e-4)


def test_it_may_begin_at_any_core():
    w = table()
    found = [tr_svd(jnp.asarray(w), ROWS, COLS, RANKS, first=k) for k in (0, 2)]
    assert all(ring.rank == RANKS for ring, _ in found)
    for ring, info in found:
        assert float(info.residual) == pytest.approx(error(w, ring), rel=1e-4)
        assert error(w, ring) < np.linalg.norm(w)


def test_padding_costs_no_error():
    """A ring of a padded table: the residual is that of the rows which are there."""
    w = table()[:113]
    start, info = tr_svd(jnp.asarray(w), ROWS, COLS, RANKS)
    assert start.shape == w.shape
    assert float(info.residual) == pytest.approx(
        np.linalg.norm(w - rebuilt(start.cores)[:113]), rel=1e-4
    )


def test_a_key_fixes_the_bits_and_a_stack_is_a_loop():
    w = jnp.asarray(table())
    runs = [solve(SPEC, w, key=jax.random.key(1))[0] for _ in range(2)]
    assert all((a == b).all() for a, b in zip(*map(jax.tree.leaves, runs), strict=True))
    stacked, _ = tr_svd(jnp.stack([w, 3 * w]), ROWS, COLS, RANKS)
    assert stacked.shape == (2, M, N)
    one, _ = tr_svd(w, ROWS, COLS, RANKS)
    np.testing.assert_allclose(stacked.densify()[1], 3 * one.densify(), atol=1e-4)


@pytest.mark.parametrize("scale", [1e25, 1e-25])
def test_any_unit(scale):
    w = jnp.asarray(table())
    _, info = solve(SPEC, scale * w)
    _, same = solve(SPEC, w)
    assert float(info.residual) / scale == pytest.approx(float(same.residual), rel=1e-3)


def test_bad_values_have_a_status():
    w = jnp.asarray(table())
    zero, info = solve(SPEC, 0 * w)
    assert (Status(int(info.status)), float(info.residual)) == (Status.RANK_DEFICIENT, 0.0)
    assert not zero.densify().any()
    broken, info = solve(SPEC, w.at[3, 4].set(jnp.nan))
    assert Status(int(info.status)) is Status.NON_FINITE
    assert np.isnan(info.residual)
    assert not broken.densify().any()


@pytest.mark.parametrize(
    ("ranks", "words"),
    [((0, 3, 2), "1 to"), ((2, 3, 121), "1 to"), ((4, 4, 4), "product 16"), ((40, 1, 1), "1 to")],
)
def test_impossible_ranks_are_refused(ranks, words):
    with pytest.raises(RankError, match=words):
        solve(dataclasses.replace(SPEC, rank=ranks), jnp.asarray(table()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rank": (2, 3)}, "one before each core"),
        ({"first": 3}, "0 to 2"),
        ({"rows": (5, 4, 5)}, "digits"),
    ],
)
def test_misfits_are_refused(change, words):
    with pytest.raises(ShapeError, match=words):
        solve(dataclasses.replace(SPEC, **change), jnp.asarray(table()))


def test_options_are_losses_that_are_reached():
    w, metric = jnp.asarray(table()), frequencies()
    spec = TensorRing(rows=ROWS, cols=COLS)
    measured = np.asarray(jax.jit(spec.measure)(w, metric))
    options = spec.options(w.shape, w.dtype, Layout((0,), (1,)), measured)
    assert np.sum(measured**2) == pytest.approx(float(metric.loss(w)), rel=1e-4)
    assert (np.diff(options.params) > 0).all()
    assert (np.diff(options.error) <= 0).all()
    pick = [tuple(r) for r in options.ranks].index(RANKS)
    chosen = spec.with_rank(options.ranks[pick])
    assert spec_from_json(chosen.to_json()) == chosen
    found, info = solve(chosen, w, metric=metric)
    assert ops.cost(found).params == options.params[pick]
    assert float(info.residual) ** 2 <= options.error[pick] * (1 + 1e-4)


def test_ranks_are_read_off_the_unfoldings():
    w = planted()
    norm = np.linalg.norm(w)
    sizes = [int(np.linalg.matrix_rank(u, 1e-3 * norm)) for u in SPEC.unfoldings(w)]
    assert sizes == [6, 8, 6]  # the second pair has 8 digits only
    assert TensorRing(rows=ROWS, cols=COLS).with_unfolding_ranks(sizes, w.shape).rank == RANKS
