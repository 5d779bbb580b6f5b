"""Published checkpoints: read tensor by tensor, written whole, errors that name file and tensor."""

import json
import os

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from lrjax.errors import CheckpointError
from lrjax.io import hf

TENSORS = {
    "embed.weight": np.arange(12, dtype=np.float32).reshape(4, 3),
    "head.weight": np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3),
    "head.bias": np.ones(2, np.float16),
    "step": np.array(3, np.int64),
}


def same(found, tensors):
    assert found.keys() == tensors.keys()
    for name, x in tensors.items():
        assert found[name].dtype == x.dtype
        assert np.array_equal(found[name], x)


def test_one_file_agrees_with_the_safetensors_library(tmp_path):
    hf.write(tmp_path / "m", TENSORS, config={"model_type": "bert"})
    same(hf.read(tmp_path / "m"), TENSORS)
    same(hf.read(tmp_path / "m" / "model.safetensors"), TENSORS)
    same(safetensors.numpy.load_file(tmp_path / "m" / "model.safetensors"), TENSORS)
    assert json.loads((tmp_path / "m" / "config.json").read_text()) == {"model_type": "bert"}


def test_shards_and_index_agree_with_one_file(tmp_path):
    hf.write(tmp_path / "m", TENSORS, shard_bytes=50)
    names = sorted(p.name for p in (tmp_path / "m").iterdir())
    assert names == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in TENSORS.values())
    for name, shard in index["weight_map"].items():
        assert name in safetensors.numpy.load_file(tmp_path / "m" / shard)
    found = hf.read(tmp_path / "m")
    same(found, TENSORS)
    assert len(found.files) == 2
    assert found.nbytes == index["metadata"]["total_size"]


def test_a_tensor_is_read_only_when_asked_for(tmp_path, monkeypatch):
    hf.write(tmp_path / "m", TENSORS)
    read = []
    real = hf.Checkpoint.__getitem__
    monkeypatch.setattr(
        hf.Checkpoint, "__getitem__", lambda self, name: (read.append(name), real(self, name))[1]
    )
    checkpoint = hf.read(tmp_path / "m")
    assert set(checkpoint) == set(TENSORS)
    assert checkpoint.entries["embed.weight"].shape == (4, 3)
    assert len(read) <= 1  # the type checker may look at one item of a mapping
    read.clear()
    checkpoint.tensor("head.bias", (2,))
    assert read == ["head.bias"]


def test_jax_arrays_and_transposes_are_written_and_left_alone(tmp_path):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensors = {"t": x.T, "j": jnp.asarray(x, jnp.bfloat16), "scalar": jnp.float32(2)}
    before = dict(tensors)
    hf.write(tmp_path / "m", tensors)
    assert all(tensors[name] is before[name] for name in before)
    found = hf.read(tmp_path / "m")
    assert np.array_equal(found["t"], x.T)
    assert found["j"].dtype == ml_dtypes.bfloat16
    assert found["scalar"].shape == ()


def test_nothing_is_overwritten_unasked(tmp_path):
    hf.write(tmp_path / "m", TENSORS)
    with pytest.raises(CheckpointError, match="there already"):
        hf.write(tmp_path / "m", {"a": np.ones(1)})
    hf.write(tmp_path / "m", {"a": np.ones(1)}, overwrite=True)
    assert set(hf.read(tmp_path / "m")) == {"a"}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(CheckpointError, match="did not write"):
        hf.write(tmp_path / "mine", TENSORS, overwrite=True)


def test_a_dtype_that_the_layout_lacks_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"model\.safetensors, w: got dtype int4"):
        hf.write(tmp_path / "m", {"w": np.zeros(2, ml_dtypes.int4)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, 3, 8, 40, -1])
def test_a_truncated_file_is_named(tmp_path, size):
    hf.write(tmp_path / "m", TENSORS)
    file = tmp_path / "m" / "model.safetensors"
    os.truncate(file, size if size >= 0 else file.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: got .*expected a whole"):
        hf.read(tmp_path / "m")


def test_a_shard_that_is_listed_but_absent_is_named(tmp_path):
    hf.write(tmp_path / "m", TENSORS, shard_bytes=50)
    (tmp_path / "m" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00002\.safetensors, .*got no such shard"):
        hf.read(tmp_path / "m")


def test_a_tensor_that_is_listed_but_absent_is_named(tmp_path):
    hf.write(tmp_path / "m", TENSORS, shard_bytes=50)
    index = tmp_path / "m" / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    said["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match="ghost: got no such tensor"):
        hf.read(tmp_path / "m")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}']
)
def test_a_broken_index_is_named(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json: got"):
        hf.read(tmp_path)


def test_an_index_may_not_lead_out_of_its_folder(tmp_path):
    hf.write_file(tmp_path / "secret.safetensors", {"a": np.ones(2)})
    (tmp_path / "m").mkdir()
    index = {"weight_map": {"a": "../secret.safetensors"}}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="no such shard"):
        hf.read(tmp_path / "m")


def test_a_wrong_shape_or_name_says_what_was_expected(tmp_path):
    hf.write(tmp_path / "m", TENSORS)
    checkpoint = hf.read(tmp_path / "m")
    with pytest.raises(CheckpointError, match=r"got shape \(4, 3\); expected shape \(4, 4\)"):
        checkpoint.tensor("embed.weight", (4, 4))
    with pytest.raises(CheckpointError, match=r"model\.safetensors, tail: got no such tensor"):
        checkpoint.tensor("tail")


def test_folders_without_weights_say_so(tmp_path):
    with pytest.raises(CheckpointError, match="no such file or folder"):
        hf.read(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no safetensors file"):
        hf.read(tmp_path)
    for name in ("a", "b"):
        hf.write_file(tmp_path / f"{name}.safetensors", {"x": np.ones(1)})
    with pytest.raises(CheckpointError, match="2 safetensors files and no index"):
        hf.read(tmp_path)
