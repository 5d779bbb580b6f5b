"""Grids and hierarchies of blocks: optimal, refitted, shared out, planned."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrjax as lr
from lrjax import ops
from lrjax.decompose import (
    BLAST,
    HODLR,
    HSS,
    BlockSVD,
    Energy,
    Monarch,
    Reordered,
    WeightedLowRank,
    solve,
    spec_from_json,
)
from lrjax.decompose.block import blast, block_low_rank, hodlr, hss, monarch, seriate, share
from lrjax.errors import RankError, RuleError, ShapeError
from lrjax.formats.layout import Layout
from lrjax.linalg import Status
from lrjax.metrics import Diagonal, Elements, Gram, Metric

M, N = 48, 64


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def psd(seed, d, decay=1.0):
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]
    return ((q * np.arange(1, d + 1.0) ** -decay) @ q.T * d).astype(np.float32)


def kernel(m, n):
    """1 / (1 + |i - j|): smooth away from the diagonal."""
    i, j = np.arange(m)[:, None] / m, np.arange(n)[None] / n
    return (1 / (1 + np.sqrt(m * n) * np.abs(i - j))).astype(np.float32)


def metric_of(rows=None, cols=None):
    side = lambda x: None if x is None else (Diagonal if x.ndim == 1 else Gram)(jnp.asarray(x))
    return Metric(side(rows), side(cols))


def loss(w, f, rows=None, cols=None):
    """sqrt(tr(D' rows D cols)) in float64."""
    d = np.asarray(w, float) - np.asarray(f.densify(), float)
    full = lambda x, n: np.eye(n) if x is None else np.diag(x) if x.ndim == 1 else x
    return np.sqrt(np.trace(d.T @ full(rows, d.shape[0]) @ d @ full(cols, d.shape[1])))


def tail(blocks, rank):
    """Sum of the squared singular values beyond a rank, over a list of matrices."""
    return sum(np.sum(np.linalg.svd(b, compute_uv=False)[rank:] ** 2) for b in blocks)


def grid_of(w, p, q):
    m, n = w.shape[0] // p, w.shape[1] // q
    return {(i, j): w[i * m : (i + 1) * m, j * n : (j + 1) * n] for i in range(p) for j in range(q)}


def off_diagonal(w, level):
    """Sibling blocks of a level by the recursion."""
    c, (m, n) = 2**level, w.shape
    cells = grid_of(w, c, c)
    assert len(cells) == c * c
    assert m % c == n % c == 0
    return [cells[i, i ^ 1] for i in range(c)]


def planned(spec, w, metric=None, keep=0.5):
    """The spec with the least predicted loss within a share of the parameters."""
    metric = metric or Metric()
    layout = Layout((0,), (1,))
    options = spec.options(w.shape, w.dtype, layout, np.asarray(spec.measure(w, metric)))
    fits = np.flatnonzero(options.params <= keep * w.size)
    best = fits[np.argmin(options.error[fits])]
    return spec.with_rank(options.ranks[best]), options, best


# ---- optimality --------------------------------------------------------------------------------


def test_every_block_is_truncated_at_its_own_rank():
    w, ranks = normal(0, M, N), (3, 0, 5, 1, 2, 7, 0, 0)
    f, info = solve(BlockSVD(ranks, (2, 4)), jnp.asarray(w))
    cells = grid_of(w, 2, 4)
    want = np.sqrt(sum(tail([cells[i, j]], ranks[4 * i + j]) for i, j in cells))
    np.testing.assert_allclose([loss(w, f), info.residual], want, rtol=1e-5)
    assert f.block_ranks == ((3, 0, 5, 1), (2, 7, 0, 0))
    # two block rows of at most 9 terms, four block columns of at most 7
    assert ops.cost(f).params == 2 * 24 * 9 + 4 * 7 * 16
    assert info.status == Status.CONVERGED


def test_monarch_is_the_best_of_every_slice():
    w = normal(1, M, N)
    f, info = solve(Monarch(1, (4, 8)), jnp.asarray(w))
    slices = [w[12 * i : 12 * i + 12, k::8] for i in range(4) for k in range(8)]
    np.testing.assert_allclose([loss(w, f), info.residual], np.sqrt(tail(slices, 1)), rtol=1e-5)
    planted = np.asarray(f.densify())
    again, info = solve(Monarch(1, (4, 8)), jnp.asarray(planted))
    assert loss(planted, again) < 1e-5 * np.linalg.norm(planted)


def test_hodlr_is_the_best_of_every_level():
    w = normal(2, M, N)
    f, info = solve(HODLR((2, 3, 1)), jnp.asarray(w))
    want = sum(tail(off_diagonal(w, k + 1), r) for k, r in enumerate((2, 3, 1)))
    np.testing.assert_allclose([loss(w, f), info.residual], np.sqrt(want), rtol=1e-5)
    assert (f.ranks, f.diagonal.shape) == ((2, 3, 1), (8, 6, 8))
    assert ops.cost(f).params == M * N // 8 + 6 * (M + N)


def test_blast_is_never_worse_than_low_rank_and_stationary():
    w = kernel(M, N)
    f, info = solve(BLAST(8, (4, 4), sweeps=300), jnp.asarray(w))
    assert loss(w, f) < 0.6 * np.sqrt(tail([w], 8))
    np.testing.assert_allclose(info.residual, loss(w, f), rtol=1e-4)
    couplings = np.asarray(f.couplings, float)
    for (i, j), cell in grid_of(w, 4, 4).items():  # each block's couplings are its least squares
        terms = [np.outer(f.left[i, :, k], f.right[j, k]).ravel() for k in range(8)]
        own = np.linalg.norm(cell.ravel() - np.stack(terms, 1) @ couplings[i, j])
        best = np.linalg.lstsq(np.stack(terms, 1), cell.ravel(), rcond=None)[0]
        assert own < 1.02 * np.linalg.norm(cell.ravel() - np.stack(terms, 1) @ best) + 1e-3


# ---- metrics -----------------------------------------------------------------------------------

SPECS = {
    "blocks": (BlockSVD((4,) * 8, (2, 4)), block_low_rank, (np.full((2, 4), 4),)),
    "monarch": (Monarch(2, (4, 4)), monarch, ((4, 4), 2)),
    "blast": (BLAST(6, (4, 4)), blast, (6, (4, 4))),
    "hodlr": (HODLR((2, 2)), hodlr, ((2, 2),)),
    "hss": (HSS((2, 2)), hss, ((2, 2),)),
}
every = pytest.mark.parametrize("name", SPECS)
HIERARCHIES = ("hodlr", "hss")


@functools.cache
def compiled(name):
    """The solver under a two-sided metric, for any number of sweeps."""
    _, solver, sizes = SPECS[name]
    return jax.jit(lambda w, m, sweeps: solver(w, *sizes, metric=m, sweeps=sweeps, tol=0.0))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in HIERARCHIES else ()) for n in SPECS]
)
def test_sweeps_lower_a_coupled_metric_and_the_residual_is_true(name):
    w, rows, cols = normal(3, M, N), psd(4, M), psd(5, N)
    run = compiled(name)
    found = [run(w, metric_of(rows, cols), sweeps) for sweeps in (0, 1, 20)]
    losses = [loss(w, f, rows, cols) for f, _ in found]
    np.testing.assert_allclose([info.residual for _, info in found], losses, rtol=2e-3)
    assert losses[0] >= losses[1] >= losses[2]
    assert losses[2] < 0.97 * losses[0]
    x = normal(10, 20, M) @ psd(11, M)  # singular: fewer samples than inputs
    rows = x.T @ x / 20
    losses = [loss(w, run(w, metric_of(rows, cols), s)[0], rows, cols) for s in (0, 20)]
    assert losses[1] < 0.97 * losses[0]


