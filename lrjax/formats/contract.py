"""Contraction of a labelled tensor network, in an order chosen from the shapes at hand.

The order minimises arithmetic over all orders that are allowed. `Order.STREAM` allows only
steps that involve an activation: it flows through every factor, so that the dense weight can
never form. `Order.FLOPS` allows every step, and may form the weight where that is cheaper
(a large batch, a high rank).
"""

import enum
import functools
import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from lrjax.formats.choice import Choice, gather, scatter
from lrjax.formats.picked import Picked
from lrjax.formats.rows import row_by_row, row_label
from lrjax.formats.selection import Selection, as_array
from lrjax.formats.step import step_of
from lrjax.trees import Weight

Label = Hashable
Labelled = tuple[Any, tuple[int, ...]]

MOVING = (Selection, Choice, Weight)
"""Operands that are no arrays: what is on one side of them goes to the other, where that is all."""

# Above these operand counts the exact search (3^n and n 2^n states) gives way to the simpler one.
EXACT_FLOPS = 9
EXACT_STREAM = 14


class Order(enum.Enum):
    """Which contraction orders are allowed."""

    STREAM = "stream"
    FLOPS = "flops"


class Side(NamedTuple):
    """Axes of an operand that takes what is on one side to the other; others are a batch."""

    outs: tuple[int, ...]
    ins: tuple[int, ...]
    choice: bool


class Path(NamedTuple):
    """Pairwise steps and their arithmetic; step k contracts two ids and makes id `n + k`."""

    steps: tuple[tuple[int, int], ...]
    flops: int


def contract(
    operands: Sequence[tuple[Any, Sequence[Label]]],
    out: Sequence[Label],
    *,
    order: Order = Order.STREAM,
    activations: int = 1,
    precision: Any = None,
    out_dtype: Any = None,
) -> Array:
    """Sum over all labels not in `out` of the product of the operands.

    Intermediates keep the promoted dtype of the operands; only the last step accumulates in,
    and returns, `out_dtype`. A label repeated within an operand takes its diagonal; a label
    repeated in `out` spreads over the diagonal.

    Args:
      operands: arrays with one label an axis; the first `activations` of them are activations.
      out: labels of the result.
      order: which orders to search.
      activations: number of leading operands that are not weights.
      precision: as in `jax.lax.dot_general`.
      out_dtype: dtype of the result; by default the promoted dtype of the operands.
    """
    ids = {label: i for i, label in enumerate(dict.fromkeys(k for _, ls in operands for k in ls))}
    arrays = [_diagonal(_array(x), tuple(ids[k] for k in ls)) for x, ls in operands]
    target = tuple(ids[k] for k in out)
    sizes = {i: n for x, ls in arrays for i, n in zip(ls, x.shape, strict=True)}
    arrays = _without_units(arrays, set(target))
    path = plan(
        tuple(ls for _, ls in arrays),
        tuple(sizes[i] for i in range(len(ids))),
        tuple(dict.fromkeys(target)),
        order,
        activations,
        selections([x for x, _ in arrays]),
    )
    dtype = promoted(x.dtype for x, _ in arrays)
    run = functools.partial(_run, path=path, dtype=dtype, precision=precision, out_dtype=out_dtype)
    row = row_label(arrays, path.steps, target) if order is Order.STREAM else None
    if row is None:
        return run(arrays, target)
    return row_by_row(run, arrays, path.steps, target, row)


def _run(
    arrays: Sequence[Labelled],
    target: tuple[int, ...],
    *,
    path: Path,
    dtype: Any,
    precision: Any,
    out_dtype: Any,
) -> Array:
    """All steps of a path, and the axes in the order of `target`."""
    sizes = {i: n for x, ls in arrays for i, n in zip(ls, x.shape, strict=True)}
    alive: list[Labelled | None] = list(arrays)
    for k, (i, j) in enumerate(path.steps):
        a, b = alive[i], alive[j]
        assert a is not None
        assert b is not None
        alive[i] = alive[j] = None
        keep = set(target).union(*(x[1] for x in alive if x is not None))
        last = k == len(path.steps) - 1
        y, ls = _pair(a, b, keep, dtype, precision, out_dtype if last else None)
        alive.append((y if last else cast(y, dtype), ls))
    y, ls = next(x for x in alive if x is not None)
    y, ls = _presum(_gathered(y), ls, set(target))
    y = _spread(y, ls, target, sizes)
    return cast(y, dtype if out_dtype is None else out_dtype)


def promoted(dtypes: Iterable[Any]) -> Any:
    """The dtype that arrays of these dtypes have together; None is of no consequence."""
    unique = set(dtypes) - {None}
    return unique.pop() if len(unique) == 1 else jnp.result_type(*unique)


