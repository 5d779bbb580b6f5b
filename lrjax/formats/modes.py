"""How the modes of a tensor format become the dense dimensions of a weight.

Formats of many modes share three static fields: `rows` and `cols` are sizes of dense dimensions,
into which the modes regroup row-major, and `order` permutes rows + cols into the trailing
dimensions of the weight.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

from jax import lax

from lrjax.errors import ShapeError, message
from lrjax.formats.layout import Layout
from lrjax.formats.lazy import LazyArray
from lrjax.formats.network import Network, Unsupported

Sizes = tuple[int, ...] | None


def arrange(net: Network, stack: int, rows: Sizes, cols: Sizes, order: Sizes) -> Network:
    """The network of modes under the dense dimensions (*stack, *permuted(rows + cols))."""
    if rows is None and cols is None:
        return net
    lead = net.shape[:stack]
    net = net.reshape((*lead, *(rows or ()), *(cols or ())))
    if order is None:
        return net
    return net.with_dims([*net.dims[:stack], *(net.dims[stack + i] for i in order)])


def layout_of(stack: int, rows: int, cols: int, order: Sizes) -> Layout:
    """Where `rows` input and `cols` output dimensions are, behind `stack` stack axes."""
    order = tuple(range(rows + cols)) if order is None else order
    place = tuple(stack + order.index(i) for i in range(rows + cols))
    return Layout(place[:rows], place[rows:])


def leading(net: Network, axis: int, size: int, name: str = "?") -> LazyArray:
    """The first `size` entries of a merged dimension, exact: a padded tail is never computed.

    The merged index runs through its labels as digits. Up to `size` there are at most as many
    runs as labels: whole blocks of the first digit, then of the second within the next block, ...

    Raises:
      Unsupported: a label of the dimension is shared with another dimension.
    """
    if size == net.shape[axis]:
        return LazyArray((net,), None, name)

    def cut(net: Network, label: int, start: int, count: int) -> Network:
        return net.map_label(label, lambda x, k: lax.slice_in_dim(x, start, start + count, axis=k))

    sizes = net.sizes
    labels = [k for k in net.dims[axis] if sizes[k] != 1]
    if any(k in group for d, group in enumerate(net.dims) if d != axis for k in labels):
        raise Unsupported("a cut through one of two dimensions that share a block label")
    parts, rest = [], size
    for i, label in enumerate(labels):
        block = math.prod(sizes[k] for k in labels[i + 1 :])
        count, rest = divmod(rest, block)
        if count:
            parts.append(LazyArray((cut(net, label, 0, count),), None, name))
        if not rest:
            break
        net = cut(net, label, count, 1)
    return parts[0] if len(parts) == 1 else LazyArray(tuple(parts), axis, name)


def check_sizes(kind: str, rows: Sizes, cols: Sizes, order: Sizes, size: int) -> None:
    """Check that rows + cols regroup `size` entries, and that `order` permutes them.

    Raises:
      ShapeError: they do not.
    """
    if (rows is None) != (cols is None):
        got, todo = f"rows={rows}, cols={cols}", "Give both, or neither."
        raise ShapeError(message(path=kind, got=got, expected="both or neither", todo=todo))
    dims = (*(rows or ()), *(cols or ()))
    if rows is not None and math.prod(dims) != size:
        got = f"rows={rows}, cols={cols} for modes of {size} entries"
        todo = "Regroup all modes."
        raise ShapeError(message(path=kind, got=got, expected=f"{size} entries", todo=todo))
    if order is not None and (rows is None or sorted(order) != list(range(len(dims)))):
        got, expected = f"order={order}", f"a permutation of 0..{len(dims) - 1}"
        todo = "It places rows + cols, which must be given."
        raise ShapeError(message(path=kind, got=got, expected=expected, todo=todo))


@contextlib.contextmanager
def regrouping(weight: Any, piece: str, of: str = "") -> Iterator[None]:
    """Says what to do where `rows` and `cols` of a weight cut through its modes, blocks, digits.

    Raises:
      ShapeError: the body raised `Unsupported`.
    """
    try:
        yield
    except Unsupported as e:
        got = f"rows={weight.rows}, cols={weight.cols}{of} ({e})"
        expected = f"dimensions that end where a {piece} does, or that divide it"
        todo = f"Choose other {piece}s for this weight."
        kind = type(weight).__name__
        raise ShapeError(message(path=kind, got=got, expected=expected, todo=todo)) from e


def dense_dims(
    shape: Sequence[int], rows: Sizes, cols: Sizes, order: Sizes, stack: int
) -> tuple[int, ...]:
    """`shape` with its trailing dimensions replaced by the permuted rows + cols."""
    if rows is None or cols is None:
        return tuple(shape)
    dims = (*rows, *cols)
    placed = dims if order is None else tuple(dims[i] for i in order)
    return (*shape[:stack], *placed)
