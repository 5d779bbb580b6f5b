"""The verb: prompts in, new tokens out."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from lrjax.errors import GenerationError, message
from lrjax.generate import decode, prompts
from lrjax.generate.prompts import refuse
from lrjax.generate.result import Generated
from lrjax.generate.sampling import Greedy, Sample, Sampling

OnToken = Callable[[np.ndarray, np.ndarray], Any]
"""Is given the new tokens ``[batch]``, and which rows they belong to: those that go on."""


def generate(
    model: Any,
    params: Any,
    input_ids: Any,
    *,
    attention_mask: Any | None = None,
    max_new_tokens: int,
    sampling: Sampling = Greedy(),  # noqa: B008
    stop: Sequence[int] = (),
    key: Key[Array, ""] | None = None,
    on_token: OnToken | None = None,
) -> Generated:
    """Goes on from every prompt until a stop token, or for ``max_new_tokens``.

    The prompts are read at once and then a token at a time, by compiled functions of static shape.
    They are compiled for a batch size, a rounded length and a rounded number of new tokens; with
    ``on_token`` the loop is Python's, and each token is handed out as it comes. Scanned layers are
    cut from their stack, a copy, at every step: unrolled ones write 1.7 times as fast (a Llama of
    100 million weights on a CPU).

    Args:
        model: a decoder of the zoo, or any Linen model that answers its protocol of caches.
        params: its parameters, dense or factored.
        input_ids: token ids ``[batch, length]``.
        attention_mask: 1 at tokens, 0 at padding, on either side; :func:`pad` makes both.
        max_new_tokens: the most tokens that a row gets.
        sampling: how tokens are chosen.
        stop: the tokens that end a row.
        key: what :class:`Sample` draws by. Equal keys give equal tokens, and a row's do not depend
            on other rows.
        on_token: called with ``(tokens, goes_on)`` at every step, both ``[batch]``.

    Raises:
        GenerationError: the model is no decoder, the prompts are empty or too long for it, or an
            option is out of range.
    """
    if not (hasattr(model, "cache") and hasattr(model, "positions")):
        got, todo = f"a {type(model).__name__}", "Load a decoder, such as a Llama or a GPT2."
        raise GenerationError(message(got=got, expected="a decoder, with a cache", todo=todo))
    vocab = model.config.vocab_size
    ids, mask = prompts.read(input_ids, attention_mask, vocab)
    _check(max_new_tokens, sampling, stop, key, vocab)
    length = prompts.rounded(ids.shape[1])
    if model.positions is not None:
        if ids.shape[1] + max_new_tokens - 1 > model.positions:
            got = f"{ids.shape[1]} tokens, and {max_new_tokens} to come"
            expected = f"at most {model.positions}, the positions of this model"
            refuse("input_ids", got, expected, "Cut the prompt, or ask for fewer tokens.")
        length = min(length, model.positions)
    more = [(0, 0), (length - ids.shape[1], 0)]
    stops = jnp.asarray(stop, jnp.int32)
    writing = decode.begin(
        model,
        params,
        jnp.asarray(np.pad(ids, more)),
        jnp.asarray(np.pad(mask, more)),
        sampling,
        stops,
        jax.random.key(0) if key is None else key,
        room=prompts.rounded(max_new_tokens),
        dtype=_dtype(params),
    )
    if on_token is None:
        limit = jnp.int32(max_new_tokens)
        writing = decode.finish(model, params, writing, sampling, stops, limit)
    else:
        before = np.zeros(len(ids), bool)
        for count in range(1, max_new_tokens + 1):
            on_token(np.asarray(writing.tokens)[:, count - 1], ~before)
            before = np.asarray(writing.stopped)
            if before.all() or count == max_new_tokens:
                break
            writing = decode.step(model, params, writing, sampling, stops)
    return Generated(writing.tokens[:, :max_new_tokens], writing.lengths, writing.stopped)


def _check(
    count: int, sampling: Sampling, stop: Sequence[int], key: Array | None, vocab: int
) -> None:
    if not isinstance(count, int | np.integer) or count < 1:
        refuse("max_new_tokens", str(count), "a whole number, at least 1", "Ask for a token.")
    if not isinstance(sampling, Sampling):
        refuse("sampling", repr(sampling), "Greedy() or Sample(...)", "Choose one of the two.")
    sampling.check()
    if isinstance(sampling, Sample) and key is None:
        refuse("key", "None, with Sample", "a key to draw by", "Give key=jax.random.key(0).")
    if isinstance(stop, int) or not all(0 <= token < vocab for token in stop):
        refuse("stop", str(stop), f"a tuple of ids from 0 to {vocab - 1}", "Correct the ids.")


def _dtype(params: Any) -> Any:
    """What the model computes in: the widest of its parameters'."""
    kinds = {leaf.dtype for leaf in jax.tree.leaves(params)}
    return jnp.result_type(*(kind for kind in kinds if jnp.issubdtype(kind, jnp.floating)))
