"""Latent attention at full rank is the attention that it came from; its cache is the latent."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrjax import zoo
from lrjax.errors import CheckpointError, ShapeError
from lrjax.formats import is_factored
from lrjax.restructure import LatentKV, restructure
from lrjax.zoo import latent as module
from tests.zoo.test_goldens import full_rank, golden, quick

CHUNK, LENGTH = 1, 10


@functools.cache
def whole(name, rotary=None):
    """The golden model with latents of full rank, and all pairs rotated where they are shared."""
    model, params, *_ = golden(name)
    c = model.config
    size = c.kv_heads * c.head_size
    spec = LatentKV(rank=min(2 * size, params["embed"]["embedding"].shape[1]))
    if rotary is not None:
        spec = dataclasses.replace(spec, rotary=size // 2)
    return restructure(model, params, {"layer_*/attention": spec})


def read(model, params, ids, mask, positions=None, capacity=LENGTH + 2):
    """Reads token by token, in a loop of static shape."""

    def step(cache, now):
        logits, cache = model.apply({"params": params}, *now, cache=cache)
        return cache, logits

    chunks = lambda x: jnp.moveaxis(x[:, :LENGTH].reshape(len(x), -1, CHUNK), 1, 0)
    given = jax.tree.map(chunks, (ids, mask, positions))
    cache, logits = jax.lax.scan(step, model.cache(len(ids), capacity), given)
    return jnp.moveaxis(logits, 0, 1).reshape(len(ids), LENGTH, -1), cache


CASES = [
    ("llama", None),  # grouped heads, llama3 rotations
    ("llama", "shared"),
    ("gpt2", None),  # no rotations, biases
    ("qwen2_moe", "shared"),  # biases of keys, grouped heads
    ("gemma2", "shared"),  # bounded scores, windows
    *(pytest.param(name, None, marks=pytest.mark.slow) for name in ("qwen3", "gemma2")),
]


@pytest.mark.parametrize(("name", "rotary"), CASES)
def test_full_rank_leaves_logits_where_they_were_at_once_and_token_by_token(name, rotary):
    _, _, inputs, output, real = golden(name)
    model, params = whole(name, rotary)
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    mask = jnp.ones_like(ids) if mask is None else mask

    @quick
    def both(params):
        return model.apply({"params": params}, **inputs), *read(model, params, ids, mask)

    at_once, by_token, cache = both(params)
    np.testing.assert_allclose(np.asarray(at_once)[real], output[real], atol=1e-4)
    real = real[:, :LENGTH]
    np.testing.assert_allclose(np.asarray(by_token)[real], output[:, :LENGTH][real], atol=1e-4)
    for i, part in enumerate(cache.parts.values()):
        floats = model.config.kv_floats(i)
        assert part.nbytes == len(ids) * cache.capacity * 4 * floats


def test_keys_of_many_slots_are_rebuilt_block_by_block(monkeypatch):
    """Blocks that overlap at the end, padding on the left."""
    monkeypatch.setattr(module, "BLOCK", 5)
    _, _, inputs, output, real = golden("qwen3")
    model, params = whole("qwen3")
    ids, pad = inputs["input_ids"][real.all(1)], 3
    padded = jnp.pad(ids, [(0, 0), (pad, 0)])
    mask = jnp.pad(jnp.ones_like(ids), [(0, 0), (pad, 0)])
    positions = jnp.maximum(mask.cumsum(1) - 1, 0)
    run = lambda params: read(model, params, padded, mask, positions, capacity=17)[0]
    want = output[real.all(1), : LENGTH - pad]
    np.testing.assert_allclose(quick(run)(params)[:, pad:], want, atol=1e-4)


def test_angles_that_grow_with_the_text_turn_shared_pairs_again():
    model, params, inputs, *_ = golden("llama")
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0}
    changed = {"max_position_embeddings": 4, "rope_parameters": rope}
    config = dataclasses.replace(model.config, **changed)
    model, latent = model.clone(config=config), whole("llama", "shared")
    latent = latent[0].clone(config=dataclasses.replace(latent[0].config, **changed)), latent[1]
    ids = inputs["input_ids"]
    runs = [
        quick(lambda p, m=m: read(m, p, ids, jnp.ones_like(ids))[0][:, -1])(p)
        for m, p in ((model, params), latent)
    ]
    np.testing.assert_allclose(*runs, atol=1e-4)


def jaxpr_of_step(model, params, capacity):
    cache = model.cache(1, capacity)
    step = lambda params, cache: model.apply({"params": params}, jnp.ones((1, 1), int), cache=cache)
    return jax.make_jaxpr(step)(params, cache).jaxpr


def values(jaxpr):
    """Shapes of all values that a computation forms, in inner ones too."""
    for eqn in jaxpr.eqns:
        yield from (v.aval.shape for v in eqn.outvars)
        for inner in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from values(inner)


@pytest.mark.parametrize(("name", "rotary"), [("gpt2", None), ("llama", "shared"), ("llama", None)])
def test_a_step_touches_the_latent_alone(name, rotary, monkeypatch):
    """Nothing of [slots, kv heads * head size] is carried or, but block by block, ever formed."""
    monkeypatch.setattr(module, "BLOCK", 50)
    model, params = whole(name, rotary)
    c, capacity = model.config, 211
    jaxpr = jaxpr_of_step(model, params, capacity)
    floats = c.kv_floats(0)
    assert floats > c.head_size  # or a head would be more than the latent
    parts = [v.aval.shape for v in jaxpr.invars if capacity in v.aval.shape and v.aval.ndim == 3]
    assert parts == c.depth * [(1, capacity, floats)]
    heads = c.kv_heads * c.head_size
    plain = jaxpr_of_step(*golden(name)[:2], capacity)
    assert any(capacity in s and np.prod(s) == capacity * heads for s in values(plain))
    for shape in values(jaxpr):
        if capacity in shape and np.prod(shape) >= capacity * heads:
            assert shape in ((1, capacity, floats), (1, capacity, 1, floats)), shape


def test_configs_come_back_from_json_and_wrong_ones_are_refused(tmp_path):
    model, params = whole("llama", "shared")
    data = json.loads(json.dumps(model.config.to_json()))
    assert zoo.model_of(data, params) == model
    assert not any(map(is_factored, jax.tree.leaves(params)))
    with pytest.raises(CheckpointError, match="latent"):
        zoo.save(tmp_path / "no", model, params)
    for wrong in ([None], [{"rank": 0}] * 2, [{"rank": 4, "rotary": [99]}, None], [{"r": 3}, None]):
        with pytest.raises(CheckpointError, match="latent"):
            zoo.model_of(data | {"latent": wrong}, params)


def test_layers_are_scanned_where_they_are_equal():
    _, _, inputs, output, real = golden("gpt2")
    model, params = zoo.scan_layers(*whole("gpt2"))
    ids = inputs["input_ids"]
    logits, cache = quick(lambda p: read(model, p, ids, jnp.ones_like(ids)))(params)
    rows = real.all(1)
    np.testing.assert_allclose(np.asarray(logits)[rows], output[rows, :LENGTH], atol=1e-4)
    assert list(cache.parts) == ["layers"]
    model, params = whole("llama", "shared")
    latents = [dict(x) for x in model.config.latent]
    latents[1]["rotary"] = tuple(reversed(latents[1]["rotary"]))
    config = dataclasses.replace(model.config, latent=tuple(latents))
    with pytest.raises(ShapeError, match="differ"):
        model.clone(config=config, scanned=True).cache(1, 4)


def test_cores_may_be_factored():
    from lrjax import trees

    _, _, inputs, output, real = golden("gpt2")
    model, params = whole("gpt2")
    factored = trees.map_weights(full_rank, params, with_path=True)
    got = quick(lambda p: model.apply({"params": p}, **inputs))(factored)
    np.testing.assert_allclose(np.asarray(got)[real], output[real], atol=1e-4)
