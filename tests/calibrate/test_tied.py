"""Tied tables: the stand-in is exact for one use, keeps the trace for two, and sees both."""

import jax.numpy as jnp
import numpy as np
import pytest

from lrjax.calibrate import calibrate
from lrjax.calibrate.tied import combine
from lrjax.metrics import Moments, TwoSided, WeightStats

V, D = 9, 4


def moment(rng, d, count, diagonal=False):
    z = rng.normal(size=(30, d))
    second = (z**2).mean(0) if diagonal else z.T @ z / 30
    return Moments(jnp.float32(count), None, jnp.asarray(second, jnp.float32), diagonal)


def loss(rows, cols, delta):
    return float(TwoSided().bind(WeightStats(rows, cols), delta.shape).loss(jnp.asarray(delta)))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_one_use_is_itself(rng):
    rows, cols = moment(rng, V, 20), moment(rng, D, 20)
    delta = rng.normal(size=(V, D))
    np.testing.assert_allclose(
        loss(*combine([(rows, cols)]), delta), loss(rows, cols, delta), rtol=1e-5
    )


def test_two_uses_keep_the_trace_of_the_sum(rng):
    """The mean loss over random changes of unit entries is the trace."""
    uses = [
        (moment(rng, V, 20, diagonal=True), moment(rng, D, 20)),
        (moment(rng, V, 10), moment(rng, D, 10)),
    ]
    trace = lambda m: float(m.second.sum() if m.diagonal else jnp.trace(m.second))
    want = sum(float(r.count) / 20 * trace(r) * trace(c) for r, c in uses)
    rows, cols = combine(uses)
    assert rows.diagonal
    np.testing.assert_allclose(trace(rows) * trace(cols), want, rtol=1e-5)


def test_a_tied_language_model_is_judged_by_both_uses(rng):
    """Tokens never looked up still matter: they are logits of the head."""
    params = {"table": jnp.asarray(rng.normal(size=(V, D)), jnp.float32)}
    apply = lambda p, ids: jnp.tanh(p["table"][ids]) @ p["table"].T
    ids = jnp.asarray(rng.integers(0, V - 3, (40, 2)))
    stats = calibrate(apply, params, [ids])
    seen = stats.of("table")
    assert seen.rows.size == V
    assert seen.cols.size == D
    assert float(np.min(np.diagonal(np.atleast_2d(seen.rows.second)))) > 0
    delta = np.zeros((V, D), np.float32)
    delta[V - 1] = 1
    assert loss(seen.rows, seen.cols, delta) > 1e-3
    alone = calibrate(apply, params, [ids], gradients=False).of("table")
    assert alone.cols is None
    assert alone.rows.diagonal
