"""Shrinkage: what examples scatter by, counted in NumPy, and the share that follows from it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrjax.calibrate import calibrate
from lrjax.linalg import weighted_svd
from lrjax.metrics import Gram, Input, LedoitWolf, Moments, Scatter, WeightStats, merge_moments

D, N, LENGTH = 9, 4, 6


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def moments(z, mean=True):
    """Moments of sequences [examples, length, d], scatter and all, in float64."""
    tokens = z.reshape(-1, z.shape[-1])
    middle = tokens.mean(0) if mean else np.zeros(z.shape[-1])
    own = [(x - middle).T @ (x - middle) for x in z]
    square = jnp.float32(np.mean([np.sum(c**2) for c in own]))
    trace = jnp.float32(np.mean([np.trace(c) for c in own])) if mean else None
    scatter = Scatter(jnp.float32(len(z)), square, trace)
    second = jnp.asarray(tokens.T @ tokens / len(tokens), jnp.float32)
    first = jnp.asarray(middle, jnp.float32) if mean else None
    return Moments(jnp.float32(len(tokens)), first, second, scatter=scatter)


def sequences(rng, examples, root, tie=0.9):
    """Sequences whose tokens are alike: covariance root' root, correlation tie within each."""
    common = rng.normal(size=(examples, 1, len(root)))
    apart = rng.normal(size=(examples, LENGTH, len(root)))
    return (np.sqrt(tie) * common + np.sqrt(1 - tie) * apart) @ root


def test_calibration_keeps_the_scatter_of_examples(rng):
    """Two batches with padding: examples with a token, and the mean of |C|^2, by a loop."""
    z = [rng.normal(size=(b, LENGTH, D)) + 2 for b in (5, 3)]
    masks = [rng.random(x.shape[:2]) < 0.7 for x in z]
    masks[0][1] = False
    w = {"w": jnp.asarray(rng.normal(size=(D, N)), jnp.float32)}
    batches = [(jnp.asarray(x, jnp.float32), jnp.asarray(m)) for x, m in zip(z, masks, strict=True)]
    loss = lambda y, batch: jnp.sum(jnp.where(batch[1][..., None], y, 0) ** 2) / jnp.sum(batch[1])
    stats = calibrate(lambda p, b: b[0] @ p["w"], w, batches, loss=loss, mask=lambda b: b[1])
    rows, cols = [], []
    for x, m in zip(z, masks, strict=True):
        middle = x[m].mean(0)
        rows += [
            np.sum(((a[k] - middle).T @ (a[k] - middle)) ** 2) for a, k in zip(x, m, strict=True)
        ]
        g = 2 * x @ np.asarray(w["w"], np.float64)
        cols += [np.sum((a[k].T @ a[k]) ** 2) for a, k in zip(g, m, strict=True)]
    seen = stats.of("w")
    for side, want in ((seen.rows, rows), (seen.cols, cols)):
        assert float(side.scatter.examples) == 7
        np.testing.assert_allclose(side.scatter.square, np.sum(want) / 7, rtol=1e-4)


def test_examples_one_by_one_lie_as_far_apart_as_those_of_one_batch(rng):
    """Texts of different means: the share is the one of all at once, not that of each by itself."""
    root = np.diag(np.linspace(2, 0.3, D))
    whole, single = [], []
    for _ in range(6):
        z = sequences(rng, 24, root, tie=0.5) + 1
        whole.append(moments(z))
        single.append(functools.reduce(merge_moments, [moments(x[None]) for x in z]))
    share = lambda ms: np.mean([float(m.side(shrink=LedoitWolf()).matrix[0, 0]) for m in ms])
    plain = np.mean([float(m.second[0, 0]) for m in whole])
    assert share(whole) < 0.97 * plain
    assert abs(share(single) - share(whole)) < 0.3 * (plain - share(whole))


def test_the_share_is_what_ledoit_and_wolf_say_where_a_token_is_an_example(rng):
    covariance = pytest.importorskip("sklearn.covariance")
    x = rng.normal(size=(30, D)) * np.linspace(1, 3, D)
    m = moments(x[:, None], mean=False)
    share = LedoitWolf().share(m.second, m.count, m.scatter)
    # the reference divides the variance by n, here it is by n - 1
    want = covariance.ledoit_wolf_shrinkage(x, assume_centered=True) * 30 / 29
    np.testing.assert_allclose(share, want, rtol=1e-4)


def test_sequences_count_once_however_many_tokens_they_have(rng):
    """The share is near the best in hindsight; that of independent tokens is far below it."""
    root = np.linalg.qr(rng.normal(size=(D, D)))[0] * np.linspace(2, 0.3, D)
    truth, found, tokens, best = root.T @ root, [], [], []
    for _ in range(40):
        z = sequences(rng, 16, root)
        m = moments(z, mean=False)
        s = np.asarray(m.second, np.float64)
        away = np.trace(s) / D * np.eye(D) - s
        best.append(np.sum(away * (truth - s)) / np.sum(away**2))
        found.append(float(LedoitWolf().share(m.second, m.count, m.scatter)))
        each = moments(z.reshape(-1, 1, D), mean=False)
        tokens.append(float(LedoitWolf().share(each.second, each.count, each.scatter)))
    assert abs(np.mean(found) / np.mean(best) - 1) < 0.25
    assert np.mean(tokens) < 0.5 * np.mean(best)


