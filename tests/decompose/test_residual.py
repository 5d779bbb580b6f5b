"""Low rank plus sparse or diagonal: planted parts found, losses true, monotone and predicted."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrjax as lr
from lrjax import ops
from lrjax.compress import compress
from lrjax.decompose import SVD, LowRankDiagonal, LowRankSparse, solve, spec_from_json
from lrjax.decompose.residual import alternate, parts
from lrjax.errors import RankError, ShapeError
from lrjax.formats import Layout, Sparse
from lrjax.metrics import Gram, Metric
from lrjax.ops import densify
from lrjax.plan import Budget, plan
from lrjax.report import report

M, N = 24, 16


def low(rng, m, n, rank):
    return rng.standard_normal((m, rank)) @ rng.standard_normal((rank, n)) / np.sqrt(rank)


def gram(rng, d):
    x = rng.standard_normal((3 * d, d)) @ np.diag(np.linspace(0.3, 2, d))
    return x.T @ x / len(x)


def lost(w, found, a, g):
    d = np.asarray(w, np.float64) - np.asarray(densify(found), np.float64)
    return np.einsum("ij,ik,kl,lj->", d, a, d, g)


@pytest.fixture(scope="module")
def metrics():
    rng = np.random.default_rng(7)
    a, g = gram(rng, M), gram(rng, N)
    full = Metric(Gram(jnp.asarray(a, jnp.float32)), Gram(jnp.asarray(g, jnp.float32)))
    eye = np.eye(N)
    return {"none": (None, np.eye(M), eye), "full": (full, a, g)}


def outliers(rng):
    """Rank two, and in every half column one large entry."""
    w = low(rng, M, N, 2)
    for j in range(N):
        for g in range(2):
            w[g * 12 + rng.integers(12), j] += 5 * rng.choice([-1, 1])
    return w


@pytest.mark.parametrize("kind", ["none", "full"])
def test_planted_outliers_and_low_rank_are_told_apart(metrics, kind):
    metric, a, g = metrics[kind]
    w = outliers(np.random.default_rng(0))
    x = jnp.asarray(w, jnp.float32)
    whole = np.einsum("ij,ik,kl,lj->", w, a, w, g)
    spec = LowRankSparse((2, 1), group=12, sweeps=100)
    found, info = solve(spec, x, metric=metric)
    part = found.validate().parts[1].validate()
    assert isinstance(part, Sparse)
    assert part.nonzeros == 2 * N
    np.testing.assert_allclose(info.residual**2, lost(w, found, a, g), rtol=1e-2, atol=1e-5 * whole)
    # plain low rank of more parameters does worse by far
    svd, _ = solve(SVD(4), x, metric=metric)
    assert lost(w, found, a, g) < 0.2 * lost(w, svd, a, g)
    measured = np.asarray(spec.measure(x, metric or Metric()))
    predicted = spec.options((M, N), x.dtype, Layout((0,), (1,)), measured)
    assert lost(w, found, a, g) < predicted.error[0]
    assert predicted.params[0] == sum(leaf.size for leaf in jax.tree.leaves(found))
    assert predicted.flops[0] == ops.cost(found).flops
    if kind == "full":
        _is_least_squares(w, found, a, g)


def _is_least_squares(w, found, a, g):
    """Oracle: NumPy's lstsq over the entries of the pattern, under full Grams."""
    first, part = found.parts
    rest = w - np.asarray(densify(first), np.float64)
    ra, rg = np.linalg.cholesky(a).T, np.linalg.cholesky(g)
    i = (np.asarray(part.index, int) + 12 * np.arange(2)[None, :, None]).ravel()
    j = np.repeat(np.arange(N), 2)
    columns = np.einsum("ae,eb->abe", ra[:, i], rg[j]).reshape(-1, len(i))
    _, residue, *_ = np.linalg.lstsq(columns, (ra @ rest @ rg).ravel(), rcond=None)
    scale = 1e-7 * np.sum(w**2)
    np.testing.assert_allclose(lost(w, found, a, g), residue[0], rtol=0.02, atol=scale)


