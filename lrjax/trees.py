"""Parameter trees: paths, globs, and maps over whole weights.

The only module that walks dicts, `FrozenDict`, `nnx.State`, boxes and dataclasses; everything
else sees `{path: leaf}`. A path is the keys joined by "/"; a leaf is an array or one factored
weight as a whole.
"""

import difflib
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax
from jax.tree_util import GetAttrKey, KeyPath, PyTreeDef, keystr

from lrjax.errors import RuleError, ShapeError, message

T = TypeVar("T")
Tree = Any


class Weight:
    """Marks a pytree class whose instances stand for one dense weight."""


def is_weight_leaf(x: Any) -> bool:
    """Whether `x` is a weight that is itself a tree of factors."""
    return isinstance(x, Weight)


def flatten(tree: Tree) -> tuple[dict[str, Any], PyTreeDef]:
    """Leaves by path, in tree order, and the structure that `unflatten` takes back.

    Raises:
      ShapeError: two leaves print as the same path (dict keys 1 and "1").
    """
    entries, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_weight_leaf)
    leaves = {_text(keys): leaf for keys, leaf in entries}
    if len(leaves) != len(entries):
        texts = [_text(keys) for keys, _ in entries]
        double = next(t for t in texts if texts.count(t) > 1)
        todo = "Rename one of the tree's keys."
        raise ShapeError(message(path=double, got="two leaves", expected="one leaf", todo=todo))
    return leaves, treedef


def unflatten(treedef: PyTreeDef, leaves: Mapping[str, Any]) -> Tree:
    """The tree whose leaves, in order, are the values of `leaves`."""
    return jax.tree_util.tree_unflatten(treedef, list(leaves.values()))


def paths(tree: Tree) -> tuple[str, ...]:
    """Paths of all leaves, in tree order."""
    return tuple(flatten(tree)[0])


def map_weights(f: Callable[..., Any], tree: Tree, *rest: Tree, with_path: bool = False) -> Tree:
    """Map `f` over whole weights: a factored weight is one leaf, in `tree` and in `rest`.

    Args:
      f: called as `f(leaf, *leaves)`, or `f(path, leaf, *leaves)` if `with_path`.
      tree: gives the structure of the result.
      rest: trees with the same paths (their leaves may be factored where `tree`'s are not).
      with_path: hand the path to `f` as first argument.

    Raises:
      ShapeError: the trees do not have the same paths.
    """
    leaves, treedef = flatten(tree)
    others = [flatten(other)[0] for other in rest]
    for other in others:
        if tuple(other) != tuple(leaves):
            odd = next(iter(sorted(set(other) ^ set(leaves))), "order of leaves")
            todo = "Pass trees of one structure."
            raise ShapeError(
                message(path=odd, got="a path in one tree", expected="it in all", todo=todo)
            )
    head = (lambda path: (path,)) if with_path else (lambda path: ())
    mapped = {p: f(*head(p), leaf, *(o[p] for o in others)) for p, leaf in leaves.items()}
    return unflatten(treedef, mapped)


def get(tree: Tree, path: str) -> Any:
    """The leaf at `path`.

    Raises:
      RuleError: there is no such path; the message names the closest ones.
    """
    leaves, _ = flatten(tree)
    if path not in leaves:
        raise RuleError(_no_such(path, leaves))
    return leaves[path]


def replace(tree: Tree, new: Mapping[str, Any]) -> Tree:
    """A copy of `tree` with the leaves at the given paths replaced.

    Raises:
      RuleError: a path is not in the tree.
    """
    leaves, treedef = flatten(tree)
    for path in new:
        if path not in leaves:
            raise RuleError(_no_such(path, leaves))
    return unflatten(treedef, leaves | dict(new))


def shared(tree: Tree) -> dict[str, str]:
    """Leaves that are the very same object as an earlier leaf: `{path: earlier path}`."""
    first: dict[int, str] = {}
    leaves, _ = flatten(tree)
    return {
        path: first[id(leaf)]
        for path, leaf in leaves.items()
        if first.setdefault(id(leaf), path) != path
    }


def match(pattern: str, path: str) -> bool:
    """Whether the glob matches the whole path.

    `*` and `?` stay in one segment; `**` as a segment of its own is any number of segments,
    also none.
    """
    return _regex(pattern).fullmatch(path) is not None


def assign(rules: Mapping[str, T], paths: Iterable[str]) -> dict[str, T]:
    """The value of the first rule that matches, for each path that has one.

    Raises:
      RuleError: a rule matches no path, or only paths that earlier rules took.
    """
    paths = tuple(paths)
    taken: dict[str, tuple[str, T]] = {}
    for pattern, value in rules.items():
        hits = [path for path in paths if match(pattern, path)]
        if not hits:
            raise RuleError(_no_such(pattern, paths))
        free = [path for path in hits if path not in taken]
        if not free:
            got = f"a rule whose {len(hits)} paths were taken by {taken[hits[0]][0]!r}"
            todo = "Move the narrower rule up, or remove one of the two."
            raise RuleError(message(path=pattern, got=got, expected="a path of its own", todo=todo))
        taken.update(dict.fromkeys(free, (pattern, value)))
    return {path: taken[path][1] for path in paths if path in taken}


def _text(keys: KeyPath) -> str:
    # Variables and boxes hold their array in an attribute `value`; a dict key "value" stays.
    if len(keys) > 1 and isinstance(keys[-1], GetAttrKey) and keys[-1].name == "value":
        keys = keys[:-1]
    return keystr(keys, simple=True, separator="/")


@functools.lru_cache(1024)
def _regex(pattern: str) -> re.Pattern[str]:
    segments = pattern.split("/")
    text = ""
    for i, segment in enumerate(segments):
        last = i == len(segments) - 1
        if segment == "**":
            text += r"(?:[^/]+(?:/[^/]+)*)?" if last else r"(?:[^/]+/)*"
        else:
            text += re.escape(segment).replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
            # "a/**" also matches "a", for the last "**" may be no segment at all.
            if segments[i + 1 :] == ["**"]:
                return re.compile(text + r"(?:/[^/]+)*")
            text += "" if last else "/"
    return re.compile(text)


def _no_such(pattern: str, paths: Iterable[str]) -> str:
    paths = tuple(paths)
    close = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.3) or list(paths[:3])
    hint = ", ".join(close) if close else "the tree is empty"
    return message(
        path=pattern,
        got=f"no match among {len(paths)} paths",
        expected="at least one",
        todo=f"Closest paths: {hint}.",
    )
