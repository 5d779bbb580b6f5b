"""`dot_general` and `einsum` of which any operand may be factored."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lrjax.errors import ShapeError, message
from lrjax.formats.contract import Order
from lrjax.formats.lazy import LazyArray, as_lazy, drop_unit, product
from lrjax.formats.lazy import matmul as matmul

Dims = tuple[
    tuple[Sequence[int], Sequence[int]],
    tuple[Sequence[int], Sequence[int]],
]


def dot_general(
    lhs: Any,
    rhs: Any,
    dimension_numbers: Dims,
    precision: Any = None,
    preferred_element_type: Any = None,
    *,
    order: Order = Order.STREAM,
    out_sharding: Any = None,
) -> Any:
    """`jax.lax.dot_general`; a product of two factored arrays stays lazy.

    Args:
      lhs: array, factored or lazy array.
      rhs: likewise.
      dimension_numbers: `((lhs_contract, rhs_contract), (lhs_batch, rhs_batch))`.
      precision: as in `jax.lax.dot_general`, for every step.
      preferred_element_type: dtype of the last step and the result.
      order: which contraction orders are allowed.
      out_sharding: sharding of the result under an explicit mesh.
    """
    lhs, rhs = as_lazy(lhs), as_lazy(rhs)
    lazies = isinstance(lhs, LazyArray), isinstance(rhs, LazyArray)
    if not any(lazies):
        return lax.dot_general(
            lhs,
            rhs,
            dimension_numbers,
            precision=precision,
            preferred_element_type=preferred_element_type,
            out_sharding=out_sharding,
        )
    (lc, rc), (lb, rb) = dimension_numbers
    left: list[Any] = [("l", d) for d in range(lhs.ndim)]
    right: list[Any] = [("r", d) for d in range(rhs.ndim)]
    for i, j in (*zip(lc, rc, strict=True), *zip(lb, rb, strict=True)):
        right[j] = left[i]
    batch = [left[d] for d in lb]
    free = [k for d, k in enumerate(left) if d not in lc and d not in lb]
    free += [k for d, k in enumerate(right) if d not in rc and d not in rb]
    y = product(
        [(lhs, left), (rhs, right)],
        batch + free,
        lazy=all(lazies),
        order=order,
        precision=precision,
        out_dtype=preferred_element_type,
    )
    if out_sharding is None or isinstance(y, LazyArray):
        return y
    return jax.sharding.reshard(y, out_sharding)


def einsum(
    spec: str,
    *operands: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
    order: Order = Order.STREAM,
) -> Any:
    """`jnp.einsum` over arrays, factored and lazy arrays; lazy if all operands are.

    Args:
      spec: subscripts with optional ellipses and optional output, as in `jnp.einsum`.
      operands: any mix; dense operands are the activations.
      precision: as in `jax.lax.dot_general`, for every step.
      preferred_element_type: dtype of the last step and the result.
      order: which contraction orders are allowed.

    Raises:
      ShapeError: the subscripts do not fit the operands.
    """
    operands = tuple(as_lazy(x) for x in operands)
    lazies = [isinstance(x, LazyArray) for x in operands]
    if not any(lazies):
        return jnp.einsum(
            spec, *operands, precision=precision, preferred_element_type=preferred_element_type
        )
    operands = tuple(
        x if lazy else jnp.asarray(x) for x, lazy in zip(operands, lazies, strict=True)
    )
    terms, out = parse(spec, [x.ndim for x in operands])
    sizes: dict[Any, int] = {}
    for x, ls in zip(operands, terms, strict=True):
        for k, n in zip(ls, x.shape, strict=True):
            if sizes.setdefault(k, n) == 1:
                sizes[k] = n
    pairs = [drop_unit(x, ls, sizes) for x, ls in zip(operands, terms, strict=True)]
    return product(
        pairs,
        out,
        lazy=all(lazies) and bool(out),
        order=order,
        precision=precision,
        out_dtype=preferred_element_type,
    )


def parse(spec: str, ndims: Sequence[int]) -> tuple[list[list[Any]], list[Any]]:
    """Labels of each operand and of the result; ellipses become numbered labels, aligned right.

    Raises:
      ShapeError: wrong number of terms or of subscripts, or an output label without a source.
    """
    left, arrow, right = spec.replace(" ", "").partition("->")
    words = left.split(",")
    if len(words) != len(ndims):
        _refuse(f"{len(ndims)} operands for {spec!r}", f"{len(words)} operands")
    terms = []
    longest = 0
    for word, ndim in zip(words, ndims, strict=True):
        head, dots, tail = word.partition("...")
        named = len(head) + len(tail)
        if (ndim < named) if dots else (ndim != named):
            _refuse(f"an operand with {ndim} dimensions for {word!r}", f"{named} dimensions")
        extra = ndim - named if dots else 0
        longest = max(longest, extra)
        terms.append([*head, *(("...", i - extra) for i in range(extra)), *tail])
    ellipsis = [("...", i - longest) for i in range(longest)]
    if arrow:
        head, dots, tail = right.partition("...")
        out = [*head, *(ellipsis if dots else ()), *tail]
    else:
        names = sorted(k for k in left if k not in ",.")
        out = ellipsis + [k for k in names if names.count(k) == 1]
    unknown = [k for k in out if not any(k in term for term in terms)]
    if unknown or len(set(out)) != len(out):
        _refuse(f"output {right!r} in {spec!r}", "distinct labels of the operands")
    return terms, out


def _refuse(got: str, expected: str) -> None:
    raise ShapeError(message(got=got, expected=expected, todo="Check the subscripts."))