def cast(x: Any, dtype: Any) -> Any:
    """`x.astype(dtype)`, at no cost while tracing if there is nothing to do."""
    return x if x.dtype == dtype else x.astype(dtype)


@functools.lru_cache(8192)
def plan(
    labels: tuple[tuple[int, ...], ...],
    sizes: tuple[int, ...],
    out: tuple[int, ...],
    order: Order,
    activations: int,
    free: tuple[tuple[int, Side, int | None], ...] = (),
) -> Path:
    """The cheapest allowed sequence of pairwise contractions; a function of shapes alone.

    `free` are the operands of `selections`.
    """
    n = len(labels)
    if n == 1:
        return Path((), 0)
    if order is Order.FLOPS and n > EXACT_FLOPS:
        order = Order.STREAM
    activations = max(1, activations)
    active = (1 << activations) - 1
    full = (1 << n) - 1

    @functools.lru_cache(None)
    def kept(mask: int) -> frozenset[int]:
        inside = {k for i in range(n) if mask >> i & 1 for k in labels[i]}
        outside = set(out).union(*(labels[i] for i in range(n) if not mask >> i & 1))
        return frozenset(inside & outside)

    pick = lambda i, axes: frozenset(labels[i][d] for d in axes)
    sides = {
        1 << i: (pick(i, side.outs), pick(i, side.ins), side.choice, price, frozenset(labels[i]))
        for i, side, price in free
    }

    def moves(a: int, selection: int, mask: int) -> int | None:
        """Arithmetic of moving slots, where that is all: adding up what a choice sends back.

        A weight has a price for every row that goes through it.
        """
        if selection not in sides:
            return None
        outs, ins, choice, price, own = sides[selection]
        way = _gathers(kept(a), outs, ins, kept(mask), choice)
        if not way:
            return None
        if price is not None:
            return price * math.prod(sizes[k] for k in (kept(a) | own) - outs - ins)
        return math.prod(sizes[k] for k in kept(a) | outs) if choice and way < 0 else 0

    @functools.lru_cache(None)
    def best(mask: int) -> tuple[int, int, tuple[int, int] | None]:
        if mask & (mask - 1) == 0:
            return 0, 0, None
        found = (math.inf, math.inf, None)
        for a, b in _splits(mask, active, order, greedy=n > EXACT_STREAM):
            step = moves(a, b, mask)
            step = moves(b, a, mask) if step is None else step
            if step is None:
                step = _step_flops(kept(a), kept(b), kept(mask), sizes)
            (fa, sa, _), (fb, sb, _) = best(a), best(b)
            space = sa + sb + math.prod(sizes[k] for k in kept(mask))
            found = min(found, (fa + fb + step, space, (a, b)))
        return found  # type: ignore[return-value]

    steps: list[tuple[int, int]] = []

    def emit(mask: int) -> int:
        halves = best(mask)[2]
        if halves is None:
            return mask.bit_length() - 1
        # The half with the earliest operand goes first, so that the activation stays on the left.
        first, second = sorted(halves, key=lambda half: half & -half)
        steps.append((emit(first), emit(second)))
        return n + len(steps) - 1

    emit(full)
    return Path(tuple(steps), best(full)[0])


def selections(operands: Sequence[Any]) -> tuple[tuple[int, Side, int | None], ...]:
    """Which operands are no arrays, their sides, and of weights the arithmetic of one row."""
    return tuple(
        (i, side_of(x), x.price if isinstance(x, Weight) else None)  # pyright: ignore[reportAttributeAccessIssue]
        for i, x in enumerate(operands)
        if isinstance(x, MOVING)
    )


def side_of(x: Any) -> Side:
    """The axes of a selection, a choice or a weight by the side they are on."""
    if isinstance(x, Weight):
        _, rows, cols = x.layout.resolve(x.ndim)  # pyright: ignore[reportAttributeAccessIssue]
        return Side(rows, cols, False)
    outs = len(x.outs)
    return Side(tuple(range(outs)), tuple(range(outs, x.ndim)), isinstance(x, Choice))


def _gathers(own: frozenset, outs: frozenset, ins: frozenset, keep: frozenset, choice: bool) -> int:
    """1 if a selection moves input slots of an operand to output slots, -1 if back, else 0."""
    if choice:  # output labels that the operand has, or that stay, are a batch of patterns
        return -1 if not ins & own else 1 if ins <= own and not ins & keep else 0
    for first, second, way in ((ins, outs, 1), (outs, ins, -1)):
        if first <= own and not second & own and not first & keep:
            return way
    return 0


