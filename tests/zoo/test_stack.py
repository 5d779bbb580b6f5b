"""Scanned layers are the same layers: same weights, same outputs, compiled once."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrjax import io, ops, trees, zoo
from lrjax.errors import CheckpointError, ShapeError
from lrjax.formats import LowRank, Sum
from tests.zoo.test_goldens import GOLDENS, golden, quick

SCANNED = ("gemma2", "gpt2")


@pytest.mark.parametrize("name", SCANNED)
def test_scanned_layers_give_the_same_output_and_come_back_bit_equal(name):
    model, params, inputs, output, real = golden(name)
    scanned, stacked = zoo.scan_layers(model, params)
    run = quick(lambda params: scanned.apply({"params": params}, **inputs))
    np.testing.assert_allclose(np.asarray(run(stacked))[real], output[real], atol=1e-5)
    again, unrolled = zoo.unroll_layers(scanned, stacked)
    assert again == model
    leaves = trees.flatten(unrolled)[0]
    for path, leaf in trees.flatten(params)[0].items():
        np.testing.assert_array_equal(leaves[path], leaf, strict=True)


def lowered(params, ranks):
    """Query and up kernels as low rank, by layer."""

    def factor(path, leaf):
        if not path.endswith(("query/kernel", "up/kernel")):
            return leaf
        rank = ranks["layer_1" in path]
        u, s, vt = np.linalg.svd(np.asarray(leaf), full_matrices=False)
        return LowRank(jnp.asarray(u[:, :rank] * s[:rank]), jnp.asarray(vt[:rank]))

    return trees.map_weights(factor, params, with_path=True)


def test_ranks_of_scanned_layers_are_padded_and_trimmed_again():
    model, params, inputs, *_ = golden("llama")
    factored = lowered(params, ranks=(3, 5))
    scanned, stacked = zoo.scan_layers(model, factored)
    assert trees.get(stacked, "layers/attention/query/kernel").rank == 5
    both = lambda *trees: [
        form.apply({"params": tree}, **inputs)
        for form, tree in zip((model, scanned), trees, strict=True)
    ]
    np.testing.assert_allclose(*quick(both)(factored, stacked), atol=1e-5)
    _, unrolled = zoo.unroll_layers(scanned, stacked)
    for path, leaf in trees.flatten(factored)[0].items():
        other = trees.get(unrolled, path)
        assert jax.tree.structure(other) == jax.tree.structure(leaf)
        jax.tree.map(np.testing.assert_array_equal, other, leaf)


def test_sums_of_low_rank_parts_are_stacked_part_by_part():
    draw = lambda *shape: jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    layers = [Sum((LowRank(draw(6, r), draw(r, 5)), jnp.ones((6, 5)))) for r in (2, 4)]
    model = golden("llama")[0]
    params = {f"layer_{i}": {"mlp": {"kernel": w}} for i, w in enumerate(layers)}
    _, stacked = zoo.scan_layers(model, params)
    stack = trees.get(stacked, "layers/mlp/kernel")
    densified = quick(lambda *ws: [ops.densify(w) for w in ws])(stack, *layers)
    np.testing.assert_allclose(densified[0], densified[1:], atol=1e-5)
    _, unrolled = zoo.unroll_layers(model, stacked)
    assert trees.get(unrolled, "layer_0/mlp/kernel").parts[0].rank == 2


def test_layers_of_different_formats_cannot_be_scanned():
    model, params, *_ = golden("llama")
    mixed = trees.replace(
        params, {"layer_0/mlp/up/kernel": LowRank(jnp.ones((32, 2)), jnp.ones((2, 48)))}
    )
    with pytest.raises(ShapeError, match=r"layers/mlp/up/kernel: got .*LowRank"):
        zoo.scan_layers(model, mixed)
    model, params, *_ = golden("qwen2_moe")
    with pytest.raises(ShapeError):
        zoo.scan_layers(model, params)


@pytest.mark.parametrize("name", ["albert", "lstm", "resnet"])
def test_models_without_a_stack_of_layers_have_no_scanned_form(name):
    with pytest.raises(ShapeError, match="expected a stack of layers"):
        zoo.scan_layers(*golden(name)[:2])


def test_a_scanned_model_is_as_large_at_any_depth():
    model = golden("llama")[0]

    def equations(depth):
        deep = zoo.Llama(zoo.LlamaConfig(**small(model.config, depth)), scanned=True)
        shapes = jax.eval_shape(deep.init, jax.random.key(0), *deep.example())
        jaxpr = jax.make_jaxpr(deep.apply)(shapes, *deep.example())
        return len(str(jaxpr).splitlines())

    assert equations(2) == equations(40)


def small(config, depth):
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")
    return {name: getattr(config, name) for name in names} | {"num_hidden_layers": depth}


def test_scanned_weights_are_written_in_the_published_layout(tmp_path):
    model, params, *_ = golden("mixtral")
    scanned, stacked = zoo.scan_layers(model, params)
    zoo.save(tmp_path / "out", scanned, stacked)
    _, again = zoo.load(tmp_path / "out")
    for path, leaf in trees.flatten(params)[0].items():
        np.testing.assert_array_equal(trees.get(again, path), leaf, strict=True)


@pytest.mark.parametrize("form", ["unrolled", "scanned", "factored"])
def test_an_artefact_opens_with_its_model(form, tmp_path):
    model, params, *_ = golden("llama")
    if form == "factored":
        params = lowered(params, ranks=(3, 5))
    if form != "unrolled":
        model, params = zoo.scan_layers(model, params)
    io.save(tmp_path / "artefact", params, config=model.config.to_json())
    again, leaves = zoo.load(tmp_path / "artefact")
    assert again == model
    assert jax.tree.structure(leaves) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, leaves, params)


def test_an_artefact_of_another_model_is_refused(tmp_path):
    config = json.loads((GOLDENS / "llama" / "config.json").read_text())
    io.save(tmp_path / "a", {"w": np.ones((2, 3), np.float32)}, config=config)
    with pytest.raises(CheckpointError, match=r"got parameters w, .* expected those of the llama"):
        zoo.load(tmp_path / "a")
    io.save(tmp_path / "b", {"w": np.ones((2, 3), np.float32)}, config={"model_type": "odd"})
    with pytest.raises(CheckpointError, match="got 'odd'"):
        zoo.load(tmp_path / "b")
