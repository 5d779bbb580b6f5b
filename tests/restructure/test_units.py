"""Fewer hidden units: the best down for those that stay, chosen by what they explain."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

import lrjax as lr
from lrjax import zoo
from lrjax.errors import BudgetError, CheckpointError, RankError, StatsError
from lrjax.restructure import Units, restructure
from lrjax.zoo.load import model_of
from tests.restructure.cases import case, count, statistics

MODELS = (
    "llama",
    "bert",
    pytest.param("gpt2", marks=pytest.mark.slow),
    pytest.param("vit", marks=pytest.mark.slow),
)


def replaced(own, **leaves):
    return dataclasses.replace(own, params=unflatten_dict(own.leaves | leaves, sep="/"))


def picked(own, select):
    """The model whose units `select(gate, up, down)` chooses; nothing makes up for the others."""
    leaves, sizes = dict(own.leaves), {}
    for i in range(2):
        path = f"layer_{i}/mlp"
        kernels = [np.asarray(leaves[f"{path}/{k}/kernel"]) for k in ("gate", "up", "down")]
        units = select(*kernels)
        sizes[i] = len(units)
        for kind, kernel in zip(("gate", "up"), kernels, strict=False):
            leaves[f"{path}/{kind}/kernel"] = kernel[:, units]
        leaves[f"{path}/down/kernel"] = kernels[2][units]
    config = own.model.config.with_mlp_sizes(sizes)
    return own.model.clone(config=config), unflatten_dict(leaves, sep="/")


@pytest.mark.parametrize("name", MODELS)
def test_a_whole_model_is_left_as_it_is(name):
    own = case(name)
    model, params = restructure(own.model, own.params, {"**": Units(keep=1.0)}, own.stats)
    assert model == own.model
    assert np.abs(own.outputs(model, params) - own.outputs()).max() < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_smaller_models_are_counted_and_come_back_from_disk(name, tmp_path):
    own = case(name)
    rules = {"**/mlp": Units(size=30)}
    model, params = restructure(own.model, own.params, rules, own.stats)
    unit = own.leaves[next(p for p in own.leaves if p.endswith("mlp/up/kernel"))].shape
    per_unit = 3 * unit[0] if name == "llama" else 2 * unit[0] + 1
    assert count(params) == count(own.params) - 2 * (unit[1] - 30) * per_unit
    zoo.save(tmp_path / "cut", model, params)
    again, loaded = zoo.load(tmp_path / "cut")
    np.testing.assert_array_equal(own.outputs(again, loaded), own.outputs(model, params))


def test_the_new_down_is_the_best_for_the_units_that_stay():
    own = case("llama")
    _, params = restructure(own.model, own.params, {"**": Units(size=20)}, own.stats)
    for i in range(2):
        old, new = own.params[f"layer_{i}"]["mlp"], params[f"layer_{i}"]["mlp"]
        up = np.asarray(old["up"]["kernel"])
        units = [int(np.flatnonzero((up.T == u).all(1))[0]) for u in new["up"]["kernel"].T]
        assert units == sorted(units)
        gram = np.asarray(own.stats.of(f"layer_{i}/mlp/down/kernel").rows.second, np.float64)
        target = gram[units] @ np.asarray(old["down"]["kernel"], np.float64)
        best = np.linalg.solve(gram[np.ix_(units, units)], target)
        np.testing.assert_allclose(new["down"]["kernel"], best, atol=3e-3 * np.abs(best).max())


def test_units_that_others_explain_leave_without_a_trace():
    own = case("bert")
    leaves = dict(own.leaves)
    for i in range(2):
        path = f"encoder/layer_{i}/mlp/up"
        for kind in ("kernel", "bias"):
            half = leaves[f"{path}/{kind}"][..., :24]
            leaves[f"{path}/{kind}"] = np.concatenate([half, half], axis=-1)
    double = replaced(own, **leaves)
    stats = statistics(own.model, double.params, own.unseen, "**/down/kernel")
    model, params = restructure(own.model, double.params, {"**": Units(size=24)}, stats)
    assert np.abs(double.outputs(model, params) - double.outputs()).max() < 1e-4


def test_it_beats_magnitude_and_chance_on_held_out_inputs():
    own, rng = case("llama"), np.random.default_rng(0)
    leaves = dict(own.leaves)
    for i in range(2):  # as in trained models, units have much in common
        for kind in ("gate", "up"):
            kernel = np.array(leaves[f"layer_{i}/mlp/{kind}/kernel"])
            kernel[:, 24:] = kernel[:, :24] + 0.3 * kernel[:, 24:]
            leaves[f"layer_{i}/mlp/{kind}/kernel"] = kernel
    own = replaced(own, **leaves)
    seen = jnp.asarray(rng.integers(1, 61, (32, 20)))
    stats = statistics(own.model, own.params, seen, "**/down/kernel")
    by_norm = lambda gate, up, down: np.argsort(
        np.linalg.norm(gate, axis=0) * np.linalg.norm(up, axis=0) * np.linalg.norm(down, axis=1)
    )
    cut = restructure(own.model, own.params, {"**": Units(size=24)}, stats)
    largest = picked(own, lambda *kernels: by_norm(*kernels)[24:])
    drawn = picked(own, lambda *kernels: rng.permutation(48)[:24])
    assert count(cut[1]) == count(largest[1]) == count(drawn[1])
    assert own.loss(*cut) < 0.8 * min(own.loss(*largest), own.loss(*drawn))


def test_a_share_is_spent_where_it_is_needed(tmp_path):
    own = case("llama")
    leaves = dict(own.leaves)
    # The second MLP has six units that matter.
    leaves["layer_1/mlp/down/kernel"] = np.array(leaves["layer_1/mlp/down/kernel"])
    leaves["layer_1/mlp/down/kernel"][6:] *= 1e-4
    uneven = replaced(own, **leaves)
    cut = lambda **how: restructure(
        own.model, uneven.params, {"**": Units(keep=0.5, **how)}, own.stats
    )
    model, params = cut(multiple=2)
    first, second = model.config.mlp_sizes
    assert first + second == 48
    assert second <= 8
    even = cut(uniform=True)
    assert count(params) == count(even[1])
    assert uneven.loss(model, params) < 0.9 * uneven.loss(*even)

    with pytest.raises(CheckpointError, match=r"mlp_sizes.*lrjax.save"):
        zoo.save(tmp_path / "published", model, params)
    lr.save(tmp_path / "own", params, config=model.config.to_json())
    again, loaded = zoo.load(tmp_path / "own")
    assert again == model
    np.testing.assert_array_equal(own.outputs(again, loaded), own.outputs(model, params))
    assert model_of(even[0].config.to_json(), even[1]) == even[0]


def test_sizes_that_cannot_be_are_refused():
    own = case("llama")
    cut = lambda spec, stats=own.stats: restructure(own.model, own.params, {"**": spec}, stats)
    with pytest.raises(RankError, match="at most 48"):
        cut(Units(size=49))
    with pytest.raises(BudgetError, match="at least"):
        cut(Units(keep=0.1, multiple=32))
    with pytest.raises(BudgetError, match="one of"):
        Units(size=3, keep=0.5)
    with pytest.raises(StatsError, match="layer_0/mlp/down/kernel"):
        cut(Units(size=3), None)
