"""Data-aware SVD against brute force, and against every published form of the same optimum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg as sl
import scipy.optimize as so

from lrjax.errors import RankError, ShapeError
from lrjax.linalg import (
    Accuracy,
    Exact,
    Krylov,
    Status,
    weighted_residual,
    weighted_spectrum,
    weighted_svd,
)


def problem(m, n, tokens, seed=0):
    """A weight, inputs [tokens, m] of decaying scales, their second moment, an output moment."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((m, n))
    x = rng.standard_normal((tokens, m)) * np.arange(1, m + 1.0) ** -0.5
    g = rng.standard_normal((3 * n, n)) * np.arange(1, n + 1.0) ** -0.4
    return w, x, x.T @ x / tokens, g.T @ g / (3 * n)


def root(side, size):
    """side^.5 in float64 for a full, diagonal or absent side."""
    if side is None:
        return np.eye(size)
    if side.ndim == 1:
        return np.diag(np.sqrt(side))
    values, vectors = np.linalg.eigh(side)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def f32(*arrays):
    return [None if x is None else jnp.asarray(x, jnp.float32) for x in arrays]


def brute_force(w, s, rank, start):
    """Least tr((W - LR)' S (W - LR)) by L-BFGS over L and R; float64."""
    m, n = w.shape

    def loss(z):
        left, right = z[: m * rank].reshape(m, rank), z[m * rank :].reshape(rank, n)
        lost = left @ right - w
        slope = 2 * s @ lost
        return np.sum(lost * slope) / 2, np.append((slope @ right.T).ravel(), left.T @ slope)

    options = {"maxiter": 5000, "maxfun": 6000, "ftol": 1e-14, "gtol": 1e-9}
    return so.minimize(loss, start, jac=True, method="L-BFGS-B", options=options).fun


