"""usage: how a function uses each of its weights, read off its program."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from lrjax import trees
from lrjax.formats.factored import is_factored
from lrjax.formats.layout import Layout
from lrjax.lift import jaxprs
from lrjax.lift import view as views
from lrjax.lift.reader import Reader
from lrjax.lift.report import Usage, Use, UseKind, WeightUse
from lrjax.lift.sites import Site
from lrjax.lift.values import Param, Val


def usage(fn: Callable[..., Any], params: Any, *args: Any, **kwargs: Any) -> Usage:
    """How `fn(params, *args, **kwargs)` uses each leaf of `params`.

    Nothing is evaluated: `fn` is traced, and every weight is followed through transposes,
    reshapes, slices, casts, scans and calls to where it is used.  Dims are those of the dense
    weight.

    Args:
      fn: the function, as for `lift`.
      params: a tree of arrays, factored arrays or shapes.
      args: example arguments: arrays or shapes; anything else stays as it is.
      kwargs: likewise.
    """
    return survey(trace(fn, params, args, kwargs)).usage


@dataclass(frozen=True)
class Program:
    """A traced function: its jaxpr, what goes in and how its outputs are arranged."""

    jaxpr: Any
    paths: dict[str, Any]
    out: Any
    values: Callable[..., list[Any]]
    shared: dict[str, str]


@dataclass(frozen=True)
class Survey:
    """Usage, and for each site that can be tapped the ids of its two taps."""

    usage: Usage
    sites: tuple[tuple[Site, str, str], ...]


def trace(
    fn: Callable[..., Any], params: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Program:
    """The program of `fn`; parameters come first."""
    weights, treedef = trees.flatten(params)
    rest, others = jax.tree.flatten((args, kwargs))
    moving = [i for i, x in enumerate(rest) if isinstance(x, _ARRAYS)]

    def flat(*values):
        full = list(rest)
        for i, v in zip(moving, values[len(weights) :], strict=True):
            full[i] = v
        own = jax.tree_util.tree_unflatten(treedef, list(values[: len(weights)]))
        args, kwargs = jax.tree.unflatten(others, full)
        return fn(own, *args, **kwargs)

    def values(params, args, kwargs):
        given = jax.tree.leaves((args, kwargs))
        own = trees.flatten(params)[0].items()
        return [
            *(w.lazy(path) if is_factored(w) else w for path, w in own),
            *(given[i] for i in moving),
        ]

    stand = [_shape(w) for w in weights.values()] + [rest[i] for i in moving]
    jaxpr, out = jax.make_jaxpr(flat, return_shape=True)(*stand)
    return Program(jaxpr, weights, out, values, trees.shared(params))


def survey(program: Program) -> Survey:
    """Read the program and name its taps."""
    reader = Reader()
    vals = []
    for path, w in program.paths.items():
        first = program.shared.get(path, path)
        vals.append(Val(views.whole(Param(first, tuple(w.shape)), w.shape), True))
    shapes = [v.aval.shape for v in jaxprs.opened(program.jaxpr)[0].invars[len(vals) :]]
    vals += [reader.fresh(shape) for shape in shapes]
    reader.read(program.jaxpr, vals)

    taps, outs = _names(reader.sites)
    weights = {}
    for path, w in program.paths.items():
        own = [s for s in reader.sites if s.weight.path == program.shared.get(path, path)]
        uses = [_use(s, taps, outs) for s in own]
        touched = [t for t in reader.touches if t.weight.path == program.shared.get(path, path)]
        uses += [_touch(t, tuple(w.shape)) for t in touched]
        layout = next((Layout(u.rows, u.cols) for u in uses if u.rows), None)
        sides = {(u.rows, u.cols, u.kind is UseKind.LOOKUP) for u in uses if u.rows}
        tied = len(sides) > 1 or path in program.shared or path in program.shared.values()
        bias = reader.biases.get(program.shared.get(path, path))
        uses = tuple(dict.fromkeys(uses))
        weights[path] = WeightUse(path, tuple(w.shape), str(w.dtype), layout, uses, tied, bias)
    tapped = [(s, taps[_side(s)], outs[_side(s)]) for s in reader.sites if s.key is not None]
    return Survey(Usage(weights), tuple(tapped))


def _side(site: Site) -> tuple[Any, ...]:
    """A weight in one orientation."""
    return site.weight.path, site.kind, site.rows, site.cols, site.stack


def _names(sites: Sequence[Site]) -> tuple[dict[Any, str], dict[Any, str]]:
    """Ids: weights that see the same set of activations share a tap; outputs are their own."""
    sees: dict[Any, set[Any]] = {}
    for site in sites:
        if site.key is not None:
            sees.setdefault(_side(site), set()).add(site.key)
    taps, outs, seen = {}, {}, {}
    for name, keys in sees.items():
        path = name[0]
        count = sum(other[0] == path for other in outs)
        outs[name] = path if count == 0 else f"{path}#{count}"
        taps[name] = seen.setdefault(frozenset(keys), outs[name])
    return taps, outs


def _use(site: Site, taps: dict[Any, str], outs: dict[Any, str]) -> Use:
    name = _side(site)
    known = site.key is not None
    return Use(
        site.kind, site.rows, site.cols, site.stack, taps[name] if known else "",
        outs[name] if known else "", site.weight.shape, site.primitive, site.source,
    )  # fmt: skip


def _touch(touch: Any, shape: tuple[int, ...]) -> Use:
    return Use(touch.kind, (), (), (), "", "", shape, touch.primitive, touch.source)


_ARRAYS = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)


def _shape(w: Any) -> Any:
    return jax.ShapeDtypeStruct(w.shape, w.dtype) if is_factored(w) else w
