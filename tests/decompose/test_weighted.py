"""Element-weighted low rank: references, completion, tails."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrjax.decompose.spec import solve, spec_from_json
from lrjax.decompose.weighted import Elements, Inner, WeightedLowRank, weighted_low_rank
from lrjax.decompose.weighted.half_step import cg_cols, cg_rows, exact_rows
from lrjax.decompose.weighted.separable import separable_sides
from lrjax.errors import RankError, ShapeError, StatsError
from lrjax.linalg import Status
from lrjax.metrics import Diagonal, Gram, Metric

M, N, R = 60, 48, 8


def problem(sigma, seed=0):
    rng = np.random.default_rng(seed)
    w, f = rng.normal(size=(M, N)), np.exp(sigma * rng.normal(size=(M, N)))
    return jnp.asarray(w, jnp.float32), jnp.asarray(f, jnp.float32)


def loss(w, f, p):
    d = np.asarray(w, float) - np.asarray(p.left, float) @ np.asarray(p.right, float)
    return np.sum(np.asarray(f, float) * d**2)


def numpy_als(w, f, a, b, sweeps):
    """Row by row, by the textbook, in float64."""
    for _ in range(sweeps):
        a = np.stack(
            [np.linalg.solve((b * g) @ b.T, b @ (g * x)) for g, x in zip(f, w, strict=True)]
        )
        rows = zip(f.T, w.T, strict=True)
        b = np.stack([np.linalg.solve((a.T * g) @ a, a.T @ (g * x)) for g, x in rows]).T
    return a, b


def majorised(w, f, steps=300):
    """X <- SVD_k(X + F / max F (W - X)), each step a minimum of a function above the loss."""
    w, f = (np.asarray(x, float) for x in (w, f))
    x = np.zeros_like(w)
    for _ in range(steps):
        u, s, vt = np.linalg.svd(x + f / f.max() * (w - x), full_matrices=False)
        x = (u[:, :R] * s[:R]) @ vt[:R]
    return np.sum(f * (w - x) ** 2)


def test_the_half_steps_solve_every_row():
    w, f = problem(1.5)
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(M, R)), rng.normal(size=(R, N))
    want, want_b = numpy_als(np.asarray(w, float), np.asarray(f, float), a, b, 1)
    first = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
    for chunk in (1, 7, 64):
        got = exact_rows(w, f, *first, 0.0, chunk)
        np.testing.assert_allclose(got, want, rtol=1e-2, atol=1e-3)
    got = cg_rows(w, f, *first, 0.0, 40)
    np.testing.assert_allclose(got, want, rtol=1e-2, atol=1e-3)
    got = cg_cols(w, f, jnp.asarray(want, jnp.float32), first[1], 0.0, 40)
    np.testing.assert_allclose(got, want_b, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_heavier_tails_gain_more_over_the_separable_weights_and_the_svd():
    for sigma, margin in ((0.5, 1.04), (1.5, 1.4), (2.5, 2.5)):
        w, f = problem(sigma)
        p, info = weighted_low_rank(w, f, R, sweeps=1000)
        u, s, vt = np.linalg.svd(np.asarray(w, float), full_matrices=False)
        svd = np.sum(np.asarray(f) * (w - (u[:, :R] * s[:R]) @ vt[:R]) ** 2)
        assert loss(w, f, p) < info.start**2 / margin
        assert info.start**2 <= svd * 1.001
        np.testing.assert_allclose(info.residual**2, loss(w, f, p), rtol=1e-3)
        assert loss(w, f, p) <= 1.001 * majorised(w, f)


@pytest.mark.parametrize("inner", Inner)
def test_both_methods_come_to_a_stationary_point_in_float32(inner):
    """The gradient by hand, in float64, of the factors returned; and the textbook's loss."""
    w, f = problem(1.5)
    start, _ = weighted_low_rank(w, f, R, sweeps=0)
    wide = [np.asarray(x, float) for x in (w, f, start.left, start.right)]
    a, b = numpy_als(*wide, 60)
    want = np.sum(wide[1] * (wide[0] - a @ b) ** 2)
    p, info = weighted_low_rank(w, f, R, inner=inner, sweeps=1000)
    assert info.status == Status.CONVERGED
    assert loss(w, f, p) < 1.003 * want
    w, f = wide[:2]
    a, b = np.asarray(p.left, float), np.asarray(p.right, float)
    norm = lambda x: np.hypot(np.linalg.norm(x @ b.T), np.linalg.norm(a.T @ x))
    assert norm(f * (w - a @ b)) < 1e-5 * norm(f * w)
    np.testing.assert_allclose(info.gradient, norm(f * (w - a @ b)) / norm(f * w), rtol=0.1)


def test_the_loss_never_rises_even_by_less_than_its_rounding():
    """In float64, sweep by sweep, down to a gradient where float32 sums tell nothing apart."""
    w, f = problem(1.5)
    sweeps = [0, 1, 2, 4, 8, *range(30, 70, 3)]
    runs = [weighted_low_rank(w, f, R, sweeps=n, tol=0.0) for n in sweeps]
    losses = np.array([loss(w, f, p) for p, _ in runs])
    assert np.all(np.diff(losses) < 1e-9 * losses[0])
    assert losses[-8] - losses[-1] < 1e-5 * losses[-1]
    assert runs[-1][1].gradient < 1e-5


