"""Damage is found before use, and the message names file, tensor, expected and found."""

import json
import os
import shutil

import numpy as np
import pytest
import safetensors.numpy

from lrjax import io
from lrjax.errors import ArtefactError
from lrjax.formats import LowRank


def params():
    rng = np.random.default_rng(0)
    import jax.numpy as jnp

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    return {"mlp": {"kernel": LowRank(draw(8, 2), draw(2, 6)), "bias": draw(6)}}


@pytest.fixture(scope="module", params=list(io.Storage))
def pristine(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("pristine") / request.param.value
    io.save(folder, params(), format=request.param)
    return folder


@pytest.fixture
def folder(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / pristine.name)


@pytest.fixture
def plain(tmp_path):
    io.save(tmp_path / "plain", params())
    return tmp_path / "plain"


def edit(folder, change, *, sign=True):
    """Rewrites the manifest, with a digest that fits unless told otherwise."""
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    if sign:
        manifest["digest"] = io.manifest.own_digest(manifest)
    file.write_text(json.dumps(manifest))


def retensor(folder, change):
    """Rewrites the weights file through the safetensors library."""
    file = folder / "weights.safetensors"
    tensors = safetensors.numpy.load_file(file)
    change(tensors)
    safetensors.numpy.save_file(tensors, file)


def test_every_file_cut_short_is_found(folder):
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    assert len(files) >= 2
    for file in files:
        whole = file.read_bytes()
        for keep in {0, len(whole) // 2, len(whole.rstrip()) - 1}:
            file.write_bytes(whole[:keep])
            with pytest.raises(ArtefactError, match=r"got .*expected "):
                io.load(folder)
        file.write_bytes(whole)
    io.load(folder)


def test_every_file_with_one_bit_flipped_is_found(folder):
    for file in (p for p in sorted(folder.rglob("*")) if p.is_file()):
        whole = file.read_bytes()
        for at in {0, len(whole) // 3, len(whole) - 2}:
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(ArtefactError):
                io.load(folder)
        file.write_bytes(whole)
    io.load(folder)


def test_every_file_missing_is_named(folder):
    for file in (p for p in sorted(folder.rglob("*")) if p.is_file()):
        aside = file.rename(folder.parent / "aside")
        with pytest.raises(ArtefactError, match=file.name):
            io.load(folder)
        aside.rename(file)
    io.load(folder)


def test_a_flipped_bit_names_the_tensor(plain):
    file = plain / "weights.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1
    file.write_bytes(whole)
    with pytest.raises(ArtefactError, match=r"weights\.safetensors, mlp/.*got sha256 .*expected"):
        io.load(plain)


def test_truncation_names_sizes(plain):
    file = plain / "weights.safetensors"
    size = file.stat().st_size
    os.truncate(file, size - 7)
    with pytest.raises(
        ArtefactError, match=rf"weights\.safetensors: got {size - 7} bytes; expected {size} bytes"
    ):
        io.load(plain)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("mlp/bias"), r"mlp/bias: got no such tensor; expected shape \(6,\)"),
        (lambda t: t.update(odd=np.ones(3)), r"odd: got a tensor of shape \(3,\); expected only"),
        (
            lambda t: t.update({"mlp/bias": np.ones(7, np.float32)}),
            r"mlp/bias: got shape \(7,\), float32; expected shape \(6,\), float32",
        ),
        (
            lambda t: t.update({"mlp/bias": t["mlp/bias"].astype(np.float16)}),
            r"mlp/bias: got shape \(6,\), float16; expected shape \(6,\), float32",
        ),
        (
            lambda t: t.update({"mlp/bias": t["mlp/bias"] + 1}),
            r"weights\.safetensors, mlp/bias: got",
        ),
    ],
)
def test_a_wrong_tensor_is_named(plain, change, said):
    retensor(plain, change)
    with pytest.raises(ArtefactError, match=said):
        io.load(plain)


def test_a_tensor_in_a_file_of_its_own_is_extra(plain):
    safetensors.numpy.save_file({"odd": np.ones(3)}, plain / "weights-2.safetensors")
    with pytest.raises(ArtefactError, match="odd: got a tensor of shape"):
        io.load(plain)


def test_an_unknown_schema_version_says_which(plain):
    edit(plain, lambda m: m.update(schema=2))
    with pytest.raises(ArtefactError, match="got schema version 2; expected version 1"):
        io.load(plain)


def test_an_edited_manifest_is_found(plain):
    edit(plain, lambda m: m.update(config={"hidden_size": 7}), sign=False)
    with pytest.raises(ArtefactError, match=r"manifest\.json: got content of digest"):
        io.load(plain)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("tensors"),
        lambda m: m.pop("tree"),
        lambda m: m.update(storage="papyrus"),
        lambda m: m.update(files={"../secret": {"bytes": 1, "sha256": "x"}}),
        lambda m: m.update(files={"/etc/hostname": {"bytes": 1, "sha256": "x"}}),
        lambda m: m.update(tree={"pickle": "gASVAAAA"}),
        lambda m: m["tree"]["dict"]["mlp"]["dict"]["bias"].update(tensor="gone"),
        lambda m: m["tree"]["dict"]["mlp"]["dict"]["kernel"].update({"class": "os.system"}),
        lambda m: m["tree"]["dict"]["mlp"]["dict"]["kernel"]["fields"].pop("left"),
        lambda m: m["tree"]["dict"]["mlp"]["dict"]["kernel"]["fields"].update(rows={"tuple": [3]}),
        lambda m: m["tree"]["dict"]["mlp"]["dict"].pop("bias"),
        lambda m: m["weights"]["mlp/kernel"].update(shape=[8, 7]),
    ],
)
def test_a_manifest_that_does_not_fit_is_an_error_of_ours(plain, change):
    edit(plain, change)
    with pytest.raises(ArtefactError):
        io.load(plain)


def test_a_half_written_folder_says_so(plain):
    (plain / "manifest.json").unlink()
    with pytest.raises(ArtefactError, match="half-written"):
        io.load(plain)


def test_what_is_no_artefact_says_so(tmp_path):
    with pytest.raises(ArtefactError, match="no such folder"):
        io.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtefactError, match=r"no manifest\.json"):
        io.load(tmp_path / "empty")
    (tmp_path / "file").write_text("hello")
    with pytest.raises(ArtefactError, match="got a file"):
        io.load(tmp_path / "file")
    for text in ("{}", "[]", '{"kind": "npm package"}', "{", "", "\x00"):
        (tmp_path / "empty" / "manifest.json").write_text(text)
        with pytest.raises(ArtefactError):
            io.load(tmp_path / "empty")
    (tmp_path / "empty" / "manifest.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArtefactError, match="not text"):
        io.load(tmp_path / "empty")


def test_an_unreadable_manifest_gives_the_systems_reason(plain, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_text", refuse)
    with pytest.raises(ArtefactError, match="got Permission denied"):
        io.load(plain)


def test_loading_changes_nothing(folder):
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*")}
    io.load(folder)
    assert before == {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*")}
    assert list(folder.parent.iterdir()) == [folder]


def test_a_stray_file_among_orbax_files_is_named(tmp_path):
    io.save(tmp_path / "a", params(), format=io.Storage.ORBAX)
    (tmp_path / "a" / "orbax" / "d" / "stray").write_text("?")
    with pytest.raises(ArtefactError, match="stray: got a file; expected only files"):
        io.load(tmp_path / "a")
