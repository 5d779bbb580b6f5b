"""From data to factors under importance: calibrate, plan, compress, report, by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrjax as lr
from lrjax.calibrate import Fisher
from lrjax.decompose import WeightedLowRank
from lrjax.formats.layout import matricize
from lrjax.metrics import ASVD, FWSVD, TFWSVD

DIMS = (24, 20, 4)


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    draw = lambda *s: jnp.asarray(rng.normal(size=s) / np.sqrt(s[0]), jnp.float32)
    params = {"a": draw(2, DIMS[0], DIMS[1]), "b": draw(DIMS[1], DIMS[2])}
    scale = np.exp(rng.normal(size=DIMS[0]))

    def apply(p, batch):
        h = jnp.tanh(jnp.einsum("nk,skj->snj", batch["x"], p["a"]))
        return h.sum(0) @ p["b"]

    x = jnp.asarray(rng.normal(size=(64, DIMS[0])) * scale, jnp.float32)
    batch = {"x": x, "label": jnp.asarray(rng.integers(0, DIMS[2], 64))}
    stats = lr.calibrate(
        apply, params, [batch], loss=loss, gradients=False, magnitudes=True, fisher=Fisher()
    )
    return params, stats


def loss(y, batch):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(y), batch["label"][:, None], 1))


def lost(params, factored, stats):
    """sum F (W - W')^2 over a weight of three dims, by hand."""
    d = matricize(params["a"] - lr.densify(factored["a"]), stats.usage["a"].layout)
    return np.sum(np.asarray(stats.of("a").fisher.mean, float) * np.asarray(d, float) ** 2)


def test_each_kind_plans_compresses_and_reports(model, tmp_path):
    params, stats = model
    found = {}
    for kind, spec in (
        (ASVD(), lr.SVD()),
        (FWSVD(), lr.SVD()),
        (TFWSVD(), WeightedLowRank()),
    ):
        plan = lr.plan(params, {"a": spec}, budget=lr.Budget(keep=0.5), stats=stats, metric=kind)
        plan.save(tmp_path / f"{kind}.json")
        assert lr.Plan.load(tmp_path / f"{kind}.json") == plan
        factored, info = lr.compress_with_info(params, plan, stats)
        report = lr.report(params, factored, stats, plan)["a"]
        found[kind] = lost(params, factored, stats)
        entry = plan["a"]
        assert report.metric == type(kind).__name__
        if kind == TFWSVD():
            np.testing.assert_allclose(np.sum(info["a"].residual ** 2), found[kind], rtol=1e-3)
            np.testing.assert_allclose(report.error * entry.total, found[kind], rtol=1e-3)
            assert report.optimum is None
            assert found[kind] < 0.8 * entry.loss
        else:
            np.testing.assert_allclose(report.error * entry.total, entry.loss, rtol=1e-2)
            assert report.status == "optimal"
    assert found[TFWSVD()] < 0.8 * found[FWSVD()]
    assert found[FWSVD()] < found[ASVD()]


def test_an_svd_under_element_weights_is_the_separable_optimum(model):
    """Its record is in the true weights, and the plan foretells it."""
    params, stats = model
    plan = lr.plan(params, {"a": lr.SVD(rank=6)}, stats=stats, metric=TFWSVD())
    factored, info = lr.compress_with_info(params, plan, stats)
    want = lost(params, factored, stats)
    np.testing.assert_allclose(np.sum(info["a"].residual ** 2), want, rtol=1e-3)
    np.testing.assert_allclose(plan["a"].loss, want, rtol=1e-2)


def test_statistics_without_fisher_information_say_how_to_have_it(model):
    params, stats = model
    bare = lr.Stats(stats.inputs, stats.outputs, stats.tokens, stats.usage)
    with pytest.raises(lr.LrjaxError, match=r"a: .*Fisher.*fisher=Fisher\(\)"):
        lr.plan(params, {"a": lr.SVD(rank=6)}, stats=bare, metric=TFWSVD())
