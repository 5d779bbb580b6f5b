"""Paths are the same for every framework, and globs say what they match."""

import dataclasses

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import freeze

from lrjax import trees
from lrjax.errors import RuleError, ShapeError
from lrjax.formats import LowRank

W = jnp.ones((4, 6))
LR = LowRank(jnp.ones((4, 2)), jnp.ones((2, 6)))
TREE = {"b": {"kernel": W, "bias": jnp.zeros(6)}, "a": LR, "list": [W, (W,)]}


def test_a_factored_weight_is_one_leaf():
    leaves, treedef = trees.flatten(TREE)
    assert list(leaves) == ["a", "b/bias", "b/kernel", "list/0", "list/1/0"]
    assert leaves["a"] is LR
    assert trees.unflatten(treedef, leaves)["b"]["kernel"] is W
    assert trees.paths(TREE) == tuple(leaves)


@dataclasses.dataclass
class Plain:
    kernel: jax.Array


jax.tree_util.register_dataclass(Plain, ["kernel"], [])


@pytest.mark.parametrize(
    "tree",
    [
        {"a": {"kernel": W}},
        freeze({"a": {"kernel": W}}),
        {"a": Plain(W)},
        {"a": {"kernel": nn.Partitioned(W, names=(None, "model"))}},
        nnx.State({"a": {"kernel": nnx.Param(W)}}),
    ],
    ids=["dict", "frozen", "dataclass", "box", "nnx"],
)
@pytest.mark.parametrize("leaf", [W, LR], ids=["dense", "factored"])
def test_paths_do_not_depend_on_the_framework(tree, leaf):
    tree = trees.replace(tree, {"a/kernel": leaf})
    assert trees.paths(tree) == ("a/kernel",)
    assert trees.get(tree, "a/kernel") is leaf


def test_nnx_and_equinox_modules_have_plain_paths():
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    assert set(trees.paths(state)) == {"kernel", "bias"}
    linear = eqx.nn.Linear(2, 3, key=jax.random.key(0))
    assert trees.paths({"l": linear}) == ("l/weight", "l/bias")


def test_a_dict_key_called_value_stays():
    tree = {"attention": {"query": W, "value": W}}
    assert trees.paths(tree) == ("attention/query", "attention/value")


def test_two_leaves_of_one_path_are_refused():
    with pytest.raises(ShapeError, match="two leaves"):
        trees.flatten({"a": {"b": W}, "a/b": W})


def test_map_weights_maps_whole_weights_over_several_trees():
    shapes = trees.map_weights(lambda w: w.shape, {"x": LR, "y": W})
    assert shapes == {"x": (4, 6), "y": (4, 6)}
    other = {"x": W, "y": LR}
    pairs = trees.map_weights(
        lambda path, a, b: (path, type(a), type(b)), {"x": LR, "y": W}, other, with_path=True
    )
    assert pairs["x"] == ("x", LowRank, type(W))
    assert pairs["y"] == ("y", type(W), LowRank)
    with pytest.raises(ShapeError, match="x: got a path in one tree"):
        trees.map_weights(lambda a, b: a, {"x": W}, {"z": W})


def test_replace_is_pure_and_refuses_unknown_paths():
    new = trees.replace(TREE, {"b/kernel": LR})
    assert new["b"]["kernel"] is LR
    assert TREE["b"]["kernel"] is W
    with pytest.raises(RuleError, match="b/kernel"):
        trees.replace(TREE, {"b/kernal": W})
    with pytest.raises(RuleError, match="b/bias"):
        trees.get(TREE, "b/bia")


def test_shared_names_the_first_place_of_the_same_array():
    assert trees.shared({"a": W, "b": {"c": W}, "d": W + 0}) == {"b/c": "a"}
    same = np.ones(3)
    assert trees.shared({"a": same, "b": same}) == {"b": "a"}
    assert trees.shared({"a": LR, "b": LR}) == {"b": "a"}


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/*", "a/b", True),
        ("a/*", "a/b/c", False),
        ("*/b", "a/b", True),
        ("*", "a/b", False),
        ("**", "a/b/c", True),
        ("**", "a", True),
        ("**/kernel", "kernel", True),
        ("**/kernel", "a/b/kernel", True),
        ("**/kernel", "a/b/kernel2", False),
        ("a/**", "a", True),
        ("a/**", "a/b/c", True),
        ("a/**", "ab/c", False),
        ("a/**/c", "a/c", True),
        ("a/**/c", "a/x/y/c", True),
        ("**/attention/**", "attention", True),
        ("**/attention/**", "x/attention/q/kernel", True),
        ("**/attention/**", "x/attention2/q", False),
        ("layer_?/w", "layer_3/w", True),
        ("layer_?/w", "layer_33/w", False),
        ("conv*/kernel", "conv12/kernel", True),
        ("a.b", "axb", False),
        ("**x/y", "a/x/y", False),
    ],
)
def test_globs(pattern, path, matches):
    assert trees.match(pattern, path) is matches


def test_the_first_rule_that_matches_wins():
    paths = ("a/q", "a/k", "b/w", "c")
    got = trees.assign({"a/q": 1, "a/*": None, "**": 3}, paths)
    assert got == {"a/q": 1, "a/k": None, "b/w": 3, "c": 3}
    assert trees.assign({"a/*": 1}, paths) == {"a/q": 1, "a/k": 1}


def test_rules_that_match_nothing_are_errors():
    paths = ("block/query/kernel", "block/key/kernel")
    with pytest.raises(RuleError, match="block/query/kernel"):
        trees.assign({"block/qery/kernel": 1}, paths)
    with pytest.raises(RuleError, match=r"taken by '\*\*'"):
        trees.assign({"**": 1, "block/key/kernel": 2}, paths)
    with pytest.raises(RuleError, match="empty"):
        trees.assign({"**": 1}, ())