@every
def test_zero_deficient_huge_tiny_and_nan(name):
    run, metric = compiled(name), metric_of(psd(4, M), psd(5, N))
    f, info = run(np.zeros((M, N), np.float32), metric, 5)
    assert not np.asarray(f.densify()).any()
    assert info.residual == 0
    thin = normal(16, M, 1) @ normal(17, 1, N)
    for unit in (1, 1e15, 1e-15):
        w = thin * np.float32(unit)
        f, info = run(w, metric, 5)
        assert np.abs(np.asarray(f.densify()) - w).max() < 1e-3 * np.abs(w).max()
    f, info = run(np.full((M, N), np.nan, np.float32), metric, 5)
    assert info.status == Status.NON_FINITE
    assert np.isnan(info.residual)
    assert not np.asarray(f.densify()).any()


def test_entries_stay_in_bounds_where_grams_see_few_directions():
    w, (a, b) = normal(0, M, N), (normal(1, 3, M), normal(2, 3, N))
    few = metric_of(a.T @ a, b.T @ b)
    f, info = compiled("blocks")(w, few, 5)
    assert info.residual < 1e-3 * few.norm(jnp.asarray(w))
    assert jnp.max(jnp.abs(f.densify())) < 2 * np.max(np.abs(w))


def test_a_diagonal_metric_is_solved_exactly_block_by_block():
    w, rows, cols = normal(6, M, N), np.abs(normal(7, M)) ** 3, np.abs(normal(8, N))
    f, _ = solve(BlockSVD((3,) * 8, (2, 4)), jnp.asarray(w), metric=metric_of(rows, cols))
    white = np.sqrt(rows)[:, None] * w * np.sqrt(cols)
    want = np.sqrt(tail(grid_of(white, 2, 4).values(), 3))
    np.testing.assert_allclose(loss(w, f, rows, cols), want, rtol=1e-4)


