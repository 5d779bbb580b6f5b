"""An artefact comes back as it went in, without the model that it was made from."""

import dataclasses
import json

import flax
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from lrjax import formats, io, trees
from lrjax.errors import ArtefactError
from lrjax.formats import Factored, LowRank, Network, Sum, register
from lrjax.io import codec


@register(meta=("scale",))
@dataclasses.dataclass(frozen=True)
class Outer(Factored):
    """A user's own format: W = scale * outer(a, b)."""

    a: jax.Array
    b: jax.Array
    scale: tuple[int, ...] = (1,)

    def networks(self):
        return (Network.parse("... i, ... j -> ... i j", self.a, self.b),)


def random(*shape, dtype=jnp.float32, seed=0):
    values = np.random.default_rng((seed, *shape)).standard_normal(shape)
    return jnp.asarray(values, dtype)


def tree():
    table = random(7, 5)
    return {
        "embed": {"table": table},
        "head": {"table": table},
        "layers": {
            "kernel": LowRank(random(3, 4, 2), random(3, 2, 6), rows=(2, 2), order=(0, 2, 1)),
            "bias": random(3, 6, dtype=jnp.bfloat16),
        },
        "blocks": [
            {"w": Sum((random(3, 5), LowRank(random(3, 2), random(2, 5))))},
            {"w": LowRank(random(3, 1, dtype=jnp.bfloat16), random(1, 5, dtype=jnp.bfloat16))},
        ],
        "step": (np.arange(3, dtype=np.int64), None, np.float64(0.1) * np.ones(())),
        "empty": jnp.zeros((0, 3)),
        "mask": np.eye(3, dtype=bool),
    }


