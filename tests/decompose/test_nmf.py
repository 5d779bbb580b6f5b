"""NMF and semi-NMF: planted parts, KKT, sparsity, signs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrjax.decompose.nmf import NMF, nmf
from lrjax.decompose.nmf.hals import passes
from lrjax.decompose.spec import solve, spec_from_json
from lrjax.errors import RankError, RuleError
from lrjax.formats.layout import Layout
from lrjax.linalg import Status
from lrjax.metrics import Diagonal, Metric


def parts(seed, m=300, n=200, r=10):
    rng = np.random.default_rng(seed)
    w = np.abs(rng.normal(size=(m, r))) @ np.abs(rng.normal(size=(r, n)))
    return jnp.asarray(w, jnp.float32)


def error(w, f):
    left, right = np.asarray(f.left, float), np.asarray(f.right, float)
    return np.linalg.norm(np.asarray(w) - left @ right) / np.linalg.norm(w)


def uniform(seed, m=300, n=200, r=10):
    """Parts that are nearly collinear: their common mean outweighs what sets them apart."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.random((m, r)) @ rng.random((r, n)), jnp.float32)


def test_planted_parts_are_found():
    for w in map(parts, range(3)):
        f, info = nmf(w, 10, iterations=200, tol=0.0)
        assert error(w, f) < 1e-3
        assert np.min(f.left) >= 0
        assert np.min(f.right) >= 0
        assert info.kkt < 1e-3 * info.kkt_start
        np.testing.assert_allclose(info.residual, error(w, f) * np.linalg.norm(w), rtol=1e-2)


def test_collinear_parts_are_found_from_most_starts():
    fits = [(w, nmf(w, 10, iterations=200, tol=0.0)[0]) for w in map(uniform, range(6))]
    errors = sorted(error(w, f) for w, f in fits)
    assert errors[3] < 1e-3
    assert errors[-1] < 5e-3


def test_the_loss_never_rises_and_beats_scikit_learn():
    from sklearn.decomposition import non_negative_factorization

    w = parts(0) + jnp.asarray(np.random.default_rng(1).random((300, 200)), jnp.float32)
    loss = [float(nmf(w, 10, iterations=i, tol=0.0)[1].residual) for i in (0, 5, 20, 100)]
    assert loss == sorted(loss, reverse=True)
    assert loss[-1] < 0.9 * loss[0]
    options = {"n_components": 10, "init": "nndsvda", "tol": 0, "max_iter": 100}
    left, right, _ = non_negative_factorization(np.asarray(w), random_state=0, **options)
    assert loss[-1] < 1.001 * np.linalg.norm(w - left @ right)


@pytest.mark.parametrize("r", [4, 19])
def test_one_pass_solves_each_row_given_the_others(r):
    rng = np.random.default_rng(0)
    x, a = rng.random((r, 30)), rng.normal(size=(r, 50))
    gram, target = a @ a.T, a @ rng.normal(size=(50, 30))
    want = x.copy()
    for j in range(r):
        others = gram[j] @ want - gram[j, j] * want[j]
        want[j] = np.maximum(0, (target[j] - others) / gram[j, j])
    got = passes(*(jnp.asarray(v, jnp.float32) for v in (x, target, gram)), 1)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_semi_nmf_is_within_five_percent_of_the_svd():
    w = jnp.asarray(np.random.default_rng(0).normal(size=(60, 50)), jnp.float32)
    f, info = nmf(w, 10, semi=True)
    tail = np.sqrt(np.sum(np.linalg.svd(w, compute_uv=False)[10:] ** 2))
    assert tail * 0.9999 <= info.residual < 1.05 * tail
    assert np.min(f.right) >= 0 > np.min(f.left)


def test_a_penalty_makes_sparse_parts():
    rng = np.random.default_rng(0)
    sparse = lambda *s: rng.random(s) * (rng.random(s) < 0.3)
    w = sparse(80, 8) @ sparse(8, 60) + 0.02 * rng.random((80, 60))
    w = jnp.asarray(w, jnp.float32)
    info = nmf(w, 8, l1=0.05, iterations=500)[1]
    assert info.sparsity > max(0.3, float(nmf(w, 8)[1].sparsity))


def test_weights_are_respected():
    rng = np.random.default_rng(0)
    w = parts(5, 60, 50, 9)
    f = jnp.asarray(np.exp(1.5 * rng.normal(size=w.shape)), jnp.float32)
    loss = lambda p: np.sqrt(np.sum(f * (w - p.left @ p.right) ** 2))
    weighted, info = nmf(w, 5, weights=f, iterations=1000, tol=0.0)
    assert loss(weighted) < 0.95 * loss(nmf(w, 5, iterations=1000)[0])
    np.testing.assert_allclose(info.residual, loss(weighted), rtol=1e-3)
    values = [float(nmf(w, 5, weights=f, iterations=i, tol=0.0)[1].residual) for i in (0, 10, 100)]
    assert values == sorted(values, reverse=True)


def test_negative_entries_are_refused_not_clipped():
    w = parts(0, 20, 16, 3) - 1
    with pytest.raises(RuleError, match="semi"):
        nmf(w, 3)
    f, info = jax.jit(lambda w: nmf(w, 3))(w)
    assert info.residual >= 0.999 * np.linalg.norm(np.minimum(w, 0))
    assert np.min(f.left) >= 0


@pytest.mark.parametrize("semi", [False, True])
def test_edge_inputs(semi):
    f, info = nmf(jnp.zeros((20, 16)), 3, semi=semi)
    assert not np.any(f.left @ f.right)
    assert info.residual == 0
    f, info = nmf(jnp.full((20, 16), jnp.nan), 3, semi=semi)
    assert info.status == Status.NON_FINITE
    assert np.isfinite(f.left @ f.right).all()
    plain = parts(0, 20, 16, 2)
    for scale in (1e15, 1e-15):
        f, _ = nmf(plain * scale, 3, semi=semi)
        left, right = (np.asarray(x, float) for x in (f.left, f.right))
        assert np.linalg.norm(plain - left @ right / scale) < 0.02 * np.linalg.norm(plain)
    with pytest.raises(RankError):
        nmf(parts(0, 20, 16, 2), 17, semi=semi)


def test_the_spec_solves_stacks_under_a_metric():
    w = jnp.asarray(np.random.default_rng(0).normal(size=(2, 36, 10)), jnp.float32)
    metric = Metric(None, Diagonal(jnp.asarray(np.arange(1, 11) ** 2.0, jnp.float32)))
    f, info = solve(NMF(4), w, metric=metric)
    loss = lambda f: np.asarray(metric.loss(w - f.densify())) ** 0.5
    np.testing.assert_allclose(info.residual, loss(f), rtol=1e-4)
    assert (loss(f) < loss(solve(NMF(4), w)[0])).all()
    again, _ = solve(NMF(4), w, metric=metric)
    np.testing.assert_array_equal(f.left, again.left)


@pytest.mark.slow
def test_options_fall_and_fix_the_rank():
    w = parts(1, 40, 30, 6)
    spec = NMF(semi=False)
    options = spec.options(
        w.shape, w.dtype, Layout((0,), (1,)), np.asarray(spec.measure(w, Metric()))
    )
    assert (np.diff(options.error) <= 0).all()
    assert (options.params < w.size).all()
    assert spec_from_json(spec.with_rank(3).to_json()) == NMF(3, semi=False)
