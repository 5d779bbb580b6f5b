"""Rotary position embeddings (arXiv:2104.09864) and how they are stretched to longer texts.

Pairs (x_j, x_{j + d/2}) are turned by the angle position * f_j, where f_j = base^(-2j/d), so that a
product of a query and a key depends on their distance alone.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lrjax.zoo.config import one_of, refuse

KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
NEEDED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}


def parameters(
    key: str,
    given: Mapping[str, Any] | None,
    *,
    theta: float,
    longest: int,
    original: int | None,
    head_dim: int,
) -> dict[str, Any]:
    """The published object under ``key``, old or new, with its defaults filled in.

    Raises:
        CheckpointError: a kind of scaling that is not known, or a value that it needs is missing.
    """
    rope = dict(given or {})
    rope["rope_type"] = rope.get("rope_type", rope.get("type", "default"))
    one_of(f"{key}, rope_type", rope["rope_type"], KINDS)
    rope.setdefault("rope_theta", theta)
    if rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        refuse(f"{key}, partial_rotary_factor", rope["partial_rotary_factor"], "1, whole heads")
    for name in NEEDED.get(rope["rope_type"], ()):
        if rope.get(name) is None:
            refuse(f"{key}, {name}", "nothing", f"a value, for rope_type {rope['rope_type']!r}")
    if head_dim % 2:
        refuse("head_dim", head_dim, "an even number: rotations turn pairs")
    if rope["rope_type"] == "longrope":
        for name in ("short_factor", "long_factor"):
            if len(rope[name]) != head_dim // 2:
                refuse(f"{key}, {name}", f"{len(rope[name])} values", f"{head_dim // 2}")
    if original is not None:
        rope["original_max_position_embeddings"] = original
    elif rope.get("original_max_position_embeddings") is None:
        rope["original_max_position_embeddings"] = longest
    return {**rope, "max_position_embeddings": longest}


class Turns(NamedTuple):
    """The rotations, as cos and sin, of the new tokens, and of the tokens in all slots."""

    new: tuple[Array, Array]
    slots: tuple[Array, Array]


def grows(rope: Mapping[str, Any]) -> bool:
    """Whether a position's angles change with the length of the text: no key may be kept turned."""
    return rope["rope_type"] in ("dynamic", "longrope")


def rotations(
    rope: Mapping[str, Any], head_dim: int, positions: Int[Array, "#batch length"], longest: Any
) -> tuple[Float[Array, "#batch length 1 d"], Float[Array, "#batch length 1 d"]]:
    """The cos and sin of every position's angles, in float32, once for either half of a head.

    ``longest`` is the number of positions in use, on which ``dynamic`` and ``longrope`` depend.
    """
    frequencies, scale = _frequencies(rope, head_dim, longest)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    angles = jnp.concatenate([angles, angles], axis=-1)[..., None, :]
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def rotate(
    x: Float[Array, "batch length heads d"],
    cos: Float[Array, "#batch length #heads d"],
    sin: Float[Array, "#batch length #heads d"],
) -> Float[Array, "batch length heads d"]:
    """Turns every pair (x_j, x_{j + d/2}) of every head by its angle."""
    a, b = jnp.split(x, 2, axis=-1)
    turned = jnp.concatenate([-b, a], axis=-1)
    return x * cos.astype(x.dtype) + turned * sin.astype(x.dtype)


def pick(
    turns: tuple[Float[Array, "#batch length 1 d"], Float[Array, "#batch length 1 d"]],
    frequencies: Int[Array, " k"],
) -> tuple[Float[Array, "#batch length 1 e"], Float[Array, "#batch length 1 e"]]:
    """The rotations of heads that have the pairs of some frequencies alone, 2k wide."""
    own = jnp.concatenate([frequencies, frequencies])
    return turns[0][..., own], turns[1][..., own]


