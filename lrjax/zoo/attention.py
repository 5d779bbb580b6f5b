"""Attention over heads, causal or not, with fewer key heads than query heads if wanted."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def attend(
    q: Float[Array, "batch queries heads d"],
    k: Float[Array, "batch keys groups d"],
    v: Float[Array, "batch keys groups d_value"],
    visible: Bool[Array, "#batch #queries #keys"] | None,
    *,
    scale: float | Float[Array, ""] | None = None,
    softcap: float | None = None,
) -> Float[Array, "batch queries heads*d_value"]:
    """softmax(scale Q K' + mask) V, head by head, side by side (arXiv:1706.03762).

    Each group of keys serves ``heads / groups`` query heads (arXiv:2305.13245). The softmax is in
    float32. ``scale`` is 1 / sqrt(d) unless told; ``softcap`` bounds the scores to
    c tanh(s / c) (arXiv:2408.00118). A query that sees nothing gets the mean of all values.
    """
    batch, queries, heads, d = q.shape
    groups, n = k.shape[2], heads // k.shape[2]
    # A group's queries are the rows of one matrix, its keys those of another.
    q = jnp.moveaxis(q.reshape(batch, queries, groups, n, d), 1, 3)
    q = q.reshape(batch, groups, n * queries, d)
    scores = jnp.einsum("bgqd,bkgd->bgqk", q, k) * (d**-0.5 if scale is None else scale)
    weights = weigh(scores.reshape(batch, groups, n, queries, -1), visible, softcap)
    weights = weights.astype(v.dtype).reshape(batch, groups, n * queries, -1)
    mixed = jnp.einsum("bgqk,bkgd->bgqd", weights, v)
    mixed = mixed.reshape(batch, groups, n, queries, v.shape[-1])
    return jnp.moveaxis(mixed, 3, 1).reshape(batch, queries, heads * v.shape[-1])


def weigh(
    scores: Float[Array, "batch groups each queries keys"],
    visible: Bool[Array, "#batch #queries #keys"] | None,
    softcap: float | None = None,
) -> Float[Array, "batch groups each queries keys"]:
    """The weights of the keys by their scores, in float32."""
    if softcap is not None:
        scores = jnp.tanh(scores / softcap) * softcap
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    if visible is not None:
        scores = jnp.where(visible[:, None, None], scores, jnp.finfo(scores.dtype).min)
    return jax.nn.softmax(scores, axis=-1)


def everywhere(
    mask: Int[Array, "batch length"] | Bool[Array, "batch length"] | None,
) -> Bool[Array, "batch 1 length"] | None:
    """Every query sees every real token: where ``mask`` is not zero."""
    return None if mask is None else mask[:, None, :] > 0


def causal(
    length: int,
    mask: Int[Array, "batch slots"] | Bool[Array, "batch slots"] | None,
    window: int | None = None,
    *,
    start: int | Int[Array, ""] = 0,
) -> Bool[Array, "#batch length slots"]:
    """A query sees the real tokens up to itself, the last ``window`` of them if there is one.

    The queries are those of the slots from ``start`` on; without a mask there are no others.
    """
    slots = length if mask is None else mask.shape[1]
    q, k = start + jnp.arange(length)[:, None], jnp.arange(slots)[None]
    visible = k <= q if window is None else (k <= q) & (k > q - window)
    return visible[None] if mask is None else visible & (mask[:, None, :] > 0)


def choose(
    masks: tuple[Bool[Array, "#batch length slots"], ...], kind: int | Int[Array, ""]
) -> Bool[Array, "#batch length slots"]:
    """The mask of a layer's kind, which is traced where layers are scanned."""
    if isinstance(kind, int) or len(masks) == 1:
        return masks[kind if isinstance(kind, int) else 0]
    return jnp.stack(masks)[kind]