@pytest.mark.parametrize(("shape", "kind"), [((12, 36), "full"), ((36, 12), "none")])
def test_planted_diagonals_are_recovered(shape, kind):
    rng = np.random.default_rng(2)
    m, n = shape
    eyes = np.hstack([np.diag(rng.uniform(1, 3, 12)) for _ in range(3)])
    w = low(rng, m, n, 2) + (eyes if m < n else eyes.T)
    a, g = (gram(rng, m), gram(rng, n)) if kind == "full" else (np.eye(m), np.eye(n))
    sides = [Gram(jnp.asarray(s, jnp.float32)) for s in (a, g)]
    metric = Metric(*sides) if kind == "full" else None
    x = jnp.asarray(w, jnp.float32)

    @jax.jit
    def run(sweeps):
        low, (part, unit), info = alternate(
            x, 2, parts.diagonal, parts.spread, metric=metric, sweeps=sweeps
        )
        return low.densify() + unit * parts.spread(part), info.residual

    losses = []
    for sweeps in (0, 2, 8, 60):
        dense, residual = run(sweeps)
        losses.append(lost(w, dense, a, g))
        np.testing.assert_allclose(residual**2, losses[-1], rtol=2e-2, atol=1e-3)
    assert all(b <= c * 1.001 for c, b in itertools.pairwise(losses))
    assert losses[-1] < 0.1 * losses[0]
    svd, _ = solve(SVD(3), x, metric=metric)
    assert losses[-1] < 0.5 * lost(w, svd, a, g)


@pytest.mark.slow
def test_plans_reports_and_artefacts_hold_the_sums(tmp_path):
    rng = np.random.default_rng(3)
    params = {
        "a": jnp.asarray(outliers(rng), jnp.float32),
        "b": jnp.asarray(np.eye(16) + 0.2 * low(rng, 16, 16, 2), jnp.float32),
    }
    rules = {"a": [SVD(), LowRankSparse(group=12)], "b": [SVD(), LowRankDiagonal()]}
    p = plan(params, rules, budget=Budget(keep=0.75))
    assert type(p["a"].spec) is LowRankSparse
    assert type(p["b"].spec) is LowRankDiagonal
    assert "least loss: loss of SVD" in p["b"].reason
    small = compress(params, p)
    r = report(params, small, plan=p)
    assert r["a"].format == "LowRank + Sparse"
    assert r["b"].format == "LowRank + Diagonal"
    assert r["a"].params == p["a"].params
    lr.save(tmp_path / "model", small, plan=p)
    again = lr.load(tmp_path / "model")
    assert again.plan == p
    assert jax.tree.all(jax.tree.map(lambda x, y: bool(jnp.all(x == y)), small, again.params))


def test_mistakes_are_named():
    x = jnp.ones((M, N))
    with pytest.raises(ShapeError, match="multiple"):
        solve(LowRankDiagonal(2), x)
    with pytest.raises(ShapeError, match="divisor"):
        solve(LowRankSparse(2, group=7), x)
    with pytest.raises(RankError, match="entries"):
        solve(LowRankSparse((2, 13), group=12), x)
    with pytest.raises(RankError):
        solve(LowRankSparse(), x)
    moved = Sparse(jnp.ones((4, 1, 2)), jnp.full((4, 1, 2), 0.5), 6)
    with pytest.raises(ShapeError, match="moved"):
        moved.validate()
    spec = LowRankSparse((3, 2), group=12)
    assert spec_from_json(spec.to_json()) == spec
    found, info = solve(LowRankSparse((2, 1), group=12), jnp.full((M, N), jnp.nan))
    assert np.all(np.asarray(densify(found)) == 0)
    assert "NaN" in info.message()
