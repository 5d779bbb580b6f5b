"""Sites: where a weight meets an activation, and how to bring both sides to matrices.

A site pairs the axes of a weight's view with the axes of the activation (rows), of both (batch)
and of the output (columns).  From that follow the dims of the dense weight that are rows, columns
and stack, and for each side the moves that bring it to [*stack, tokens, width].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from lrjax.lift.interpreter import Place
from lrjax.lift.report import UseKind
from lrjax.lift.values import Param
from lrjax.lift.view import At, Axis, Scanned, View


@dataclass(frozen=True)
class Piece:
    """One axis of the weight at a site; `whole` is its size in the root.

    turn  its place among the axes of the view, so among those merged in one axis of an array
    x, y  its axis in the activation and in the output, None where it has none
    """

    axis: Axis
    whole: int
    turn: int
    x: int | None = None
    y: int | None = None


@dataclass(frozen=True)
class Side:
    """How an array becomes [*stack, tokens, width].

    An array is cut along `cut` (axis, start, size), reshaped to `split`, transposed so that the
    axes `stack`, `tokens` and `width` follow each other; partial width axes are padded by zeros to
    `wholes` from `starts`.
    """

    cut: tuple[int, int, int] | None
    split: tuple[int, ...]
    stack: tuple[int, ...]
    tokens: tuple[int, ...]
    width: tuple[int, ...]
    starts: tuple[int, ...]
    wholes: tuple[int, ...]

    @property
    def token_shape(self) -> tuple[int, ...]:
        """Sizes of the token axes."""
        return tuple(self.split[k] for k in self.tokens)

    def matrices(self, x: Any) -> Any:
        """The array as [*stack, tokens, width]."""
        if self.cut is not None:
            axis, start, size = self.cut
            x = x[(slice(None),) * axis + (slice(start, start + size),)]
        order = (*self.stack, *self.tokens, *self.width)
        x = jnp.transpose(jnp.reshape(x, self.split), order)
        lead = len(self.stack) + len(self.tokens)
        edges = [
            (start, whole - start - self.split[k])
            for k, start, whole in zip(self.width, self.starts, self.wholes, strict=True)
        ]
        if any(edge != (0, 0) for edge in edges):
            x = jnp.pad(x, [(0, 0)] * lead + edges)
        stack = tuple(self.split[k] for k in self.stack)
        return jnp.reshape(x, (*stack, math.prod(self.token_shape), math.prod(self.wholes)))


@dataclass(frozen=True)
class Site:
    """One place where a weight is used as a matrix.

    rows, cols, stack  dims of the dense weight
    pieces   the weight's axes that are stack, by dim and stride
    x, y     the two sides, None if this use cannot be tapped
    y_axes   axes of the output that are columns
    key      what identifies the activation
    dtype    of the output
    """

    place: Place
    weight: Param
    kind: UseKind
    operand: int
    primitive: str
    source: str
    rows: tuple[int, ...]
    cols: tuple[int, ...]
    stack: tuple[int, ...]
    pieces: tuple[Piece, ...] = ()
    x: Side | None = None
    y: Side | None = None
    y_axes: tuple[int, ...] = ()
    key: Any = None
    dtype: Any = None

    @property
    def scans(self) -> tuple[Place, ...]:
        """The scans that step along this weight's stack, outermost first."""
        found = [p.axis.start.scan for p in self.pieces if isinstance(p.axis.start, Scanned)]
        return tuple(sorted(found, key=len))


@dataclass(frozen=True)
class Roles:
    """Dims of the dense weight by role, and the pieces of each; None if some dim has two roles."""

    rows: tuple[int, ...]
    cols: tuple[int, ...]
    stack: tuple[int, ...]
    pieces: dict[str, tuple[Piece, ...]] | None