def test_the_mean_is_not_shrunk_and_the_trace_stays(rng):
    z = sequences(rng, 12, np.diag(np.linspace(1, 2, D))) + 30
    m = moments(z)
    tokens = z.reshape(-1, D)
    covariance = np.cov(tokens.T, bias=True)
    loose = Input(shrink=LedoitWolf()).bind(WeightStats(m), (D, N)).rows.matrix
    tight = Input(center=True, shrink=LedoitWolf()).bind(WeightStats(m, bias="b"), (D, N))
    share = float(LedoitWolf().share(jnp.asarray(covariance), m.count, m.scatter))
    assert 0.05 < share < 1
    want = (1 - share) * covariance + share * np.trace(covariance) / D * np.eye(D)
    np.testing.assert_allclose(tight.rows.matrix, want, rtol=1e-2, atol=2e-3)
    middle = tokens.mean(0)
    np.testing.assert_allclose(loose, want + np.outer(middle, middle), rtol=1e-5)


def test_where_nothing_is_known_nothing_is_shrunk(rng):
    m = moments(rng.normal(size=(8, LENGTH, D)), mean=False)
    one = moments(rng.normal(size=(1, LENGTH, D)), mean=False)
    unseen = Moments(
        jnp.float32(0), None, jnp.zeros((D, D)), scatter=Scatter(jnp.zeros(()), jnp.zeros(()))
    )
    for case in (dataclasses.replace(m, scatter=None), one, unseen):
        side = case.side(shrink=LedoitWolf())
        assert isinstance(side, Gram)
        np.testing.assert_array_equal(side.matrix, case.second)
    diagonal = Moments(jnp.float32(9), None, jnp.arange(5.0), diagonal=True)
    np.testing.assert_array_equal(diagonal.side(shrink=LedoitWolf()).values, jnp.arange(5.0))


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
def test_the_share_has_no_unit(rng, unit):
    """Fourth powers beyond float32 leave the moment as it is, and never make it infinite."""
    z = rng.normal(size=(6, LENGTH, D))
    w = {"w": jnp.ones((D, N))}
    stats = calibrate(
        lambda p, x: x @ p["w"], w, [jnp.asarray(z * unit, jnp.float32)], gradients=False
    )
    got = stats.of("w").rows.side(center=True, shrink=LedoitWolf()).matrix / unit**2
    assert np.isfinite(got).all()
    if unit == 1:
        assert not np.allclose(got, stats.of("w").rows.side(center=True).matrix, rtol=1e-3)


def test_merging_counts_examples(rng):
    z = rng.normal(size=(9, LENGTH, D))
    whole, a, b = (moments(x, mean=False) for x in (z, z[:2], z[2:]))
    merged = merge_moments(a, b)
    assert merged.scatter.examples == 9
    np.testing.assert_allclose(merged.scatter.square, whole.scatter.square, rtol=1e-5)
    assert merge_moments(a, dataclasses.replace(b, scatter=None)).scatter is None


def test_shrunk_factors_lose_less_on_new_examples(rng):
    """Rank 4 of 9 x 7 after 6 sequences, judged under the true second moments of both sides."""
    lost = {0.0: 0.0, LedoitWolf(): 0.0}
    roots = [np.linalg.qr(rng.normal(size=(d, d)))[0] * np.linspace(1.5, 0.4, d) for d in (9, 7)]
    truth = [jnp.asarray(r.T @ r, jnp.float32) for r in roots]
    for _ in range(10):
        w = jnp.asarray(rng.normal(size=(9, 7)), jnp.float32)
        seen = [moments(sequences(rng, 6, root), mean=False) for root in roots]
        for rule in lost:
            rows, cols = (m.side(shrink=rule).matrix for m in seen)
            left, right, *_ = weighted_svd(w, 4, rows=rows, cols=cols)
            delta = w - left @ right
            lost[rule] += float(jnp.trace(delta.T @ truth[0] @ delta @ truth[1]))
    assert lost[LedoitWolf()] < 0.9 * lost[0.0]


def test_the_share_is_batched_and_jits(rng):
    stack = [moments(rng.normal(size=(5, LENGTH, D)), mean=False) for _ in range(3)]
    batched = jax.tree.map(lambda *xs: jnp.stack(xs), *stack)
    got = jax.jit(lambda m: m.side(shrink=LedoitWolf()).matrix)(batched)
    for one, want in zip(got, stack, strict=True):
        np.testing.assert_allclose(one, want.side(shrink=LedoitWolf()).matrix, rtol=1e-5)
