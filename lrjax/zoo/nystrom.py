"""Nystrom attention: what all tokens read of one another, through a few landmarks."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lrjax.errors import ShapeError, message

Queries = Float[Array, "batch queries heads d"]
Keys = Float[Array, "batch length groups d"]
Values = Float[Array, "batch length groups d_value"]
Visible = Bool[Array, "#batch #queries length"] | None
Scale = float | None

RIDGE = 0.1
"""Of the mean eigenvalue. On the activations of a trained encoder (512 tokens, 8 to 256 landmarks)
the error falls in every layer; at 0.01, or with the published iteration, it rises in some."""

ITERATIONS = 12
"""Each lets the smallest eigenvalues in by a factor of 3.25: 12 reach ratios beyond 10^5."""


def nystrom(
    q: Queries,
    k: Keys,
    v: Values,
    visible: Visible = None,
    *,
    landmarks: int,
    ridge: float = RIDGE,
    iterations: int = ITERATIONS,
    scale: Scale = None,
) -> Float[Array, "batch queries heads*d_value"]:
    """softmax(Q K~') softmax(Q~ K~')^+ softmax(Q~ K') V (arXiv:2102.03902).

    The landmarks Q~, K~ are means over equal runs of the visible tokens. The pseudo-inverse is
    damped, unlike the published one: what the landmarks cannot tell apart must not grow. With as
    many landmarks as tokens, and no ``ridge``, the result is exact.

    Raises:
        ShapeError: ``visible`` differs between queries, as causal attention's does: see
            :func:`causal_nystrom`.
    """
    real = keys_alone(visible, k, "causal_nystrom")
    q, (runs, _) = _scaled(q, scale), segments(real, landmarks)
    return _side_by_side(_past(q, q, k, v, real, runs, (ridge, iterations)), v)


def causal_nystrom(
    q: Queries,
    k: Keys,
    v: Values,
    real: Bool[Array, "batch length"] | None = None,
    *,
    landmarks: int,
    chunk: int,
    ridge: float = RIDGE,
    iterations: int = ITERATIONS,
    scale: Scale = None,
) -> Float[Array, "batch queries heads*d_value"]:
    """Exact attention within chunks of tokens, and :func:`nystrom` to the chunks before.

    Landmarks are means over the past alone, anew for each chunk, so that no future token moves a
    bit of what is before it. The past's share of a query's attention is that of its landmarks, each
    counted as often as it stands for a token. It takes chunk + landmarks n / chunk products a
    token instead of n.
    """
    batch, length, heads = q.shape[:3]
    count = -(-length // chunk)
    pad = lambda x: jnp.pad(x, [(0, 0), (0, count * chunk - length), *[(0, 0)] * (x.ndim - 2)])
    real = jnp.ones((batch, length), bool) if real is None else real
    q, k, v, real = (
        pad(x) for x in (_scaled(q, scale), *(_repeated(x, heads) for x in (k, v)), real)
    )
    cut = lambda x: jnp.moveaxis(x.reshape(batch, count, chunk, *x.shape[2:]), 1, 0)
    earlier = jnp.tril(jnp.ones((chunk, chunk), bool))

    def one(now: Any) -> Array:
        i, own_q, own_k, own_v, own_real = now
        past = real & (jnp.arange(count * chunk) < i * chunk)
        runs, tokens = segments(past, landmarks)
        k_mark = jnp.einsum("bln,bnhd->blhd", runs, k)
        marks = _scores(own_q, k_mark) + jnp.log(jnp.maximum(tokens, 1e-30))[:, None, None]
        own = _hidden(_scores(own_q, own_k), (earlier & own_real[:, None])[:, None])
        mass = lambda scores: jax.nn.logsumexp(scores, axis=-1, keepdims=True)
        share = jax.nn.sigmoid(mass(_hidden(marks, (tokens > 0)[:, None, None])) - mass(own))
        share = jnp.where(past.any(-1)[:, None, None, None], share, 0)
        near = jnp.einsum("bhqk,bkhd->bhqd", jax.nn.softmax(own, -1), own_v)
        far = _past(own_q, q, k, v, past, runs, (ridge, iterations))
        return share * far + (1 - share) * near

    mixed = jax.lax.map(one, (jnp.arange(count), *map(cut, (q, k, v, real))))
    mixed = jnp.moveaxis(mixed, 0, 2).reshape(batch, heads, count * chunk, -1)
    return _side_by_side(mixed[:, :, :length], v)


def segments(
    real: Bool[Array, "batch length"], count: int
) -> tuple[Float[Array, "batch count length"], Float[Array, "batch count"]]:
    """Means over ``count`` equal runs of the real tokens, as a matrix; and the runs' lengths."""
    place = jnp.cumsum(real, axis=-1) - 1
    total = jnp.maximum(real.sum(-1, keepdims=True), 1)
    run = jnp.where(real, place * count // total, -1)
    here = (run[:, None] == jnp.arange(count)[:, None]).astype(jnp.float32)
    tokens = here.sum(-1)
    return here / jnp.maximum(tokens, 1)[..., None], tokens


def damped_inverse(
    a: Float[Array, "*batch n n"], ridge: float, iterations: int
) -> Float[Array, "*batch n n"]:
    """(A' A + ridge s I)^-1 A', s the mean eigenvalue of A' A; by products alone.

    Without a ridge it is the pseudo-inverse, from A itself, which keeps more digits.
    """
    flipped, eye = jnp.swapaxes(a, -1, -2), jnp.eye(a.shape[-1], dtype=a.dtype)
    if not ridge:
        return _iterated(a, flipped, iterations)
    gram = flipped @ a
    level = jnp.trace(gram, axis1=-2, axis2=-1)[..., None, None] / a.shape[-1]
    return _iterated(gram + ridge * level * eye, eye, iterations) @ flipped


def _iterated(a: Array, start: Array, iterations: int) -> Array:
    """Z -> Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4 from a scaled start (arXiv:2102.03902)."""
    eye, size = jnp.eye(a.shape[-1], dtype=a.dtype), jnp.abs(a)
    largest = size.sum(-1).max(-1)
    scale = largest if start.ndim == 2 else largest * size.sum(-2).max(-1)

    def step(_: Any, z: Array) -> Array:
        az = a @ z
        return z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az))) / 4

    return jax.lax.fori_loop(0, iterations, step, start / scale[..., None, None])