def _splits(mask: int, active: int, order: Order, greedy: bool):
    """Allowed ways to cut a set of operands in two."""
    if order is Order.FLOPS:
        low = mask & -mask
        part = (mask - 1) & mask
        while part:
            if part & low:
                yield part, mask ^ part
            part = (part - 1) & mask
        return
    weights = mask & ~active
    if greedy and weights:  # a long chain: from the first operand to the last
        last = 1 << (weights.bit_length() - 1)
        yield mask ^ last, last
        return
    rest = weights
    while rest:  # absorb one weight
        one = rest & -rest
        rest ^= one
        if (mask ^ one) & active:
            yield mask ^ one, one
    acts = mask & active
    part = (mask - 1) & mask if acts & (acts - 1) else 0
    while part:  # join two activations, each with what it has absorbed
        other = mask ^ part
        if part & active and other & active and part & -part < other & -other:
            yield part, other
        part = (part - 1) & mask


def _step_flops(a: frozenset[int], b: frozenset[int], keep: frozenset[int], sizes) -> int:
    work = math.prod(sizes[k] for k in a | b)
    summed = (a & b) - keep
    return 2 * work if summed else work


def _pair(a: Labelled, b: Labelled, keep: set[int], dtype, precision, out_dtype):
    """Contract two labelled arrays, summing the labels that are not in `keep`."""
    if (added := _add_up(a, b, keep, dtype)) is not None:
        z, ls = added
        return cast(z, dtype if out_dtype is None else out_dtype), ls
    (x, la), (y, lb) = (_gathered(a[0]), a[1]), (_gathered(b[0]), b[1])
    if isinstance(x, MOVING) or isinstance(y, MOVING):
        pair = (y, lb), (x, la)
        if not isinstance(x, MOVING) or isinstance(y, MOVING):
            pair = (x, la), (y, lb)
        moved = _move(*pair, keep, dtype, precision)
        if moved is not None:
            z, ls = moved
            return (z if out_dtype is None else cast(z, out_dtype)), ls
        x, y = as_array(x, dtype), as_array(y, dtype)
    x, la = _presum(cast(x, dtype), la, keep | set(lb))
    y, lb = _presum(cast(y, dtype), lb, keep | set(la))
    step = step_of(la, lb, keep)
    if not step.summed:  # a scaling or an outer product keeps the layout of the activation
        ls = la + tuple(k for k in lb if k not in la)
        z = _aligned(x, la, ls) * _aligned(y, lb, ls)
        return (z if out_dtype is None else cast(z, out_dtype)), ls
    if step.swapped:
        x, y, la, lb = y, x, lb, la
    axes = lambda of, which: tuple(of.index(k) for k in which)
    summed, batch, ls = step.summed, step.batch, step.out
    dims = ((axes(la, summed), axes(lb, summed)), (axes(la, batch), axes(lb, batch)))
    z = lax.dot_general(
        x,
        y,
        dims,
        precision=precision,
        preferred_element_type=out_dtype,
        out_sharding=_out_sharding(x, la, y, lb, summed, ls),
    )
    return z, ls


def _move(a: Labelled, b: Labelled, keep: set[int], dtype, precision) -> Labelled | None:
    """Contract an array with a selection by moving slots, where that is all it does.

    Likewise an array with a weight, by its own contraction.
    """
    (x, la), (selection, lb) = a, b
    if isinstance(selection, Weight) and isinstance(x, Selection):
        (x, la), (selection, lb) = b, a
    if isinstance(x, Weight) and isinstance(selection, Selection):
        x = as_array(x, dtype)
    if isinstance(x, MOVING):
        return None
    side = side_of(selection)
    outs, ins = (tuple(lb[d] for d in axes) for axes in (side.outs, side.ins))
    way = _gathers(frozenset(la), frozenset(outs), frozenset(ins), frozenset(keep), side.choice)
    if not way:
        return None
    if side.choice:
        return _choose(a, (selection, lb), keep, way)
    if isinstance(selection, Weight):
        gone, new = (ins, outs) if way > 0 else (outs, ins)
        return selection.through((x, la), lb, (gone, new), keep, precision)  # pyright: ignore[reportAttributeAccessIssue]
    gone, new = (ins, outs) if way > 0 else (outs, ins)
    rest = tuple(k for k in la if k not in gone)
    x = _aligned(x, la, (*gone, *rest))
    return (selection.forward(x) if way > 0 else selection.backward(x)), (*new, *rest)