def bits(tree):
    return [(x.dtype, x.shape, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize("format", io.Storage)
def test_a_round_trip_is_bit_equal_and_rebuilds_every_container_and_class(tmp_path, format):
    params = tree()
    io.save(tmp_path / "a", params, format=format)
    back = io.load(tmp_path / "a").params
    assert jax.tree.structure(back) == jax.tree.structure(params)
    assert bits(back) == bits(params)
    assert trees.shared(back) == trees.shared(params) == {"head/table": "embed/table"}


@pytest.mark.parametrize("format", io.Storage)
def test_narrow_types_are_kept(tmp_path, format):
    params = {"w": np.arange(6, dtype=ml_dtypes.float8_e4m3fn).reshape(2, 3)}
    if format is io.Storage.SAFETENSORS:
        with pytest.raises(ArtefactError, match=r"w: got dtype float8_e4m3fn"):
            io.save(tmp_path / "a", params, format=format)
        assert list(tmp_path.iterdir()) == []
    else:
        io.save(tmp_path / "a", params, format=format)
        assert bits(io.load(tmp_path / "a").params) == bits(params)


def test_the_callers_tree_is_left_alone(tmp_path):
    params = {"a": random(2, 3), "b": {"c": random(4)}}
    before = jax.tree.leaves(params)
    io.save(tmp_path / "a", params)
    after = jax.tree.leaves(params)
    assert all(x is y for x, y in zip(before, after, strict=True))


def test_transposed_arrays_are_stored_in_their_own_order(tmp_path):
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    io.save(tmp_path / "a", {"t": x.T, "s": x[:, ::2]})
    back = io.load(tmp_path / "a").params
    assert np.array_equal(back["t"], x.T)
    assert np.array_equal(back["s"], x[:, ::2])


def test_frozen_dicts_states_and_boxes_come_back_as_dicts_of_the_same_paths(tmp_path):
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    state = nnx.state(model)
    boxed = {"w": flax.linen.Partitioned(random(2, 3), (None, "x"))}
    params = {"frozen": flax.core.freeze({"k": random(2)}), "nnx": state, "boxed": boxed}
    io.save(tmp_path / "a", params)
    back = io.load(tmp_path / "a").params
    before, after = trees.flatten(params)[0], trees.flatten(back)[0]
    assert before.keys() == after.keys()
    assert np.array_equal(after["nnx/kernel"], model.kernel[...])
    assert type(back["frozen"]) is type(back["nnx"]) is dict


def test_a_users_format_needs_only_its_class(tmp_path):
    params = {"w": Outer(random(3), random(4), scale=(2, 1))}
    io.save(tmp_path / "a", params)
    with pytest.raises(ArtefactError, match=r"w: got a Outer.*formats=\(Outer,\)"):
        io.load(tmp_path / "a")
    back = io.load(tmp_path / "a", formats=(Outer,)).params
    assert back["w"].scale == (2, 1)
    assert bits(back) == bits(params)


def test_every_format_of_the_library_loads_by_name():
    library = {
        cls
        for cls in vars(formats).values()
        if isinstance(cls, type) and issubclass(cls, Factored) and cls is not Factored
    }
    assert library == set(codec.FORMATS)


def test_two_formats_of_one_name_are_refused(tmp_path):
    io.save(tmp_path / "a", {"w": random(2)})
    impostor = type("LowRank", (Outer,), {})
    with pytest.raises(ArtefactError, match="two classes called LowRank"):
        io.load(tmp_path / "a", formats=(impostor,))


def test_the_manifest_says_what_is_there(tmp_path):
    source = tmp_path / "model.safetensors"
    io.hf.write_file(source, {"x": random(2)})
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text('{"model": 1}')
    io.save(
        tmp_path / "a",
        tree(),
        config={"hidden_size": 5},
        source=source,
        extra_files=[tokenizer],
    )
    artefact = io.load(tmp_path / "a")
    said = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert artefact.manifest == said
    assert said["schema"] == 1
    assert said["weights"]["layers/kernel"] == {
        "class": "LowRank",
        "shape": [3, 2, 6, 2],
        "dtype": "float32",
    }
    assert said["tensors"]["layers/kernel/left"]["shape"] == [3, 4, 2]
    assert said["source"] == {
        "name": "model.safetensors",
        "sha256": io.digest.of_file(source),
    }
    assert {"jax", "numpy", "python"} <= said["versions"].keys()
    assert artefact.config == {"hidden_size": 5}
    assert (artefact.folder / "tokenizer.json").read_text() == '{"model": 1}'
    assert set(said["files"]) == {"weights.safetensors", "tokenizer.json"}


def test_large_artefacts_are_split_in_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(io.folder, "SHARD_BYTES", 100)
    params = {f"w{i}": random(5, 3, seed=i) for i in range(4)}
    io.save(tmp_path / "a", params)
    assert len(list((tmp_path / "a").glob("weights-*-of-00004.safetensors"))) == 4
    assert bits(io.load(tmp_path / "a").params) == bits(params)


@pytest.mark.parametrize(
    ("leaf", "said"),
    [
        (jnp.float32(np.nan) * jnp.ones((2, 3)), "w: got 6 NaN among 6 values"),
        (jax.nn.relu, "w: got a function|w: got a .*custom_jvp|w: got a PjitFunction"),
        (jax.random.key(0), "w: got a typed random key"),
        (np.array([object()]), "w: got an array of Python objects"),
        ({1: np.ones(2), "1": np.ones(2)}, "w/1: got two arrays of this path"),
        ({1: np.ones(2), "b": np.ones(2)}, "w: got keys of type int and str"),
    ],
)
def test_what_cannot_be_saved_is_named_and_leaves_nothing_behind(tmp_path, leaf, said):
    with pytest.raises(ArtefactError, match=said):
        io.save(tmp_path / "a", {"w": leaf})
    assert list(tmp_path.iterdir()) == []


def test_infinity_is_a_number_and_nan_may_be_asked_for(tmp_path):
    io.save(tmp_path / "a", {"mask": np.array([-np.inf, 0.0])})
    io.save(tmp_path / "b", {"w": np.array([np.nan, 1.0], np.float32)}, allow_nan=True)
    assert np.isnan(io.load(tmp_path / "b").params["w"][0])


def test_two_leaves_of_one_path_are_refused(tmp_path):
    with pytest.raises(ArtefactError, match="a/b: got two arrays of this path"):
        io.save(tmp_path / "a", {"a": {"b": random(2)}, "a/b": random(3)})


def test_static_numbers_come_back_as_the_python_values_they_were():
    encoded = codec.encode(Outer(random(2), random(3), scale=(np.int64(4), float("inf"), None)))
    back = codec.decode(json.loads(json.dumps(encoded.tree)), encoded.tensors, {"Outer": Outer})
    assert back.scale == (4, float("inf"), None)
    assert hash(back.scale) == hash((4, float("inf"), None))


@pytest.mark.parametrize("name", ["manifest.json", "weights.safetensors", "orbax"])
def test_extra_files_may_not_take_the_artefacts_names(tmp_path, name):
    (tmp_path / name).write_text("x")
    with pytest.raises(ArtefactError, match="a name that is taken"):
        io.save(tmp_path / "a", {"w": random(2)}, extra_files=[tmp_path / name])
