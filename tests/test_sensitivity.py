"""Sensitivities: what errors add up to at the output, where statistics see tokens one by one."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import lrjax as lr
from lrjax.decompose import SVD, BlockSVD, Tucker
from lrjax.errors import RuleError, StatsError
from lrjax.plan import Plan

TOKENS, EXAMPLES, M, N = 8, 400, 12, 10
RULES = {"*": SVD()}


def pooled(params, batch):
    """One output per example and weight: the sum over its tokens."""
    return {k: jnp.sum(batch[k] @ w, axis=1) for k, w in params.items()}


@pytest.fixture(scope="module")
def case():
    """Two weights of one law; an example's tokens are equal for one, independent for the other."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    params = {"apart": jnp.asarray(draw(M, N)), "same": jnp.asarray(draw(M, N))}
    same = np.repeat(draw(EXAMPLES, 1, M), TOKENS, axis=1)
    batches = [{"apart": draw(EXAMPLES, TOKENS, M), "same": same}]
    return params, batches, lr.calibrate(pooled, params, batches)


def test_errors_of_equal_tokens_add_up(case):
    params, batches, stats = case
    found = lr.sensitivity(pooled, params, RULES, batches, stats)
    # |sum_t x_t D|^2 is T^2 |x D|^2 of equal tokens, and T E|x D|^2 of independent ones
    np.testing.assert_allclose(found["same"][0] / found["apart"][0], TOKENS, rtol=0.25)
    np.testing.assert_allclose(found["same"][0] * found["apart"][0], 1, rtol=1e-5)


def test_by_them_a_plan_loses_less_at_the_output(case):
    params, batches, stats = case
    rng = np.random.default_rng(1)
    test = np.repeat(rng.standard_normal((EXAMPLES, 1, M)), TOKENS, axis=1).astype(np.float32)
    held = {"apart": rng.standard_normal(test.shape).astype(np.float32), "same": test}
    found = lr.sensitivity(pooled, params, RULES, batches, stats)

    def lost(**kw):
        p = lr.plan(params, RULES, budget=lr.Budget(keep=0.6), stats=stats, **kw)
        small = lr.compress(params, p, stats)
        dense = {k: lr.densify(w) for k, w in small.items()}
        gaps = [np.asarray(pooled(dense, held)[k] - pooled(params, held)[k]) for k in params]
        return p, sum(float((gap**2).sum()) for gap in gaps)

    (blind, before), (seeing, after) = lost(), lost(sensitivity=found)
    assert after < 0.7 * before
    assert seeing["same"].params > blind["same"].params
    assert seeing["apart"].sensitivity == found["apart"][0]
    assert blind["apart"].sensitivity is None
    assert Plan.from_json(seeing.to_json()) == seeing
    # what a weight is said to lose stays its own loss
    assert seeing["apart"].loss > blind["apart"].loss
    assert seeing["apart"].total == blind["apart"].total


def test_losses_of_inputs_alone_become_comparable(case):
    params, batches, _ = case
    louder = lambda p, b: {k: (10 if k == "apart" else 1) * y for k, y in pooled(p, b).items()}
    stats = lr.calibrate(louder, params, batches, gradients=False)
    found = lr.sensitivity(louder, params, RULES, batches, stats)
    np.testing.assert_allclose(found["apart"][0] / found["same"][0], 100 / TOKENS, rtol=0.25)
    budget = lr.Budget(keep=0.6)
    even = lr.plan(params, RULES, budget=budget, stats=stats)
    seeing = lr.plan(params, RULES, budget=budget, stats=stats, sensitivity=found)
    assert even["apart"].params == even["same"].params
    assert seeing["apart"].params > seeing["same"].params


def test_they_are_of_the_metric_that_the_plan_takes(case):
    params, batches, stats = case
    stretched = {"apart": 5 * params["apart"], "same": params["same"]}
    found = lr.sensitivity(pooled, stretched, RULES, batches, stats, metric=lr.metrics.Frobenius())
    # losses are squares of the weights' own errors, so that only tokens differ
    np.testing.assert_allclose(found["same"][0] / found["apart"][0], TOKENS, rtol=0.3)


