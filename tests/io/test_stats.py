"""Statistics come back bit-equal, with all that they know of the model's weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrjax import io
from lrjax.calibrate import calibrate
from lrjax.errors import ArtefactError


@pytest.fixture(scope="module")
def stats():
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "embed": jax.random.normal(keys[0], (7, 5)),
        "mlp": {"kernel": jax.random.normal(keys[1], (5, 3)), "bias": jnp.zeros(3)},
    }

    def apply(params, tokens):
        return params["embed"][tokens] @ params["mlp"]["kernel"] + params["mlp"]["bias"]

    return calibrate(apply, params, [jax.random.randint(keys[2], (4, 6), 0, 7)])


def test_a_round_trip_is_bit_equal(stats, tmp_path):
    io.save_stats(tmp_path / "s", stats)
    back = io.load_stats(tmp_path / "s")
    assert jax.tree.structure(back) == jax.tree.structure(stats)
    for x, y in zip(jax.tree.leaves(back), jax.tree.leaves(stats), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
    assert back.usage == stats.usage
    assert back.usage["mlp/kernel"].bias == "mlp/bias"
    assert back.digest() == stats.digest()
    assert (back + stats).tokens == 2 * stats.tokens


def test_an_artefact_is_no_statistics_and_the_other_way_round(stats, tmp_path):
    io.save_stats(tmp_path / "s", stats)
    io.save(tmp_path / "a", {"w": np.ones(2, np.float32)})
    with pytest.raises(ArtefactError, match="kind 'lrjax artefact'; expected 'lrjax statistics'"):
        io.load_stats(tmp_path / "a")
    with pytest.raises(ArtefactError, match="kind 'lrjax statistics'; expected 'lrjax artefact'"):
        io.load(tmp_path / "s")
    with pytest.raises(ArtefactError, match="did not write"):
        io.save(tmp_path / "s", {"w": np.ones(2)}, overwrite=True)


def test_a_digest_of_other_statistics_is_found(stats, tmp_path):
    io.save_stats(tmp_path / "s", stats)
    file = tmp_path / "s" / "manifest.json"
    manifest = json.loads(file.read_text()) | {"statistics": "0" * 64}
    manifest["digest"] = io.manifest.own_digest(manifest)
    file.write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError, match=f"expected {'0' * 64}"):
        io.load_stats(tmp_path / "s")