def by_heads(
    turns: tuple[Float[Array, "#batch length 1 d"], Float[Array, "#batch length 1 d"]],
    pairs: Sequence[Sequence[int]] | None,
    heads: int,
) -> tuple[Float[Array, "#batch length #heads e"], Float[Array, "#batch length #heads e"]]:
    """The rotations of heads whose groups have some pairs each, 2k wide; None is all pairs."""
    if pairs is None:
        return turns
    own = np.repeat(np.asarray(pairs), heads // len(pairs), axis=0)
    own = np.concatenate([own, own + turns[0].shape[-1] // 2], axis=1)
    return turns[0][..., 0, own], turns[1][..., 0, own]


def _frequencies(rope: Mapping[str, Any], d: int, longest: Any) -> tuple[Any, float]:
    """The frequencies f_j, j < d/2, and a factor on cos and sin."""
    base, exponent = rope["rope_theta"], np.arange(0, d, 2, dtype=np.float32) / d
    plain = (1.0 / np.float32(base) ** exponent).astype(np.float32)
    match rope["rope_type"]:
        case "linear":
            return plain / np.float32(rope["factor"]), 1.0
        case "dynamic":
            return _dynamic(rope, d, exponent, longest), 1.0
        case "llama3":
            return _llama3(rope, plain), 1.0
        case "yarn":
            return _yarn(rope, d, plain)
        case "longrope":
            return _longrope(rope, plain, longest)
    return plain, 1.0


def _dynamic(rope: Mapping[str, Any], d: int, exponent: np.ndarray, longest: Any) -> Any:
    """Beyond the trained length the base grows with the text, so that the slowest wave fits."""
    factor, trained = rope["factor"], rope["max_position_embeddings"]
    growth = factor * jnp.maximum(longest, trained) / trained - (factor - 1)
    return 1.0 / (rope["rope_theta"] * growth ** (d / (d - 2))) ** exponent


def _llama3(rope: Mapping[str, Any], plain: np.ndarray) -> np.ndarray:
    """Long waves are stretched by the factor, short ones stay, those between go over smoothly."""
    low, high, factor = (
        rope[k] for k in ("low_freq_factor", "high_freq_factor", "factor")
    )  # in periods within the trained length
    periods = rope["original_max_position_embeddings"] * plain / (2 * np.pi)
    share = np.clip((periods - low) / (high - low), 0, 1)
    return ((1 - share) * plain / factor + share * plain).astype(np.float32)


def _yarn(rope: Mapping[str, Any], d: int, plain: np.ndarray) -> tuple[np.ndarray, float]:
    """Dimensions of many turns stay, of few are stretched, a ramp between (arXiv:2309.00071)."""
    base, trained = rope["rope_theta"], rope["original_max_position_embeddings"]
    factor = rope.get("factor") or rope["max_position_embeddings"] / trained

    def dimension(rotations: float) -> float:
        return d * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension(rope.get("beta_fast") or 32), dimension(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d - 1)
    high += 0.001 * (low == high)
    ramp = np.clip((np.arange(d // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    frequencies = plain / factor * ramp + plain * (1 - ramp)
    return frequencies.astype(np.float32), _yarn_scale(rope, factor)


def _yarn_scale(rope: Mapping[str, Any], factor: float) -> float:
    def magnitude(share: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * share * math.log(factor) + 1.0

    if rope.get("attention_factor") is not None:
        return rope["attention_factor"]
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return magnitude(rope["mscale"]) / magnitude(rope["mscale_all_dim"])
    return magnitude(1.0)


def _longrope(rope: Mapping[str, Any], plain: np.ndarray, longest: Any) -> tuple[Any, float]:
    """A searched factor for every dimension: one set for short, one for long texts (2402.13753)."""
    trained = rope["original_max_position_embeddings"]
    short, long = (np.asarray(rope[k], np.float32) for k in ("short_factor", "long_factor"))
    scale, factor = rope.get("attention_factor"), rope.get("factor")
    factor = rope["max_position_embeddings"] / trained if factor is None else factor
    if scale is None:
        scale = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(trained))
    return plain / jnp.where(longest > trained, long, short), scale