def test_every_candidate_has_its_own(case):
    params, batches, stats = case
    rules = {"*": [SVD(), BlockSVD(grid=(2, 2)), Tucker(modes=(3, 4, 5, 3))]}
    count = []
    found = lr.sensitivity(
        pooled, params, rules, batches, stats, on_weight=lambda *n: count.append(n)
    )
    assert count == [(1, 2), (2, 2)]
    assert all(len(s) == 3 and min(s) > 0 for s in found.values())
    # Tucker's modes do not hold the weight: what is unknown is the mean of the others
    for s in found.values():
        np.testing.assert_allclose(s[2], (s[0] * s[1]) ** 0.5, rtol=1e-5)
    budget = lr.Budget(keep=0.6)
    for best, spec in ((0, SVD), (1, BlockSVD)):
        own = tuple(0.001 if k == best else 1.0 for k in range(3))
        scaled = dict.fromkeys(params, own)
        p = lr.plan(params, rules, budget=budget, stats=stats, sensitivity=scaled, trials=False)
        for entry in p.factored:
            assert type(entry.spec) is spec
            assert (entry.candidate, entry.sensitivity) == (best, 0.001)
            assert entry.rivals[0].loss > 50 * entry.loss


def test_padding_and_the_distance_are_the_callers(case):
    params, batches, _ = case
    (batch,) = batches
    each = lambda p, b: {k: b[k] @ w for k, w in p.items()}
    here = np.ones((EXAMPLES, TOKENS), bool)
    here[:, 5:] = False
    mask = lambda batch: here
    stats = lr.calibrate(each, params, batches, mask=mask)
    garbage = {k: np.where(here[..., None], x, 1e3).astype(np.float32) for k, x in batch.items()}
    clean = lr.sensitivity(each, params, RULES, batches, stats, mask=mask)
    dirty = lr.sensitivity(each, params, RULES, [garbage], stats, mask=mask)
    for path in params:
        np.testing.assert_allclose(clean[path], dirty[path], rtol=1e-5)
    only = lambda found, dense, batch: jnp.sum((found["same"] - dense["same"]) ** 2)
    deaf = lr.sensitivity(each, params, RULES, batches, stats, distance=only)
    assert deaf["apart"] == (0.0,)
    np.testing.assert_allclose(deaf["same"], 1)


def test_a_bias_takes_the_mean_as_it_will():
    rng = np.random.default_rng(2)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    layer = lambda: {"kernel": draw(M, N), "bias": jnp.zeros(N)}
    params = {"level": layer(), "raised": layer()}
    apply = lambda p, b: {k: b[k] @ w["kernel"] + w["bias"] for k, w in p.items()}
    batch = {"level": draw(900, M), "raised": draw(900, M) + 30}
    stats = lr.calibrate(apply, params, [batch])
    found = lr.sensitivity(apply, params, {"*/kernel": SVD()}, [batch], stats)
    np.testing.assert_allclose([s for (s,) in found.values()], 1, rtol=0.1)


def test_what_is_missing_is_said(case):
    params, batches, stats = case
    sense = lambda rules=RULES, given=batches, **kw: lr.sensitivity(
        pooled, params, rules, given, stats, **kw
    )
    with pytest.raises(StatsError, match="no batches"):
        sense(given=[])
    with pytest.raises(StatsError, match=r"apart: got a distance of nan"):
        sense(distance=lambda y, y0, batch: jnp.nan)
    with pytest.raises(RuleError, match="missing"):
        sense(rules={"missing": SVD()})
    whole = sense()
    budget = lr.Budget(keep=0.5)
    for wrong in ({"same": (1.0,)}, whole | {"apart": (1.0, 2.0)}, whole | {"apart": (np.nan,)}):
        with pytest.raises(StatsError, match=r"apart: got sensitivities .*same rules"):
            lr.plan(params, RULES, budget=budget, stats=stats, sensitivity=wrong)
    with pytest.raises(StatsError, match="got sensitivities of no weight"):
        lr.plan(params, RULES, budget=budget, stats=stats, sensitivity={})
    apart = {"same": budget, "apart": budget}  # budgets of their own: nothing is compared
    lr.plan(params, RULES, budget=apart, stats=stats, sensitivity={"same": (1.0,)})
    flat = lr.plan(
        params, RULES, budget=budget, stats=stats, sensitivity=dict.fromkeys(params, (1.0,))
    )
    plain = lr.plan(params, RULES, budget=budget, stats=stats)
    entries = tuple(dataclasses.replace(e, sensitivity=None) for e in flat.entries)
    assert entries == plain.entries
