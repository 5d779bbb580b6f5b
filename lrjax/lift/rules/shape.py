"""Moves of dims: transpose, reshape, broadcast, concatenate, split, stack, pad, reverse."""

from typing import Any

import jax.numpy as jnp
from jax import lax

from lrjax import ops
from lrjax.formats.network import Unsupported
from lrjax.lift.rules.registry import Context, Rules

RULES = Rules()


@RULES.on("transpose")
def _transpose(ctx: Context, eqn: Any, w: Any):
    del ctx
    return (ops.transpose(w, eqn.params["permutation"]),)


@RULES.on("reshape")
def _reshape(ctx: Context, eqn: Any, w: Any, *_: Any):
    del ctx
    if eqn.params.get("dimensions") is not None:
        raise Unsupported("reshape that also permutes")
    return (ops.reshape(w, eqn.params["new_sizes"]),)


@RULES.on("squeeze")
def _squeeze(ctx: Context, eqn: Any, w: Any):
    del ctx
    return (ops.squeeze(w, eqn.params["dimensions"]),)


@RULES.on("broadcast_in_dim")
def _broadcast_in_dim(ctx: Context, eqn: Any, w: Any, *_: Any):
    del ctx
    return (ops.broadcast_in_dim(w, eqn.params["shape"], eqn.params["broadcast_dimensions"]),)


@RULES.on("concatenate")
def _concatenate(ctx: Context, eqn: Any, *ws: Any):
    del ctx
    return (ops.concatenate(ws, eqn.params["dimension"]),)


@RULES.on("stack")
def _stack(ctx: Context, eqn: Any, *ws: Any):
    del ctx
    return (ops.stack(ws, eqn.params["axis"]),)


@RULES.on("split")
def _split(ctx: Context, eqn: Any, w: Any):
    del ctx
    return tuple(ops.split(w, [int(n) for n in eqn.params["sizes"]], eqn.params["axis"]))


@RULES.on("tile")
def _tile(ctx: Context, eqn: Any, w: Any):
    """Repeats are broadcasts: [n] -> [reps, n] -> [reps * n]."""
    del ctx
    reps = eqn.params["reps"]
    shape = [n for pair in zip(reps, w.shape, strict=True) for n in pair]
    y = ops.broadcast_in_dim(w, shape, range(1, 2 * w.ndim, 2))
    return (ops.reshape(y, [r * n for r, n in zip(reps, w.shape, strict=True)]),)


@RULES.on("rev")
def _rev(ctx: Context, eqn: Any, w: Any):
    """Row-major merged labels reverse together: reverse each."""
    del ctx
    if w.axis in eqn.params["dimensions"]:
        raise Unsupported("reversal of a concatenation")

    def one(net):
        for d in eqn.params["dimensions"]:
            net = net.apart(d)
        for label in [k for d in eqn.params["dimensions"] for k in net.dims[d]]:
            net = net.map_label(label, lambda x, axis: lax.rev(x, (axis,)))
        return net

    return (w.map(one),)


@RULES.on("pad")
def _pad(ctx: Context, eqn: Any, w: Any, _: Any):
    """Zeros around a dim: zeros around its label, in every operand that carries it."""
    config = eqn.params["padding_config"]
    if ctx.constant(eqn, 1) != 0:
        raise Unsupported("padding by another value than zero")
    for d, (low, high, inner) in enumerate(tuple(map(int, edge)) for edge in config):
        if (low, high, inner) == (0, 0, 0):
            continue
        if w.axis == d:
            raise Unsupported("padding of a concatenation")
        w = w.map(lambda net, d=d, c=(low, high, inner): _pad_dim(net, d, c))
    return (w,)


def _pad_dim(net: Any, dim: int, config: tuple[int, int, int]) -> Any:
    net = net.apart(dim)
    labels = [k for k in net.dims[dim] if net.sizes[k] != 1]
    if len(labels) != 1:
        raise Unsupported("padding of a merged dim")

    def one(x, axis):
        return lax.pad(
            x, jnp.zeros((), x.dtype), [config if k == axis else (0, 0, 0) for k in range(x.ndim)]
        )

    return net.map_label(labels[0], one)
