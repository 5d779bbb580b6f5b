"""Scaling, adding, multiplying, summing and casting of arrays that may be factored."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrjax.formats.contract import MOVING
from lrjax.formats.factored import is_factored
from lrjax.formats.lazy import LazyArray, as_lazy, drop_unit, product
from lrjax.formats.network import Network, Unsupported
from lrjax.ops.shape import broadcast_in_dim, slice_in_dim


def scale(w: Any, scalar: Any) -> Any:
    """`w * scalar` in `w`'s dtype, by the cheapest factor of each term."""
    w = as_lazy(w)
    if not isinstance(w, LazyArray):
        return (w * scalar).astype(w.dtype)

    def one(net: Network) -> Network:
        arrays = [i for i, x in enumerate(net.operands) if not isinstance(x, MOVING)]
        k = min(arrays, key=lambda i: net.operands[i].size)
        operands = list(net.operands)
        operands[k] = (operands[k] * scalar).astype(operands[k].dtype)
        return Network(tuple(operands), net.labels, net.dims)

    return w.map(one)


def multiply(a: Any, b: Any) -> Any:
    """Elementwise product, with broadcasting; lazy if an operand is.

    Raises:
      Unsupported: a dense operand varies along every dimension, so that the product has the
        dense weight's cost anyway; or both are long sums.
    """
    a, b = as_lazy(a), as_lazy(b)
    lazies = isinstance(a, LazyArray), isinstance(b, LazyArray)
    if not any(lazies):
        return jnp.multiply(a, b)
    if not all(lazies):
        w, x = (a, jnp.asarray(b)) if lazies[0] else (b, jnp.asarray(a))
        if x.size == 1 and x.ndim <= w.ndim:
            return scale(w, x.reshape(()))
        if x.ndim == w.ndim > 1 and 1 not in x.shape:
            raise Unsupported("elementwise product with a dense array of the full shape")
        a, b = w, x
    shape = np.broadcast_shapes(a.shape, b.shape)
    n = len(shape)
    sizes = dict(enumerate(shape))
    pairs = [drop_unit(x, range(n - x.ndim, n), sizes) for x in (a, b)]
    out = [d for d in range(n) if any(d in ls for _, ls in pairs)]
    y = product(pairs, out, lazy=True)
    return y if len(out) == n else broadcast_in_dim(y, shape, out)


def add(a: Any, b: Any) -> Any:
    """Elementwise sum, with broadcasting; lazy if an operand is.

    Raises:
      Unsupported: two concatenations that are cut differently.
    """
    a, b = as_lazy(a), as_lazy(b)
    if not isinstance(a, LazyArray) and not isinstance(b, LazyArray):
        return jnp.add(a, b)
    name = next((x.name for x in (a, b) if isinstance(x, LazyArray) and x.name != "?"), "?")
    a, b = (x if isinstance(x, LazyArray) else LazyArray.of(jnp.asarray(x)) for x in (a, b))
    shape = np.broadcast_shapes(a.shape, b.shape)
    a, b = (
        x
        if x.shape == shape
        else broadcast_in_dim(x, shape, range(len(shape) - x.ndim, len(shape)))
        for x in (a, b)
    )
    cut = a if a.axis is not None else b
    if cut.axis is None:
        return LazyArray((*a.terms, *b.terms), None, name)
    parts, low = [], 0
    for part in cut.terms:
        n = part.shape[cut.axis]
        parts.append(add(*(slice_in_dim(x, low, n, cut.axis) for x in (a, b))))
        low += n
    return LazyArray(tuple(parts), cut.axis, name)


def reduce_sum(w: Any, axes: Sequence[int]) -> Any:
    """Sum over dense dimensions, contracted: the result is an array."""
    w = as_lazy(w)
    if not isinstance(w, LazyArray):
        return jnp.sum(w, tuple(axes))
    gone = {d % w.ndim for d in axes}
    ls = tuple(range(w.ndim))
    return product([(w, ls)], [d for d in ls if d not in gone])


def cast(w: Any, dtype: Any) -> Any:
    """The same array with its factors in another dtype; a factored weight stays one."""
    if not isinstance(w, LazyArray) and not is_factored(w):
        return jnp.asarray(w, dtype)
    return jax.tree.map(lambda x: x.astype(dtype), w)
