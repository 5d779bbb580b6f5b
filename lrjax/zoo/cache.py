"""What a decoder remembers of the tokens that it has read, so that each is read once.

    cache = model.cache(batch, capacity)
    logits, cache = model.apply({"params": params}, input_ids, cache=cache)

The cache is a value: a frozen pytree of static shape that goes in and comes out. Tokens lie in
slots, in the order of reading, at the same slot in every row; ``real`` says in which slots there is
no padding.

Each layer has its own part, whose form is its attention's affair. A kind of attention has

- ``part(batch, capacity, dtype)``, which makes the part of an empty cache, any pytree of arrays
  that begin with ``batch`` (:class:`KeyValues` here), and
- a call that takes the part and ``start``, the first slot of the new tokens, and returns its
  output and the part with the new tokens in it (:func:`write` puts them there). Where the model
  is called without a cache the part is None, and comes back as None.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lrjax.errors import ShapeError, message


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """The tokens read so far, and what each layer keeps of them.

    Attributes:
        parts: a part for each layer, by its name in the parameters; one stack under ``layers``
            where layers are scanned.
        used: the number of slots that are taken, the same in all rows.
        real: the slots that hold tokens, and no padding.
        positions: the position of every slot's token; zero where there is none.
    """

    parts: Mapping[str, Any]
    used: Int[Array, ""] | Any
    real: Bool[Array, "batch slots"] | Any
    positions: Int[Array, "batch slots"] | Any

    @property
    def capacity(self) -> int:
        """The number of slots."""
        return self.real.shape[1]


def empty(parts: Sequence[Any], batch: int, capacity: int, *, scanned: bool = False) -> Cache:
    """The cache in which nothing is, from the layers' parts."""
    if scanned:
        named = {"layers": jax.tree.map(lambda *layers: jnp.stack(layers), *parts)}
    else:
        named = {f"layer_{i}": part for i, part in enumerate(parts)}
    slots = (batch, capacity)
    return Cache(named, jnp.int32(0), jnp.zeros(slots, bool), jnp.zeros(slots, jnp.int32))


class Reading(NamedTuple):
    """Where the new tokens stand among all that are there, which without a cache are they alone.

    Attributes:
        start: the slot of the first new token.
        new: the positions of the new tokens.
        slots: the positions of all.
        real: the slots without padding; None is all of them.
    """

    start: int | Int[Array, ""]
    new: Int[Array, "#batch length"]
    slots: Int[Array, "#batch slots"]
    real: Array | None

    @property
    def longest(self) -> int | Int[Array, ""]:
        """The number of positions in use, at most."""
        return self.slots.max() + 1


def place(
    input_ids: Int[Array, "batch length"],
    mask: Array | None,
    position_ids: Int[Array, "#batch length"] | None,
    cache: Cache | None,
) -> tuple[Reading, Cache | None]:
    """Where the new tokens stand, and the cache with their slots taken, its parts as they were.

    Positions go on from the last slot's unless told. More tokens than slots are refused where
    ``used`` is known; under a trace it is the caller's care that there is room.

    Raises:
        ShapeError: more tokens than slots, or another batch.
    """
    batch, length = input_ids.shape
    steps = jnp.arange(length, dtype=jnp.int32)[None]
    if cache is None:
        new = steps if position_ids is None else position_ids
        return Reading(0, new, new, mask), None
    used = _known(cache.used)
    if batch != cache.real.shape[0] or used + length > cache.capacity:
        raise ShapeError(
            message(
                path="input_ids",
                got=f"{batch} rows of {length} tokens",
                expected=f"{cache.real.shape[0]} rows, at most {cache.capacity - used} tokens, "
                "for which the cache has room",
                todo="Make a cache of this batch and of more capacity.",
            )
        )
    if position_ids is None:
        last = jnp.take(cache.positions, jnp.maximum(cache.used - 1, 0), axis=1)
        position_ids = jnp.where(cache.used > 0, last + 1, 0)[:, None] + steps
    new = jnp.broadcast_to(position_ids.astype(jnp.int32), input_ids.shape)
    real = jnp.ones(input_ids.shape, bool) if mask is None else mask > 0
    cache = replace(
        cache,
        used=cache.used + length,
        real=write(cache.real, cache.used, real),
        positions=write(cache.positions, cache.used, new),
    )
    return Reading(cache.used - length, new, cache.positions, cache.real), cache


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KeyValues:
    """A layer's part that holds keys and values, by heads, so that a head's slots are adjacent."""

    keys: Float[Array, "*layers batch groups slots d"] | Any
    values: Float[Array, "*layers batch groups slots d_value"] | Any

    @classmethod
    def empty(cls, shape: tuple[int, int, int], d: int, d_value: int, dtype: Any) -> "KeyValues":
        """Nothing yet; ``shape`` is batch, groups and slots."""
        return cls(jnp.zeros((*shape, d), dtype), jnp.zeros((*shape, d_value), dtype))


def remember(
    part: KeyValues | None,
    start: int | Int[Array, ""],
    keys: Float[Array, "batch length groups d"],
    values: Float[Array, "batch length groups d_value"],
) -> tuple[Array, Array, KeyValues | None]:
    """The keys and values of all slots, those of the new tokens written, and the new part."""
    if part is None:
        return keys, values, None
    part = KeyValues(
        write(part.keys, start, keys.swapaxes(1, 2), axis=2),
        write(part.values, start, values.swapaxes(1, 2), axis=2),
    )
    own = lambda slots, like: slots.astype(like.dtype).swapaxes(1, 2)
    return own(part.keys, keys), own(part.values, values), part


def write(slots: Array, start: int | Int[Array, ""], new: Array, axis: int = 1) -> Array:
    """The slots with the new tokens' values from ``start`` on, in the dtype of the slots."""
    return jax.lax.dynamic_update_slice_in_dim(slots, new.astype(slots.dtype), start, axis)


def _known(used: Array) -> int:
    try:
        return int(used)
    except jax.errors.ConcretizationTypeError:
        return 0