# ---- sharing out ranks -------------------------------------------------------------------------


def test_one_threshold_beats_equal_ranks_of_the_same_bytes():
    w = jnp.asarray(kernel(96, 128))
    spec = BlockSVD(grid=(4, 4))
    _, options, _ = planned(spec, w)
    for r in (1, 3, 6):
        even, info = solve(BlockSVD((r,) * 16, (4, 4)), w)
        size = ops.cost(even).params
        fits = options.params <= size
        assert options.error[fits].min() <= (1 + 1e-5) * float(info.residual) ** 2
        assert options.params[fits].max() > 0.99 * size
    unequal = options.error[options.params <= size].min()
    assert unequal < 0.5 * float(info.residual) ** 2


def test_capped_ranks_fit_their_slots_and_are_best_where_they_can_be():
    energy = np.sort(np.random.default_rng(0).pareto(1.0, (3, 4, 6)))[..., ::-1]
    for r in range(1, 6):
        ranks = share.capped(energy, r)
        assert ranks.sum(1).max() <= 4 * r
        assert ranks.sum(0).max() <= 3 * r
        assert share.lost(energy, ranks) <= share.lost(energy, np.full((3, 4), r))
    free = np.array([[2, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]])
    filled = share.filled(energy, free)
    assert (filled >= free).all()
    assert (filled.sum(1).max(), filled.sum(0).max()) == (3, 3)
    assert share.lost(energy, filled) < share.lost(energy, free)


@pytest.mark.parametrize(
    "spec",
    [BlockSVD(), Monarch(), HODLR(), pytest.param(BLAST(), marks=pytest.mark.slow)],
    ids=["blocks", "monarch", "hodlr", "blast"],
)
def test_options_price_and_predict_what_the_solver_does(spec):
    w = jnp.asarray(kernel(M, N) + 0.05 * normal(12, M, N))
    fixed, options, pick = planned(spec, w)
    assert (options.params < w.size).all()
    f, info = solve(fixed, w)
    cost = ops.cost(f.validate())
    assert (cost.params, cost.flops) == (options.params[pick], options.flops[pick])
    ratio = float(info.residual) ** 2 / options.error[pick]
    # a BLAST fit has no closed form: its curve is interpolated between fits
    assert 0.7 < ratio < 1.1 if isinstance(spec, BLAST) else abs(ratio - 1) < 1e-3
    assert spec_from_json(fixed.to_json()) == fixed


def test_a_tile_makes_widths_its_multiples():
    w, layout = jnp.asarray(kernel(M, N)), Layout((0,), (1,))
    for spec in (BlockSVD(tile=4, grid=(2, 2)), HODLR(tile=4)):
        options = spec.options(w.shape, w.dtype, layout, np.asarray(spec.measure(w, Metric())))
        f, _ = solve(spec.with_rank(options.ranks[2]), w)
        inner = f.ranks if isinstance(spec, HODLR) else (f.left.shape[-1], f.right.shape[-2])
        assert all(size % 4 == 0 for size in inner)
    assert Monarch().is_aligned((1, 8, 16), 8)
    assert not BLAST().is_aligned((6, 4, 4), 4)


# ---- the acceptance lines ----------------------------------------------------------------------


KERNEL = np.float32(1 / (1 + np.abs(np.arange(512)[:, None] - np.arange(512))))


def hodlr_and_svd(w):
    """HODLR with leaves of 16, its predicted error and that of the SVD, both at 15.6 %."""
    spec, options, pick = planned(HODLR(levels=5), jnp.asarray(w), keep=40960 / 512**2)
    assert options.params[pick] == 40960
    whole = np.linalg.norm(w)
    return spec, np.sqrt(options.error[pick]) / whole, np.sqrt(tail([w], 40)) / whole