def roles(
    view: View,
    rows: Sequence[tuple[int, int | None]],
    batch: Sequence[tuple[int, int, int]],
    cols: Sequence[tuple[int, int]],
) -> Roles:
    """Sort the weight's axes.

    Args:
      view: the weight's view.
      rows: (dim of the view, axis of the activation or None).
      batch: (dim of the view, axis of the activation, axis of the output).
      cols: (dim of the view, axis of the output).
    """
    weight: Param = view.root
    where: dict[int, list[tuple[Axis, str, int, int | None, int | None]]] = {}
    odd, turn = False, 0

    def note(axes, role, x, y):
        nonlocal odd, turn
        for axis in axes:
            turn += 1
            if axis.dim is None:
                odd = odd or (role == "rows" or role == "cols")
            else:
                where.setdefault(axis.dim, []).append((axis, role, turn, x, y))

    for d, x in rows:
        note(view.dims[d], "rows", x, None)
    for d, x, y in batch:
        note(view.dims[d], "stack", x, y)
    for d, y in cols:
        note(view.dims[d], "cols", None, y)
    note(view.fixed, "fixed", None, None)

    of: dict[str, list[int]] = {"rows": [], "cols": [], "stack": []}
    pieces: dict[str, list[Piece]] = {"rows": [], "cols": [], "stack": []}
    for dim in range(len(weight.shape)):
        found = sorted(where.get(dim, []), key=lambda f: -f[0].stride)
        kinds = {role for axis, role, *_ in found if role != "fixed" and axis.size > 1}
        kinds = kinds or {role for _, role, *_ in found if role != "fixed"}
        role = min(kinds, key=["rows", "cols", "stack"].index) if kinds else "stack"
        odd = odd or len(kinds) > 1 or not found
        of[role].append(dim)
        step = weight.shape[dim]
        for axis, _, when, x, y in found:
            whole, rest = divmod(step, axis.stride)
            odd = odd or rest != 0 or (role != "stack" and not isinstance(axis.start, int))
            odd = odd or (
                isinstance(axis.start, At) and (axis.start.many or axis.start.var is None)
            )
            pieces[role].append(Piece(axis, whole, when, x, y))
            step = axis.stride
        odd = odd or step != 1
    leading = min((*of["rows"], *of["cols"]), default=len(weight.shape))
    stray = [d for d in of["stack"] if d > leading]
    if stray:
        odd = True
        of["rows"] = sorted(of["rows"] + stray)
        of["stack"] = [d for d in of["stack"] if d not in stray]
    named = {k: tuple(v) for k, v in of.items()}
    kept = None if odd else {k: tuple(v) for k, v in pieces.items()}
    return Roles(named["rows"], named["cols"], named["stack"], kept)


def side(
    shape: Sequence[int],
    width: Sequence[Piece],
    stack: Sequence[Piece],
    which: str,
    cut: tuple[int, int, int] | None = None,
) -> Side | None:
    """The moves for the activation (`which` is "x") or the output ("y")."""
    sizes = list(shape)
    if cut is not None:
        sizes[cut[0]] = cut[2]
    place = lambda piece: getattr(piece, which)
    if any(place(p) is None for p in width):
        return None
    stack = [p for p in stack if place(p) is not None]
    groups: dict[int, list[Piece]] = {}
    for piece in (*width, *stack):
        groups.setdefault(place(piece), []).append(piece)
    split: list[int] = []
    at: dict[int, int] = {}  # id of a piece -> its axis after the split
    tokens = []
    for axis, n in enumerate(sizes):
        group = groups.get(axis, [])
        group = sorted(group, key=lambda p: p.turn)
        if group and math.prod(p.axis.size for p in group) != n:
            return None
        for piece in group:
            at[id(piece)] = len(split)
            split.append(piece.axis.size)
        if not group:
            tokens.append(len(split))
            split.append(n)
    return Side(
        cut,
        tuple(split),
        tuple(at[id(p)] for p in stack),
        tuple(tokens),
        tuple(at[id(p)] for p in width),
        tuple(p.axis.start if isinstance(p.axis.start, int) else 0 for p in width),
        tuple(p.whole for p in width),
    )
