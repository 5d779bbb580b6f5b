"""Checkpoints of every family as the wild has them, and what is refused with its name."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from lrjax import trees, zoo
from lrjax.errors import CheckpointError, ShapeError
from lrjax.io import hf
from lrjax.zoo import resnet
from tests.zoo.test_goldens import GOLDENS, golden, quick


@pytest.fixture
def copy(tmp_path):
    """Copies a golden with changed tensors and config."""

    def make(name, change=lambda tensors: None, **config):
        folder = tmp_path / name
        shutil.copytree(GOLDENS / name, folder)
        found = safetensors.numpy.load_file(folder / "model.safetensors")
        change(found)
        safetensors.numpy.save_file(found, folder / "model.safetensors")
        text = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(text | config))
        return folder

    return make


def same(params, name):
    expected = trees.flatten(golden(name)[1])[0]
    found = trees.flatten(params)[0]
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(found[path], leaf, strict=True)


def renamed(*rules):
    """Renames tensors by regular expressions."""

    def change(tensors):
        for name in list(tensors):
            other = name
            for rule in rules:
                other = re.sub(*rule, other)
            tensors[other] = tensors.pop(name)

    return change


def test_the_oldest_gpt2_files_lack_the_prefix_and_carry_masks(copy):
    def age(tensors):
        renamed((r"^transformer\.", ""))(tensors)
        tensors["h.0.attn.bias"] = np.ones((1, 1, 24, 24), np.float32)
        tensors["h.1.attn.masked_bias"] = np.array(-1e4, np.float32)

    same(zoo.load(copy("gpt2", age))[1], "gpt2")


def test_vision_transformers_are_read_under_the_names_of_today(copy):
    today = renamed(
        (r"encoder\.layer\.", "layers."),
        (r"attention\.attention\.(.)\w+", r"attention.\1_proj"),
        (r"attention\.output\.dense", "attention.o_proj"),
        (r"intermediate\.dense", "mlp.fc1"),
        (r"(layers\.\d)\.output\.dense", r"\1.mlp.fc2"),
    )
    same(zoo.load(copy("vit", today))[1], "vit")


@pytest.mark.parametrize(
    ("name", "head", "table"),
    [
        ("qwen2", "lm_head.weight", "model.embed_tokens.weight"),
        ("gpt2", "lm_head.weight", "transformer.wte.weight"),
        (
            "bert_masked",
            "cls.predictions.decoder.weight",
            "bert.embeddings.word_embeddings.weight",
        ),
        ("bert_masked", "cls.predictions.decoder.bias", "cls.predictions.bias"),
    ],
)
def test_a_tied_copy_must_be_one(copy, name, head, table, tmp_path):
    folder = copy(name, lambda t: t.update({head: t[table].copy()}))
    same(zoo.load(folder)[1], name)
    shutil.rmtree(folder)
    folder = copy(name, lambda t: t.update({head: t[table] + 1}))
    with pytest.raises(CheckpointError, match=rf"{head}: got other values than {table}"):
        zoo.load(folder)


def test_a_masked_bert_keeps_the_pooler_and_the_pair_head_of_its_file(copy, tmp_path):
    more = {
        "bert.pooler.dense.weight": np.ones((32, 32), np.float32),
        "bert.pooler.dense.bias": np.ones(32, np.float32),
        "cls.seq_relationship.weight": np.ones((2, 32), np.float32),
        "cls.seq_relationship.bias": np.ones(2, np.float32),
    }
    folder = copy("bert_masked", lambda t: t.update(more))
    model, params = zoo.load(folder)
    inputs, output = golden("bert_masked")[2:4]
    run = quick(lambda params: model.apply({"params": params}, **inputs))
    np.testing.assert_allclose(run(params), output, atol=1e-5)
    zoo.save(tmp_path / "again", model, params)
    files = [f / "model.safetensors" for f in (folder, tmp_path / "again")]
    before, after = map(safetensors.numpy.load_file, files)
    assert before.keys() == after.keys()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_shards_and_half_precision_travel_bit_by_bit(dtype, tmp_path):
    tensors = safetensors.numpy.load_file(GOLDENS / "mixtral" / "model.safetensors")
    half = {name: np.asarray(jnp.asarray(x, dtype)) for name, x in tensors.items()}
    config = json.loads((GOLDENS / "mixtral" / "config.json").read_text())
    hf.write(tmp_path / "half", half, config=config, shard_bytes=16_000)
    assert len(list((tmp_path / "half").glob("*.safetensors"))) > 2
    model, params = zoo.load(tmp_path / "half")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}
    zoo.save(tmp_path / "again", model, params)
    again = hf.read(tmp_path / "again")
    for name, x in half.items():
        np.testing.assert_array_equal(again[name], x, strict=True)

    victim = sorted((tmp_path / "half").glob("*.safetensors"))[1]
    inside = next(iter(hf.header(victim)))
    victim.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=rf"{victim.name}, .*got no such shard"):
        zoo.load(tmp_path / "half")
    assert inside in half


EXPERT = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
BAD_TENSORS = {
    "missing": (lambda t: t.pop(EXPERT), rf"{EXPERT}: got 1 missing .*\(16, 32\)"),
    "extra": (
        lambda t: t.update({"lm_head.bias": np.zeros(61, np.float32)}),
        r"model\.safetensors, lm_head.bias: got 1 extra tensor .*\(61,\)",
    ),
    "shape": (
        lambda t: t.update({EXPERT: t[EXPERT].T.copy()}),
        rf"{EXPERT}: got shape \(32, 16\), float32; expected shape \(16, 32\)",
    ),
    "nan": (lambda t: t[EXPERT].__setitem__((0, 0), np.nan), rf"{EXPERT}: got 1 of 512"),
    "double": (
        lambda t: t.update({EXPERT: t[EXPERT].astype(np.float64)}),
        rf"{EXPERT}: got .*float64; expected .*float32",
    ),
    "mixed": (
        lambda t: t.update({EXPERT: t[EXPERT].astype(np.float16)}),
        rf"{EXPERT}: got .*float16; expected .*in float32",
    ),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_one_bad_expert_is_named(copy, case):
    change, words = BAD_TENSORS[case]
    with pytest.raises(CheckpointError, match=words):
        zoo.load(copy("mixtral", change))


BAD_CONFIGS = [
    ("llama", {"rope_parameters": {"rope_type": "xpos"}}, "rope_type: got 'xpos'"),
    ("llama", {"rope_parameters": {"rope_type": "linear"}}, "factor: got nothing"),
    ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ("llama", {"head_dim": 7}, "head_dim: got 7; expected an even"),
    ("llama", {"num_key_value_heads": 3}, "num_key_value_heads: got 3; expected a divisor"),
    ("llama", {"hidden_act": "snake"}, "hidden_act: got 'snake'"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "'LlamaForCausalLM'"),
    ("llama", {"hidden_size": 48}, r"got shape .*expected shape .* by config.json"),
    ("llama", {"tie_word_embeddings": True}, "lm_head.weight: got other values"),
    ("qwen2", {"layer_types": ["chunked_attention"] * 2}, "layer_types: got 'chunked"),
    ("qwen2", {"layer_types": ["full_attention"]}, "layer_types: got 1 types"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma2", {"hidden_activation": 3}, "hidden_activation: got 3; expected str"),
    ("mixtral", {"num_experts_per_tok": 9}, "num_experts_per_tok: got 9"),
    ("mixtral", {"num_local_experts": 5}, "experts.4.w1.weight: got 6 missing"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention: got True"),
    ("gpt2", {"n_head": 5}, "n_head: got 5; expected a divisor of n_embd 32"),
    ("albert", {"num_hidden_groups": 1}, "albert_layer_groups.1.*extra"),
    ("vit", {"patch_size": 8}, r"got shape \(.*expected shape \("),
    ("deit", {"architectures": ["ViTModel"]}, "got .*'ViTModel'"),
    ("resnet", {"layer_type": "shuffle"}, "layer_type: got 'shuffle'"),
    ("resnet", {"depths": [2]}, "depths: got 1 stages"),
    ("lstm", {"embedding_size": 16, "tie_word_embeddings": True}, "embedding_size: got 16"),
]


@pytest.mark.parametrize(("name", "config", "words"), BAD_CONFIGS)
def test_a_config_that_cannot_be_honoured_is_refused(copy, name, config, words):
    with pytest.raises(CheckpointError, match=words):
        zoo.load(copy(name, **config))


def test_a_model_built_by_hand_is_read_again(tmp_path):
    config = zoo.Qwen3Config(
        vocab_size=11,
        hidden_size=8,
        intermediate_size=6,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10.0},
    )
    model = zoo.Llama(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *model.example())["params"]
    params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes)
    zoo.save(tmp_path / "hand", model, params)
    written = json.loads((tmp_path / "hand" / "config.json").read_text())
    assert written["model_type"] == "qwen3"
    assert written["architectures"] == ["Qwen3ForCausalLM"]
    assert zoo.load(tmp_path / "hand")[0] == model


def test_folded_batch_norms_change_nothing(tmp_path):
    model, params, inputs, output, _ = golden("resnet_basic")
    folded, leaves = zoo.fold(model, params)
    assert not any("norm" in path for path in trees.paths(leaves))
    run = quick(lambda params: folded.apply({"params": params}, **inputs))
    np.testing.assert_allclose(run(leaves), output, atol=1e-4)
    with pytest.raises(CheckpointError, match="folded"):
        zoo.save(tmp_path / "folded", folded, leaves)


def test_images_of_another_shape_are_refused():
    for name in ("vit", "resnet"):
        model, params, *_ = golden(name)
        with pytest.raises(ShapeError, match=r"pixel_values: got shape \(1, 16, 16, 3\)"):
            model.apply({"params": params}, jnp.zeros((1, 16, 16, 3)))


def test_padding_before_a_text_leaves_a_recurrent_state_alone():
    model, params, inputs, *_ = golden("lstm")
    ids = inputs["input_ids"]
    padded = jnp.pad(ids, ((0, 0), (2, 0)), constant_values=5)
    mask = jnp.pad(jnp.ones_like(ids), ((0, 0), (2, 0)))
    run = quick(lambda params: model.apply({"params": params}, padded, mask))
    np.testing.assert_allclose(run(params)[:, 2:], golden("lstm")[3], atol=1e-5)


def test_max_pooling_has_a_gradient():
    grads = jax.grad(lambda x: resnet.max_pool(x).sum())(jnp.arange(16.0).reshape(1, 4, 4, 1))
    expected = np.zeros((4, 4))
    expected[1::2, 1::2] = 1
    np.testing.assert_array_equal(grads[0, :, :, 0], expected)