@pytest.mark.slow
def test_hierarchies_are_for_kernels_and_not_for_noise_or_shuffled_rows():
    _, ours, svd = hodlr_and_svd(KERNEL)
    assert ours < 3e-4  # what a Gram in float32 sees of it; 3.3e-5 in truth: the slow test below
    np.testing.assert_allclose(svd, 0.551, atol=2e-3)
    _, ours, svd = hodlr_and_svd(normal(0, 512, 512))
    np.testing.assert_allclose(svd, 0.863, atol=2e-3)
    assert svd < ours <= 0.886
    _, ours, svd = hodlr_and_svd(KERNEL[np.random.default_rng(0).permutation(512)])
    # .743 with equal ranks on all levels; chosen ones do better, but a ten-thousandth is gone
    assert 0.4 < ours < 0.743


@pytest.mark.slow
def test_the_kernel_is_as_near_as_predicted_and_as_cheap():
    spec, ours, _ = hodlr_and_svd(KERNEL)
    f, info = solve(spec, jnp.asarray(KERNEL))
    assert info.residual / np.linalg.norm(KERNEL) < min(5e-5, ours)
    x = normal(1, 64, 512)
    counted = jax.jit(lambda x, f: x @ f).lower(x, f).compile().cost_analysis()["flops"]
    assert counted <= 1.3 * 2 * 40960 * 64
    np.testing.assert_allclose(x @ f, x @ np.asarray(f.densify()), atol=1e-3)


@pytest.mark.slow
def test_the_plan_takes_blocks_where_they_help_and_else_low_rank(tmp_path):
    low = normal(13, M, 6) @ normal(14, 6, N) + normal(15, M, N)
    params = {"kernel": jnp.asarray(kernel(M, N)), "low": jnp.asarray(low)}
    rules = {"**": [lr.SVD(), BlockSVD(), HODLR()]}
    plan = lr.plan(params, rules, budget={k: lr.Budget(keep=0.4) for k in params})
    assert isinstance(plan["kernel"].spec, HODLR | BlockSVD)
    assert isinstance(plan["low"].spec, lr.SVD)
    assert "BlockSVD" in plan["low"].reason  # and by how much it lost
    small = lr.compress(params, plan)
    report = lr.report(params, small, plan=plan)
    np.testing.assert_allclose(report["kernel"].error, plan["kernel"].loss / plan["kernel"].total,
                               rtol=1e-3, atol=1e-7)  # fmt: skip
    lr.save(tmp_path / "small", small, plan=plan)
    back = lr.load(tmp_path / "small")
    assert back.plan == plan
    jax.tree.map(np.testing.assert_array_equal, back.params, small)
    x = normal(14, 5, M)
    y = lr.lift(lambda p, x: x @ p["kernel"])(back.params, x)
    np.testing.assert_allclose(y, x @ np.asarray(small["kernel"].densify()), rtol=1e-3, atol=1e-4)


def test_dimensions_of_heads_and_stacked_layers():
    w = normal(15, 2, 24, 4, 8)  # layers, d_model, heads, head_dim
    fn = lambda p, x: jnp.einsum("lbd,ldhk->lbhk", x, p["w"])
    plan = lr.plan({"w": jnp.asarray(w)}, {"w": BlockSVD((2, 1, 0, 3), (2, 2))},
                   usage=lr.usage(fn, {"w": w}, normal(0, 2, 3, 24)))  # fmt: skip
    f = lr.compress({"w": jnp.asarray(w)}, plan)["w"]
    assert f.shape == w.shape
    one, _ = solve(BlockSVD((2, 1, 0, 3), (2, 2)), jnp.asarray(w[1].reshape(24, 32)))
    np.testing.assert_allclose(f.densify()[1].reshape(24, 32), one.densify(), atol=1e-4)


def test_an_order_recovers_a_shuffled_kernel(tmp_path):
    shuffle = lambda seed, size: np.random.default_rng(seed).permutation(size)
    clean = kernel(M, N)
    w = jnp.asarray(clean[shuffle(1, M)][:, shuffle(2, N)])
    rows, cols = seriate(np.asarray(w))
    spec = HODLR((2, 2))
    plan = lr.plan({"w": w}, {"w": Reordered(spec, rows, cols)})
    f = lr.compress({"w": w}, plan)["w"].validate()
    plain, shuffled = (float(solve(spec, x)[1].residual) for x in (jnp.asarray(clean), w))
    ours = loss(w, f)
    assert ours < 0.4 * shuffled
    np.testing.assert_allclose(ours, plain, rtol=0.3)
    assert ops.cost(f) == ops.cost(f.weight)
    x = normal(3, 5, M)
    np.testing.assert_allclose(x @ f, x @ np.asarray(f.densify()), atol=1e-4)
    lr.save(tmp_path / "a", {"w": f}, plan=plan)
    back = lr.load(tmp_path / "a")
    assert (back.plan, back.params["w"].rows) == (plan, rows)


