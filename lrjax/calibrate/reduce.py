"""One batch's activations and gradients to the sums that add up, and the sums to moments."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lrjax.lift import UseKind
from lrjax.lift.taps import Tap
from lrjax.metrics import Moments, Scatter


@dataclasses.dataclass(frozen=True)
class Reducer:
    """Sums of one tap over its tokens z: their number, sum z z', and if asked sum z and sum |z|.

    Beside a full second moment, sum |C|^2 over examples, C an example's own sum z z' about the
    batch's mean, where means are kept, and then sum tr C: how far examples lie apart.

    Attributes:
        max_gram: vectors longer than this keep the diagonal alone.
        mean: whether sum z is kept.
        magnitude: whether sum |z| is kept.
        examples: of the batch; tokens lie example by example (inside a scan over time each step
            counts as further examples).
    """

    max_gram: int
    mean: bool
    magnitude: bool = False
    examples: int = 1

    def __call__(self, tap: Tap, z: Array, mask: Array | None) -> dict[str, Array]:
        """The sums; z is [*stack, tokens, width], or [*stack, width] how often rows were read."""
        if self.is_counts(tap):
            sums = {"count": jnp.sum(z, axis=-1), "second": z}
            return sums | {"magnitude": z} if self.magnitude else sums
        z = z.astype(jnp.float32)
        here = (
            jnp.ones(z.shape[:-1], bool) if mask is None else jnp.broadcast_to(mask, z.shape[:-1])
        )
        # padding may hold anything, NaN included
        z = jnp.where(here[..., None], z, 0.0)
        sums = {"count": jnp.sum(here, axis=-1, dtype=jnp.float32)}
        if self.mean:
            sums["mean"] = jnp.sum(z, axis=-2)
        if self.magnitude:
            sums["magnitude"] = jnp.sum(jnp.abs(z), axis=-2)
        if self.is_diagonal(tap):
            return sums | {"second": jnp.sum(z**2, axis=-2)}
        second = jnp.einsum("...td,...te->...de", z, z, precision="highest")
        if self.mean:
            mean = sums["mean"] / jnp.maximum(sums["count"], 1.0)[..., None]
            z = jnp.where(here[..., None], z - mean[..., None, :], 0.0)
        return sums | {"second": second} | self._scatter(z, here)

    def _scatter(self, z: Array, here: Array) -> dict[str, Array]:
        """Number of examples with a token, and sum |C|^2, through the smaller of z z' and z' z."""
        tokens, width = z.shape[-2:]
        # tokens that examples do not divide among themselves are taken one by one
        count = self.examples if tokens % self.examples == 0 else tokens
        each = z.reshape(*z.shape[:-2], count, tokens // count, width)
        path = "...td,...ud->...tu" if tokens // count < width else "...td,...te->...de"
        square = jnp.sum(jnp.einsum(path, each, each) ** 2, axis=(-3, -2, -1))
        some = jnp.any(here.reshape(*here.shape[:-1], count, -1), axis=-1)
        sums = {"examples": jnp.sum(some, axis=-1, dtype=jnp.float32), "square": square}
        return sums | {"trace": jnp.sum(z**2, axis=(-2, -1))} if self.mean else sums

    def is_counts(self, tap: Tap) -> bool:
        """Whether the tap is of rows that are read from a table, given by their counts."""
        return self.mean and tap.kind is UseKind.LOOKUP

    def is_diagonal(self, tap: Tap) -> bool:
        """Whether the tap's second moment is its diagonal alone."""
        return self.is_counts(tap) or tap.width > self.max_gram


def normalise(sums: dict[str, Array], *, diagonal: bool) -> Moments:
    """Sums over tokens to means over tokens, of fourth powers to means over examples."""
    count = sums["count"]
    safe = jnp.where(count > 0, count, 1.0)
    over = lambda x: x / jnp.reshape(safe, safe.shape + (1,) * (x.ndim - safe.ndim))
    mean, magnitude = (over(sums[k]) if k in sums else None for k in ("mean", "magnitude"))
    scatter = _scatter(sums) if "square" in sums else None
    return Moments(count, mean, over(sums["second"]), diagonal, magnitude, scatter)


def _scatter(sums: dict[str, Array]) -> Scatter:
    """The scatter; of no example where fourth powers leave the range of float32."""
    examples = sums["examples"]
    over = lambda x: x / jnp.maximum(examples, 1.0)
    square = over(sums["square"])
    fits = jnp.isfinite(square)
    kept = lambda x: jnp.where(fits, x, 0.0)
    trace = kept(over(sums["trace"])) if "trace" in sums else None
    return Scatter(kept(examples), kept(square), trace)


def mask_outputs(cotangent: Float[Array, "..."], mask: Bool[Array, "batch length"] | None) -> Array:
    """No cotangent at padding, where outputs are per token [batch, length, ...]."""
    if mask is None or cotangent.shape[: mask.ndim] != mask.shape:
        return cotangent
    kept = jnp.reshape(mask, mask.shape + (1,) * (cotangent.ndim - mask.ndim))
    return jnp.where(kept, cotangent, 0)


def all_finite(tree: Any) -> Array:
    """Whether no floating leaf holds NaN or infinity."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return (
        jnp.all(jnp.stack([jnp.isfinite(x).all() for x in leaves])) if leaves else jnp.bool_(True)
    )
