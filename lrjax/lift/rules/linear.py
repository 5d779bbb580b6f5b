"""Contractions: dot_general, ragged_dot_general, convolution."""

from typing import Any

import jax.numpy as jnp
from jax import lax

from lrjax import ops
from lrjax.formats.network import Unsupported
from lrjax.lift.rules.registry import Context, Rules, is_lazy

RULES = Rules()


@RULES.on("dot_general")
def _dot_general(ctx: Context, eqn: Any, lhs: Any, rhs: Any):
    p = eqn.params
    y = ops.dot_general(
        lhs,
        rhs,
        p["dimension_numbers"],
        precision=p["precision"],
        preferred_element_type=p["preferred_element_type"],
        order=ctx.order,
        out_sharding=p["out_sharding"],
    )
    return (y,)


@RULES.on("conv_general_dilated")
def _conv_general_dilated(ctx: Context, eqn: Any, lhs: Any, rhs: Any):
    del ctx
    if is_lazy(lhs):
        raise Unsupported("a convolution whose input is factored")
    names = (
        "window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers",
        "feature_group_count", "batch_group_count", "precision", "preferred_element_type",
    )  # fmt: skip
    return (ops.conv_general_dilated(lhs, rhs, **{k: eqn.params[k] for k in names}),)


@RULES.on("ragged_dot_general")
def _ragged_dot_general(ctx: Context, eqn: Any, lhs: Any, rhs: Any, group_sizes: Any):
    """Rows of x in runs, one run an expert: x [t, k], w [g, k, n], sizes [g] -> [t, n].

    Each factor of the experts' networks is applied by its own ragged product.
    """
    del ctx
    p = eqn.params
    dims = p["ragged_dot_dimension_numbers"]
    plain = (((1,), (1,)), ((), ()))
    if (
        is_lazy(lhs)
        or is_lazy(group_sizes)
        or rhs.axis is not None
        or _plain(dims.dot_dimension_numbers) != plain
        or tuple(dims.lhs_ragged_dimensions) != (0,)
        or tuple(dims.rhs_group_dimensions) != (0,)
    ):
        raise Unsupported("a ragged product that is not x [t, k], w [g, k, n] -> [t, n]")
    kind = p["preferred_element_type"]
    parts = [_ragged(lhs, net, group_sizes, p["precision"], kind) for net in rhs.terms]
    return (sum(parts[1:], parts[0]),)


def _ragged(x: Any, net: Any, sizes: Any, precision: Any, kind: Any) -> Any:
    """A chain of matrices, stacked over the experts or shared by them, from input to output."""
    net = net.expanded()
    group, inner, outer = net.dims
    todo = list(zip(net.operands, net.labels, strict=True))
    if not (len(group) == len(inner) == len(outer) == 1):
        raise Unsupported("a ragged product with a weight whose dims are merged")
    at, goal = inner[0], outer[0]
    while at != goal:
        matrix = lambda ls: len([k for k in ls if k != group[0]]) == 2
        step = next(((w, ls) for w, ls in todo if at in ls and matrix(ls)), None)
        if step is None:
            raise Unsupported("a ragged product with a weight that is no chain of stacked matrices")
        w, ls = step
        todo = [t for t in todo if t[0] is not w]
        (to,) = (k for k in ls if k not in (at, group[0]))
        if group[0] not in ls:  # a basis that the experts share
            w = w if ls == (at, to) else w.T
            x = jnp.matmul(x, w, precision=precision, preferred_element_type=kind)
            at = to
            continue
        w = jnp.transpose(w, [ls.index(k) for k in (group[0], at, to)])
        x = lax.ragged_dot(x, w, sizes, precision=precision, preferred_element_type=kind)
        at = to
    if todo:
        raise Unsupported("a ragged product with a weight that is no chain of stacked matrices")
    return x


def _plain(numbers: Any) -> Any:
    (lc, rc), (lb, rb) = numbers
    return (tuple(lc), tuple(rc)), (tuple(lb), tuple(rb))
