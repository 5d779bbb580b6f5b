"""Attention over long texts in less than quadratic time: Nystrom and Linformer.

Both replace the matrix of all scores by a product of thin ones, and are an option of the encoders:

    model = Bert(config, attention=Nystrom(landmarks=64))

The parameters stay those of the exact model; Linformer has two more a layer (:func:`adopt`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from lrjax.errors import ShapeError, message
from lrjax.zoo.attention import attend
from lrjax.zoo.nystrom import (
    ITERATIONS,
    RIDGE,
    Keys,
    Queries,
    Scale,
    Values,
    Visible,
    keys_alone,
    nystrom,
    segments,
)


@dataclass(frozen=True)
class Exact:
    """softmax(Q K') V."""

    def mix(
        self,
        layer: nn.Module,
        q: Queries,
        k: Keys,
        v: Values,
        visible: Visible,
        scale: Scale = None,
    ) -> Array:
        """The values mixed, the heads side by side; ``layer`` is the caller, whose parameters are.

        Any kind of attention is a frozen object with this method.
        """
        return attend(q, k, v, visible, scale=scale)


@dataclass(frozen=True)
class Nystrom:
    """:func:`nystrom` at a number of landmarks; the model's parameters serve as they are."""

    landmarks: int = 64
    ridge: float = RIDGE
    iterations: int = ITERATIONS

    def mix(
        self,
        layer: nn.Module,
        q: Queries,
        k: Keys,
        v: Values,
        visible: Visible,
        scale: Scale = None,
    ) -> Array:
        """As :meth:`Exact.mix`."""
        return nystrom(
            *(q, k, v, visible),
            landmarks=self.landmarks,
            ridge=self.ridge,
            iterations=self.iterations,
            scale=scale,
        )


@dataclass(frozen=True)
class Linformer:
    """:func:`linformer` with projections from ``length`` places to ``rank``, parameters to train.

    They begin as means of neighbours. A text may be shorter than ``length``, but not longer.
    """

    rank: int
    length: int

    def mix(
        self,
        layer: nn.Module,
        q: Queries,
        k: Keys,
        v: Values,
        visible: Visible,
        scale: Scale = None,
    ) -> Array:
        """As :meth:`Exact.mix`."""
        shape, init = (self.length, self.rank), lambda _, shape: neighbours(*shape)
        keys, values = (layer.param(f"project_{kind}", init, shape) for kind in ("keys", "values"))
        return linformer(q, k, v, visible, keys=keys, values=values, scale=scale)


def linformer(
    q: Queries,
    k: Keys,
    v: Values,
    visible: Visible = None,
    *,
    keys: Float[Array, "places rank"],
    values: Float[Array, "places rank"],
    scale: Scale = None,
) -> Float[Array, "batch queries heads*d_value"]:
    """softmax(Q (E' K)') F' V, with E, F projections along the length (arXiv:2006.04768).

    Every query sees every place, so that there is no causal form.

    Raises:
        ShapeError: more tokens than places, or ``visible`` differs between queries.
    """
    real, length = keys_alone(visible, k, "exact attention"), k.shape[1]
    if length > len(keys):
        todo = "Cut the text, or project from more places."
        got = f"{length} tokens"
        raise ShapeError(message(got=got, expected=f"at most {len(keys)}", todo=todo))
    k, v = (jnp.where(real[..., None, None], x, 0) for x in (k, v))
    k = jnp.einsum("nr,bnhd->brhd", keys[:length], k)
    return attend(q, k, jnp.einsum("nr,bnhd->brhd", values[:length], v), None, scale=scale)


def adopt(model: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with those that the model has beside them, at their initial values."""
    fresh = model.init(jax.random.key(0), *model.example())["params"]
    return unflatten_dict({**flatten_dict(fresh), **flatten_dict(params)})


def neighbours(length: int, rank: int) -> Float[Array, "length rank"]:
    """Means over equal runs of places."""
    return segments(jnp.ones((1, length), bool), rank)[0][0].T
