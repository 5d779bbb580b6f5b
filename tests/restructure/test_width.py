"""A narrower stream: a rotation changes nothing, and its last directions hold least."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from lrjax import trees, zoo
from lrjax.errors import RankError, RuleError
from lrjax.restructure import Units, Width, restructure
from tests.restructure.cases import GOLDENS, Case, case, count, statistics


def loaded(name):
    """A golden checkpoint with statistics of what stands behind its norms."""
    model, params = zoo.load(GOLDENS / name)
    ids = jnp.asarray(np.random.default_rng(0).integers(1, 61, (24, 20)))
    if name == "llama":  # as Gemma: scales as differences from one, a table times a root
        config = model.config.to_json() | {"model_type": "gemma"}
        model = zoo.Llama(zoo.GemmaConfig.from_json(config))
        params = trees.map_weights(lambda x: x / 3 - 0.5 if x.ndim == 1 else x, params)
    kinds = "query", "gate", "up", "router"
    globs = (*(f"**/{kind}/kernel" for kind in kinds), "embed/embedding", "head/kernel")
    return Case(model, params, statistics(model, params, ids, *globs), ids[:4])


OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "qwen2", "qwen2_moe")]


@pytest.mark.parametrize("name", ["", *OTHERS])
def test_a_rotation_of_the_stream_changes_nothing(name):
    own = loaded(name) if name else case("llama")
    rules = {"**": Width(keep=1.0, untie=True)}
    model, params = restructure(own.model, own.params, rules, own.stats)
    assert not model.config.tie_word_embeddings
    assert np.abs(own.outputs(model, params) - own.outputs()).max() < 1e-4


def test_a_narrower_model_is_a_smaller_checkpoint(tmp_path):
    own = case("llama")
    rules = {"**/mlp": Units(keep=0.75, uniform=True), "": Width(size=24)}
    model, params = restructure(own.model, own.params, rules, own.stats)
    c = model.config
    assert (c.hidden_size, c.head_size, c.intermediate_size) == (24, 8, 36)
    layer = 24 * 32 * 2 + 24 * 16 * 2 + 3 * 24 * 36 + 2 * 24
    assert count(params) == 2 * 61 * 24 + 2 * layer + 24
    zoo.save(tmp_path / "cut", model, params)
    again, loaded = zoo.load(tmp_path / "cut")
    assert again == model
    np.testing.assert_array_equal(own.outputs(again, loaded), own.outputs(model, params))


def test_the_stream_of_low_rank_loses_nothing_and_norms_keep_their_energy():
    own = case("llama")
    rng = np.random.default_rng(0)
    # All that is written to the stream lies in 20 of its 32 directions.
    inside = np.linalg.qr(rng.normal(size=(32, 20)))[0].astype(np.float32)
    leaves = dict(own.leaves)
    for path, leaf in own.leaves.items():
        if path.split("/")[-2] in ("embed", "output", "down"):
            leaves[path] = np.asarray(leaf) @ inside @ inside.T
    params = unflatten_dict(leaves, sep="/")
    stats = statistics(own.model, params, own.unseen)
    flat = dataclasses.replace(own, params=params, stats=stats)
    model, params = restructure(own.model, params, {"**": Width(size=20)}, stats)
    assert np.abs(flat.outputs(model, params) - flat.outputs()).max() < 1e-4
    np.testing.assert_allclose(params["norm"]["scale"], (32 / 20) ** 0.5, rtol=1e-5)


def test_it_beats_the_largest_coordinates():
    own = case("llama")
    cut = restructure(own.model, own.params, {"**": Width(size=24)}, own.stats)
    leaves = dict(own.leaves)
    energy = np.linalg.norm(np.asarray(leaves["embed/embedding"]), axis=0)
    gone = np.argsort(energy)[:8]
    for path, leaf in own.leaves.items():
        if path.split("/")[-2] in ("embed", "output", "down"):
            leaves[path] = np.array(leaf)
            leaves[path][:, gone] = 0
    assert own.loss(*cut) < 0.8 * own.loss(own.model, unflatten_dict(leaves, sep="/"))


def test_streams_that_cannot_be_rotated_are_refused():
    own = case("llama")
    with pytest.raises(RankError, match="multiple of 4"):
        restructure(own.model, own.params, {"**": Width(size=30)}, own.stats)
    for name, reason in (("gpt2", "LayerNorms"), ("gemma2", "norms on what is added")):
        model, params = zoo.load(GOLDENS / name)
        with pytest.raises(RuleError, match=reason):
            restructure(model, params, {"**": Width(size=16)}, None)
    model, params = zoo.load(GOLDENS / "qwen2")
    if model.config.tie_word_embeddings:
        with pytest.raises(RuleError, match="untie=True"):
            restructure(model, params, {"**": Width(size=16)}, None)
    model, params = zoo.load(GOLDENS / "bert")
    with pytest.raises(RuleError, match="none in this model"):
        restructure(model, params, {"**": Width(size=16)}, None)
