"""Checkpoints travel in and out bit by bit, and a bad one is refused with its name and shape."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.numpy

from lrjax import trees, zoo
from lrjax.errors import CheckpointError
from lrjax.formats import LowRank
from lrjax.zoo.config import Config
from lrjax.zoo.names import Tensor

GOLDEN = pathlib.Path(__file__).parent / "goldens" / "bert"
QUERY = "encoder.layer.1.attention.self.query.weight"


@pytest.fixture
def folder(tmp_path):
    copy = tmp_path / "checkpoint"
    shutil.copytree(GOLDEN, copy)
    return copy


def tensors(folder):
    return safetensors.numpy.load_file(folder / "model.safetensors")


def rewrite(folder, change=lambda tensors: None, **config):
    found = tensors(folder)
    change(found)
    safetensors.numpy.save_file(found, folder / "model.safetensors")
    text = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(text | config))


def test_out_and_in_again_is_bit_equal(folder, tmp_path):
    model, params = zoo.load(folder)
    zoo.save(tmp_path / "again", model, params)
    before, after = tensors(folder), tensors(tmp_path / "again")
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], strict=True)
    config = json.loads((folder / "config.json").read_text())
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == config
    assert zoo.load(tmp_path / "again")[0] == model


def test_kernels_are_turned_and_tables_are_not(folder):
    _, params = zoo.load(folder)
    up = tensors(folder)["encoder.layer.0.intermediate.dense.weight"]
    np.testing.assert_array_equal(params["encoder"]["layer_0"]["mlp"]["up"]["kernel"], up.T)
    words = tensors(folder)["embeddings.word_embeddings.weight"]
    np.testing.assert_array_equal(params["embeddings"]["word"]["embedding"], words)


def test_position_ids_and_the_oldest_norm_names_are_read(folder):
    def age(found):
        found["embeddings.position_ids"] = np.arange(24)[None]
        for old, new in (("weight", "gamma"), ("bias", "beta")):
            found[f"embeddings.LayerNorm.{new}"] = found.pop(f"embeddings.LayerNorm.{old}")

    _, expected = zoo.load(folder)
    rewrite(folder, age)
    _, params = zoo.load(folder)
    for path, leaf in trees.flatten(expected)[0].items():
        np.testing.assert_array_equal(trees.get(params, path), leaf)


def test_an_encoder_without_a_pooler_is_one(folder, tmp_path):
    rewrite(folder, lambda t: [t.pop(f"pooler.dense.{k}") for k in ("weight", "bias")])
    model, params = zoo.load(folder)
    assert not model.pooled
    assert "pooler" not in params
    zoo.save(tmp_path / "again", model, params)
    assert tensors(tmp_path / "again").keys() == tensors(folder).keys()


def test_half_precision_stays(folder):
    rewrite(folder, lambda t: t.update({k: v.astype(np.float16) for k, v in t.items()}))
    _, params = zoo.load(folder)
    assert {leaf.dtype for leaf in trees.flatten(params)[0].values()} == {np.dtype("float16")}


def test_factored_weights_are_saved_dense(folder, tmp_path):
    model, params = zoo.load(folder)
    path = "encoder/layer_0/mlp/down/kernel"
    u, s, vt = np.linalg.svd(np.asarray(trees.get(params, path)), full_matrices=False)
    zoo.save(
        tmp_path / "out", model, trees.replace(params, {path: LowRank(u[:, :3] * s[:3], vt[:3])})
    )
    written = tensors(tmp_path / "out")["encoder.layer.0.output.dense.weight"]
    np.testing.assert_allclose(written, ((u[:, :3] * s[:3]) @ vt[:3]).T, atol=1e-5)


BAD = {
    "missing": (lambda t: t.pop(QUERY), {}, rf"{QUERY}: got 1 missing"),
    "extra": (lambda t: t.update(odd=np.zeros(3, np.float32)), {}, "odd: got 1 extra"),
    "shape": (
        lambda t: t.update({QUERY: t[QUERY][:5]}),
        {},
        r"query.weight: .*\(5, 32\).*\(32, 32\)",
    ),
    "integer": (
        lambda t: t.update({QUERY: t[QUERY].astype(np.int32)}),
        {},
        "query.weight: .*int32",
    ),
    "nan": (lambda t: t[QUERY].__setitem__((3, 4), np.nan), {}, "query.weight: got 1 of 1024"),
    "infinite": (lambda t: t[QUERY].__setitem__(3, -np.inf), {}, "query.weight: got 32 of 1024"),
    "width": (lambda t: None, {"intermediate_size": 40}, r"\(48, 32\).*\(40, 32\) by config.json"),
    "depth": (lambda t: None, {"num_hidden_layers": 1}, "16 extra tensors"),
    "heads": (lambda t: None, {"num_attention_heads": 5}, "a divisor of hidden_size 32"),
    "type": (
        lambda t: None,
        {"hidden_size": "32"},
        "config.json, hidden_size: got '32'; expected int",
    ),
    "activation": (lambda t: None, {"hidden_act": "sine"}, "hidden_act: got 'sine'"),
    "positions": (lambda t: None, {"position_embedding_type": "relative_key"}, "relative_key"),
    "head": (
        lambda t: None,
        {"architectures": ["BertForX"]},
        "BertForX",
    ),
    "model": (
        lambda t: None,
        {"model_type": "mamba"},
        r"model_type: got 'mamba'; expected .*'bert'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_checkpoint_is_refused_with_what_is_wrong(folder, case):
    change, config, words = BAD[case]
    rewrite(folder, change, **config)
    with pytest.raises(CheckpointError, match=words):
        zoo.load(folder)


def test_a_truncated_file_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        zoo.load(folder)


def test_folders_without_a_checkpoint_are_refused(folder, tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        zoo.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="a file"):
        zoo.load(folder / "config.json")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no safetensors"):
        zoo.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="broken JSON"):
        zoo.load(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="JSON object"):
        zoo.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        zoo.load(folder)


def test_save_refuses_what_is_not_the_models(folder, tmp_path):
    model, params = zoo.load(folder)
    with pytest.raises(CheckpointError, match="odd: got shape"):
        zoo.save(tmp_path / "x", model, params | {"odd": np.zeros(3)})
    with pytest.raises(CheckpointError, match="pooler/bias: got no such"):
        zoo.save(tmp_path / "x", model, {k: v for k, v in params.items() if k != "pooler"})
    wrong = trees.replace(params, {"pooler/bias": np.zeros(3)})
    with pytest.raises(
        CheckpointError, match=r"pooler/bias: got shape \(3,\); expected shape \(32,\)"
    ):
        zoo.save(tmp_path / "x", model, wrong)
    assert not (tmp_path / "x").exists()
    with pytest.raises(CheckpointError):
        zoo.save(folder, model, params)
    assert zoo.load(folder)


def test_axes_turn_back():
    tensor = Tensor("conv", "conv/kernel", axes=(2, 3, 1, 0))
    published = np.arange(120).reshape(2, 3, 4, 5)
    assert tensor.decode(published).shape == (4, 5, 3, 2)
    assert tensor.published((4, 5, 3, 2)) == (2, 3, 4, 5)
    np.testing.assert_array_equal(tensor.encode(tensor.decode(published)), published)


def test_a_config_needs_what_has_no_default():
    import dataclasses

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Width(Config):
        width: int
        ratio: float = 1.0

    assert Width.from_json({"width": 3, "ratio": 2, "odd": [1]}).to_json() == {
        "width": 3,
        "ratio": 2,
        "odd": [1],
    }
    with pytest.raises(CheckpointError, match=r"config\.json, width: got nothing"):
        Width.from_json({})
    with pytest.raises(CheckpointError, match="ratio: got True; expected float"):
        Width.from_json({"width": 3, "ratio": True})
