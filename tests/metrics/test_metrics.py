"""Metrics: the loss is the trace form it says, moments merge by count, kinds bind loudly."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrjax.errors import StatsError
from lrjax.metrics import (
    Diagonal,
    Frobenius,
    Gram,
    Input,
    LedoitWolf,
    Metric,
    Moments,
    TwoSided,
    WeightStats,
    default_kind,
    kind_from_json,
    merge_moments,
)

M, N = 7, 4


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def moments(rng, size, tokens, offset=0.0):
    z = rng.normal(size=(tokens, size)) + offset
    return z, Moments(
        jnp.float32(tokens),
        jnp.asarray(z.mean(0), jnp.float32),
        jnp.asarray(z.T @ z / tokens, jnp.float32),
    )


def test_input_loss_is_the_mean_squared_output_change(rng):
    x, rows = moments(rng, M, 50)
    delta = rng.normal(size=(M, N))
    metric = Input().bind(WeightStats(rows), (M, N))
    np.testing.assert_allclose(
        metric.loss(jnp.asarray(delta)), np.sum((x @ delta) ** 2) / 50, rtol=1e-5
    )


def test_two_sided_loss_is_the_trace_form(rng):
    x, rows = moments(rng, M, 50)
    g, cols = moments(rng, N, 50)
    delta = rng.normal(size=(M, N))
    want = np.trace(delta.T @ (x.T @ x / 50) @ delta @ (g.T @ g / 50))
    got = TwoSided().bind(WeightStats(rows, cols), (M, N)).loss(jnp.asarray(delta))
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_two_sided_loss_of_a_rank_one_token_is_the_squared_directional_derivative(rng):
    """One token: (g' D' x)^2 exactly, with Grams of rank one."""
    x, rows = moments(rng, M, 1)
    g, cols = moments(rng, N, 1)
    delta = rng.normal(size=(M, N))
    got = TwoSided().bind(WeightStats(rows, cols), (M, N)).loss(jnp.asarray(delta))
    np.testing.assert_allclose(got, (x[0] @ delta @ g[0]) ** 2, rtol=1e-4)


def test_centred_loss_is_what_remains_after_the_best_bias(rng):
    x, rows = moments(rng, M, 60, offset=3.0)
    delta = rng.normal(size=(M, N))
    metric = Input(center=True).bind(WeightStats(rows, bias="b"), (M, N))
    out = x @ delta
    np.testing.assert_allclose(
        metric.loss(jnp.asarray(delta)), np.sum((out - out.mean(0)) ** 2) / 60, rtol=1e-4
    )
    np.testing.assert_allclose(metric.mean, x.mean(0), rtol=1e-5)


def test_centring_needs_a_bias(rng):
    _, rows = moments(rng, M, 60, offset=3.0)
    metric = Input(center=True).bind(WeightStats(rows), (M, N))
    assert metric.mean is None
    np.testing.assert_allclose(metric.rows.matrix, rows.second, rtol=1e-6)


def test_frobenius_and_diagonal_rows(rng):
    delta = rng.normal(size=(M, N))
    np.testing.assert_allclose(
        Frobenius().bind(None, (M, N)).loss(jnp.asarray(delta)), np.sum(delta**2), rtol=1e-6
    )
    freq = rng.random(M)
    stats = WeightStats(
        Moments(jnp.float32(9), None, jnp.asarray(freq, jnp.float32), diagonal=True)
    )
    metric = Input().bind(stats, (M, N))
    assert isinstance(metric.rows, Diagonal)
    np.testing.assert_allclose(
        metric.loss(jnp.asarray(delta)), np.sum(freq[:, None] * delta**2), rtol=1e-5
    )


def test_shrinkage_keeps_the_trace_and_lifts_singular_grams(rng):
    """Of the covariance: what the mean adds stays as it is."""
    x, rows = moments(rng, M, 3)
    gram = np.asarray(Input(shrink=0.25).bind(WeightStats(rows), (M, N)).rows.matrix)
    np.testing.assert_allclose(np.trace(gram), np.trace(rows.second), rtol=1e-5)
    level = 0.25 * np.trace(np.cov(x.T, bias=True)) / M
    np.testing.assert_allclose(np.linalg.eigvalsh(gram)[0], level, rtol=1e-3)


def test_stacked_and_broadcast_metrics_equal_the_loop(rng):
    deltas = rng.normal(size=(3, M, N))
    _, rows = moments(rng, M, 20)
    grams = [moments(rng, N, 20)[1].second for _ in range(3)]
    metric = Metric(Gram(rows.second), Gram(jnp.stack(grams)), rows.mean).broadcast((3,))
    assert metric.rows.matrix.shape == (3, M, M)
    assert metric.mean.shape == (3, M)
    want = [
        Metric(Gram(rows.second), Gram(g)).loss(jnp.asarray(d))
        for g, d in zip(grams, deltas, strict=True)
    ]
    np.testing.assert_allclose(metric.loss(jnp.asarray(deltas)), want, rtol=1e-5)


def test_merging_is_one_pass_over_both_and_associative(rng):
    z, whole = moments(rng, M, 90, offset=2.0)
    parts = [z[:10], z[10:25], z[25:]]
    a, b, c = (
        Moments(jnp.float32(len(p)), jnp.asarray(p.mean(0)), jnp.asarray(p.T @ p / len(p)))
        for p in parts
    )
    left, right = merge_moments(merge_moments(a, b), c), merge_moments(a, merge_moments(b, c))
    for merged in (left, right):
        assert merged.count == 90
        np.testing.assert_allclose(merged.second, whole.second, rtol=2e-6, atol=1e-6)
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=2e-6, atol=1e-6)


def test_merging_with_an_empty_sample_changes_nothing(rng):
    _, a = moments(rng, M, 10)
    empty = Moments(jnp.float32(0), jnp.zeros(M), jnp.zeros((M, M)))
    np.testing.assert_array_equal(merge_moments(a, empty).second, a.second)
    np.testing.assert_allclose(merge_moments(empty, a).second, a.second, rtol=1e-6)
    assert np.all(np.asarray(merge_moments(empty, empty).second) == 0)


def test_missing_and_foreign_statistics_are_named(rng):
    _, rows = moments(rng, M, 10)
    with pytest.raises(StatsError, match=r"a/kernel.*output-gradient"):
        TwoSided().bind(WeightStats(rows), (M, N), path="a/kernel")
    with pytest.raises(StatsError, match=r"a/kernel.*size 7"):
        Input().bind(WeightStats(rows), (M + 1, N), path="a/kernel")
    with pytest.raises(StatsError):
        Input().bind(None, (M, N))


@pytest.mark.parametrize(
    "kind",
    [
        Frobenius(),
        Input(center=True, shrink=0.1),
        Input(shrink=LedoitWolf()),
        TwoSided(shrink_rows=LedoitWolf(), shrink_cols=0.3),
    ],
)
def test_kinds_are_hashable_and_round_trip_json(kind):
    again = kind_from_json(json.loads(json.dumps(kind.to_json())))
    assert again == kind
    assert len({kind, again}) == 1


def test_unknown_kind_is_named():
    with pytest.raises(StatsError, match="Guess"):
        kind_from_json({"kind": "Guess"})
    with pytest.raises(StatsError, match=r"Guess.*LedoitWolf"):
        kind_from_json({"kind": "Input", "shrink": {"shrinkage": "Guess"}})


def test_default_kind_uses_all_there_is(rng):
    _, rows = moments(rng, M, 10)
    assert default_kind(None) == Frobenius()
    rule = LedoitWolf()
    assert default_kind(WeightStats(rows)) == Input(center=True, shrink=rule)
    both = TwoSided(center=True, shrink_rows=rule, shrink_cols=rule)
    assert default_kind(WeightStats(rows, rows)) == both


def test_metrics_pass_through_jit_and_vmap(rng):
    _, rows = moments(rng, M, 10)
    metric = Input().bind(WeightStats(rows), (M, N))
    deltas = jnp.asarray(rng.normal(size=(2, M, N)))
    got = jax.jit(jax.vmap(lambda m, d: m.loss(d), in_axes=(None, 0)))(metric, deltas)
    np.testing.assert_allclose(got, metric.loss(deltas), rtol=1e-5)
