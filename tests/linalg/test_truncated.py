"""Truncated SVD against numpy in float64: optimal, orthonormal, never a silent NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrjax.errors import RankError, ShapeError
from lrjax.linalg import (
    Accuracy,
    Exact,
    GramEigh,
    Krylov,
    Randomized,
    Status,
    choose,
    singular_values,
    truncated_svd,
)

METHODS = (Exact(), GramEigh(), Krylov(8, 6), Krylov(8, 6, formed=True), Randomized())


def decaying(m, n, decay, seed=0):
    """A matrix with singular values j^-decay, and those."""
    rng = np.random.default_rng(seed)
    k = min(m, n)
    u, v = (np.linalg.qr(rng.standard_normal((d, k)))[0] for d in (m, n))
    s = np.arange(1, k + 1.0) ** -decay
    return ((u * s) @ v.T).astype(np.float32), s


def excess(a, svd, rank):
    """Error over the optimal one, minus one; float64."""
    a = np.asarray(a, np.float64)
    u, s, vt = (np.asarray(x, np.float64) for x in (svd.u, svd.s, svd.vt))
    opt = np.sqrt(np.sum(np.linalg.svd(a, compute_uv=False)[rank:] ** 2))
    return np.linalg.norm(a - (u * s) @ vt) / opt - 1


@pytest.mark.parametrize("shape", [(90, 60), (60, 90)])
@pytest.mark.parametrize("method", [Exact(), GramEigh()])
def test_direct_methods_miss_the_root_of_the_tail(shape, method):
    a, s = decaying(*shape, 0.5)
    svd, info = truncated_svd(jnp.asarray(a), 12, method=method)
    assert (svd.u.shape, svd.s.shape, svd.vt.shape) == ((shape[0], 12), (12,), (12, shape[1]))
    tail = np.sqrt(np.sum(s[12:] ** 2))
    assert abs(excess(a, svd, 12)) < 1e-5
    np.testing.assert_allclose(info.residual, tail, rtol=1e-5)
    np.testing.assert_allclose(svd.s, s[:12], rtol=1e-5)
    np.testing.assert_allclose(svd.u.T @ svd.u, np.eye(12), atol=1e-5)
    np.testing.assert_allclose(svd.vt @ svd.vt.T, np.eye(12), atol=1e-5)
    assert info.message() == "converged"


@pytest.mark.parametrize("decay", [0.3, 0.7])
@pytest.mark.parametrize(("accuracy", "bound"), [("DEFAULT", 1.5e-2), ("ACCURATE", 5e-3)])
def test_the_policy_keeps_its_bounds_on_slow_and_fast_spectra(decay, accuracy, bound):
    a, s = decaying(640, 700, decay)
    accuracy = Accuracy[accuracy]
    assert isinstance(choose(a.shape, 48, accuracy=accuracy), Krylov)
    svd, info = truncated_svd(jnp.asarray(a), 48, accuracy=accuracy)
    found = excess(a, svd, 48)
    assert -1e-5 < found < bound
    np.testing.assert_allclose(info.residual, (1 + found) * np.sqrt(np.sum(s[48:] ** 2)), rtol=1e-4)
    np.testing.assert_allclose(svd.vt @ svd.vt.T, np.eye(48), atol=1e-4)
    np.testing.assert_allclose(svd.u.T @ svd.u, np.eye(48), atol=1e-4)
    assert np.all(np.diff(svd.s) <= 1e-6)


@pytest.mark.parametrize(("passes", "bound"), [(2, 1.5e-2), (4, 5e-3)])
def test_power_passes_keep_the_bounds_of_the_range_finder(passes, bound):
    a, _ = decaying(420, 380, 0.7)
    svd, _ = truncated_svd(jnp.asarray(a), 40, method=Randomized(16, passes))
    assert excess(a, svd, 40) < bound


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_hard_inputs_give_a_right_answer_or_a_status(method):
    """Zero, constant, low-rank, huge, tiny, NaN and infinite matrices, solved as one stack."""
    rng = np.random.default_rng(1)
    a, _ = decaying(70, 60, 0.5)
    low = (rng.standard_normal((70, 5)) @ rng.standard_normal((5, 60))).astype(np.float32)
    nan, inf = a.copy(), a.copy()
    nan[3, 4], inf[69, 0] = np.nan, -np.inf
    cases = [np.zeros_like(a), np.full_like(a, 3), low, a * 1e30, a * 1e-30, nan, inf, a]
    svd, info = truncated_svd(jnp.asarray(np.stack(cases)), 8, method=method)
    for x in (svd.u, svd.s, svd.vt):
        assert np.all(np.isfinite(x))
    deficient, bad, good = Status.RANK_DEFICIENT, Status.NON_FINITE, Status.CONVERGED
    want = [deficient, deficient, deficient, good, good, bad, bad, good]
    assert [Status(int(x)) for x in info.status] == want
    rebuilt = np.einsum("bmr,br,brn->bmn", svd.u, svd.s, svd.vt)
    for i in (0, 1, 2):
        np.testing.assert_allclose(rebuilt[i], cases[i], atol=2e-5 * np.abs(cases[i]).max())
    np.testing.assert_allclose(np.asarray(svd.s[3]) / 1e30, svd.s[7], rtol=1e-4)
    np.testing.assert_allclose(np.asarray(svd.s[4]) * 1e30, svd.s[7], rtol=1e-4)
    np.testing.assert_allclose(np.asarray(info.residual[3]) / 1e30, info.residual[7], rtol=1e-3)
    assert not np.any(svd.u[5:7])
    assert not np.any(svd.s[5:7])
    assert np.all(np.isnan(info.residual[5:7]))


@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (1, 1)])
def test_one_row_or_column(shape):
    a = np.arange(1.0, 8.0, dtype=np.float32)[: np.prod(shape)].reshape(shape)
    svd, info = truncated_svd(jnp.asarray(a), 1)
    np.testing.assert_allclose(svd.u * svd.s @ svd.vt, a, rtol=1e-6)
    assert float(info.residual) < 1e-5


def test_full_rank_rebuilds_the_matrix():
    a, _ = decaying(40, 25, 1.5)
    for method in (Exact(), GramEigh()):
        svd, info = truncated_svd(jnp.asarray(a), 25, method=method)
        np.testing.assert_allclose((svd.u * svd.s) @ svd.vt, a, atol=2e-6)
        assert float(info.residual) < 1e-5


def test_the_largest_entry_of_each_right_vector_is_positive():
    a = jnp.asarray(decaying(30, 50, 0.4)[0])
    for method in (Exact(), GramEigh()):
        vt = np.asarray(truncated_svd(a, 6, method=method)[0].vt)
        assert np.all(np.take_along_axis(vt, np.abs(vt).argmax(1)[:, None], 1) > 0)


@pytest.mark.slow
def test_bits_depend_on_the_key_alone_and_stacks_and_jit_change_nothing():
    stack = jnp.asarray(np.stack([decaying(72, 66, 0.6, seed)[0] for seed in (1, 2, 3)]))
    method = Krylov(8, 4)
    solve = lambda a, key=None: truncated_svd(a, 10, key=key, method=method)[0]
    once, again = solve(stack), solve(stack)
    other = solve(stack, jax.random.key(7))
    assert np.array_equal(once.u, again.u)
    assert np.array_equal(once.vt, again.vt)
    assert not np.array_equal(once.u, other.u)
    for variant in (
        jax.jit(solve)(stack),
        jax.vmap(solve)(stack),
        jax.tree.map(lambda *xs: jnp.stack(xs), *map(solve, stack)),
        jax.tree.map(lambda x: x[0], solve(stack[None])),
    ):
        product = lambda svd: np.einsum("bmr,br,brn->bmn", svd.u, svd.s, svd.vt)
        np.testing.assert_allclose(product(variant), product(once), atol=2e-5)
        np.testing.assert_allclose(variant.s, once.s, rtol=1e-5)


def test_one_trace_for_equal_shapes():
    traces = []

    @jax.jit
    def solve(a):
        traces.append(a.shape)
        return truncated_svd(a, 4)[0].s

    for seed in range(3):
        solve(jnp.asarray(decaying(20, 14, 0.5, seed)[0]))
    assert len(traces) == 1


def test_gradients_are_stopped_even_where_singular_values_repeat():
    loss = lambda a: jnp.sum(truncated_svd(a, 3)[0].u) + jnp.sum(a)
    assert np.array_equal(jax.grad(loss)(jnp.eye(6, 5)), np.ones((6, 5)))


def test_half_precision_is_solved_in_float32():
    a = jnp.asarray(decaying(50, 40, 0.5)[0], jnp.bfloat16)
    svd, _ = truncated_svd(a, 5)
    assert svd.u.dtype == jnp.float32
    assert excess(np.asarray(a, np.float32), svd, 5) < 1e-5


def test_an_empty_stack_stays_empty():
    svd, info = truncated_svd(jnp.zeros((0, 6, 4)), 2)
    assert svd.u.shape == (0, 6, 2)
    assert info.status.shape == (0,)


@pytest.mark.parametrize("rank", [0, -1, 5])
def test_impossible_ranks_are_refused(rank):
    with pytest.raises(RankError, match=f"rank {rank} for a 6 x 4 matrix"):
        truncated_svd(jnp.ones((6, 4)), rank)


def test_shapes_and_methods_that_do_not_fit_are_refused():
    for shape in [(0, 4), (3, 0), (2, 0, 4)]:
        with pytest.raises(ShapeError, match="matrix"):
            truncated_svd(jnp.ones(shape), 1)
    with pytest.raises(RankError, match=r"block \* steps"):
        truncated_svd(jnp.ones((30, 20)), 9, method=Krylov(4, 2))


@pytest.mark.parametrize("shape", [(50, 30), (30, 50)])
def test_all_singular_values(shape):
    a, s = decaying(*shape, 0.8)
    stack = jnp.asarray(np.stack([a, 2 * a, a * np.nan]))
    for accuracy in (Accuracy.DEFAULT, Accuracy.EXACT):
        found = np.asarray(singular_values(stack, accuracy=accuracy))
        np.testing.assert_allclose(found[0], s, rtol=2e-4)
        np.testing.assert_allclose(found[1], 2 * s, rtol=2e-4)
        assert not found[2].any()


def test_exact_reads_values_below_the_noise_of_a_gram():
    rng = np.random.default_rng(2)
    u, v = (np.linalg.qr(rng.standard_normal((d, 20)))[0] for d in (40, 30))
    s = 10.0 ** -np.linspace(0, 6, 20)
    a = jnp.asarray((u * s) @ v.T, jnp.float32)
    svd, _ = truncated_svd(a, 18, accuracy=Accuracy.EXACT)
    np.testing.assert_allclose(svd.s[:16], s[:16], rtol=0.05)
    np.testing.assert_allclose(svd.u.T @ svd.u, np.eye(18), atol=1e-5)
