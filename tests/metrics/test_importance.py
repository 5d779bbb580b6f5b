"""FWSVD, TFWSVD and ASVD as their papers write them, and what they ask of calibration."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from lrjax.decompose import SVD, WeightedLowRank, solve
from lrjax.decompose.nmf.spec import entry_weights
from lrjax.errors import StatsError
from lrjax.metrics import (
    ASVD,
    FWSVD,
    TFWSVD,
    Diagonal,
    Elements,
    Metric,
    Moments,
    Need,
    SquaredGradients,
    WeightStats,
    kind_from_json,
)

M, N, R = 30, 22, 5


@pytest.fixture(scope="module")
def known():
    rng = np.random.default_rng(0)
    w, f = rng.normal(size=(M, N)), np.exp(2 * rng.normal(size=(M, N)))
    size = rng.random(M) + 0.1
    rows = Moments(jnp.float32(9), None, jnp.eye(M), magnitude=jnp.asarray(size, jnp.float32))
    fisher = SquaredGradients(jnp.float32(9), jnp.asarray(f, jnp.float32))
    return w, f, size, WeightStats(rows, None, fisher=fisher)


def rebuilt(spec, w, metric):
    factors, info = solve(spec, jnp.asarray(w, jnp.float32), metric=metric)
    return np.asarray(factors.left, float) @ np.asarray(factors.right, float), info


def truncated(x):
    u, s, vt = np.linalg.svd(x)
    return (u[:, :R] * s[:R]) @ vt[:R], np.sum(s[R:] ** 2)


def test_fwsvd_is_the_paper_s_with_the_inverse_applied(known):
    """I^-1 times the truncated SVD of I W, I = diag(sum_j F_ij)^.5; its loss is the tail."""
    w, f, _, stats = known
    root = np.sqrt(f.sum(1))[:, None]
    inner, tail = truncated(root * w)
    metric = FWSVD().bind(stats, (M, N))
    got, info = rebuilt(SVD(R), w, metric)
    np.testing.assert_allclose(got, inner / root, atol=2e-4)
    np.testing.assert_allclose(info.residual**2, tail / N, rtol=1e-4)
    np.testing.assert_allclose(metric.loss(jnp.asarray(w - got)), tail / N, rtol=1e-4)
    rows = WeightStats(fisher=SquaredGradients(1.0, jnp.asarray(f.sum(1)), elements=False))
    np.testing.assert_allclose(FWSVD().bind(rows, (M, N)).rows.values, metric.rows.values, 1e-5)


def test_equal_fisher_information_gives_the_svd_and_rows_without_any_stay_tame(known):
    w, f, _, _ = known
    equal = WeightStats(fisher=SquaredGradients(1.0, jnp.full((M, N), 3.0)))
    for kind, spec in ((FWSVD(), SVD(R)), (TFWSVD(), SVD(R)), (TFWSVD(), WeightedLowRank(R))):
        got, _ = rebuilt(spec, w, kind.bind(equal, (M, N)))
        np.testing.assert_allclose(got, truncated(w)[0], atol=2e-3)
    dead = np.where(np.arange(M)[:, None] % 2, f, 0)
    none = WeightStats(fisher=SquaredGradients(1.0, jnp.asarray(dead, jnp.float32)))
    for kind, spec in ((FWSVD(), SVD(R)), (TFWSVD(), SVD(R)), (TFWSVD(), WeightedLowRank(R))):
        got, _ = rebuilt(spec, w, kind.bind(none, (M, N)))
        assert np.abs(got).max() < 20 * np.abs(w).max()


def test_asvd_scales_rows_by_the_power_of_their_inputs_size(known):
    """S^-1 times the truncated SVD of S W, S = diag((E|x|)^alpha)."""
    w, _, size, stats = known
    for alpha in (0.5, 1.0):
        scale = size[:, None] ** alpha
        got, _ = rebuilt(SVD(R), w, ASVD(alpha).bind(stats, (M, N)))
        np.testing.assert_allclose(got, truncated(scale * w)[0] / scale, atol=2e-4)
    np.testing.assert_array_equal(ASVD(0.0).bind(stats, (M, N)).rows.values, 1)


def test_tfwsvd_is_the_fisher_information_of_every_entry(known):
    w, f, _, stats = known
    metric = TFWSVD().bind(stats, (M, N))
    assert isinstance(metric, Elements)
    np.testing.assert_allclose(metric.loss(jnp.asarray(w)), np.sum(f * w**2), rtol=1e-5)
    mean = TFWSVD(shrink=0.25).bind(stats, (M, N)).weights
    np.testing.assert_allclose(mean, 0.75 * f + 0.25 * f.mean(), rtol=1e-5)
    by_rows = FWSVD(shrink=0.25).bind(stats, (M, N)).rows.values
    np.testing.assert_allclose(np.mean(by_rows), np.mean(f), rtol=1e-5)


def test_tails_of_the_spectrum_are_true_losses_of_the_separable_optimum(known):
    """At every rank measured; the whole is the loss of dropping the weight; the solver is below."""
    w, f, _, stats = known
    w = jnp.asarray(w, jnp.float32)
    metric = TFWSVD().bind(stats, (M, N))
    s = np.asarray(metric.spectrum(w), float)
    tails = np.append(np.cumsum((s**2)[::-1])[::-1], 0)
    np.testing.assert_allclose(tails[0], np.sum(f * np.asarray(w, float) ** 2), rtol=1e-4)
    start, _ = rebuilt(SVD(R), w, Metric(*map(Diagonal, metric.arrays())))
    loss = np.sum(f * (np.asarray(w) - start) ** 2)
    np.testing.assert_allclose(tails[R], loss, rtol=1e-3)
    got, _ = rebuilt(WeightedLowRank(R), w, metric)
    assert np.sum(f * (np.asarray(w) - got) ** 2) < 0.9 * loss
    turned = Elements.of(jnp.asarray(f.T, jnp.float32)).spectrum(w.T)
    np.testing.assert_allclose(np.sum(turned[R:] ** 2), tails[R], rtol=1e-3)


def test_missing_statistics_say_how_to_have_them(known):
    rows = WeightStats(Moments(1.0, None, jnp.eye(M)))
    for kind, option in (
        (ASVD(), "magnitudes=True"),
        (FWSVD(), r"fisher=Fisher\(elements=False\)"),
        (TFWSVD(), r"fisher=Fisher\(\)"),
    ):
        for stats in (None, rows):
            with pytest.raises(StatsError, match=r"a/kernel"):
                kind.bind(stats, (M, N), path="a/kernel")
        with pytest.raises(StatsError, match=option):
            kind.bind(rows, (M, N), path="a/kernel")
    by_rows = WeightStats(fisher=SquaredGradients(1.0, jnp.ones(M), elements=False))
    with pytest.raises(StatsError, match=r"only the rows.*fisher=Fisher\(\)"):
        TFWSVD().bind(by_rows, (M, N))
    with pytest.raises(StatsError, match=rf"shape \({M}, {N}\).*shape \({M}, {N + 1}\)"):
        TFWSVD().bind(known[3], (M, N + 1))


def test_kinds_are_named_in_json_and_by_what_they_need():
    for kind in (FWSVD(), TFWSVD(shrink=0.1), ASVD(alpha=0.3)):
        assert kind_from_json(json.loads(json.dumps(kind.to_json()))) == kind
    assert FWSVD().needs == (Need.ROW_FISHER,)
    assert TFWSVD().is_model_loss
    assert not ASVD().is_model_loss


def test_solvers_that_know_sides_alone_see_the_separable_weights(known):
    """Never silently the Frobenius norm; those that know entries use them."""
    w, f, _, _ = known
    metric = Elements(weights=jnp.asarray(f, jnp.float32))
    spread = metric.broadcast(())
    for got, want in zip(spread.arrays(), metric.arrays(), strict=True):
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(entry_weights(spread, jnp.asarray(w)), metric.weights)
