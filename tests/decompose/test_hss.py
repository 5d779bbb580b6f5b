"""HSS: planted bases, losses of projections, what it saves beside HODLR, and its arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrjax as lr
from lrjax import ops
from lrjax.decompose import HODLR, HSS, Reordered, solve, spec_from_json
from lrjax.decompose.block import hss, seriate
from lrjax.errors import RankError, ShapeError
from lrjax.formats.layout import Layout
from lrjax.linalg import Status
from lrjax.metrics import Gram, Metric
from tests.decompose.test_block import (
    KERNEL,
    M,
    N,
    grid_of,
    kernel,
    loss,
    normal,
    planned,
    psd,
    tail,
)
from tests.formats import blocks


def dense_of(f):
    """In float64, by the definition."""
    return blocks.hss_dense(jax.tree.map(lambda x: np.asarray(x, np.float64), f), np)


def outside(w, level, axis):
    """Whole block rows (axis 0) or columns (1) of a level without their diagonal blocks."""
    count = 2**level
    cells = grid_of(w, count, count)
    others = lambda i: [j for j in range(count) if j != i]
    if axis:
        return [np.concatenate([cells[j, i] for j in others(i)], 0) for i in range(count)]
    return [np.concatenate([cells[i, j] for j in others(i)], 1) for i in range(count)]


def test_planted_bases_are_recovered_in_a_stack():
    planted = blocks.hss(blocks.generator(), 2, ranks=(3, 2, 2), m=M, n=N)
    w = dense_of(planted).astype(np.float32)
    f, info = solve(HSS((3, 2, 2)), jnp.asarray(w))
    assert f.validate().ranks == (3, 2, 2)
    assert f.blocks.shape == (2, 8, 6, 8)
    assert np.linalg.norm(dense_of(f) - w) < 1e-5 * np.linalg.norm(w)
    assert (info.residual < 1e-5 * np.linalg.norm(w, axis=(1, 2))).all()
    assert (info.status == Status.CONVERGED).all()
    once = jax.vmap(lambda w: hss(w, (3, 2, 2))[0])(jnp.asarray(w))
    np.testing.assert_allclose(once.densify(), f.densify(), atol=1e-5)


def test_losses_of_the_projections_are_between_a_tail_and_the_sum_of_tails():
    w, ranks = normal(2, M, N), (3, 4)
    f, info = solve(HSS(ranks), jnp.asarray(w))
    tails = [tail(outside(w, k + 1, side), r) for k, r in enumerate(ranks) for side in (0, 1)]
    assert max(tails) <= (1 + 1e-5) * info.residual**2 <= sum(tails)
    np.testing.assert_allclose(info.residual, np.linalg.norm(dense_of(f) - w), rtol=1e-5)
    np.testing.assert_allclose(f.blocks, [grid_of(w, 4, 4)[i, i] for i in range(4)], rtol=1e-6)
    info = solve(HSS((5,)), jnp.asarray(w))[1]  # a level alone is HODLR, bases and all
    other = solve(HODLR((5,)), jnp.asarray(w))[1]
    np.testing.assert_allclose(info.residual, other.residual, rtol=1e-5)


def test_least_squares_under_a_gram_take_blocks_of_odd_sides():
    w, gram = normal(4, 6, 10), psd(5, 6)
    runs = [
        solve(HSS((1,), sweeps=s), jnp.asarray(w), metric=Metric(Gram(jnp.asarray(gram))))
        for s in (0, 20)
    ]
    missed = [loss(w, f, gram) for f, _ in runs]
    np.testing.assert_allclose([info.residual for _, info in runs], missed, rtol=1e-4)
    assert missed[1] < 0.98 * missed[0]


def test_options_price_and_predict_what_the_solver_does():
    w = jnp.asarray(kernel(M, N) + 0.05 * normal(12, M, N))
    fixed, options, pick = planned(HSS(), w)
    assert (options.params < w.size).all()
    f, info = solve(fixed, w)
    cost = ops.cost(f.validate())
    assert cost.params == options.params[pick]
    assert abs(cost.flops - options.flops[pick]) < 0.01 * cost.flops  # a rank of one sums nothing
    assert 0.8 < float(info.residual) ** 2 / options.error[pick] < 1.1
    assert spec_from_json(fixed.to_json()) == fixed
    again = fixed.options(w.shape, w.dtype, Layout((0,), (1,)), np.asarray(w))
    np.testing.assert_allclose(again.error, float(info.residual) ** 2, rtol=0.02)
    tiled = HSS(tile=2).options(w.shape, w.dtype, Layout((0,), (1,)), np.asarray(w))
    assert (tiled.ranks[:, 1:] % 2 == 0).all()
    assert len(np.unique(tiled.ranks, axis=0)) == len(tiled.params) > 5


def test_fewer_numbers_than_hodlr_for_less_error():
    w = jnp.asarray(kernel(192, 256))
    losses = []
    for spec in (HSS(), HODLR()):
        _, options, pick = planned(spec, w, keep=0.3)
        assert 0.96 * 0.3 * w.size <= options.params[pick] <= 0.3 * w.size  # a rank has 448
        losses.append(options.error[pick] ** 0.5)
    assert losses[0] < 0.5 * losses[1]


@pytest.mark.slow
def test_the_kernel_within_the_bytes_of_hodlr():
    spec, options, pick = planned(HSS(), jnp.asarray(KERNEL), keep=40960 / 512**2)
    assert 0.99 * 40960 <= options.params[pick] <= 40960
    info = solve(spec, jnp.asarray(KERNEL))[1]
    assert info.residual < 3e-6 * np.linalg.norm(KERNEL)  # HODLR: 3.3e-5
    fewer, _, _ = planned(HSS(), jnp.asarray(KERNEL), keep=0.76 * 40960 / 512**2)
    assert solve(fewer, jnp.asarray(KERNEL))[1].residual < 3.3e-5 * np.linalg.norm(KERNEL)
    svd = np.sqrt(tail([noise := normal(0, 512, 512)], 40)) / np.linalg.norm(noise)
    _, options, pick = planned(HSS(levels=3), jnp.asarray(noise), keep=40960 / 512**2)
    np.testing.assert_allclose(svd, 0.863, atol=2e-3)
    assert svd < np.sqrt(options.error[pick]) / np.linalg.norm(noise)


@pytest.mark.parametrize("batch", [1, pytest.param(32, marks=pytest.mark.slow)])
def test_one_sweep_up_and_one_down_are_all_arithmetic(batch):
    w = blocks.hss(blocks.generator(), ranks=(12, 12, 12, 12, 8), m=256, n=512)
    x = np.asarray(blocks.normal(blocks.generator(), batch, 256))
    run = jax.jit(lambda x, w: x @ w).lower(x, w)
    theory = 2 * batch * ops.cost(w).params
    assert run.compile().cost_analysis()["flops"] <= 1.05 * theory
    products = str(jax.make_jaxpr(lambda x, w: x @ w)(x, w)).count("dot_general[")
    assert products == 1 + 3 * 5  # the diagonal; up, across and down on every level
    np.testing.assert_allclose(x @ w, x @ dense_of(w), atol=1e-3)


@pytest.mark.slow
def test_an_order_recovers_a_shuffled_kernel(tmp_path):
    shuffle = np.random.default_rng(1).permutation(M)
    w = jnp.asarray(kernel(M, N)[shuffle])
    spec = HSS((2, 3))
    ordered = Reordered(spec, *seriate(np.asarray(w)))
    plan = lr.plan({"w": w}, {"w": ordered})
    f = lr.compress({"w": w}, plan)["w"].validate()
    assert loss(w, f) < 0.6 * float(solve(spec, w)[1].residual)
    lr.save(tmp_path / "a", {"w": f}, plan=plan)
    back = lr.load(tmp_path / "a")
    assert back.plan == plan
    jax.tree.map(np.testing.assert_array_equal, back.params["w"], f)


@pytest.mark.slow
def test_the_plan_takes_it_where_it_helps_and_says_where_not():
    params = {"kernel": jnp.asarray(kernel(192, 256)), "noise": jnp.asarray(normal(13, 192, 256))}
    rules = {"**": [lr.SVD(), HODLR(), HSS()]}
    plan = lr.plan(params, rules, budget={k: lr.Budget(keep=0.3) for k in params})
    assert isinstance(plan["kernel"].spec, HSS)
    assert isinstance(plan["noise"].spec, lr.SVD)
    assert "HSS" in plan["noise"].reason
    small = lr.compress(params, plan)
    report = lr.report(params, small, plan=plan)
    assert report["kernel"].error <= 1.1 * plan["kernel"].loss / plan["kernel"].total


def test_empty_bases_leave_out_what_is_above_them():
    w = jnp.asarray(normal(0, M, N))
    f, _ = solve(HSS((0, 3)), w)
    assert f.validate().ranks == (0, 3)
    assert f.core.core is None
    bare, info = solve(HSS((0, 0)), w)
    assert bare.core is None
    np.testing.assert_allclose(info.residual, np.linalg.norm(dense_of(bare) - w), rtol=1e-5)


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        (HSS((1, 1, 1, 1, 1)), ShapeError),
        (HSS((2, 20)), RankError),
        (HSS((5, 2)), RankError),
        (HSS(), RankError),
    ],
    ids=str,
)
def test_impossible_sizes_are_errors_that_say_what_to_do(spec, error):
    with pytest.raises(error, match=r"(Choose|Plan|Give)"):
        solve(spec, jnp.asarray(normal(0, M, N)))


def test_what_does_not_divide_leaves_nothing_to_choose():
    w = jnp.asarray(normal(0, 47, 61))
    measured = np.asarray(HSS().measure(w, Metric()))
    assert not len(HSS().options(w.shape, w.dtype, Layout((0,), (1,)), measured).params)
