"""Reading with a cache, token by token, says what reading at once says."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrjax import trees, zoo
from lrjax.errors import ShapeError
from tests.zoo.test_goldens import full_rank, golden, quick

DECODERS = ("gemma2", "gpt2", "llama", "mistral", "mixtral", "qwen2_moe", "qwen3")
CHUNK, LENGTH = 2, 10


@functools.cache
def reader(model):
    """Reads a few tokens at a time, in a loop of static shape."""

    @quick
    def read(params, ids, mask, positions=None):
        def step(cache, now):
            logits, cache = model.apply({"params": params}, *now, cache=cache)
            return cache, logits

        chunks = lambda x: jnp.moveaxis(x[:, :LENGTH].reshape(len(x), -1, CHUNK), 1, 0)
        given = jax.tree.map(chunks, (ids, mask, positions))
        cache, logits = jax.lax.scan(step, model.cache(len(ids), LENGTH + 2), given)
        return jnp.moveaxis(logits, 0, 1).reshape(len(ids), LENGTH, -1), cache

    return read


def given(inputs):
    ids = inputs["input_ids"]
    return ids, inputs.get("attention_mask", jnp.ones_like(ids))


def agrees(logits, output, real):
    real = real[:, :LENGTH]
    np.testing.assert_allclose(np.asarray(logits)[real], output[:, :LENGTH][real], atol=1e-4)


@pytest.mark.parametrize("name", DECODERS)
def test_logits_equal_those_of_the_whole_text(name):
    model, params, inputs, output, real = golden(name)
    factored = trees.map_weights(full_rank, params, with_path=True)
    ids, mask = given(inputs)
    logits, cache = reader(model)(factored, ids, mask)
    agrees(logits, output, real)
    assert int(cache.used) == LENGTH
    np.testing.assert_array_equal(cache.real[:, :LENGTH], mask[:, :LENGTH] > 0)
    assert not cache.real[:, LENGTH:].any()


@pytest.mark.parametrize("name", ["gemma2", "gpt2"])
def test_scanned_layers_keep_one_stack(name):
    model, params, inputs, output, real = golden(name)
    model, params = zoo.scan_layers(model, params)
    logits, cache = reader(model)(params, *given(inputs))
    agrees(logits, output, real)
    assert list(cache.parts) == ["layers"]


def test_padding_on_the_left_changes_nothing():
    model, params, inputs, output, real = golden("gpt2")
    ids, pad = inputs["input_ids"][real.all(1)], 3
    padded = jnp.pad(ids, [(0, 0), (pad, 0)])
    mask = jnp.pad(jnp.ones_like(ids), [(0, 0), (pad, 0)])
    positions = jnp.maximum(mask.cumsum(1) - 1, 0)
    logits, cache = reader(model)(params, padded, mask, positions)
    whole = output[real.all(1), : LENGTH - pad]
    np.testing.assert_allclose(logits[:, pad:], whole, atol=1e-4)
    np.testing.assert_array_equal(cache.positions[:, :LENGTH], positions[:, :LENGTH])


def test_angles_that_grow_with_the_text_turn_old_keys_again():
    base, params, inputs, *_ = golden("llama")
    rope = {"rope_type": "dynamic", "factor": 4.0}
    config = base.config.to_json() | {"rope_scaling": rope, "max_position_embeddings": 5}
    params = {name: leaf for name, leaf in params.items() if name != "layer_1"}
    model = zoo.model_of(config | {"num_hidden_layers": 1}, params)
    ids = inputs["input_ids"]
    logits, _ = reader(model)(params, ids, jnp.ones_like(ids))
    apply = quick(lambda ids: model.apply({"params": params}, ids, last=True))
    for end in (4, LENGTH):
        np.testing.assert_allclose(logits[:, end - 1], apply(ids[:, :end])[:, 0], atol=1e-4)


def test_the_cache_has_the_dtype_that_is_asked_for():
    model, params, inputs, *_ = golden("llama")
    apply = lambda cache: model.apply({"params": params}, inputs["input_ids"], cache=cache)
    before = model.cache(3, 16, jnp.bfloat16)
    logits, after = jax.eval_shape(apply, before)
    assert logits.dtype == jnp.float32
    for cache in (before, after):
        assert {leaf.dtype for leaf in jax.tree.leaves(cache.parts)} == {jnp.dtype(jnp.bfloat16)}


def test_tokens_for_which_there_is_no_room_are_refused():
    model, params, inputs, *_ = golden("llama")
    apply = lambda ids, cache: model.apply({"params": params}, ids, cache=cache)
    ids = inputs["input_ids"][:1, :3]
    cache = dataclasses.replace(model.cache(1, 4), used=jnp.int32(3))
    with pytest.raises(ShapeError, match=r"got 1 rows of 3 tokens; expected 1 rows, at most 1 tok"):
        apply(ids, cache)
    with pytest.raises(ShapeError, match="got 2 rows"):
        apply(ids.repeat(2, 0), cache)
