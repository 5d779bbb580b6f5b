"""Convolution with a factored kernel: 1x1 into the core, a spatial core, 1x1 out of it.

The operands of a kernel's network fall in three: those on the input channels (`pre`), those with
spatial labels (`core`), and those on the output channels (`post`). A `LowRank` kernel with
rows (kh, kw, cin) has a core and a post part; Tucker-2 has all three; CP gives a grouped core.
"""

import dataclasses
import functools
import math
import operator
import string
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from lrjax.errors import ShapeError, message
from lrjax.formats.contract import Order, contract
from lrjax.formats.lazy import LazyArray, as_lazy
from lrjax.formats.network import Network, Unsupported


def conv_general_dilated(
    lhs: Any,
    rhs: Any,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Array:
    """`jax.lax.conv_general_dilated` with a kernel that may be factored; arguments are the same.

    Feature groups are exact: the groups pass through shared factors as a batch.

    Raises:
      ShapeError: channels of input and kernel do not match.
      Unsupported: the input is factored; batch groups; a kernel without an input-output split;
        output channels that are factored across the groups.
    """
    lhs, rhs = as_lazy(lhs), as_lazy(rhs)
    if isinstance(lhs, LazyArray):
        raise Unsupported("convolution of a factored array")
    dn = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    window: dict[str, Any] = {
        "window_strides": window_strides,
        "padding": padding,
        "lhs_dilation": lhs_dilation,
        "rhs_dilation": rhs_dilation,
    }
    if not isinstance(rhs, LazyArray):
        return lax.conv_general_dilated(
            lhs,
            rhs,
            dimension_numbers=dn,
            feature_group_count=feature_group_count,
            batch_group_count=batch_group_count,
            precision=precision,
            preferred_element_type=preferred_element_type,
            **window,
        )
    if batch_group_count != 1:
        raise Unsupported("batch groups with a factored kernel")
    _check(lhs, rhs, dn, feature_group_count)
    out_dtype = preferred_element_type or jnp.result_type(lhs, rhs.dtype)
    again = functools.partial(
        conv_general_dilated,
        dimension_numbers=dn,
        precision=precision,
        preferred_element_type=preferred_element_type,
        **window,
    )
    if rhs.axis is not None:
        return _concatenated(again, lhs, rhs, dn, feature_group_count)
    parts = [
        _convolve(lhs, _regroup(net, dn, feature_group_count), dn, precision, out_dtype, window)
        for net in rhs.terms
    ]
    return functools.reduce(operator.add, parts)


def _check(lhs: Any, rhs: Any, dn: lax.ConvDimensionNumbers, groups: int) -> None:
    channels, inner, outer = lhs.shape[dn.lhs_spec[1]], rhs.shape[dn.rhs_spec[1]], dn.rhs_spec[0]
    if channels != inner * groups or rhs.shape[outer] % groups:
        got = f"{channels} input channels, kernel {rhs.shape}, {groups} groups"
        expected = f"{inner * groups} input channels, and output channels that the groups divide"
        todo = "Check dimension_numbers and feature_group_count."
        raise ShapeError(message(path=rhs.name, got=got, expected=expected, todo=todo))


def _concatenated(again: Any, x: Array, w: LazyArray, dn: Any, groups: int) -> Array:
    """Kernels side by side: along the output channels, or along the input channels."""
    if groups == 1 and w.axis == dn.rhs_spec[0]:
        return lax.concatenate([again(x, part) for part in w.terms], dn.out_spec[1])
    if groups == 1 and w.axis == dn.rhs_spec[1]:
        sizes = [part.shape[w.axis] for part in w.terms]
        pieces = lax.split(x, sizes, axis=dn.lhs_spec[1])
        parts = [again(piece, part) for piece, part in zip(pieces, w.terms, strict=True)]
        return functools.reduce(operator.add, parts)
    raise Unsupported("convolution with a kernel concatenated along a spatial or grouped dimension")


@dataclasses.dataclass(frozen=True)
class _Kernel:
    """A kernel's network, sorted; each part is a list of (operand, labels)."""

    groups: tuple[int, ...]  # labels of the feature group
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    spatial: tuple[tuple[int, ...], ...]
    sizes: dict[int, int]
    pre: list[tuple[Any, tuple[int, ...]]]
    core: list[tuple[Any, tuple[int, ...]]]
    post: list[tuple[Any, tuple[int, ...]]]


def _regroup(net: Network, dn: lax.ConvDimensionNumbers, groups: int) -> _Kernel:
    """Sort the operands of a kernel by the side of the spatial core that they are on."""
    o, i, *spatial = dn.rhs_spec
    shape, n = net.shape, len(net.dims)
    # The output dimension, cut into (group, channel), moves to the end.
    net = net.with_dims([*(g for d, g in enumerate(net.dims) if d != o), net.dims[o]])
    place = lambda d: d - (d > o)
    rest = [shape[d] for d in range(n) if d != o]
    net = net.reshape((*rest, groups, shape[o] // groups))
    inputs, (*_, group, channel) = net.dims[place(i)], net.dims
    outputs = (*group, *channel)
    windows = tuple(net.dims[place(d)] for d in spatial)

    operands = list(zip(net.operands, net.labels, strict=True))
    inside = {k for w in windows for k in w}
    core = [p for p in operands if inside & set(p[1])]
    rest = [p for p in operands if not inside & set(p[1])]
    bonds = {k for _, ls in core for k in ls}
    reached, pre = set(inputs), []
    while True:  # what the input reaches without passing the core
        more = [
            k
            for k, (_, ls) in enumerate(rest)
            if reached & set(ls) and (set(inputs) & set(ls) or not set(outputs) & set(ls))
        ]
        if not more:
            break
        reached |= {k for m in more for k in rest[m][1] if k not in bonds}
        pre += [rest[m] for m in more]
        rest = [p for k, p in enumerate(rest) if k not in more]
    return _Kernel(group, inputs, outputs, windows, net.sizes, pre, core, rest)


def _convolve(
    x: Array,
    kernel: _Kernel,
    dn: lax.ConvDimensionNumbers,
    precision: Any,
    out_dtype: Any,
    window: dict[str, Any],
) -> Array:
    """Input channels, spatial core, output channels, in this order."""
    size = lambda ls: tuple(kernel.sizes[k] for k in ls)
    labels = lambda part: {k for _, ls in part for k in ls}
    batch, channel, *space = dn.lhs_spec
    axes = tuple(("space", d) for d in range(len(space)))
    x = x.transpose((batch, *space, channel))
    x = x.reshape((*x.shape[:-1], *size(kernel.groups), *size(kernel.inputs)))

    late = labels(kernel.post) | set(kernel.outputs)
    early = labels(kernel.pre) | set(kernel.inputs) | set(kernel.groups)
    spatial = [k for run in kernel.spatial for k in run]
    bonds = [
        k
        for k in dict.fromkeys(k for _, ls in kernel.core for k in ls)
        if k not in spatial and (k in early or k in late)
    ]
    entering = [
        k
        for k in dict.fromkeys(
            [*kernel.groups, *kernel.inputs, *(k for _, ls in kernel.pre for k in ls)]
        )
        if k in bonds or k in late
    ]
    passing = [k for k in entering if k not in bonds]  # by-passes the core: a batch
    grouped = [k for k in entering if k in bonds and k in late]  # on both sides: feature groups
    summed = [k for k in entering if k in bonds and k not in late]
    leaving = [k for k in bonds if k not in entering]
    if len(kernel.core) > 1 and set(kernel.inputs + kernel.outputs) <= set(bonds):
        raise Unsupported("convolution whose spatial core is the whole kernel")

    source = (batch_label := "batch", *axes, *kernel.groups, *kernel.inputs)
    x = contract(
        [(x, source), *kernel.pre],
        [batch_label, *passing, *axes, *grouped, *summed],
        precision=precision,
        out_dtype=jnp.result_type(x, *(w for w, _ in kernel.pre + kernel.core + kernel.post)),
    )
    lead = x.shape[: 1 + len(passing)]
    x = x.reshape((math.prod(lead), *x.shape[len(lead) : len(lead) + len(axes)], -1))
    groups = math.prod(size(grouped))
    shape = (*(math.prod(size(run)) for run in kernel.spatial), math.prod(size(summed)), -1)
    if kernel.core:
        k = contract(
            kernel.core,
            [*spatial, *summed, *grouped, *leaving],
            order=Order.FLOPS,
            precision=precision,
            out_dtype=x.dtype,
        )
    else:
        k = jnp.ones((), x.dtype)
    letters = string.ascii_lowercase[: len(axes)]
    y = lax.conv_general_dilated(
        x,
        k.reshape(shape),
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
        feature_group_count=groups,
        precision=precision,
        preferred_element_type=None if kernel.post else out_dtype,
        **window,
    )
    y = y.reshape((*lead, *y.shape[1:-1], *size(grouped), *size(leaving)))
    y = contract(
        [(y, (batch_label, *passing, *axes, *grouped, *leaving)), *kernel.post],
        [batch_label, *axes, *kernel.outputs],
        precision=precision,
        out_dtype=out_dtype,
    )
    y = y.reshape((*y.shape[: 1 + len(axes)], math.prod(size(kernel.outputs))))
    to = (dn.out_spec[0], *dn.out_spec[2:], dn.out_spec[1])
    return y.transpose(tuple(to.index(d) for d in range(y.ndim)))