def keys_alone(visible: Visible, k: Keys, todo: str) -> Bool[Array, "batch length"]:
    """Which keys are visible, to all queries alike.

    Raises:
        ShapeError: they differ between queries.
    """
    if visible is None:
        return jnp.ones(k.shape[:2], bool)
    if visible.shape[1] != 1:
        raise ShapeError(
            message(
                got=f"a mask of shape {visible.shape}, which differs between queries",
                expected="[batch, 1, keys]: every query sees every token",
                todo=f"Use {todo} where tokens must not see what follows them.",
            )
        )
    return jnp.broadcast_to(visible[:, 0], k.shape[:2])


def _past(
    some: Queries, q: Keys, k: Keys, v: Values, real: Array, runs: Array, how: tuple[float, int]
) -> Float[Array, "batch heads queries d_value"]:
    """What ``some`` queries read of the real tokens through their landmarks."""
    k, v = (_repeated(x, q.shape[2]) for x in (k, v))
    q_mark, k_mark = (jnp.einsum("bln,bnhd->blhd", runs, x) for x in (q, k))
    used = (runs.sum(-1) > 0)[:, None]
    softmax = lambda scores, seen: jax.nn.softmax(_hidden(scores, seen), axis=-1)
    to_marks = softmax(_scores(some, k_mark), used[:, :, None])
    between = softmax(_scores(q_mark, k_mark), used[:, :, None])
    # A landmark of no token is its own inverse, and nothing reads it.
    between = jnp.where(used[..., None], between, jnp.eye(runs.shape[1]))
    read = softmax(_scores(q_mark, k), real[:, None, None])
    read = jnp.einsum("bhlk,bkhd->bhld", read, v)
    return to_marks @ (damped_inverse(between, *how) @ read)


def _scores(
    q: Queries, k: Float[Array, "batch keys heads d"]
) -> Float[Array, "batch heads queries keys"]:
    return jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5


def _scaled(q: Queries, scale: Scale) -> Queries:
    """The queries for scores of another scale than 1 / sqrt(d)."""
    return q if scale is None else q * (scale * q.shape[-1] ** 0.5)


def _hidden(scores: Array, seen: Array) -> Array:
    return jnp.where(seen, scores, jnp.finfo(scores.dtype).min)


def _repeated(x: Array, heads: int) -> Array:
    """Each group of keys or values once for every query head that it serves."""
    return x if x.shape[2] == heads else jnp.repeat(x, heads // x.shape[2], axis=2)


def _side_by_side(mixed: Float[Array, "batch heads length d"], v: Array) -> Array:
    mixed = mixed.astype(v.dtype).swapaxes(1, 2)
    return mixed.reshape(*mixed.shape[:2], -1)