def _choose(a: Labelled, b: Labelled, keep: set[int], way: int) -> Labelled:
    """Contract an array with a choice: gather its inputs, or add up its outputs."""
    (x, la), (choice, lb) = a, b
    outs, ins = lb[: len(choice.outs)], lb[len(choice.outs) :]
    rest = tuple(k for k in la if k not in lb)
    axes = lambda labels: [outs.index(k) for k in labels]
    if way > 0:
        shared = tuple(k for k in outs if k in la)
        return gather(_aligned(x, la, (*rest, *shared, *ins)), len(rest), axes(shared), choice), (
            *rest,
            *outs,
        )
    kept = tuple(k for k in outs if k in keep)
    y = scatter(_aligned(x, la, (*rest, *outs)), len(rest), axes(kept), choice)
    return y, (*rest, *kept, *ins)


def _add_up(a: Labelled, b: Labelled, keep: set[int], dtype: Any) -> Labelled | None:
    """Contract what a choice picks with what weighs it, where the sum is over picks alone."""
    (x, la), (y, lb) = a, b
    if not isinstance(x, Picked) or not isinstance(y, jax.Array):
        return None
    rest, outs = la[: x.x.ndim - 1], la[x.x.ndim - 1 :]
    if not set(rest) <= keep or set(outs) <= keep or not set(lb) <= set(outs):
        return None
    kept = [d for d, k in enumerate(outs) if k in keep]
    z = x.astype(dtype).sums(_aligned(cast(y, dtype), lb, outs), kept)
    return z, (*rest, *(outs[d] for d in kept))


def _gathered(x: Any) -> Any:
    return x.gathered() if isinstance(x, Picked) else x


def _presum(x: Array, ls: tuple[int, ...], keep: set[int]):
    dead = tuple(i for i, k in enumerate(ls) if k not in keep)
    if not dead:
        return x, ls
    ones = all(x.shape[d] == 1 for d in dead)  # nothing to sum: keep the dtype of each step
    return x.squeeze(dead) if ones else x.sum(dead), tuple(k for k in ls if k in keep)


def _without_units(arrays: Sequence[Labelled], keep: set[int]) -> list[Labelled]:
    """The arrays without axes of size one that nothing asks for: they hide that others are next."""
    still = {k for x, ls in arrays if isinstance(x, MOVING) for k in ls} | keep

    def squeezed(x: Any, ls: tuple[int, ...]) -> Labelled:
        gone = [d for d, k in enumerate(ls) if x.shape[d] == 1 and k not in still]
        if not gone:
            return x, ls
        return x.squeeze(gone), tuple(k for d, k in enumerate(ls) if d not in gone)

    return [squeezed(x, ls) for x, ls in arrays]


def _aligned(x: Array, ls: tuple[int, ...], out: tuple[int, ...]) -> Array:
    """`x` with axes in the order of `out`, and size one where it has no label."""
    inside = [k for k in out if k in ls]
    x = x.transpose([ls.index(k) for k in inside]) if list(ls) != inside else x
    return jnp.expand_dims(x, [i for i, k in enumerate(out) if k not in ls])


def _array(x: Any) -> Any:
    return x if isinstance(x, (jax.Array, *MOVING)) else jnp.asarray(x)


def _diagonal(x: Any, ls: tuple[int, ...]):
    if len(set(ls)) == len(ls):
        return x, ls
    unique = tuple(dict.fromkeys(ls))
    x = as_array(x, jnp.float32)
    return jnp.einsum(x, list(ls), list(unique)), unique


def _spread(y: Array, ls: tuple[int, ...], out: tuple[int, ...], sizes: dict[int, int]) -> Array:
    """Axes in the order of `out`; a repeated label becomes a diagonal."""
    seen: list[int] = []
    fresh = max(sizes, default=0) + 1
    for k in out:
        if k in seen:
            eye = jnp.eye(sizes[k], dtype=y.dtype)
            new = (*ls, fresh)
            y = _aligned(y, ls, new) * _aligned(eye, (k, fresh), new)
            ls, k, fresh = new, fresh, fresh + 1
        seen.append(k)
    perm = tuple(ls.index(k) for k in seen)
    return y if perm == tuple(range(len(perm))) else y.transpose(perm)


def _out_sharding(a, la, b, lb, summed, ls):
    """The partition of a sum over a sharded label, which an explicit mesh wants named.

    Every label that remains keeps its mesh axis.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return None
    where = {}
    for x, own in ((a, la), (b, lb)):
        spec = jax.typeof(x).sharding.spec
        where.update({k: axis for k, axis in zip(own, spec, strict=False) if axis is not None})
    if not any(k in where for k in summed):
        return None
    axes = [where.get(k) for k in ls]
    return jax.sharding.PartitionSpec(
        *(axis if axis not in axes[:i] else None for i, axis in enumerate(axes))
    )
