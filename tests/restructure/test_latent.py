"""Latent caches and merged heads: lossless where nothing is lost, budgets met, metrics of use."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrjax as lr
from lrjax import zoo
from lrjax.errors import BudgetError, RankError, RuleError, ShapeError, StatsError
from lrjax.metrics import Frobenius
from lrjax.restructure import GroupHeads, LatentKV, restructure
from tests.restructure.cases import case

RULE = "layer_*/attention"


def cut(c, spec, budget=None, stats=True):
    return restructure(c.model, c.params, {RULE: spec}, c.stats if stats else None, budget=budget)


def kept(model):
    """Bytes that the arrays of a cache hold of one token."""
    return sum(x.nbytes for x in jax.tree.leaves(model.cache(1, 1).parts))


def test_full_rank_changes_nothing_and_the_input_metric_beats_the_plain_svd():
    c = case("llama")
    config = c.model.config
    model, params = cut(c, LatentKV(keep=1.0))
    np.testing.assert_allclose(c.outputs(model, params), c.outputs(), atol=1e-4)
    losses = [c.loss(*cut(c, LatentKV(keep=0.25, metric=m))) for m in (None, Frobenius())]
    assert losses[0] < losses[1]
    floats = [config.kv_floats(i) for i in range(config.depth)]
    assert kept(c.model) == 4 * sum(floats)
    assert kept(cut(c, LatentKV(keep=0.25))[0]) == 4 * sum(n // 4 for n in floats)


def test_a_budget_of_cache_bytes_is_met_by_the_arrays_or_refused():
    c = case("llama")
    dense = kept(c.model)
    model, _ = cut(c, LatentKV(), lr.Budget(kv_bytes=dense // 4))
    assert 0.9 * dense // 4 < kept(model) <= dense // 4
    rules = {"layer_0/attention": LatentKV(rotary=2)}
    half = lr.Budget(kv_bytes=dense * 3 // 4)
    model, _ = restructure(c.model, c.params, rules, c.stats, budget=half)
    assert 0.9 * 0.75 * dense < kept(model) <= 0.75 * dense
    for spec, budget, said in (
        (LatentKV(), lr.Budget(kv_bytes=7), "at least"),
        (LatentKV(), None, "neither rank nor keep"),
        (LatentKV(), lr.Budget(keep=0.5), "a budget of keep"),
        (LatentKV(rank=4), lr.Budget(kv_bytes=100), "no structure of these rules reads one"),
    ):
        with pytest.raises(BudgetError, match=said):
            cut(c, spec, budget)
    with pytest.raises(BudgetError, match="LatentKV"):
        lr.plan(c.params, {"**/kernel": lr.SVD()}, budget=lr.Budget(kv_bytes=100))


@pytest.mark.slow
def test_a_budget_goes_where_it_is_needed():
    """A layer whose keys and values have but three directions has no use for more."""
    c = case("llama")
    params = jax.tree.map(lambda x: x, c.params)
    thin = params["layer_1"]["attention"]
    thin["key"]["kernel"] = thin["key"]["kernel"].at[:, 3:].set(0.0)
    thin["value"]["kernel"] = 0 * thin["value"]["kernel"]
    apply = lambda p, x: c.model.apply({"params": p}, x)
    ids = jnp.asarray(np.random.default_rng(1).integers(1, 61, (32, 20)))
    c = dataclasses.replace(c, params=params, stats=lr.calibrate(apply, params, [ids]))
    model, new = cut(c, LatentKV(), lr.Budget(kv_bytes=kept(c.model) // 3))
    assert kept(model) <= kept(c.model) // 3
    ranks = [layer["rank"] for layer in model.config.latent]
    assert ranks[1] <= 4 < ranks[0]
    assert c.loss(model, new) < c.loss(*cut(c, LatentKV(keep=1 / 3)))


@pytest.mark.slow
def test_one_layer_may_be_latent_and_the_artefact_says_so(tmp_path):
    c = case("llama")
    rules = {"layer_1/attention": LatentKV(keep=0.5, rotary=3)}
    model, params = restructure(c.model, c.params, rules, c.stats)
    assert model.config.latent_of(0) is None
    assert len(model.config.latent_of(1).rotary) == 3
    lr.save(tmp_path / "new", params, config=model.config.to_json())
    again, loaded = zoo.load(tmp_path / "new")
    assert again == model
    np.testing.assert_array_equal(c.outputs(again, loaded), c.outputs(model, params))
    with pytest.raises(RuleError, match="no such module"):
        restructure(model, params, rules, c.stats)
    stats = lr.calibrate(lambda p, x: model.apply({"params": p}, x), params, [c.unseen])
    model, params = restructure(model, params, {RULE: LatentKV(rank=7)}, stats)
    assert [layer["rank"] for layer in model.config.latent] == [7, again.config.latent[1]["rank"]]


@pytest.mark.slow
def test_more_rotated_pairs_lose_less_and_all_of_them_nothing():
    c = case("llama")
    config = c.model.config
    every = config.kv_heads * config.head_size // 2
    full = min(config.hidden_size, 4 * every)
    losses = [c.loss(*cut(c, LatentKV(rank=full, rotary=k))) for k in (1, every // 2, every)]
    assert losses[2] < 1e-6 < losses[1] < losses[0]


def test_merged_heads_lose_less_than_averaged_ones():
    c = case("llama")
    made, mean = (cut(c, GroupHeads(1, averaged=a)) for a in (False, True))
    assert made[0].config.num_key_value_heads == 1
    assert c.loss(*made) < 0.8 * c.loss(*mean)
    assert zoo.model_of(made[0].config.to_json(), made[1]) == made[0]
    # As many heads as there were: what is merged is one head, and nothing changes.
    model, params = cut(c, GroupHeads(c.model.config.kv_heads))
    np.testing.assert_allclose(c.outputs(model, params), c.outputs(), atol=1e-3)


def test_what_cannot_be_is_refused():
    c, gpt2 = case("llama"), case("gpt2")
    for wrong in ({"rank": 0}, {"keep": 1.5}, {"rotary": 0, "rank": 3}, {"rank": 2, "keep": 0.5}):
        with pytest.raises(RankError):
            LatentKV(**wrong)
    with pytest.raises(RankError, match="from 1 to"):
        cut(c, LatentKV(rank=1000))
    with pytest.raises(BudgetError, match="room for a latent"):
        cut(c, LatentKV(keep=0.25, rotary=8))
    with pytest.raises(RuleError, match="not rotated"):
        cut(gpt2, LatentKV(rank=4, rotary=2))
    with pytest.raises(RuleError, match="grouped heads"):
        cut(gpt2, GroupHeads(1))
    with pytest.raises(RankError, match="divisor"):
        cut(c, GroupHeads(3))
    with pytest.raises(RuleError, match="all"):
        restructure(c.model, c.params, {"layer_0/attention": GroupHeads(1)}, c.stats)
    with pytest.raises(StatsError):
        cut(c, LatentKV(rank=4, metric=lr.metrics.Input()), stats=False)
    factored = dict(c.params)
    with pytest.raises(ShapeError, match="scanned"):
        restructure(*zoo.scan_layers(c.model, factored), {RULE: LatentKV(rank=4)})