def test_no_search_finds_less_on_twenty_problems():
    """Half of them with fewer samples than inputs: singular Grams."""
    sizes = [(12, 9, 40), (9, 12, 40), (16, 10, 10), (10, 16, 6)]
    for i, (m, n, tokens) in enumerate(sizes * 5):
        w, _, s, _ = problem(m, n, tokens, seed=i)
        left, right, _, info = weighted_svd(*f32(w), 3, rows=f32(s)[0])
        start = np.random.default_rng(i).standard_normal(3 * (m + n))
        least = brute_force(w, s, 3, start)
        lost = w - np.asarray(left, np.float64) @ np.asarray(right, np.float64)
        mine = np.sum(lost * (s @ lost))
        assert mine < least * (1 + 1e-4)
        np.testing.assert_allclose(info.residual**2, mine, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(("m", "n", "tokens"), [(64, 48, 40), (40, 90, 20)])
@pytest.mark.parametrize("sides", ["full", "diagonal", "mixed", "rows", "cols"])
def test_every_pair_of_sides_is_optimal(m, n, tokens, sides):
    """Forty samples in 64 dims, twenty in 40: singular Grams, tall and wide."""
    w, _, s, g = problem(m, n, tokens)
    diagonal = (np.diag(s), np.diag(g))
    pairs = {"full": (s, g), "diagonal": diagonal, "mixed": (s, diagonal[1])}
    pairs |= {"rows": (s, None), "cols": (None, g)}
    rows, cols = pairs[sides]
    a, b = root(rows, m), root(cols, n)
    sigma = np.linalg.svd(a @ w @ b, compute_uv=False)
    sides = dict(zip(("rows", "cols"), f32(rows, cols), strict=True))
    left, right, s_r, info = weighted_svd(*f32(w), 7, **sides)
    lost = w - np.asarray(left, np.float64) @ np.asarray(right, np.float64)
    opt = np.sqrt(np.sum(sigma[7:] ** 2))
    np.testing.assert_allclose(np.linalg.norm(a @ lost @ b), opt, rtol=1e-5)
    np.testing.assert_allclose(info.residual, opt, rtol=1e-4)
    np.testing.assert_allclose(s_r, sigma[:7], rtol=1e-4)
    spectrum = weighted_spectrum(*f32(w), **sides)
    assert spectrum.shape == (min(m, n),)
    np.testing.assert_allclose(spectrum, sigma, atol=5e-4 * sigma[0])


def test_published_forms_agree():
    """SVD-LLM (Cholesky), its V2 (eigen), DRONE (two SVDs), AFM without mean, Swift (outputs)."""
    w, x, s, _ = problem(30, 22, 100)
    x = x / np.sqrt(len(x))
    left, right, _, _ = weighted_svd(*f32(w), 6, rows=f32(s)[0])
    cut = lambda a: (lambda u, d, v: (u[:, :6] * d[:6]) @ v[:6])(
        *np.linalg.svd(a, full_matrices=False)
    )
    lower = np.linalg.cholesky(s)
    values, q = np.linalg.eigh(s)
    _ux, sx, vx = np.linalg.svd(x, full_matrices=False)
    uw, sw, vw = np.linalg.svd(w, full_matrices=False)
    _, outputs = np.linalg.eigh((x @ w).T @ (x @ w))
    top = outputs[:, ::-1][:, :6]
    core = cut(sx[:, None] * (vx @ uw) * sw)
    forms = {
        "SVD-LLM": sl.solve_triangular(lower, cut(lower.T @ w), trans=1, lower=True),
        "V2": q @ (cut(np.sqrt(values)[:, None] * (q.T @ w)) / np.sqrt(values)[:, None]),
        "DRONE": vx.T @ (core / sx[:, None]) @ vw,
        "AFM and Swift": w @ top @ top.T,
    }
    for form in forms.values():
        np.testing.assert_allclose(np.asarray(left @ right), form, atol=2e-4)


def test_krylov_is_near_optimal_under_a_metric_and_rank_is_honoured():
    w, _, s, _ = problem(560, 530, 700)
    sigma = np.linalg.svd(root(s, 560) @ w, compute_uv=False)
    opt = np.sqrt(np.sum(sigma[40:] ** 2))
    for accuracy, bound in ((Accuracy.DEFAULT, 1.015), (Accuracy.ACCURATE, 1.005)):
        left, right, _, info = weighted_svd(*f32(w), 40, rows=f32(s)[0], accuracy=accuracy)
        assert (left.shape, right.shape) == ((560, 40), (40, 530))
        lost = root(s, 560) @ (w - np.asarray(left, np.float64) @ np.asarray(right))
        assert opt * (1 - 1e-5) < np.linalg.norm(lost) < opt * bound
        np.testing.assert_allclose(info.residual, np.linalg.norm(lost), rtol=1e-4)
    assert int(info.iterations) > 1


def test_exact_and_gram_forms_agree_and_stacks_equal_loops():
    stack = [problem(20, 26, 40, seed) for seed in range(3)]
    w, s, g = (jnp.stack(x) for x in zip(*(f32(p[0], p[2], p[3]) for p in stack), strict=True))
    batched = weighted_svd(w, 5, rows=s, cols=g)
    exact = weighted_svd(w, 5, rows=s, cols=g, method=Exact())
    product = np.asarray(batched[0] @ batched[1])
    np.testing.assert_allclose(product, exact[0] @ exact[1], atol=2e-4)
    for i in range(3):
        left, right, _, _ = weighted_svd(w[i], 5, rows=s[i], cols=g[i])
        np.testing.assert_allclose(product[i], left @ right, atol=2e-5)
    mapped = jax.vmap(lambda w, s, g: weighted_svd(w, 5, rows=s, cols=g))(w, s, g)
    np.testing.assert_allclose(product, mapped[0] @ mapped[1], atol=2e-5)


def test_hard_inputs_give_a_right_answer_or_a_status():
    """Zero Gram, one sample, huge and tiny weights, NaN on either side."""
    w, x, s, _ = problem(18, 14, 30)
    one = np.outer(x[0], x[0])
    nan = s.copy()
    nan[2, 5] = np.nan
    ws = [w, w, w * 1e20, w * 1e-20, w, w * np.nan, w]
    rows = [np.zeros_like(s), one, s, s, nan, s, s]
    w_all, s_all = jnp.stack(f32(*ws)), jnp.stack(f32(*rows))
    for method in (None, Krylov(4, 3)):
        left, right, sv, info = weighted_svd(w_all, 4, rows=s_all, method=method)
        for out in (left, right, sv):
            assert np.all(np.isfinite(out))
        want = [Status.RANK_DEFICIENT] * 2 + [Status.CONVERGED] * 2
        want += [Status.NON_FINITE] * 2 + [Status.CONVERGED]
        assert [Status(int(i)) for i in info.status] == want
        np.testing.assert_allclose(x[0] @ np.asarray(left[1] @ right[1]), x[0] @ w, rtol=1e-3)
        np.testing.assert_allclose(sv[2] / 1e20, sv[6], rtol=1e-3)
        np.testing.assert_allclose(info.residual[2] / 1e20, info.residual[6], rtol=2e-2)
        np.testing.assert_allclose(info.residual[3] * 1e20, info.residual[6], rtol=2e-2)
        assert float(info.residual[1]) < 1e-3 * float(sv[1, 0])
        assert np.all(np.isnan(info.residual[4:6]))


def test_residual_of_given_factors_is_the_loss_itself():
    w, _, s, g = problem(15, 11, 30)
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((15, 2)), rng.standard_normal((2, 11))
    lost = w - left @ right
    found = weighted_residual(*f32(w, left, right), rows=f32(s)[0], cols=f32(g)[0])
    np.testing.assert_allclose(found**2, np.trace(lost.T @ s @ lost @ g), rtol=1e-5)


def test_misfits_are_refused():
    w = jnp.ones((6, 4))
    with pytest.raises(RankError):
        weighted_svd(w, 5)
    with pytest.raises(ShapeError, match="rows of shape"):
        weighted_svd(w, 2, rows=jnp.ones((4, 4)))
    with pytest.raises(ShapeError, match="cols of shape"):
        weighted_spectrum(w, None, jnp.ones(6))


@pytest.mark.parametrize(("m", "n"), [(12, 17), (17, 12)])
def test_a_weight_of_lower_rank_than_asked_is_rebuilt(m, n):
    """What rounding leaves of vanishing directions must not lean on those that count."""
    rng = np.random.default_rng(5)
    w = np.stack([rng.standard_normal((m, k)) @ rng.standard_normal((k, n)) for k in (1, 1, 2, 2)])
    _, _, s, g = problem(m, n, 60)
    sides = [np.broadcast_to(x, (4, *x.shape)) for x in (s, g)]
    for rank in (2, 4):
        rows, cols = f32(*sides)
        left, right, _, info = weighted_svd(*f32(w), rank, rows=rows, cols=cols)
        np.testing.assert_allclose(left @ right, w, atol=2e-4 * np.abs(w).max())
        assert np.all(np.isfinite(info.residual))
