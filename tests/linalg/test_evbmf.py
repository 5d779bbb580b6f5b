"""EVBMF: an independent scalar implementation, planted ranks, units, transposes, zeros."""

import numpy as np
import pytest

from lrjax.errors import ShapeError
from lrjax.linalg.evbmf import evbmf


def reference(w):
    """The published formulas, term by term, with SciPy's bounded search on a fine grid's best."""
    optimize = pytest.importorskip("scipy.optimize")
    w = w if w.shape[0] <= w.shape[1] else w.T
    rows, cols = w.shape
    s = np.linalg.svd(w, compute_uv=False)
    alpha = rows / cols
    tau_bar = 2.5129 * np.sqrt(alpha)
    x_bar = (1 + tau_bar) * (1 + alpha / tau_bar)

    def tau(x):
        return 0.5 * (x - (1 + alpha) + np.sqrt((x - (1 + alpha)) ** 2 - 4 * alpha))

    def free(variance):
        total = 0.0
        for value in s:
            x = value**2 / (cols * variance)
            if x > x_bar:
                t = tau(x)
                total += x - t + np.log((t + 1) / x) + alpha * np.log(t / alpha + 1)
            else:
                total += x - np.log(x)
        return total

    upper = np.sum(s**2) / (rows * cols)
    grid = np.geomspace(1e-4 * upper, upper, 2000)
    best = int(np.argmin([free(v) for v in grid]))
    around = grid[max(best - 1, 0)], grid[min(best + 1, 1999)]
    variance = optimize.minimize_scalar(free, bounds=around, method="bounded").x
    kept = [v for v in s if v > np.sqrt(cols * variance * x_bar)]
    shrunk = []
    for v in kept:
        share = 1 - (rows + cols) * variance / v**2
        root = np.sqrt(share**2 - 4 * rows * cols * variance**2 / v**4)
        shrunk.append(v / 2 * (share + root))
    return len(kept), np.sqrt(variance), np.array(shrunk)


def planted(rng, rows, cols, rank, edge, noise=1.0):
    """Noise, and a signal whose least singular value is `edge` times the least that can be told."""
    u, _ = np.linalg.qr(rng.standard_normal((rows, rank)))
    v, _ = np.linalg.qr(rng.standard_normal((cols, rank)))
    alpha = min(rows, cols) / max(rows, cols)
    t = 2.5129 * np.sqrt(alpha)
    least = edge * noise * np.sqrt(max(rows, cols) * (1 + t) * (1 + alpha / t))
    signal = (u * np.linspace(1.5 * least, least, rank)) @ v.T
    return signal + noise * rng.standard_normal((rows, cols))


def found(w):
    return evbmf(np.linalg.svd(w, compute_uv=False), w.shape)


@pytest.mark.parametrize("shape", [(40, 70), (60, 45), (30, 200)])
def test_it_is_the_published_solution(shape):
    w = planted(np.random.default_rng(0), *shape, 5, 1.2)
    rank, noise, shrunk = reference(w)
    got = found(w)
    assert got.rank == rank == 5
    np.testing.assert_allclose(got.noise, noise, rtol=1e-4)
    np.testing.assert_allclose(got.shrunk[:5], shrunk, rtol=1e-4)
    assert np.all(got.shrunk[5:] == 0)


@pytest.mark.parametrize(("shape", "rank"), [((80, 120), 10), ((150, 90), 15), ((100, 400), 20)])
@pytest.mark.parametrize("edge", [1.0, 2.0, 4.0])
def test_planted_ranks_are_found_exactly(shape, rank, edge):
    for seed in range(10):
        w = planted(np.random.default_rng(seed), *shape, rank, edge, noise=0.3)
        got = found(w)
        assert got.rank == rank
        np.testing.assert_allclose(got.noise, 0.3, rtol=0.05)


def test_noise_has_no_rank_and_weak_signals_little():
    rng = np.random.default_rng(1)
    assert all(found(rng.standard_normal((60, 100))).rank == 0 for _ in range(10))
    assert max(found(planted(rng, 80, 120, 10, 0.5)).rank for _ in range(10)) <= 2


def test_units_transposes_and_stacks_do_not_matter():
    rng = np.random.default_rng(2)
    w = planted(rng, 50, 80, 6, 1.5)
    for unit in (1e-20, 1.0, 1e20):
        assert found(unit * w).rank == 6
        np.testing.assert_allclose(found(unit * w).noise / unit, found(w).noise, rtol=1e-6)
    assert found(w.T).rank == 6
    stack = np.stack([w, planted(rng, 50, 80, 3, 1.5)])
    s = np.linalg.svd(stack, compute_uv=False)
    np.testing.assert_array_equal(evbmf(s, (50, 80)).rank, [6, 3])


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (7, 7)])
def test_degenerate_matrices_give_numbers(shape):
    for w in (np.zeros(shape), np.ones(shape), np.random.default_rng(3).standard_normal(shape)):
        got = found(w)
        assert 0 <= got.rank <= min(shape)
        assert all(np.isfinite(x).all() for x in got)
    assert found(np.zeros(shape)).rank == 0


def test_a_matrix_without_noise_has_its_own_rank():
    rng = np.random.default_rng(4)
    w = rng.standard_normal((40, 4)) @ rng.standard_normal((4, 90))
    assert found(w).rank == 4


def test_all_singular_values_are_needed():
    with pytest.raises(ShapeError, match="singular values"):
        evbmf(np.ones(3), (10, 20))
