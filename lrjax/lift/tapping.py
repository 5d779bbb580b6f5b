"""The interpreter that taps: at chosen sites it reduces the activation, and marks the output.

A mark is the identity with an extra operand, the seed; its backward pass hands the reduced output
gradient back as the seed's gradient.  So the sums of gradients come out of `jax.grad` with respect
to the seeds, and travel through scan, remat, cond and vmap by jax's own rules.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lrjax.formats.contract import Order
from lrjax.lift import jaxprs
from lrjax.lift.interpreter import Place, Step, Sums, under
from lrjax.lift.lift import Lift
from lrjax.lift.report import UseKind
from lrjax.lift.rules import is_lazy
from lrjax.lift.sites import Piece, Site
from lrjax.lift.view import At, Scanned


@dataclass(frozen=True)
class Work:
    """What to do at one site: observe its activation for a tap, mark its output for another."""

    site: Site
    input: Any
    output: Any
    reduce_input: Any
    reduce_output: Any


def tap_run(
    jaxpr: Any, values: Sequence[Any], work: dict[Place, Work], seeds: Sums, mask: Any
) -> tuple[list[Any], Sums]:
    """Evaluate a program: (outputs, sums of the activations)."""
    return Taps(work, mask).run(jaxpr, values, (), seeds)


class Taps(Lift):
    """Evaluation with taps, on dense or lazy weights."""

    def __init__(self, work: dict[Place, Work], mask: Any):
        super().__init__("error", Order.STREAM)
        self.work, self.mask = work, mask
        self.on_way = {place[:k] for place in work for k in range(1, len(place))}

    def takes(self, eqn: Any, vals: Sequence[Any], at: Place) -> bool:
        """A site, or a program around one."""
        return at in self.on_way or super().takes(eqn, vals, at)

    def stacked(self, place: Place, at: Place) -> bool:
        """The weight is scanned there."""
        return at in self.work[place].site.scans

    def pending(self, at: Place, *, stacked: bool) -> bool:
        """Activations are observed there."""
        found = under(self.work, at)
        return any(w.input and self.stacked(p, at) == stacked for p, w in found.items())

    def leaf(self, eqn: Any, vals: Sequence[Any], at: Place, seeds: Sums) -> Step:
        """Observe, evaluate, mark."""
        here = under(self.work, at)
        found = {place: self._observe(w, eqn, vals) for place, w in here.items() if w.input}
        lazy = any(is_lazy(v) for v in vals)
        outs = super().leaf(eqn, vals, at, seeds)[0] if lazy else jaxprs.bind(eqn, vals)
        for place, w in here.items():
            if w.output and place in seeds:
                outs = [self._mark(w, outs[0], seeds[place])]
        return outs, found

    def _observe(self, w: Work, eqn: Any, vals: Sequence[Any]) -> Any:
        """Sums of the activation, on this site's stack axes."""
        site: Site = w.site
        side: Any = site.x
        if site.kind is UseKind.LOOKUP:
            look: Any = jaxprs.lookup(eqn)
            counts = _counts(vals[1][..., look.column], vals[0].shape[look.dim], self.mask)
            x = side.matrices(counts)[..., 0, :]
            return self._place(w.reduce_input(w.input, x, None), site)
        x = vals[1 - site.operand]
        if site.kind is UseKind.CONV:
            x = _patches(x, eqn, vals[1].shape)
        mask = _fit(self.mask, side.token_shape)
        return self._place(w.reduce_input(w.input, side.matrices(x), mask), site)

    def _mark(self, w: Work, y: Any, seed: Any) -> Any:
        """The output, whose gradient is also reduced into the seed's."""
        at = self._slot(w.site)
        side: Any = w.site.y
        mask = _fit(self.mask, side.token_shape)

        @jax.custom_vjp
        def mark(y, seed, mask):
            del seed, mask
            return y

        def forward(y, seed, mask):
            return mark(y, seed, mask), (seed, mask)

        def backward(kept, g):
            seed, mask = kept
            sums = w.reduce_output(w.output, side.matrices(g), mask)
            return g, jax.tree.map(lambda a, s: a.astype(s.dtype), sums, seed), None

        mark.defvjp(forward, backward)
        return mark(y, jax.tree.map(lambda a: a[at], seed), mask)

    def _place(self, sums: Any, site: Site) -> Any:
        """Sums of one position of an indexed stack, among zeros for the others."""
        own = _inside(site)
        if not any(_indexed(p) or p.axis.size != p.whole for p in own):
            return sums
        at, sizes = self._slot(site), tuple(p.whole for p in own)
        batch = sum(not _indexed(p) for p in own)
        put = lambda a: jnp.zeros((*sizes, *a.shape[batch:]), a.dtype).at[at].set(a)
        return jax.tree.map(put, sums)

    def _slot(self, site: Site) -> tuple[Any, ...]:
        """Where in the stack this site is."""
        index = []
        for p in _inside(site):
            start: Any = p.axis.start
            if not _indexed(p):
                index.append(slice(start, start + p.axis.size))
            else:
                index.append(self.read(start.var) if isinstance(start, At) else start)
        return tuple(index)


