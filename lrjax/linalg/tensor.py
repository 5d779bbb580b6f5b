"""Tensors and their modes: unfolding, products along modes, and sweeps that share products."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from lrjax.linalg.stack import dot

SLAB = 16
"""Rows of a difference at a time: 256^3 takes 21 ms so, 46 ms whole, memory's pages included."""

SHORT, SLAB_SIZE = 64, 1 << 18
"""Rows shorter than the first are squared in slabs of up to the second: 589824 x 4 take 0.4 ms so,
3 ms row by row; 256^3 takes 5 ms either way, and 33 ms whole."""

CANCELS = 1e-3
"""Squared relative error below which |X|^2 - |core|^2 has no digits left in float32, and the error
is taken from the difference."""

_EXACT: dict[str, Any] = {"precision": "highest"}

Factors = tuple[Float[Array, "_ _"] | None, ...]


def unfold(x: Float[Array, "*n"], mode: int) -> Float[Array, "m rest"]:
    """The matrix whose rows are indexed by one mode, the other modes in their order."""
    return jnp.moveaxis(x, mode, 0).reshape(x.shape[mode], -1)


def fold(matrix: Float[Array, "m rest"], mode: int, shape: Sequence[int]) -> Float[Array, "*n"]:
    """The tensor of the given shape whose `unfold` along `mode` is the matrix."""
    rest = [n for k, n in enumerate(shape) if k != mode]
    return jnp.moveaxis(matrix.reshape(shape[mode], *rest), 0, mode)


def mode_product(x: Float[Array, "*n"], a: Float[Array, "n r"], mode: int) -> Float[Array, "*m"]:
    """Y[.., j, ..] = sum_i X[.., i, ..] A[i, j]: the mode is contracted with A's rows.

    X is not transposed: one product for the first and the last mode, a batch of products for one
    in the middle. 256^3 times 256 x 32 takes 9, 7 and 9 ms so, and 60 ms by way of a transpose.
    """
    before, after = math.prod(x.shape[:mode]), math.prod(x.shape[mode + 1 :])
    shape = (*x.shape[:mode], a.shape[1], *x.shape[mode + 1 :])
    if before == 1:
        y = lax.dot_general(a, x.reshape(len(a), after), (((0,), (0,)), ((), ())), **_EXACT)
    elif after < a.shape[1]:  # the batch would hold copies of A larger than X
        y = jnp.tensordot(x, a, ((mode,), (0,)), **_EXACT)
        return jnp.moveaxis(y, -1, mode)
    else:
        batch = jnp.broadcast_to(a, (before, *a.shape))
        cube = x.reshape(before, len(a), after)
        y = lax.dot_general(batch, cube, (((1,), (1,)), ((0,), (0,))), **_EXACT)
    return y.reshape(shape)


def mode_gram(x: Float[Array, "*n"], mode: int) -> Float[Array, "n n"]:
    """The Gram of an unfolding's rows."""
    others = [k for k in range(x.ndim) if k != mode]
    return jnp.tensordot(x, x, (others, others), **_EXACT)


def project(
    x: Float[Array, "*n"],
    factors: Sequence[Array | None],
    modes: Sequence[int],
    unit: Array | float = 1.0,
) -> Array:
    """Mode products of unit * x with the factors of the given modes, strongest compression first.

    Of equal ones the last mode: it is contracted in place, one in the middle after a transpose.
    The unit goes into the first factor, so that x is not copied.
    """
    shrink = lambda k: (factors[k].shape[1] / factors[k].shape[0], -k)  # pyright: ignore
    for k in sorted(modes, key=shrink):
        x, unit = mode_product(x, factors[k] * unit, k), 1.0  # pyright: ignore
    return x


def expand(core: Float[Array, "*r"], factors: Sequence[Array | None]) -> Float[Array, "*n"]:
    """The tensor core x_1 F_1 x_2 F_2 ..., smallest intermediate first; None is the identity."""
    grow = lambda k: factors[k].shape[0] / max(factors[k].shape[1], 1)  # pyright: ignore
    for k in sorted((k for k, f in enumerate(factors) if f is not None), key=grow):
        core = mode_product(core, factors[k].T, k)  # pyright: ignore
    return core


