"""The signal of a convolution through one network, an operand at a time.

Operands without spatial labels act on channels (1x1); operands with spatial labels convolve.
Spatial dimensions that no operand joins convolve one after the other. A channel label that the
signal and a spatial operand share, and that is needed later, is a feature group; one that passes
a spatial operand by is a batch.
"""

import dataclasses
import math
import string
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from lrjax.formats.contract import Order, contract
from lrjax.formats.network import Network, Unsupported
from lrjax.ops import depthwise


@dataclasses.dataclass(frozen=True)
class Window:
    """Stride, padding and dilations of each spatial dimension."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]

    def over(self, dims: Sequence[int]) -> dict[str, Any]:
        """The arguments of a convolution that moves over the given dimensions only."""
        only = lambda values, rest: [v if d in dims else rest for d, v in enumerate(values)]
        return {
            "window_strides": only(self.strides, 1),
            "padding": only(self.padding, (0, 0)),
            "lhs_dilation": only(self.lhs_dilation, 1),
            "rhs_dilation": only(self.rhs_dilation, 1),
        }


def window_of(lhs, rhs, dn, strides, padding, lhs_dilation, rhs_dilation) -> Window:
    """The window of a convolution, with padding written out."""
    n = lhs.ndim - 2
    lhs_dilation, rhs_dilation = tuple(lhs_dilation or (1,) * n), tuple(rhs_dilation or (1,) * n)
    if isinstance(padding, str):
        image = [lhs.shape[d] for d in dn.lhs_spec[2:]]
        extent = [rhs.shape[d] for d in dn.rhs_spec[2:]]
        reach = [max(1, (k - 1) * r + 1) for k, r in zip(extent, rhs_dilation, strict=True)]
        padding = lax.padtype_to_pads(image, reach, strides, padding)
    pads = tuple((int(a), int(b)) for a, b in padding)
    return Window(tuple(strides), pads, lhs_dilation, rhs_dilation)


def convolve(
    x: Array,
    net: Network,
    dn: lax.ConvDimensionNumbers,
    groups: int,
    precision: Any,
    out_dtype: Any,
    window: Window,
) -> Array:
    """Stream the input through the kernel's operands, one spatial stage after the other."""
    net, group, inputs, outputs, spatial = _regroup(net.expanded(), dn, groups)
    size = lambda ls: tuple(net.sizes[k] for k in ls)
    batch, channel, *space = dn.lhs_spec
    x = x.transpose((batch, *space, channel))
    x = x.reshape((*x.shape[:-1], *size(group), *size(inputs)))
    state = _State(x, (*group, *inputs), list(zip(net.operands, net.labels, strict=True)))

    stages = _stages(state.rest, spatial)
    uncovered = [d for d in range(len(spatial)) if not any(d in dims for dims in stages)]
    stages = [[*stages[0], *uncovered], *stages[1:]] if stages else [uncovered]
    while stages:
        reached = _reach(state, spatial, outputs)[1]
        near = [dims for dims in stages if _touches(state.rest, spatial, dims, reached)]
        dims = (near or stages)[0]
        stages.remove(dims)
        state = _stage(state, spatial, dims, outputs, window, precision)

    axes = _axes(len(spatial))
    y = contract(
        [(state.x, ("batch", *axes, *state.held)), *state.rest],
        ["batch", *axes, *outputs],
        precision=precision,
        out_dtype=out_dtype,
    )
    y = y.reshape((*y.shape[: 1 + len(axes)], math.prod(size(outputs))))
    to = (dn.out_spec[0], *dn.out_spec[2:], dn.out_spec[1])
    return y.transpose(tuple(to.index(d) for d in range(y.ndim)))


@dataclasses.dataclass(frozen=True)
class _State:
    """The signal [batch, *space, *held] and the operands that it has not met."""

    x: Array
    held: tuple[int, ...]
    rest: list[tuple[Any, tuple[int, ...]]]


def _axes(n: int) -> tuple[tuple[str, int], ...]:
    return tuple(("space", d) for d in range(n))


