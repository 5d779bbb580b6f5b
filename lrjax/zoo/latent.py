"""Attention whose cache holds one short vector a token, from which keys and values follow.

z = x B is what is remembered, r floats for all heads together; k = z C_k and v = z C_v head by head
(arXiv:2405.04434). Neither is formed where it need not be:

- values: sum_s w_s (z_s C_v) = (sum_s w_s z_s) C_v, so that weights meet the latent, and the core
  comes after, once for a query;
- keys that are not rotated: q (z C_k)' = (q C_k') z', so that the query goes through the core, and
  all heads are queries of one key head, the latent itself;
- keys that are rotated by their position stand between the two, and nothing can be absorbed across
  a rotation: they are rebuilt from the latent, a block of slots at a time, and never kept;
- or a few rotated pairs, shared by all heads, lie beside the latent in the cache, and what the
  latent gives is not rotated (the decoupled form): again one key head, of r + 2k columns.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lrjax import ops
from lrjax.zoo import attention, rope
from lrjax.zoo.cache import write
from lrjax.zoo.latent_config import Latent
from lrjax.zoo.layers import Dense, FactorModule

BLOCK = 256
"""Slots whose rotated keys are rebuilt at a time, when tokens are read one by one."""

Slots = Float[Array, "batch slots floats"]
"""A layer's part of the cache: the latent of every slot, then its shared rotated pairs."""