def test_an_order_moves_weights_of_entries_too():
    w, f = normal(6, 6, 10), np.exp(normal(7, 6, 10))
    rows, cols = seriate(normal(8, 6, 10))
    spec = Reordered(WeightedLowRank(2), rows, cols)
    x, own = spec.reordered(jnp.asarray(w), Elements.of(jnp.asarray(f)))
    moved = lambda x: x[list(rows)][:, list(cols)]
    np.testing.assert_array_equal([x, own.weights], [moved(w), moved(f)])
    r, c = (side.values for side in (own.rows, own.cols))
    again = Elements.of(own.weights)
    np.testing.assert_allclose(
        r[:, None] * c, np.outer(*(s.values for s in (again.rows, again.cols))), rtol=1e-4
    )


def test_an_order_is_of_the_weights_size_and_takes_a_rule_for_the_inner_rank():
    w = jnp.asarray(normal(9, 12, 20))
    for rows in ((0,) * 12, tuple(range(11)), tuple(range(13))):
        with pytest.raises(ShapeError, match=r"w: .*a permutation of 0\.\.11"):
            lr.plan({"w": w}, {"w": Reordered(HODLR((2,)), rows)})
    inner, rows = HODLR(levels=1), tuple(range(12))[::-1]
    with pytest.raises(RuleError, match="outside of the inner spec"):
        Reordered(dataclasses.replace(inner, rank_by=Energy(0.5)), rows)
    ruled = Reordered(inner, rows, rank_by=Energy(0.5)).ranked(np.asarray(w))
    plain = dataclasses.replace(inner, rank_by=Energy(0.5)).ranked(np.asarray(w[::-1]))
    assert ruled == Reordered(plain, rows)


@pytest.mark.slow
def test_an_order_moves_the_metric_too():
    w, sides = normal(6, M, N), (np.abs(normal(7, M)) ** 3, psd(8, N))
    rows = tuple(np.random.default_rng(0).permutation(M).tolist())
    spec = Reordered(BlockSVD((3,) * 8, (2, 4)), rows)
    f, info = solve(spec, jnp.asarray(w), metric=metric_of(*sides))
    np.testing.assert_allclose(info.residual, loss(w, f, *sides), rtol=1e-3)
    w = jnp.asarray(w)
    same = Reordered(BlockSVD((3,) * 8, (2, 4)), tuple(range(M)))
    assert abs(loss(w, solve(same, jnp.asarray(w))[0]) - loss(w, solve(same.inner, w)[0])) < 1e-3


# ---- edges -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_equal_inputs_give_equal_bits_and_stacks_are_loops():
    w = jnp.asarray(normal(18, 2, M, N))
    spec, *_ = SPECS["blocks"]
    both, info = solve(spec, w)
    again, _ = solve(spec, w)
    jax.tree.map(np.testing.assert_array_equal, both, again)
    assert info.residual.shape == (2,)
    one, _ = solve(spec, w[1])
    np.testing.assert_allclose(both.densify()[1], one.densify(), atol=1e-5)
    half, info = solve(spec, w[0].astype(jnp.bfloat16))
    assert half.left.dtype == jnp.bfloat16
    np.testing.assert_allclose(info.residual, loss(w[0].astype(jnp.bfloat16), half), rtol=1e-3)


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        (BlockSVD((1,) * 25, (5, 5)), ShapeError),
        (Monarch(1, (5, 4)), ShapeError),
        (BLAST(3, (4, 3)), ShapeError),
        (HODLR((1, 1, 1, 1, 1)), ShapeError),
        (BlockSVD((17,) * 8, (2, 4)), RankError),
        (BlockSVD((1, 2), (2, 4)), RankError),
        (Monarch(0, (4, 4)), RankError),
        (HODLR((30,)), RankError),
        (BLAST(49, (4, 4)), RankError),
        (BlockSVD(), RankError),
        (Monarch(1), RankError),
        (BLAST(), RankError),
        (HODLR(), RankError),
    ],
    ids=str,
)
def test_impossible_sizes_are_errors_that_say_what_to_do(spec, error):
    with pytest.raises(error, match=r"(Choose|Plan|Give)"):
        solve(spec, jnp.asarray(normal(0, M, N)))


def test_blocks_that_do_not_divide_leave_nothing_to_choose():
    w = jnp.asarray(normal(0, 47, 61))
    for spec in (BlockSVD(), Monarch(), BLAST(), HODLR(), HSS(), HODLR(levels=0), HSS(levels=0)):
        measured = np.asarray(spec.measure(w, Metric()))
        assert not len(spec.options(w.shape, w.dtype, Layout((0,), (1,)), measured).params)
