"""Smaller heads: the best products where nothing is rotated, the strongest pairs where it is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

import lrjax as lr
from lrjax import trees, zoo
from lrjax.errors import CheckpointError, RankError, RuleError
from lrjax.restructure import QueryKeyHeads, ValueHeads, restructure
from tests.restructure.cases import case, count, statistics

HEAD = 8
BOTH = {"**/attention": (ValueHeads(size=6), QueryKeyHeads(size=6))}


OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("bert", "gpt2", "vit")]


@pytest.mark.parametrize("name", ["llama", *OTHERS])
def test_heads_are_counted_and_come_back_from_disk(name, tmp_path):
    own = case(name)
    whole = {"**": (ValueHeads(keep=1.0), QueryKeyHeads(size=HEAD))}
    assert restructure(own.model, own.params, whole, own.stats)[0] == own.model
    model, params = restructure(own.model, own.params, BOTH, own.stats)
    attention = sum(leaf.size for path, leaf in own.leaves.items() if "/attention/" in path)
    fixed = 0 if name == "llama" else 2 * 32  # the output's bias
    assert count(own.params) - count(params) == (attention - fixed) // 4
    assert own.loss(model, params) < 0.6 * own.loss(*silent(own))

    with pytest.raises(CheckpointError, match="key_sizes"):
        zoo.save(tmp_path / "published", model, params)
    lr.save(tmp_path / "own", params, config=model.config.to_json())
    again, loaded = zoo.load(tmp_path / "own")
    assert again == model
    np.testing.assert_array_equal(own.outputs(again, loaded), own.outputs(model, params))


def silent(own):
    """The model without its attention."""
    off = {p: w * 0 if "attention/output" in p else w for p, w in own.leaves.items()}
    return own.model, unflatten_dict(off, sep="/")


def planted(own, kinds, change):
    """The model with some of its attention's kernels and biases changed, and its statistics."""
    new = dict(own.leaves)
    for path, leaf in own.leaves.items():
        kind = path.split("/")[-2]
        if "attention/" in path and kind in kinds:
            new[path] = change(path, np.array(leaf))
    params = unflatten_dict(new, sep="/")
    kernels = "**/key/kernel", "**/output/kernel"
    stats = statistics(own.model, params, own.unseen, *kernels)
    return dataclasses.replace(own, params=params, stats=stats)


@pytest.mark.parametrize("name", ["bert", pytest.param("llama", marks=pytest.mark.slow)])
def test_values_of_low_rank_lose_nothing(name):
    def mixed(path, leaf):
        """The last two columns of every head are sums of the others."""
        heads = leaf.reshape(*leaf.shape[:-1], -1, HEAD)
        heads[..., 6], heads[..., 7] = heads[..., 0] - heads[..., 3], heads[..., 1] + heads[..., 2]
        return heads.reshape(leaf.shape)

    own = planted(case(name), ["value"], mixed)
    cut = restructure(own.model, own.params, {"**": ValueHeads(size=6)}, own.stats)
    assert np.abs(own.outputs(*cut) - own.outputs()).max() < 1e-4


def test_queries_of_low_rank_lose_nothing_where_nothing_is_rotated():
    def mixed(path, leaf):
        heads = leaf.reshape(*leaf.shape[:-1], -1, HEAD)
        heads[..., 5:] = heads[..., :3] * 0.5
        return heads.reshape(leaf.shape)

    own = planted(case("bert"), ["query"], mixed)
    cut = restructure(own.model, own.params, {"**": QueryKeyHeads(size=5)}, own.stats)
    assert np.abs(own.outputs(*cut) - own.outputs()).max() < 1e-4


def test_the_strongest_pairs_stay_and_turn_as_they_did():
    # One pair of every key head is silent, another one in each.
    gone = {"layer_0": (1, 3), "layer_1": (0, 2)}

    def silence(path, leaf):
        heads = leaf.reshape(*leaf.shape[:-1], 2, HEAD)
        for group, pair in enumerate(gone[path.split("/")[0]]):
            heads[..., group, [pair, pair + 4]] = 0
        return heads.reshape(leaf.shape)

    own = planted(case("llama"), ["key"], silence)
    model, params = restructure(own.model, own.params, {"**": QueryKeyHeads(size=6)}, own.stats)
    assert model.config.key_pairs == (((0, 2, 3), (0, 1, 2)), ((1, 2, 3), (0, 1, 3)))
    assert np.abs(own.outputs(model, params) - own.outputs()).max() < 1e-4
    # Cut again: pairs are still named as those of whole heads.
    again, params = restructure(model, params, {"layer_1/*": QueryKeyHeads(size=2)}, own.stats)
    assert again.config.key_sizes == (6, 2)
    assert again.config.key_pairs[0] == ((0, 2, 3), (0, 1, 2))
    first, second = again.config.key_pairs[1]
    assert set(first) <= {1, 2, 3}
    assert set(second) <= {0, 1, 3}
    # What is decoded with a cache is what is read at once.
    read = jax.jit(lambda p, ids, cache: again.apply({"params": p}, ids, cache=cache))
    ids, cache = own.unseen[:, :6], again.cache(8, 6)
    for part in (ids[:, :3], ids[:, 3:]):
        logits, cache = read(params, part, cache)
    sizes = {name: part.keys.shape[-1] for name, part in cache.parts.items()}
    assert sizes == {"layer_0": 6, "layer_1": 2}
    np.testing.assert_allclose(logits, own.outputs(again, params)[:, 3:6], atol=1e-4)


def test_calibrated_heads_beat_the_largest_columns():
    own = case("llama")
    cut = restructure(own.model, own.params, {"**": ValueHeads(size=4)}, own.stats)
    leaves = dict(own.leaves)
    for i in range(2):
        value, output = (f"layer_{i}/attention/{k}/kernel" for k in ("value", "output"))
        v, o = (np.array(leaves[p]) for p in (value, output))
        heads, outs = v.reshape(32, 2, HEAD), o.reshape(2, 2, HEAD, 32)
        size = np.linalg.norm(heads, axis=0) * np.linalg.norm(outs, axis=(1, 3))
        for g in range(2):
            least = np.argsort(size[g])[:4]
            outs[g, :, least] = 0
        leaves[output] = jnp.asarray(outs.reshape(o.shape))
    assert own.loss(*cut) < 0.8 * own.loss(own.model, unflatten_dict(leaves, sep="/"))


def test_what_cannot_be_cut_is_refused():
    own = case("llama")
    with pytest.raises(RankError, match="multiple of 2"):
        restructure(own.model, own.params, {"**": QueryKeyHeads(size=5)}, own.stats)
    model, params = zoo.load("tests/zoo/goldens/qwen3")
    with pytest.raises(RuleError, match=r"layer_0/attention: got normalised queries"):
        restructure(model, params, {"**": QueryKeyHeads(size=4)}, None)
    assert "layer_0/attention/query_norm/scale" in trees.paths(params)