class LatentAttention(nn.Module):
    """Causal attention over a latent; ``size`` is the width of a query or key head.

    Attributes:
        latent: its rank, and which pairs are rotated.
        heads: query heads.
        groups: key and value heads that the latent stands for.
        size: width of a query and key head.
        value_size: width of a value head.
        features: width of the output.
        biases: whether query and output have biases.
        scale: what the scores are multiplied with.
        softcap: bounds the scores, see :func:`lrjax.zoo.attention.attend`.
        norm: makes the norm of queries and keys, by its name.
        late: whether angles change as the text grows, so that no rotated pair may be kept.
    """

    latent: Latent
    heads: int
    groups: int
    size: int
    value_size: int
    features: int
    biases: tuple[bool, bool]
    scale: float = 1.0
    softcap: float | None = None
    norm: Callable[[str], nn.Module] | None = None
    late: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length d"],
        part: Slots | None,
        start: int | Int[Array, ""],
        visible: Bool[Array, "#batch length slots"],
        turns: rope.Turns | None = None,
        scale: float | Float[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch length d"], Slots | None]:
        """The output, and the part with the new tokens in it.

        ``turns`` is None without RoPE; ``scale``, if given, is the layer's own.
        """
        scale = self.scale if scale is None else scale
        groups, rank = self.groups, self.latent.rank
        q = Dense(self.heads * self.size, self.biases[0], name="query")(x)
        q = q.reshape(*x.shape[:-1], self.heads, self.size)
        q = q if self.norm is None else self.norm("query_norm")(q)
        z = Dense(rank, False, name="basis")(x)
        rebuilt = turns if self.latent.rotary is None else None
        key = Core(rank, groups, self.size, rebuilt is not None, name="key")
        value = Core(rank, groups, self.value_size, True, name="value")
        if rebuilt is not None:
            z, part = _remember(part, start, z)
            q = rope.rotate(q, *rebuilt.new)
            scores = self._streamed(key, z, rebuilt.slots, q, blocks=part is not None)
            weights = attention.weigh(scores * scale, visible, self.softcap).astype(z.dtype)
            mixed = jnp.einsum("bgnqk,bkr->bqgnr", weights, z)
        else:
            q, row = self._one_key_head(key, q, z, x, turns)
            row, part = _remember(part, start, row)
            if self.late and turns is not None and self.latent.rotary:
                row = self._turned(row, turns.slots)
            one = row[:, :, None]
            mixed = attention.attend(q, one, one, visible, scale=scale, softcap=self.softcap)
            mixed = mixed.reshape(*q.shape[:2], groups, -1, row.shape[-1])[..., :rank]
        out = value.out(mixed).reshape(*x.shape[:-1], self.heads * self.value_size)
        return Dense(self.features, self.biases[1], name="output")(out), part

    @nn.nowrap
    def part(self, batch: int, capacity: int, dtype: Any) -> Slots:
        """What this layer keeps in an empty cache."""
        return jnp.zeros((batch, capacity, self.latent.floats), dtype)

    def _one_key_head(self, key: "Core", q: Array, z: Array, x: Array, turns: Any) -> Any:
        """Queries of all heads in the space of what is cached, and what is cached."""
        grouped = q.reshape(*q.shape[:2], self.groups, -1, self.size)
        absorbed = key.into(grouped)
        if not self.latent.rotary:
            return absorbed.reshape(*q.shape[:3], -1), z
        at, count = jnp.asarray(self.latent.rotary), len(self.latent.rotary)
        shared = Dense(2 * count, self.biases[0], name="rotary")(x)
        mix = self.param("mix", nn.initializers.normal(1.0), (self.groups, count, 2))
        a, b = grouped[..., at], grouped[..., at + self.size // 2]
        real, imaginary = mix[:, None, :, 0], mix[:, None, :, 1]
        own = jnp.concatenate([a * real - b * imaginary, a * imaginary + b * real], axis=-1)
        own = rope.rotate(own.reshape(*q.shape[:3], -1), *rope.pick(turns.new, at))
        both = jnp.concatenate([absorbed.reshape(*q.shape[:3], -1), own], axis=-1)
        row = jnp.concatenate([z, shared], axis=-1)
        return both, row if self.late else self._turned(row, turns.new)

    def _turned(self, row: Array, turns: tuple[Array, Array]) -> Array:
        """The slots with their shared pairs rotated."""
        z, shared = jnp.split(row, [self.latent.rank], axis=-1)
        at = jnp.asarray(self.latent.rotary)
        shared = rope.rotate(shared[:, :, None], *rope.pick(turns, at))[:, :, 0]
        return jnp.concatenate([z, shared], axis=-1)

    def _streamed(
        self, key: "Core", z: Slots, turns: tuple[Array, Array], q: Array, *, blocks: bool
    ) -> Float[Array, "batch groups each queries slots"]:
        """Scores of rebuilt and rotated keys, of one block of slots after another."""
        normed = (lambda k: k) if self.norm is None else self.norm("key_norm")
        q = q.reshape(*q.shape[:2], self.groups, -1, self.size)

        def score(z: Array, turns: tuple[Array, Array]) -> Array:
            return jnp.einsum("bqgnd,bkgd->bgnqk", q, rope.rotate(normed(key.heads(z)), *turns))

        slots = z.shape[1]
        if not blocks or slots <= BLOCK:
            return score(z, turns)
        own = lambda x, at: jax.lax.dynamic_slice_in_dim(x, at, BLOCK, axis=1)
        some = lambda at: score(own(z, at), jax.tree.map(lambda x: own(x, at), turns))
        # The last block ends with the last slot, and says again what the one before it said.
        starts = [min(at, slots - BLOCK) for at in range(0, slots, BLOCK)]
        found = jax.lax.map(some, jnp.asarray(starts))
        whole = jnp.moveaxis(found[:-1], 0, -2).reshape(*found.shape[1:-1], -1)
        return jnp.concatenate([whole, found[-1][..., whole.shape[-1] - starts[-1] :]], axis=-1)


class Core(FactorModule):
    """A head's matrix [rank, size] for each of ``count`` heads, side by side under ``kernel``."""

    rank: int
    count: int
    size: int
    use_bias: bool

    def setup(self) -> None:
        shape = (self.rank, self.count * self.size)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        self.matrices = ops.reshape(kernel, (self.rank, self.count, self.size))
        bias = jnp.zeros(())
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, shape[1:])
            bias = bias.reshape(self.count, self.size)
        self.offsets = bias

    def heads(self, z: Float[Array, "batch slots r"]) -> Float[Array, "batch slots groups d"]:
        """What the heads make of a latent, formed."""
        return ops.einsum("bkr,rgd->bkgd", z, self.matrices) + self.offsets

    def into(self, q: Float[Array, "batch q groups n d"]) -> Float[Array, "batch q groups n r"]:
        """The vectors whose products with the latent are those of ``q`` with the heads."""
        return ops.einsum("bqgnd,rgd->bqgnr", q, self.matrices)

    def out(self, z: Float[Array, "batch q groups n r"]) -> Float[Array, "batch q groups n d"]:
        """What each head makes of a mixture of latents that is its own."""
        bias = self.offsets[:, None] if self.use_bias else self.offsets
        return ops.einsum("bqgnr,rgd->bqgnd", z, self.matrices) + bias


def _remember(part: Array | None, start: Any, new: Array) -> tuple[Array, Array | None]:
    """The latents of all slots, those of the new tokens written, and the new part."""
    if part is None:
        return new, None
    part = write(part, start, new)
    return part.astype(new.dtype), part
