"""Shared bases: exact where the entries have one metric, monotone where each has its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrjax import ops
from lrjax.decompose import SharedBasis, solve, spec_from_json
from lrjax.decompose.shared import shared_basis
from lrjax.errors import RankError, ShapeError
from lrjax.formats import Layout
from lrjax.formats import SharedBasis as SharedBasisWeight
from lrjax.lift import lift
from lrjax.metrics import Gram, Metric

S, M, N = 3, 10, 14


def gram(rng, d, tokens, *stack):
    x = rng.standard_normal((*stack, tokens, d)) @ np.diag(np.linspace(0.3, 2, d))
    return np.swapaxes(x, -1, -2) @ x / tokens


def root(g):
    values, vectors = np.linalg.eigh(g)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def lost(w, found, a, g):
    d = np.asarray(w, np.float64) - np.asarray(found.densify(), np.float64)
    return np.einsum("sij,sik,skl,slj->s", d, a, d, g)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    return rng.standard_normal((S, M, N)), gram(rng, M, 40), gram(rng, N, 40)


@pytest.mark.parametrize("side", ["left", "right"])
def test_one_basis_under_one_metric_is_the_svd_of_the_entries_side_by_side(problem, side):
    """Independent oracle: NumPy's SVD of [A^.5 W_1 G^.5, A^.5 W_2 G^.5, ...]."""
    w, a, g = problem
    white = root(a) @ w @ root(g)
    wide = np.concatenate(list(white), 1) if side == "left" else np.concatenate(list(white), 0)
    want = np.sum(np.linalg.svd(wide, compute_uv=False)[4:] ** 2)
    metric = Metric(Gram(jnp.asarray(a, jnp.float32)), Gram(jnp.asarray(g, jnp.float32)))
    rank = (4, 0) if side == "left" else (0, 4)
    x = jnp.asarray(w, jnp.float32)
    found, info = solve(SharedBasis(rank), x, metric=metric)
    assert found.rank == rank
    stacked = [np.broadcast_to(x, (S, *x.shape)) for x in (a, g)]
    np.testing.assert_allclose(lost(w, found, *stacked).sum(), want, rtol=1e-4)
    np.testing.assert_allclose(np.sum(np.asarray(info.residual) ** 2), want, rtol=1e-4)
    spec = SharedBasis(left=side == "left", right=side == "right")
    options = spec.options(
        (S, M, N), jnp.float32, Layout((1,), (2,)), np.asarray(spec.measure(x, metric))
    )
    at = list(map(tuple, options.ranks)).index(rank)
    np.testing.assert_allclose(options.error[at], want, rtol=1e-3)
    assert options.params[at] == sum(x.size for x in jax.tree.leaves(found))
    assert options.flops[at] == ops.cost(found).flops


def test_entries_with_metrics_of_their_own_gain_by_sweeps_and_the_plan_bounds_the_loss(problem):
    w, _, _ = problem
    rng = np.random.default_rng(1)
    scales = np.exp(rng.standard_normal((S, M)))  # inputs that differ much between the layers
    a = scales[:, :, None] * gram(rng, M, 12, S) * scales[:, None, :]
    g = gram(rng, N, 30, S)
    metric = Metric(Gram(jnp.asarray(a, jnp.float32)), Gram(jnp.asarray(g, jnp.float32)))
    x, (rows, cols) = jnp.asarray(w, jnp.float32), metric.arrays()
    for rank, margin in (((4, 0), 0.97), ((0, 4), 1.0), ((5, 6), 0.97)):
        run = lambda sweeps, rank=rank: shared_basis(x, rank, rows=rows, cols=cols, sweeps=sweeps)
        start = lost(w, run(0)[0], a, g).sum()
        found, info = run(30)
        end = lost(w, found, a, g)
        assert end.sum() < margin * start
        np.testing.assert_allclose(np.asarray(info.residual) ** 2, end, rtol=1e-3)
        spec = SharedBasis(rank)
        options = spec.options(
            (S, M, N), jnp.float32, Layout((1,), (2,)), np.asarray(spec.measure(x, metric))
        )
        assert end.sum() <= options.error[0] * 1.001


def best_loss(w, left, a, g):
    """Of a left basis with the best cores, in NumPy."""
    total = 0.0
    for s in range(S):
        k = left.T @ a[s] @ left
        core = np.linalg.solve(k, left.T @ a[s] @ w[s])
        d = w[s] - left @ core
        total += np.sum((d.T @ a[s] @ d) * g[s])
    return total