def _inside(site: Site) -> list[Piece]:
    """Stack pieces that no scan hides."""
    return [p for p in site.pieces if not isinstance(p.axis.start, Scanned)]


def _indexed(piece: Piece) -> bool:
    return piece.x is None


def _order(site: Site) -> list[int]:
    """Positions of the stack pieces as sums have them: scans, outermost first, then the rest."""
    scans = [site.pieces.index(p) for s in site.scans for p in site.pieces if _scan_of(p) == s]
    return scans + [k for k in range(len(site.pieces)) if k not in scans]


def _scan_of(piece: Piece) -> Any:
    return piece.axis.start.scan if isinstance(piece.axis.start, Scanned) else None


def spread(seed: Any, site: Site) -> Any:
    """A seed [*stack, ...] with its axes as the site meets them."""
    order, sizes = _order(site), tuple(p.whole for p in site.pieces)

    def one(a):
        a = a.reshape((*sizes, *a.shape[len(site.stack) :]))
        return a.transpose((*order, *range(len(order), a.ndim)))

    return jax.tree.map(one, seed)


def gather(sums: Any, site: Site, stack: tuple[int, ...]) -> Any:
    """Sums as the site made them, as [*stack, ...]."""
    order = _order(site)

    def one(a):
        back = [order.index(k) for k in range(len(order))]
        a = a.transpose((*back, *range(len(order), a.ndim)))
        return a.reshape((*stack, *a.shape[len(order) :]))

    return jax.tree.map(one, sums)


def _fit(mask: Any, tokens: tuple[int, ...]) -> Any:
    """The mask for tokens of this shape, flat; None if it says nothing about them."""
    if mask is None:
        return None
    mask = jnp.asarray(mask, bool)
    if tokens[:1] == (mask.size,):
        mask = mask.reshape(-1)
    elif tokens[: mask.ndim] != mask.shape:
        return None
    lead = mask.reshape(mask.shape + (1,) * (len(tokens) - mask.ndim))
    return jnp.broadcast_to(lead, tokens).reshape(-1)


def _counts(index: Any, rows: int, mask: Any) -> Any:
    """How often each row is looked up; positions outside the table are left out."""
    fits = _fit(mask, index.shape)
    each = jnp.ones(index.size, jnp.float32) if fits is None else fits.astype(jnp.float32)
    at = index.reshape(-1)
    at = jnp.where(at < 0, rows, at)
    return jnp.zeros(rows, jnp.float32).at[at].add(each, mode="drop")


def _patches(x: Any, eqn: Any, kernel: tuple[int, ...]) -> Any:
    """What each output position of a convolution sees: [batch, *out, group, in, *window]."""
    p = eqn.params
    numbers, groups = p["dimension_numbers"], p["feature_group_count"]
    window = tuple(kernel[d] for d in numbers.rhs_spec[2:])
    x = jnp.transpose(x, numbers.lhs_spec)
    y = lax.conv_general_dilated_patches(
        x,
        window,
        p["window_strides"],
        p["padding"],
        p["lhs_dilation"],
        p["rhs_dilation"],
    )
    n, out = x.shape[0], y.shape[2:]
    y = y.reshape((n, groups, x.shape[1] // groups, *window, math.prod(out)))
    return jnp.moveaxis(y, -1, 1).reshape((n, *out, groups, x.shape[1] // groups, *window))
