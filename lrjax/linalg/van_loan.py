"""The rearrangement that turns a sum of Kronecker products into a low-rank matrix."""

from jaxtyping import Array, Float


def rearrange(w: Float[Array, "*B m n"], i: int, j: int) -> Float[Array, "*B ij kl"]:
    """R(W)[(i j), (k l)] = W[(i k), (j l)], so that R(A (x) B) = vec(A) vec(B)'.

    W is [in, out] as in Flax, and vec is row-major: with m = i k and n = j l, reshape to
    [i, k, j, l], exchange the middle two, merge. A reshape without the exchange is another map,
    under which Kronecker products are not of rank one (Van Loan and Pitsianis, 1993).
    """
    *stack, m, n = w.shape
    w = w.reshape(*stack, i, m // i, j, n // j)
    return w.swapaxes(-3, -2).reshape(*stack, i * j, (m // i) * (n // j))


def restore(r: Float[Array, "*B ij kl"], i: int, j: int, k: int) -> Float[Array, "*B m n"]:
    """The inverse of `rearrange`: W[(i k), (j l)] = R[(i j), (k l)]."""
    *stack, _, kl = r.shape
    r = r.reshape(*stack, i, j, k, kl // k)
    return r.swapaxes(-3, -2).reshape(*stack, i * k, j * (kl // k))
