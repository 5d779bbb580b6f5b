"""Kronecker sums: planted, optimal, refitted under metrics, planned."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrjax.decompose.kronecker import Kronecker, refit
from lrjax.decompose.kronecker import kronecker as solver
from lrjax.decompose.kronecker.shapes import candidates
from lrjax.decompose.spec import solve, spec_from_json
from lrjax.errors import RankError, ShapeError
from lrjax.formats.layout import Layout
from lrjax.linalg import Accuracy, Status
from lrjax.metrics import Diagonal, Gram, Metric

M, N, SHAPE = 48, 60, (6, 5)
I, J, K, L = 6, 5, 8, 12


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def kronecker(w, terms, shape, rows=None, cols=None, **limits):
    array = lambda x: None if x is None else jnp.asarray(x)
    return solver(array(w), terms, shape, rows=array(rows), cols=array(cols), **limits)


def planted(terms=3):
    pairs = zip(normal(0, terms, I, J), normal(1, terms, K, L), strict=True)
    return sum(np.kron(a, b) for a, b in pairs)


def psd(seed, d, decay=1.5):
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]
    return ((q * np.arange(1, d + 1.0) ** -decay) @ q.T * d).astype(np.float32)


def rebuilt(f):
    """The definition, in float64."""
    a, b = np.asarray(f.a, float), np.asarray(f.b, float)
    return sum(np.kron(x, y) for x, y in zip(a, b, strict=True))


def loss(w, f, rows=None, cols=None):
    d = w - rebuilt(f)
    full = lambda x, n: np.eye(n) if x is None else np.diag(x) if x.ndim == 1 else x
    return np.sqrt(np.trace(d.T @ full(rows, M) @ d @ full(cols, N)))


def loop_rearranged(w):
    """R(W) by its indices."""
    r = np.empty((I * J, K * L))
    for i, j, k, l in np.ndindex(I, J, K, L):
        r[i * J + j, k * L + l] = w[i * K + k, j * L + l]
    return r


def test_planted_terms_are_found_though_the_rank_is_full():
    w = planted()
    assert np.linalg.matrix_rank(w) == min(M, N)
    f, info = kronecker(w, 3, SHAPE)
    assert np.linalg.norm(w - rebuilt(f)) < 1e-5 * np.linalg.norm(w)
    assert f.a.shape == (3, I, J)
    assert f.b.shape == (3, K, L)
    naive = np.linalg.svd(w.reshape(I * J, K * L), compute_uv=False)
    assert np.sqrt(np.sum(naive[3:] ** 2)) > 0.5 * np.linalg.norm(w)
    assert info.status == Status.CONVERGED


def test_the_error_is_the_tail_of_the_rearranged_matrix():
    w = normal(2, M, N)
    f, info = kronecker(w, 7, SHAPE, accuracy=Accuracy.EXACT)
    tail = np.sqrt(np.sum(np.linalg.svd(loop_rearranged(w), compute_uv=False)[7:] ** 2))
    np.testing.assert_allclose(loss(w, f), tail, rtol=1e-5)
    np.testing.assert_allclose(info.residual, tail, rtol=1e-5)


def test_two_terms_are_a_rotation_of_any_plane_along_an_axis():
    c, s = np.cos(0.7), np.sin(0.7)
    for p, q in ((1, 3), (1, 9)):  # within a block, and across blocks
        w = np.eye(12, dtype=np.float32)
        w[[p, p, q, q], [p, q, p, q]] = c, -s, s, c
        f, _ = kronecker(w, 2, (3, 3))
        assert np.linalg.norm(w - rebuilt(f)) < 1e-5


SIDES = {
    "rows": (psd(3, M), None),
    "both": (psd(3, M), psd(4, N)),
    "lookup": (np.diag(psd(3, M)).copy() ** 3, None),
    "mixed": (psd(3, M), np.diag(psd(4, N)).copy()),
}


@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES)
def test_the_refit_lowers_the_loss_and_reports_it(sides):
    w = normal(5, M, N)
    plain, _ = kronecker(w, 4, SHAPE)
    f, info = kronecker(w, 4, SHAPE, rows=sides[0], cols=sides[1], sweeps=30)
    assert loss(w, f, *sides) < 0.97 * loss(w, plain, *sides)
    np.testing.assert_allclose(info.residual, loss(w, f, *sides), rtol=1e-3)


def test_a_sweep_factors_each_normal_matrix_once():
    rows, cols = map(jnp.asarray, SIDES["both"])
    fit = functools.partial(refit.refit, rows=rows, cols=cols, sweeps=3)
    shapes = (M, N), (4, I, J), (4, K, L)
    traced = jax.make_jaxpr(fit)(*(jnp.ones(shape) for shape in shapes))
    assert str(traced).count("= cholesky ") == 2


def test_more_sweeps_never_raise_the_loss():
    w, rows = normal(5, M, N), psd(3, M)
    run = lambda sweeps: kronecker(w, 4, SHAPE, rows=rows, sweeps=sweeps, tol=0.0)[1].residual
    losses = [float(run(sweeps)) for sweeps in (0, 1, 2, 8, 30)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]


def test_the_closed_form_is_a_better_start_than_a_random_one():
    """After equal sweeps under one metric."""
    w, rows = normal(2, M, N), psd(3, M)
    found, _ = kronecker(w, 3, SHAPE, rows=rows, sweeps=3, tol=0.0)
    for seed in range(3):
        a, b = jnp.asarray(normal(seed, 3, I, J)), jnp.asarray(normal(seed + 9, 3, K, L))
        a, b, _ = refit.refit(jnp.asarray(w), a, b, jnp.asarray(rows), None, sweeps=3, tol=0.0)
        other = dataclasses.replace(found, a=a, b=b)
        assert loss(w, found, rows) < loss(w, other, rows)


def test_a_separable_metric_is_solved_exactly():
    parts = [psd(k, d, 1.0) for k, d in enumerate((I, K, J, L))]
    w = normal(6, M, N)
    f, _ = kronecker(w, 3, SHAPE, rows=np.kron(*parts[:2]), cols=np.kron(*parts[2:]), sweeps=0)
    root = lambda g: np.linalg.cholesky(g).T
    left, right = (np.kron(*map(root, parts[k : k + 2])) for k in (0, 2))
    white = loop_rearranged(left @ w @ right.T)
    tail = np.sqrt(np.sum(np.linalg.svd(white, compute_uv=False)[3:] ** 2))
    want = loss(w, f, np.kron(*parts[:2]), np.kron(*parts[2:]))
    np.testing.assert_allclose(want, tail, rtol=2e-3)


def test_a_singular_gram_is_no_obstacle():
    x = normal(7, 4, M)
    w, rows = normal(5, M, N), x.T @ x
    f, info = kronecker(w, 4, SHAPE, rows=rows, sweeps=40, tol=1e-6)
    assert np.isfinite(rebuilt(f)).all()
    assert info.residual < 0.5 * np.linalg.norm(x @ w)
    whole = np.linalg.norm(x @ w)
    np.testing.assert_allclose(
        info.residual, np.linalg.norm(x @ (w - rebuilt(f))), rtol=1e-3, atol=1e-3 * whole
    )


def test_stacks_are_solved_one_by_one_with_the_same_bits():
    w, rows = normal(8, 2, M, N), np.stack([psd(1, M), psd(2, M)])
    both, info = kronecker(w, 2, SHAPE, rows=rows)
    again, _ = kronecker(w, 2, SHAPE, rows=rows)
    np.testing.assert_array_equal(both.a, again.a)
    assert info.residual.shape == (2,)
    one, _ = kronecker(w[1], 2, SHAPE, rows=rows[1])
    np.testing.assert_allclose(rebuilt(one), rebuilt(jax.tree.map(lambda x: x[1], both)), atol=1e-4)


@pytest.mark.parametrize("rows", [None, psd(3, M)], ids=["plain", "rows"])
def test_zero_huge_tiny_and_nan(rows):
    f, info = kronecker(np.zeros((M, N), np.float32), 2, SHAPE, rows=rows)
    assert not rebuilt(f).any()
    assert info.residual == 0
    for scale in (1e15, 1e-15):
        w = planted() * np.float32(scale)
        assert loss(w, kronecker(w, 3, SHAPE, rows=rows)[0]) < 1e-3 * np.linalg.norm(w)
    f, info = kronecker(np.full((M, N), np.nan, np.float32), 2, SHAPE, rows=rows)
    assert info.status == Status.NON_FINITE
    assert np.isfinite(rebuilt(f)).all()


@pytest.mark.parametrize(
    ("terms", "shape", "error"),
    [
        (0, SHAPE, RankError),
        (31, SHAPE, RankError),
        (2, (7, 5), ShapeError),
        (2, (0, 5), ShapeError),
    ],
)
def test_impossible_sizes_are_errors(terms, shape, error):
    with pytest.raises(error):
        kronecker(planted(), terms, shape)


def test_options_price_and_predict_what_the_solver_does():
    w, layout = jnp.asarray(normal(9, 2, 9, 10)), Layout((1,), (2,))
    spec = Kronecker(accuracy=Accuracy.EXACT)
    options = spec.options(w.shape, w.dtype, layout, np.asarray(spec.measure(w, Metric())))
    assert len({tuple(r[1:]) for r in options.ranks}) > 2
    assert (options.params < w.size).all()
    pick = 3
    fixed = spec.with_rank(tuple(options.ranks[pick].tolist()))
    f, info = solve(fixed, w)
    assert sum(x.size for x in jax.tree.leaves(f)) == options.params[pick]
    np.testing.assert_allclose(np.sum(info.residual**2), options.error[pick], rtol=1e-3)
    assert spec_from_json(fixed.to_json()) == fixed


def test_a_metric_scales_the_options_to_the_loss_of_dropping():
    w = jnp.asarray(normal(9, M, N))
    metric = Metric(Gram(psd(3, M)), Diagonal(np.diag(psd(4, N)).copy()))
    metric = jax.tree.map(jnp.asarray, metric)
    values = np.asarray(Kronecker(shape=SHAPE).measure(w, metric))
    np.testing.assert_allclose(np.sum(values**2, -1), metric.loss(w), rtol=1e-3)


def test_bfloat16_weights_have_bfloat16_factors_and_their_residual():
    w = jnp.asarray(normal(5, M, N), jnp.bfloat16)
    f, info = solve(Kronecker(4, SHAPE), w)
    assert f.a.dtype == f.b.dtype == jnp.bfloat16
    np.testing.assert_allclose(info.residual, loss(np.asarray(w, float), f), rtol=1e-3)


def test_candidates_divide_and_prime_sizes_have_few():
    assert all(768 % i == 0 and 3072 % j == 0 for i, j in candidates(768, 3072))
    assert candidates(7, 11) == ((1, 11),) or all(a * b > 1 for a, b in candidates(7, 11))
    with pytest.raises(RankError, match="Plan it"):
        solve(Kronecker(2), jnp.asarray(planted()))
    assert dataclasses.is_dataclass(Kronecker())