@pytest.mark.slow
def test_the_optimum_of_own_metrics_equals_a_generic_optimiser(problem):
    """BFGS on the basis in float64 (SciPy), cores eliminated; from the same start."""
    optimize = pytest.importorskip("scipy.optimize")
    w, _, g = problem
    rng = np.random.default_rng(2)
    a = gram(rng, M, 30, S) * np.array([0.2, 1, 5])[:, None, None]
    every = np.broadcast_to(g, (S, N, N))
    x = jnp.asarray(w, jnp.float32)
    args = {"rows": jnp.asarray(a, jnp.float32), "cols": jnp.asarray(every, jnp.float32)}
    start, _ = shared_basis(x, (4, 0), **args, sweeps=0)
    found, _ = shared_basis(x, (4, 0), **args, sweeps=400, tol=1e-7)
    objective = lambda u: best_loss(w, u.reshape(M, 4), a, every)
    want = optimize.minimize(objective, np.asarray(start.left, np.float64).ravel(), method="BFGS")
    assert lost(w, found, a, every).sum() <= want.fun * 1.002


def test_a_planted_shared_subspace_is_recovered_under_a_singular_gram():
    rng = np.random.default_rng(3)
    w = np.einsum("mr,srn->smn", rng.standard_normal((M, 3)), rng.standard_normal((S, 3, N)))
    a = gram(rng, M, 6, S)  # six tokens in ten dimensions
    found, info = solve(
        SharedBasis(3),
        jnp.asarray(w, jnp.float32),
        metric=Metric(Gram(jnp.asarray(a, jnp.float32)), None),
    )
    whole = np.einsum("sij,sik,skj->", w, a, w)
    assert lost(w, found, a, np.broadcast_to(np.eye(N), (S, N, N))).sum() < 1e-6 * whole
    assert np.all(np.isfinite(info.residual))


def test_a_scan_over_layers_slices_the_cores_and_not_the_basis():
    rng = np.random.default_rng(4)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    w = SharedBasisWeight(normal(S, 3, M) / 3, normal(M, 3))
    x = normal(5, M)

    def model(params, x):
        return jax.lax.scan(lambda h, k: (jnp.tanh(h @ k), None), x, params["layers"])[0]

    want = model({"layers": w.densify()}, x)
    lifted = lift(model)
    np.testing.assert_allclose(lifted({"layers": w}, x), want, atol=1e-5)
    jaxpr = jax.make_jaxpr(lifted)({"layers": w}, x)
    (scan,) = (e for e in jaxpr.jaxpr.eqns if e.primitive.name == "scan")
    inside = [v.aval.shape for v in scan.params["jaxpr"].jaxpr.invars]
    assert (M, 3) in inside  # the whole basis, one constant
    assert (S, M, M) not in inside
    # heads: one product with the basis, then a core a head
    heads = lambda params, x: jnp.einsum("td,hde->the", x, params["q"])
    np.testing.assert_allclose(lift(heads)({"q": w}, x), heads({"q": w.densify()}, x), atol=1e-5)


def test_experts_share_a_basis_under_a_ragged_product():
    rng = np.random.default_rng(5)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    w, x = SharedBasisWeight(normal(S, 3, N), normal(M, 3)), normal(7, M)
    sizes = jnp.array([2, 4, 1])
    f = lambda params, x: jax.lax.ragged_dot(x, params["w"], sizes)
    np.testing.assert_allclose(lift(f)({"w": w}, x), f({"w": w.densify()}, x), atol=1e-4)


def test_mistakes_are_named():
    x = jnp.ones((M, N))
    with pytest.raises(ShapeError, match="stack"):
        solve(SharedBasis(2), x)
    with pytest.raises(RankError, match="rank"):
        solve(SharedBasis(M + 1), jnp.ones((S, M, N)))
    with pytest.raises(RankError):
        solve(SharedBasis(), jnp.ones((S, M, N)))
    with pytest.raises(ShapeError, match="basis"):
        SharedBasisWeight(jnp.ones((S, M, N))).validate()
    spec = SharedBasis((4, 3), right=False)
    assert spec_from_json(spec.to_json()) == spec
    bad, info = solve(SharedBasis(2), jnp.full((S, M, N), jnp.nan))
    assert np.all(np.asarray(bad.densify()) == 0)
    assert "NaN" in info.message()