def test_memory_is_bounded_by_the_chunk():
    """That of the exact method's normal matrices, 4 chunk k^2, whatever the size of the matrix."""
    k = 64

    def temporary(m, n, inner, chunk):
        shape = jax.ShapeDtypeStruct((m, n), jnp.float32)
        fit = lambda w, f: weighted_low_rank(w, f, k, inner=inner, chunk=chunk)[0]
        compiled = jax.jit(fit).lower(shape, shape).compile()
        return compiled.memory_analysis().temp_size_in_bytes / 4

    def bound(m, n, chunk):
        return 6 * m * n + 10 * (m + n) * k + 4 * chunk * k**2

    assert temporary(160, 144, Inner.CG, 64) < bound(160, 144, 0)
    assert temporary(160, 144, Inner.EXACT, 16) < bound(160, 144, 16) < 160 * k**2


def test_equal_weights_give_the_svd():
    w, _ = problem(0.0)
    s = np.linalg.svd(w, compute_uv=False)
    for inner in Inner:
        _, info = weighted_low_rank(w, jnp.full_like(w, 3.0), R, inner=inner)
        np.testing.assert_allclose(info.residual**2, 3 * np.sum(s[R:] ** 2), rtol=1e-4)


@pytest.mark.parametrize("inner", Inner)
def test_two_fifths_of_the_entries_complete_the_matrix(inner):
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=(80, 5)) @ rng.normal(size=(5, 60)), jnp.float32)
    seen = jnp.asarray(rng.random(w.shape) < 0.4, jnp.float32)
    p, _ = weighted_low_rank(jnp.where(seen > 0, w, jnp.nan), seen, 5, inner=inner, sweeps=1000)
    assert np.linalg.norm(w - p.left @ p.right) < 1e-3 * np.linalg.norm(w)


def test_separable_weights_are_recovered_and_solved_at_once():
    rng = np.random.default_rng(0)
    r, c = rng.random(M) + 0.1, rng.random(N) + 0.1
    f = jnp.asarray(np.outer(r, c), jnp.float32)
    np.testing.assert_allclose(np.outer(*separable_sides(f)), f, rtol=1e-4)
    w, _ = problem(0.0)
    _, info = weighted_low_rank(w, f, R)
    white = np.sqrt(r)[:, None] * np.asarray(w) * np.sqrt(c)
    tail = np.sum(np.linalg.svd(white, compute_uv=False)[R:] ** 2)
    np.testing.assert_allclose(info.residual**2, tail, rtol=1e-3)


def test_edge_inputs():
    w, f = problem(1.0)
    dead = f.at[3].set(0).at[:, 5].set(0)
    p, info = weighted_low_rank(w, dead, R)
    assert np.isfinite(p.left).all()
    assert np.isfinite(p.right).all()
    assert np.max(np.abs(p.left @ p.right)) < 100
    p, info = weighted_low_rank(jnp.zeros_like(w), f, R)
    assert info.residual == 0
    p, info = weighted_low_rank(w.at[0, 0].set(jnp.nan), f, R)
    assert info.status == Status.NON_FINITE
    assert np.isfinite(p.left @ p.right).all()
    base = weighted_low_rank(w, f, R)[1].residual
    np.testing.assert_allclose(
        weighted_low_rank(w * 1e12, f * 1e-6, R)[1].residual, base * 1e9, rtol=1e-2
    )
    with pytest.raises(ShapeError):
        weighted_low_rank(w, f[1:], R)
    with pytest.raises(RankError):
        weighted_low_rank(w, f, N + 1)


def test_the_spec_takes_element_and_diagonal_metrics():
    w, f = problem(1.0)
    spec = WeightedLowRank(4)
    p, info = solve(spec, w, metric=Elements(weights=f))
    np.testing.assert_allclose(
        info.residual, Elements(weights=f).loss(w - p.densify()) ** 0.5, rtol=1e-4
    )
    metric = Metric(Diagonal(jnp.arange(1.0, M + 1)), None)
    p, info = solve(spec, w, metric=metric)
    np.testing.assert_allclose(info.residual, metric.loss(w - p.densify()) ** 0.5, rtol=1e-4)
    with pytest.raises(StatsError, match="SVD"):
        solve(spec, w, metric=Metric(Gram(jnp.eye(M)), None))
    stacked, info = solve(spec, jnp.stack([w, 2 * w]), metric=Elements(weights=f))
    np.testing.assert_allclose(info.residual[1], 2 * info.residual[0], rtol=1e-3)
    again, _ = solve(spec, jnp.stack([w, 2 * w]), metric=Elements(weights=f))
    assert all(map(np.array_equal, jax.tree.leaves(stacked), jax.tree.leaves(again)))
    assert spec_from_json(WeightedLowRank(4, inner=Inner.EXACT).to_json()).inner is Inner.EXACT