def _regroup(net: Network, dn: lax.ConvDimensionNumbers, groups: int):
    """Labels of a kernel by role: feature group, input, output and each spatial dimension."""
    o, i, *spatial = dn.rhs_spec
    shape = net.shape
    # The output dimension moves to the end and is cut into (group, channel).
    net = net.with_dims([*(g for d, g in enumerate(net.dims) if d != o), net.dims[o]])
    net = net.reshape((*(n for d, n in enumerate(shape) if d != o), groups, shape[o] // groups))
    *dims, group, channel = net.dims
    at = lambda d: dims[d - (d > o)]
    return net, group, at(i), (*group, *channel), tuple(at(d) for d in spatial)


def _stages(operands: list, spatial: tuple[tuple[int, ...], ...]) -> list[list[int]]:
    """Spatial dimensions that share an operand convolve together; the others one by one."""
    stages: list[list[int]] = []
    for _, ls in operands:
        dims = [d for d, run in enumerate(spatial) if set(run) & set(ls)]
        if dims:
            joined = [s for s in stages if set(s) & set(dims)]
            merged = sorted({d for s in (*joined, dims) for d in s})
            stages = [s for s in stages if s not in joined] + [merged]
    return stages


def _touches(operands: list, spatial: Any, dims: list[int], labels: set[int]) -> bool:
    inside = {k for d in dims for k in spatial[d]}
    return any(inside & set(ls) and labels & set(ls) for _, ls in operands)


def _reach(state: _State, spatial: Any, outputs: Sequence[int]) -> tuple[list, set[int]]:
    """Operands that the held channels reach without passing a spatial one, and their labels.

    An operand with output labels is left for the end, unless it takes in what is held.
    """
    window = {k for run in spatial for k in run}
    bonds = {k for _, ls in state.rest if window & set(ls) for k in ls}
    found: list[int] = []
    reached = set(state.held) - set(outputs)
    entry = set(reached) - bonds
    while True:
        more = [
            i
            for i, (_, ls) in enumerate(state.rest)
            if i not in found
            and not window & set(ls)
            and reached & set(ls)
            and (entry & set(ls) or not set(outputs) & set(ls))
        ]
        if not more:
            return found, reached
        found += more
        reached |= {k for i in more for k in state.rest[i][1] if k not in bonds} - set(outputs)


def _stage(
    state: _State,
    spatial: tuple[tuple[int, ...], ...],
    dims: list[int],
    outputs: Sequence[int],
    window: Window,
    precision: Any,
) -> _State:
    """Take in the operands before this stage, then convolve over the given dimensions."""
    axes, inside = _axes(len(spatial)), {k for d in dims for k in spatial[d]}
    before = _reach(state, spatial, outputs)[0]
    pre = [state.rest[i] for i in before]
    core = [p for i, p in enumerate(state.rest) if i not in before and inside & set(p[1])]
    rest = [p for i, p in enumerate(state.rest) if i not in before and not inside & set(p[1])]
    labels = lambda part: list(dict.fromkeys(k for _, ls in part for k in ls))
    sizes = dict(zip(state.held, state.x.shape[1 + len(axes) :], strict=True))
    sizes |= {k: n for w, ls in (*pre, *core) for k, n in zip(ls, w.shape, strict=True)}
    size = lambda ls: tuple(sizes[k] for k in ls)

    late = {*labels(rest), *outputs}
    early = list(dict.fromkeys([*state.held, *labels(pre)]))
    bonds = [k for k in labels(core) if k not in inside and (k in early or k in late)]
    entering = [k for k in early if k in bonds or k in late]
    passing = [k for k in entering if k not in bonds]  # by-passes the core: a batch
    grouped = [k for k in entering if k in bonds and k in late]  # on both sides: feature groups
    summed = [k for k in entering if k in bonds and k not in late]
    leaving = [k for k in bonds if k not in entering]
    if len(core) > 1 and not rest and not pre and {*state.held, *outputs} <= {*bonds}:
        raise Unsupported("convolution whose spatial core is the whole kernel")

    dtype = jnp.result_type(state.x, *(w for w, _ in (*pre, *core, *rest)))
    x = contract(
        [(state.x, ("batch", *axes, *state.held)), *pre],
        ["batch", *passing, *axes, *grouped, *summed],
        precision=precision,
        out_dtype=dtype,
    )
    lead = x.shape[: 1 + len(passing)]
    x = x.reshape((math.prod(lead), *x.shape[len(lead) : len(lead) + len(axes)], -1))
    kernel = jnp.ones((), dtype)
    if core:
        runs = [k for d in dims for k in spatial[d]]
        order = [*runs, *summed, *grouped, *leaving]
        kernel = contract(core, order, order=Order.FLOPS, precision=precision, out_dtype=dtype)
    extent = tuple(math.prod(size(run)) if d in dims else 1 for d, run in enumerate(spatial))
    letters = string.ascii_lowercase[: len(axes)]
    if core and grouped and not summed and not leaving and depthwise.pays(extent):
        y = depthwise.shifted(x, kernel.reshape((*extent, -1)), **window.over(dims))
    else:
        y = lax.conv_general_dilated(
            x,
            kernel.reshape((*extent, math.prod(size(summed)), -1)),
            dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
            feature_group_count=math.prod(size(grouped)),
            precision=precision,
            **window.over(dims),
        )
    y = y.reshape((*lead, *y.shape[1:-1], *size(grouped), *size(leaving)))
    held = (*passing, *grouped, *leaving)
    source = ("batch", *passing, *axes, *grouped, *leaving)
    target = ("batch", *axes, *held)
    y = y.transpose([source.index(k) for k in target]) if source != target else y
    return _State(y, held, rest)
