"""Every kind of PATH shows the same weights; what is none of them is said in one line."""

import json
import os
import shutil

import numpy as np
import pytest

from lrjax import io
from lrjax.cli import source


def test_bare_files_and_orbax_folders_show_the_same_weights(run, bare, orbax):
    one, two = run("inspect", bare, "--json"), run("inspect", orbax, "--json")
    assert one.code == two.code == 0
    assert one.json["kind"] == "safetensors"
    assert two.json["kind"] == "orbax"
    key = lambda rows: sorted(
        (row["path"], row["params"], row["k90"], round(row["stable_rank"] or 0, 3)) for row in rows
    )
    assert key(one.json["weights"]) == key(two.json["weights"])
    assert run("diff", bare, orbax, "--json").json["equal"] is True


def test_spectra_agree_with_numpy(run, bare, weights):
    rows = {row["path"]: row for row in run("inspect", bare, "--json").json["weights"]}
    for name, w in weights.items():
        row = rows[name.replace(".", "/")]
        assert row["shape"] == list(w.shape)
        assert row["params"] == w.size
        assert row["bytes"] == w.nbytes
        if w.ndim < 2:
            assert row["stable_rank"] is None
            continue
        energy = np.linalg.svd(w.astype(np.float64), compute_uv=False) ** 2
        assert row["stable_rank"] == pytest.approx(energy.sum() / energy[0], rel=1e-3)
        share = np.cumsum(energy) / energy.sum()
        assert row["k95"] == 1 + int(np.searchsorted(share, 0.95))


def test_a_published_encoder_is_read_through_the_zoo(run, encoder):
    outcome = run("inspect", encoder, "--no-spectra", "--json")
    assert outcome.code == 0
    assert outcome.json["kind"] == "checkpoint"
    paths = {row["path"] for row in outcome.json["weights"]}
    assert any(path.endswith("kernel") for path in paths)
    assert "stable_rank" not in outcome.json["weights"][0]


def test_text_goes_to_stdout_and_progress_to_stderr(run, bare):
    outcome = run("inspect", bare, "--match", "layers/**")
    assert outcome.code == 0
    assert "layers/1/weight" in outcome.out
    assert "head" not in outcome.out
    assert "3 weights" in outcome.out
    assert "spectra" in outcome.err


def test_names_with_slashes_nest_at_slashes_and_clashes_stay_flat():
    assert source.nest({"a/b.c": 1, "a/d": 2}) == {"a": {"b.c": 1, "d": 2}}
    assert source.nest({"a.b": 1, "c": 2}) == {"a": {"b": 1}, "c": 2}
    assert source.nest({"a.b": 1, "a": 2}) == {"a.b": 1, "a": 2}
    assert source.nest({"a": 1, "a.b": 2}) == {"a": 1, "a.b": 2}


def test_a_weight_that_is_not_finite_is_shown_as_such(run, tmp_path):
    io.hf.write_file(tmp_path / "x.safetensors", {"w": np.full((4, 3), np.nan, np.float32)})
    outcome = run("inspect", tmp_path / "x.safetensors")
    assert outcome.code == 0
    assert "NOT FINITE" in outcome.out


def damaged(kind, tmp_path, bare, encoder):
    """A path with one thing wrong, and what the reason must say."""
    copy = tmp_path / "copy"
    match kind:
        case "nowhere":
            return tmp_path / "nowhere", "no such file or folder"
        case "empty folder":
            copy.mkdir()
            return copy, "no safetensors file"
        case "text file":
            (tmp_path / "notes.txt").write_text("hello")
            return tmp_path / "notes.txt", r"a file \.txt"
        case "cut file":
            shutil.copy(bare, copy.with_suffix(".safetensors"))
            os.truncate(copy.with_suffix(".safetensors"), 900)
            return copy.with_suffix(".safetensors"), "a whole safetensors file"
        case "no safetensors at all":
            copy.with_suffix(".safetensors").write_text("hello")
            return copy.with_suffix(".safetensors"), "header"
        case "wrong architecture":
            shutil.copytree(encoder, copy)
            (copy / "config.json").write_text('{"model_type": "starfish"}')
            return copy, "'starfish'"
        case "mismatched config":
            shutil.copytree(encoder, copy)
            config = json.loads((copy / "config.json").read_text())
            (copy / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
            return copy, "shape"
        case "broken config":
            shutil.copytree(encoder, copy)
            (copy / "config.json").write_text("{")
            return copy, r"config\.json"
        case "absent weights":
            shutil.copytree(encoder, copy)
            (copy / "model.safetensors").unlink()
            return copy, "safetensors"
        case "half an artefact":
            io.save(copy, {"w": np.ones((3, 2), np.float32)})
            (copy / "manifest.json").unlink()
            return copy, "half-written"
        case "cut artefact":
            io.save(copy, {"w": np.ones((3, 2), np.float32)})
            os.truncate(copy / "weights.safetensors", 80)
            return copy, r"weights\.safetensors.* bytes"
        case "broken orbax":
            copy.mkdir()
            (copy / "_METADATA").write_text("{}")
            return copy, "orbax"
    raise AssertionError(kind)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "kind",
    [
        "nowhere",
        "empty folder",
        "text file",
        "cut file",
        "no safetensors at all",
        "wrong architecture",
        "mismatched config",
        "broken config",
        "absent weights",
        "half an artefact",
        "cut artefact",
        "broken orbax",
    ],
)
def test_a_bad_source_gives_one_line_and_code_2(run, kind, tmp_path, bare, encoder):
    import re

    path, said = damaged(kind, tmp_path, bare, encoder)
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    for command in (["inspect", path], ["compress", path, tmp_path / "out", "--keep", "0.5"]):
        outcome = run(*command, "--json")
        assert outcome.code == 2, outcome
        assert outcome.out == ""
        assert outcome.reason.startswith("lrjax: ")
        assert re.search(said, outcome.reason), outcome.reason
        assert "Traceback" not in outcome.err
    assert before == sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
