"""Exported folders hold the model: recomputed in NumPy, and run by the reference library."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import unflatten_dict

from lrjax import export, trees, zoo
from lrjax.errors import CheckpointError
from lrjax.formats import BlockLowRank, LowRank, Sum
from lrjax.ops import densify
from lrjax.restructure import Units, Width, restructure
from tests.reference import ask, reference
from tests.restructure.cases import GOLDENS, case

REFERENCE = pathlib.Path(__file__).with_name("reference.py")


def loaded(name):
    """A golden checkpoint with pairs in some layers, dense + pair in others; and its inputs."""
    model, params = zoo.load(GOLDENS / name)
    leaves, rng = dict(trees.flatten(params)[0]), np.random.default_rng(0)
    for i, (path, leaf) in enumerate(list(leaves.items())):
        if leaf.ndim != 2 or not path.endswith("kernel") or "layer_" not in path:
            continue
        rank = 2 + i % 5
        left, right = (
            jnp.asarray(rng.normal(0, 0.2, shape), jnp.float32)
            for shape in ((leaf.shape[0], rank), (rank, leaf.shape[1]))
        )
        if "query" in path or "down" in path:
            leaves[path] = LowRank(left, right)
        elif "value" in path:
            leaves[path] = Sum((leaf, LowRank(left, right)))
    ids = jnp.asarray(np.random.default_rng(0).integers(1, 61, (2, 12)))
    return model, unflatten_dict(leaves, sep="/"), ids


def outputs(model, params, ids):
    return np.asarray(model.apply({"params": params}, ids))


def kernels(model, params):
    """Published linear weights [out, in] by the name of their layer, recomputed in NumPy."""
    dense = {p: np.asarray(densify(w)) for p, w in leaves(params)}
    found = {}
    for tensor in model.layout():
        if tensor.path.endswith("kernel"):
            own = dense[tensor.path].T
            found.setdefault(tensor.name.removesuffix(".weight"), []).append(own)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def leaves(params):
    return trees.flatten(params)[0].items()


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_pairs_and_base_add_up_to_the_weights(name, tmp_path):
    model, params, _ = loaded(name)
    export.peft(tmp_path / "pairs", model, params)
    pairs = safetensors.numpy.load_file(tmp_path / "pairs" / "adapter_model.safetensors")
    base = safetensors.numpy.load_file(tmp_path / "pairs" / "base" / "model.safetensors")
    config = json.loads((tmp_path / "pairs" / "adapter_config.json").read_text())
    seen = set()
    for layer, expected in kernels(model, params).items():
        own = base[f"{layer}.weight"]
        own = own.T if config["fan_in_fan_out"] and layer != "lm_head" else own
        a = pairs.get(f"base_model.model.{layer}.lora_A.weight")
        if a is not None:
            seen.add(layer)
            rank = config["rank_pattern"].get(layer, config["r"])
            assert len(a) == rank == config["alpha_pattern"].get(layer, config["lora_alpha"])
            own = own + pairs[f"base_model.model.{layer}.lora_B.weight"] @ a
        np.testing.assert_allclose(own, expected, atol=1e-5)
    assert seen == set(config["target_modules"])
    assert len(pairs) == 2 * len(seen)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_segments_hold_the_weights_and_nothing_twice(name, tmp_path):
    model, params, _ = loaded(name)
    export.custom_code(tmp_path / "code", model, params)
    tensors = safetensors.numpy.load_file(tmp_path / "code" / "model.safetensors")
    config = json.loads((tmp_path / "code" / "config.json").read_text())
    for layer, expected in kernels(model, params).items():
        if layer not in config["factored"]:
            own = tensors[f"{layer}.weight"]
            own = own.T if name == "gpt2" and layer != "lm_head" else own
            np.testing.assert_array_equal(own, expected)
            continue
        assert f"{layer}.weight" not in tensors
        parts = []
        for k, shape in enumerate(config["factored"][layer]["segments"]):
            get = lambda kind: tensors[f"{layer}.segments.{k}.{kind}.weight"]  # noqa: B023
            own = get("dense") if shape["dense"] else 0
            parts.append(own + get("up") @ get("down") if shape["rank"] else own)
            assert parts[-1].shape == (shape["out"], config["factored"][layer]["in"])
        np.testing.assert_allclose(np.concatenate(parts), expected, atol=1e-5)
    stored = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert sum(x.size for x in tensors.values()) == stored
    code = (tmp_path / "code" / "modeling_lrjax.py").read_text()
    assert f"class Factored{model.architecture}({model.architecture})" in code
    compile(code, "modeling_lrjax.py", "exec")


def test_a_base_that_is_there_is_used_if_it_fits(tmp_path):
    model, dense = zoo.load(GOLDENS / "llama")
    own = dict(leaves(dense))
    path = "layer_0/mlp/up/kernel"
    own[path] = Sum((own[path], LowRank(jnp.ones((32, 2)), jnp.ones((2, 48)))))
    params = unflatten_dict(own, sep="/")
    export.peft(tmp_path / "pairs", model, params, base=GOLDENS / "llama")
    assert not (tmp_path / "pairs" / "base").exists()
    own["norm/scale"] = own["norm/scale"] * 2
    with pytest.raises(CheckpointError, match=r"norm/scale: got other values"):
        export.peft(tmp_path / "no", model, unflatten_dict(own, sep="/"), base=GOLDENS / "llama")


def test_what_has_no_pairs_is_refused_by_name_or_densified(tmp_path):
    model, dense = zoo.load(GOLDENS / "llama")
    with pytest.raises(CheckpointError, match="no factored weight"):
        export.peft(tmp_path / "no", model, dense)
    own, path = dict(leaves(dense)), "layer_0/mlp/up/kernel"
    own[path] = BlockLowRank(jnp.ones((2, 16, 2)), jnp.ones((2, 2, 24)))
    params = unflatten_dict(own, sep="/")
    for write in (export.peft, export.custom_code):
        with pytest.raises(CheckpointError, match=f"{path}: got a BlockLowRank.*densify=True"):
            write(tmp_path / "no", model, params)
    export.custom_code(tmp_path / "code", model, params, densify=True)
    assert json.loads((tmp_path / "code" / "config.json").read_text())["factored"] == {}
    embed = {"embed": {"embedding": LowRank(jnp.ones((61, 2)), jnp.ones((2, 32)))}}
    with pytest.raises(CheckpointError, match="embed/embedding: got a LowRank"):
        export.custom_code(tmp_path / "no", model, dense | embed)


@pytest.mark.slow
def test_the_reference_library_runs_them_with_the_same_outputs(tmp_path):
    python, jobs = reference("torch", "transformers", "peft"), {}
    for name in ("llama", "gpt2", "bert", "qwen2"):
        model, params, ids = loaded(name)
        for kind, write in (("peft", export.peft), ("code", export.custom_code)):
            write(tmp_path / f"{name}_{kind}", model, params)
        export.dense(tmp_path / f"{name}_dense", model, params)
        for kind in ("peft", "code", "dense"):
            jobs[f"{name}_{kind}"] = outputs(model, params, ids)
    for name in ("llama", "gpt2", "bert"):
        own = case(name)
        cut = restructure(own.model, own.params, {"**": Units(keep=0.6)}, own.stats)
        assert cut[0].config.mlp_sizes is not None
        export.custom_code(tmp_path / f"{name}_cut", *cut)
        jobs[f"{name}_cut"] = outputs(*cut, ids)
    own = case("llama")
    rules = {"**/mlp": Units(keep=0.75, uniform=True), "": Width(size=24)}
    narrow = restructure(own.model, own.params, rules, own.stats)
    zoo.save(tmp_path / "narrow", *narrow)
    jobs["narrow"] = outputs(*narrow, ids)
    np.savez(tmp_path / "expected.npz", ids=ids, **jobs)
    ask(python, REFERENCE, tmp_path)