def halves(modes: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    """The modes in two parts, the first no smaller: the last mode is the cheapest to contract."""
    cut = (len(modes) + 1) // 2
    return modes[:cut], modes[cut:]


def sweep(
    x: Float[Array, "*n"],
    factors: Factors,
    modes: Sequence[int],
    update: Callable[[int, Array, Factors], Array],
    unit: Array | float = 1.0,
) -> tuple[Factors, Float[Array, "*r"]]:
    """Update the factors of `modes` once, in order, by a dimension tree; and the core after it.

    `update(k, y, factors)` gets unit * x contracted with the newest factors of all other modes and
    hands back the factor of mode k. Half of the modes share their products with the other half, so
    that the whole tensor is read twice a sweep, whatever the number of modes. The last mode's y
    times its factor is the core.
    """
    if len(modes) == 1:
        (k,) = modes
        y = x * unit
        factors = (*factors[:k], update(k, y, factors), *factors[k + 1 :])
        return factors, mode_product(y, factors[k], k)  # pyright: ignore
    left, right = halves(modes)
    factors, _ = sweep(project(x, factors, right, unit), factors, left, update)
    return sweep(project(x, factors, left, unit), factors, right, update)


def total(x: Float[Array, "*n"]) -> Float[Array, ""]:
    """The sum of all entries, row by row: in one run float32 loses a percent of 2e7 squares."""
    return jnp.sum(lax.optimization_barrier(jnp.sum(x, axis=-1)))


def squares(x: Float[Array, "*n"], unit: Array | float = 1.0) -> Float[Array, ""]:
    """|unit X|^2, row by row or, of short rows, slab by slab: neither a copy nor one long sum.

    Longer rows stay as they are: a reshape would be compiled into what makes X, and slow that.
    """
    size = x.shape[-1]
    if size >= SHORT:
        return total((x * unit) ** 2)
    count, most = x.size // max(size, 1), max(SLAB_SIZE // max(size, 1), 1)
    merged = next(d for d in range(min(most, max(count, 1)), 0, -1) if count % d == 0)
    slabs = x.reshape(-1, merged * size)
    return jnp.sum(lax.map(lambda slab: jnp.sum((slab * unit) ** 2), slabs))


def missed(
    x: Float[Array, "*n"],
    core: Float[Array, "*r"],
    factors: Sequence[Array | None],
    unit: Array | float = 1.0,
) -> Float[Array, ""]:
    """|unit X - core x_1 F_1 ... x_N F_N|^2 from the difference, some rows of X at a time.

    Only the core without the first factor is expanded; the whole product never is.
    """
    first = factors[0]
    y = expand(core, (None, *factors[1:])).reshape(core.shape[0], -1)
    a = x.reshape(x.shape[0], -1)
    rows = math.gcd(len(a), SLAB)
    if first is None or rows == 1:
        return total((a * unit - (y if first is None else dot(first, y))) ** 2)

    def add(i: Array, sum_: Array) -> Array:
        part = lambda z: lax.dynamic_slice_in_dim(z, i * rows, rows)
        return sum_ + total((part(a) * unit - dot(part(first), y)) ** 2)

    return lax.fori_loop(0, len(a) // rows, add, jnp.zeros((), a.dtype))


def unit_of(x: Float[Array, "*n"]) -> tuple[Float[Array, ""], Float[Array, ""], Bool[Array, ""]]:
    """The unit that brings X's peak to one, |unit X|^2, and whether X is finite: two readings."""
    peak = jnp.max(jnp.abs(x))
    usable = (peak > 0) & jnp.isfinite(peak)
    unit = jnp.where(usable, 1 / jnp.where(usable, peak, 1), 1)
    energy = squares(x, unit)
    return unit, energy, jnp.isfinite(energy)  # XLA's maximum may pass over a NaN, sums do not


def to_unit(x: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, ""], Bool[Array, ""]]:
    """The tensor in a unit that brings it near one, the unit, and whether the tensor is finite.

    Neither 1e30 nor 1e-30 then leaves float32's range when squared; zeros where it is not finite.
    """
    finite = jnp.all(jnp.isfinite(x))  # XLA's maximum does not hand on a NaN on every backend
    peak = jnp.max(jnp.abs(x))
    usable = finite & (peak > 0)
    unit = jnp.where(usable, 1 / jnp.where(usable, peak, 1), 1)
    return jnp.where(finite, x * unit, 0), unit, finite
