"""Products of lazy and dense arrays: the engine under every operation.

One function joins any number of arrays and lazy arrays whose dense dimensions carry labels, as
`einsum` does. Dense dimensions that meet are cut alike, so that their inner labels can be
identified; the joined network is then contracted, or handed back lazy.
"""

import itertools
import math
import operator
from collections.abc import Hashable, Sequence
from typing import Any

import jax
from jaxtyping import Array

from lrjax.errors import ShapeError, message
from lrjax.formats.contract import Order, contract, plan, selections
from lrjax.formats.network import Network, Unsupported


def join(
    factors: Sequence[tuple[Network, Sequence[Hashable]]], out: Sequence[Hashable]
) -> tuple[list[tuple[Any, tuple]], list[tuple]]:
    """One network out of several.

    Args:
      factors: networks with a label for each dense dimension; equal labels meet.
      out: labels of the result's dense dimensions.

    Returns:
      The labelled operands of all networks in order, and the inner labels of each dimension of
      the result.

    Raises:
      ShapeError: dimensions that meet have different sizes.
      Unsupported: dimensions that meet are factored in ways that have no common refinement.
    """
    nets = [net for net, _ in factors]
    where: dict[Hashable, list[tuple[int, int]]] = {}
    for i, (_, labels) in enumerate(factors):
        for d, label in enumerate(labels):
            where.setdefault(label, []).append((i, d))
    for places in where.values():
        if len(places) > 1:
            _refine(nets, places)

    parent: dict[tuple[int, int], tuple[int, int]] = {}

    def root(node):
        while node in parent:
            node = parent[node]
        return node

    sizes = [net.sizes for net in nets]

    def group(place):
        i, d = place
        return [(i, k) for k in nets[i].dims[d] if sizes[i][k] != 1]

    for places in where.values():
        for place in places[1:]:
            for a, b in zip(group(places[0]), group(place), strict=True):
                if (a := root(a)) != (b := root(b)):
                    parent[b] = a
    operands = [
        (x, tuple(root((i, k)) for k in ls))
        for i, net in enumerate(nets)
        for x, ls in zip(net.operands, net.labels, strict=True)
    ]
    return operands, [tuple(root(node) for node in group(where[label][0])) for label in out]


def _refine(nets: list[Network], places: list[tuple[int, int]]) -> None:
    """Cut the given dimensions at the union of their cuts."""

    def cuts(place):
        i, d = place
        sizes = nets[i].sizes
        inner = [sizes[k] for k in nets[i].dims[d] if sizes[k] != 1]
        return list(itertools.accumulate(reversed(inner), operator.mul, initial=1))

    every = [cuts(place) for place in places]
    if len({c[-1] for c in every}) > 1:
        got = f"dimensions of sizes {[c[-1] for c in every]}"
        todo = "Check the shapes of the operands."
        raise ShapeError(message(got=got, expected="equal sizes", todo=todo))
    if all(c == every[0] for c in every):
        return
    union = sorted(set().union(*every))
    if any(b % a for a, b in itertools.pairwise(union) if a):
        raise Unsupported("two factorisations of one dimension without a common refinement")
    for (i, d), own in zip(places, every, strict=True):
        for low, high in itertools.pairwise(own):
            inside = [c for c in union if low <= c <= high]
            if len(inside) > 2:
                parts = [b // a for a, b in itertools.pairwise(inside)][::-1]
                sizes = nets[i].sizes
                label = _label_at(nets[i].dims[d], sizes, low, high // low)
                nets[i], _ = nets[i].split(label, parts)


def _label_at(group: tuple[int, ...], sizes: dict[int, int], stride: int, size: int) -> int:
    """The label of a merged dimension that has the given stride."""
    run = 1
    for k in reversed(group):
        if run == stride and sizes[k] == size:
            return k
        run *= sizes[k]
    raise AssertionError("unreachable: the cut came from this dimension")


def contract_networks(
    factors: Sequence[tuple[Network, Sequence[Hashable]]],
    out: Sequence[Hashable],
    *,
    activations: int = 0,
    order: Order = Order.STREAM,
    precision: Any = None,
    out_dtype: Any = None,
) -> Array:
    """The dense array that joined networks stand for.

    The first `activations` factors are activations; without any, there is nothing to stream, and
    the cheapest order is taken.
    """
    operands, groups = join(factors, out)
    sizes = {k: n for x, ls in operands for k, n in zip(ls, x.shape, strict=True)}
    y = contract(
        operands,
        [k for group in groups for k in group],
        order=order if activations else Order.FLOPS,
        activations=max(1, activations),
        precision=precision,
        out_dtype=out_dtype,
    )
    shape = tuple(math.prod(sizes[k] for k in group) for group in groups)
    return y if y.shape == shape else y.reshape(shape)


def flops(
    net: Network, rows: int, stack: Sequence[int], inputs: Sequence[int], outputs: Sequence[int]
) -> int:
    """The planner's own count for an activation [*stack, rows, *inputs] in the streaming order.

    `stack`, `inputs` and `outputs` are dense dimensions of the network.
    """
    shape = net.shape
    sizes = (*(shape[d] for d in stack), rows, *(shape[d] for d in inputs))
    activation = Network.of(jax.ShapeDtypeStruct(sizes, net.dtype))
    own, out = [*stack, "rows", *inputs], [*stack, "rows", *outputs]
    operands, groups = join([(activation, own), (net, range(len(shape)))], out)
    ids = {k: i for i, k in enumerate(dict.fromkeys(k for _, ls in operands for k in ls))}
    size = {ids[k]: n for x, ls in operands for k, n in zip(ls, x.shape, strict=True)}
    path = plan(
        tuple(tuple(ids[k] for k in ls) for _, ls in operands),
        tuple(size[i] for i in range(len(ids))),
        tuple(dict.fromkeys(ids[k] for group in groups for k in group)),
        Order.STREAM,
        1,
        selections([x for x, _ in operands]),
    )
    return path.flops


def join_networks(
    factors: Sequence[tuple[Network, Sequence[Hashable]]], out: Sequence[Hashable]
) -> Network:
    """The network that joined networks stand for, not contracted."""
    operands, groups = join(factors, out)
    ids = {k: i for i, k in enumerate(dict.fromkeys(k for _, ls in operands for k in ls))}
    number = lambda ls: tuple(ids[k] for k in ls)
    return Network(
        tuple(x for x, _ in operands),
        tuple(number(ls) for _, ls in operands),
        tuple(number(group) for group in groups),
    )
