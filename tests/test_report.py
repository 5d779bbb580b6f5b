"""Reports: costs counted by hand, errors recomputed from the stored factors, certificates."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from lrjax.compress import compress
from lrjax.decompose import SVD
from lrjax.errors import ShapeError
from lrjax.formats import LowRank
from lrjax.formats.layout import Layout
from lrjax.lift import UseKind
from lrjax.metrics import Moments
from lrjax.ops import densify
from lrjax.plan import Budget, plan
from lrjax.report import report
from tests.test_compress import gram, stats_of, weight_use

M, N = 30, 20


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def case(rng):
    params = {"a": {"w": jnp.asarray(rng.normal(size=(M, N)), jnp.float32), "b": jnp.ones(N)},
              "c": jnp.asarray(rng.normal(size=(N, M)), jnp.float32)}  # fmt: skip
    p = plan(params, {"a/w": SVD(rank=5), "c": None})
    return params, compress(params, p), p


def test_costs_are_those_counted_by_hand(case):
    params, factored, p = case
    r = report(params, factored, plan=p)
    row = r["a/w"]
    assert (row.format, row.ranks) == ("LowRank", (5,))
    assert (row.params, row.bytes, row.flops) == (250, 1000, 500)
    assert (row.dense_params, row.dense_bytes, row.dense_flops) == (600, 2400, 1200)
    assert r["c"].format == "dense"
    assert r.totals.params == 250 + 600 + N
    assert r.totals.dense_bytes == 4 * (1200 + N)
    assert r.totals.flops == 500 + 1200


def test_error_is_that_of_the_stored_factors_and_the_certificate_the_tail(case):
    params, factored, _ = case
    w = np.asarray(params["a"]["w"], np.float64)
    stored = np.asarray(factored["a"]["w"].left, np.float64) @ np.asarray(
        factored["a"]["w"].right, np.float64
    )
    s = np.linalg.svd(w, compute_uv=False)
    row = report(params, factored)["a/w"]
    np.testing.assert_allclose(row.error, np.sum((w - stored) ** 2) / np.sum(w**2), rtol=1e-4)
    np.testing.assert_allclose(row.optimum, np.sum(s[5:] ** 2) / np.sum(s**2), rtol=1e-3)
    assert row.status == "optimal"
    assert row.slack < 1e-4


def test_spoiled_factors_are_seen(case):
    params, factored, _ = case
    good = factored["a"]["w"]
    bad = factored | {"a": factored["a"] | {"w": LowRank(good.left * 0.5, good.right)}}
    row = report(params, bad)["a/w"]
    assert row.slack > 0.1
    assert "x the optimum" in row.status
    nan = factored | {"a": factored["a"] | {"w": LowRank(good.left * jnp.nan, good.right)}}
    assert report(params, nan)["a/w"].status == "NOT FINITE"
    fat = factored | {"a": factored["a"] | {"w": LowRank(jnp.zeros((M, 15)), jnp.zeros((15, N)))}}
    assert "ABOVE BREAK-EVEN" in report(params, fat)["a/w"].status


def test_calibrated_error_is_in_the_plan_metric(rng):
    w = rng.normal(size=(M, N))
    x, moments = gram(rng, M, 100)
    stats = stats_of({"w": weight_use("w", (M, N), Layout((0,), (1,)))}, {"w": moments})
    params = {"w": jnp.asarray(w, jnp.float32)}
    p = plan(params, {"w": SVD(rank=4)}, stats=stats)
    factored = compress(params, p, stats)
    out = np.asarray(densify(factored["w"]), np.float64)
    row = report(params, factored, stats, p)["w"]
    want = np.sum((x @ (w - out)) ** 2) / np.sum((x @ w) ** 2)
    np.testing.assert_allclose(row.error, want, rtol=1e-3)
    np.testing.assert_allclose(row.error, p["w"].relative_loss, rtol=1e-2, atol=1e-6)
    assert row.metric == "Input"
    # plain SVD of the same rank is no optimum here
    plain = compress(params, plan(params, {"w": SVD(rank=4)}))
    assert report(params, plain, stats)["w"].slack > 10 * row.slack


def test_shared_leaves_are_counted_once(rng):
    w = jnp.asarray(rng.normal(size=(M, N)), jnp.float32)
    params = {"embed": w, "head": w}
    p = plan(params, {"*": SVD(rank=4)})
    r = report(params, compress(params, p), plan=p)
    assert r.totals.params == 4 * (M + N)
    assert r.totals.dense_params == M * N
    assert r["head"].shared == "embed"
    assert r["head"].params == 0


def test_a_looked_up_table_costs_its_output_side(rng):
    w = jnp.asarray(rng.normal(size=(M, N)), jnp.float32)
    use = weight_use("w", (M, N), Layout((0,), (1,)))
    lookup = type(use.uses[0])(UseKind.LOOKUP, *[getattr(use.uses[0], f) for f in
        ("rows", "cols", "stack", "tap", "out", "shape", "primitive", "source")])  # fmt: skip
    use = type(use)(use.path, use.shape, use.dtype, use.layout, (lookup,))
    _, moments = gram(rng, M, 50)
    stats = stats_of({"w": use}, {"w": moments})
    p = plan({"w": w}, {"w": SVD(rank=4)}, stats=stats)
    row = report({"w": w}, compress({"w": w}, p, stats), stats, p)["w"]
    assert (row.flops, row.dense_flops) == (2 * 4 * N, 0)
    # without statistics the plan knows
    p = plan({"w": w}, {"w": SVD(rank=4)}, usage={"w": use})
    row = report({"w": w}, compress({"w": w}, p), plan=p)["w"]
    assert (row.flops, row.dense_flops) == (p["w"].flops, 0) == (2 * 4 * N, 0)


def test_experts_count_by_the_tokens_that_they_have_seen(rng):
    w = jnp.asarray(rng.normal(size=(2, M, N)), jnp.float32).at[1, :, 4:].set(0)
    counts, grams = jnp.asarray([100.0, 1.0]), jnp.stack([gram(rng, M, 50)[1].second] * 2)
    stats = stats_of(
        {"w": weight_use("w", w.shape, Layout((1,), (2,)))},
        {"w": Moments(counts, jnp.zeros((2, M)), grams)},
    )
    p = plan({"w": w}, {"w": SVD(rank=4)}, stats=stats)
    row = report({"w": w}, compress({"w": w}, p, stats), stats, p)["w"]
    each = np.linalg.svd(np.linalg.cholesky(np.asarray(grams, float)).mT @ np.asarray(w, float))[1]
    energy = np.asarray(counts)[:, None] * each**2
    assert row.error == pytest.approx(energy[:, 4:].sum() / energy.sum(), rel=1e-3)
    assert row.error == pytest.approx(p["w"].relative_loss, rel=1e-3)
    assert row.status == "optimal"


def test_prints_an_aligned_table_and_json(case):
    params, factored, p = case
    r = report(params, factored, plan=p)
    text = str(r)
    assert "a/w" in text
    assert "LowRank" in text
    assert "all, after" in text.splitlines()[-1]
    data = json.loads(json.dumps(r.to_json()))
    assert data["rows"][0]["path"] == "a/w"
    assert data["totals"]["params"] == r.totals.params


def test_trees_of_different_models_are_named(case):
    params, factored, _ = case
    with pytest.raises(ShapeError, match="c: "):
        report(params, {k: v for k, v in factored.items() if k != "c"})
    with pytest.raises(ShapeError, match=r"c: .*\(20, 30\).*\(20, 31\)"):
        report(params, factored | {"c": jnp.ones((N, M + 1))})


def test_predicted_and_measured_losses_agree(rng):
    params = {str(i): jnp.asarray(rng.normal(size=(M, N)), jnp.float32) for i in range(4)}
    p = plan(params, {"*": SVD()}, budget=Budget(keep=0.5))
    r = report(params, compress(params, p), plan=p)
    for row in r.rows:
        np.testing.assert_allclose(row.error, p[row.path].relative_loss, rtol=1e-3, atol=1e-6)
