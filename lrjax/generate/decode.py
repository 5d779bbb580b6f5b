"""The compiled parts: reading the prompts, one step, and steps until all rows have ended."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from lrjax.generate.sampling import Sampling
from lrjax.zoo.cache import Cache


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Writing:
    """Rows half written.

    Attributes:
        cache: what the model has read, all but the newest tokens.
        tokens: the new tokens so far, zeros after them.
        count: how many there are in the rows that go on.
        lengths: how many there are in each row.
        stopped: the rows that have ended with a stop token.
        key: draws tokens; a row's draws depend on its place and on nothing in other rows.
    """

    cache: Cache
    tokens: Int[Array, "batch room"] | Any
    count: Int[Array, ""] | Any
    lengths: Int[Array, " batch"] | Any
    stopped: Bool[Array, " batch"] | Any
    key: Key[Array, ""] | Any


@partial(jax.jit, static_argnames=("model", "room", "dtype"))
def begin(
    model: Any,
    params: Any,
    ids: Int[Array, "batch length"],
    mask: Bool[Array, "batch length"],
    sampling: Sampling,
    stop: Int[Array, " stops"],
    key: Key[Array, ""],
    *,
    room: int,
    dtype: Any,
) -> Writing:
    """Reads prompts that are padded on the left, and chooses their first new tokens."""
    batch, length = ids.shape
    cache = model.cache(batch, length + room, dtype)
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    logits, cache = model.apply(
        {"params": params}, ids, mask.astype(jnp.int32), positions, cache=cache, last=True
    )
    zeros = jnp.zeros(batch, jnp.int32)
    none = jnp.zeros((batch, room), jnp.int32)
    writing = Writing(cache, none, jnp.int32(0), zeros, zeros > 0, key)
    return _choose(writing, logits, sampling, stop)


def _step(
    model: Any, params: Any, writing: Writing, sampling: Sampling, stop: Int[Array, " stops"]
) -> Writing:
    newest = jax.lax.dynamic_slice_in_dim(writing.tokens, writing.count - 1, 1, axis=1)
    logits, cache = model.apply({"params": params}, newest, cache=writing.cache, last=True)
    return _choose(replace(writing, cache=cache), logits, sampling, stop)


def _choose(
    writing: Writing, logits: Array, sampling: Sampling, stop: Int[Array, " stops"]
) -> Writing:
    """Writes the next token of every row that goes on."""
    rows, goes_on = jnp.arange(len(logits)), ~writing.stopped
    draw = lambda row: jax.random.fold_in(jax.random.fold_in(writing.key, writing.count), row)
    token = sampling(logits[:, -1], jax.vmap(draw)(rows)).astype(jnp.int32)
    token = jnp.where(goes_on, token, 0)
    return replace(
        writing,
        tokens=jax.lax.dynamic_update_slice_in_dim(
            writing.tokens, token[:, None], writing.count, axis=1
        ),
        count=writing.count + 1,
        lengths=writing.lengths + goes_on,
        stopped=writing.stopped | (goes_on & jnp.isin(token, stop)),
    )


step = partial(jax.jit, static_argnames="model", donate_argnames="writing")(_step)
"""One more token in every row."""


@partial(jax.jit, static_argnames="model", donate_argnames="writing")
def finish(
    model: Any,
    params: Any,
    writing: Writing,
    sampling: Sampling,
    stop: Int[Array, " stops"],
    limit: Int[Array, ""],
) -> Writing:
    """Steps until every row has stopped or has ``limit`` tokens."""
    return jax.lax.while_loop(
        lambda writing: (writing.count < limit) & ~writing.stopped.all(),
        lambda writing: _step(model, params, writing, sampling, stop),
        writing,
    )
