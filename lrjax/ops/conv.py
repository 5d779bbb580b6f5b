"""Convolution with a factored kernel: the signal meets one operand of the network at a time.

Operands without spatial labels act on channels (1x1), operands with spatial labels convolve. A
`LowRank` kernel with rows (kh, kw, cin) is a convolution to r channels and a 1x1; Tucker-2 is
1x1, kh x kw, 1x1; CP is 1x1, kh x 1 and 1 x kw by channel, 1x1; a cut between (kh, cin) and
(kw, cout) is a kh x 1 and a 1 x kw convolution.
"""

import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from lrjax.errors import ShapeError, message
from lrjax.formats.lazy import LazyArray, as_lazy
from lrjax.formats.network import Unsupported
from lrjax.ops.conv_network import convolve, window_of


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
    if not isinstance(rhs, LazyArray):
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers=dn,
            feature_group_count=feature_group_count,
            batch_group_count=batch_group_count,
            precision=precision,
            preferred_element_type=preferred_element_type,
        )
    if batch_group_count != 1:
        raise Unsupported("batch groups with a factored kernel")
    _check(lhs, rhs, dn, feature_group_count)
    out_dtype = preferred_element_type or jnp.result_type(lhs, rhs.dtype)
    again = functools.partial(
        conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dn,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    if rhs.axis is not None:
        return _concatenated(again, lhs, rhs, dn, feature_group_count)
    window = window_of(lhs, rhs, dn, window_strides, padding, lhs_dilation, rhs_dilation)
    parts = [
        convolve(lhs, net, dn, feature_group_count, precision, out_dtype, window)
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
