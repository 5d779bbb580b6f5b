"""A narrower residual stream: one rotation for the whole model, and its last directions dropped.

A root-mean-square norm does not see a rotation of its input. So x <- x Q goes through a model whose
readers of the stream take W <- Q' diag(g) W, g the scale of the norm before them, and whose writers
take W <- W Q: nothing changes. With Q the principal directions of what the norms put out, the last
rows and columns hold little, and are cut (SliceGPT, arXiv:2401.15024; there each layer has its own
rotation, and the stream an extra matrix between them. With one there is none, and the result is a
smaller model of the same architecture).
"""

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lrjax.errors import RuleError, StatsError, message
from lrjax.linalg import solve_ridge
from lrjax.linalg.stack import dot
from lrjax.restructure.sizes import Curve, Cut
from lrjax.restructure.structure import Module, finite

READERS = {
    "attention_norm": ("attention/query", "attention/key", "attention/value"),
    "mlp_norm": (
        "mlp/gate",
        "mlp/up",
        *(f"experts/{k}" for k in ("router", "gate", "up")),
        *(f"experts/shared_{k}" for k in ("gate", "up", "router")),
    ),
}
"""What reads the stream behind each norm of a layer."""

WRITERS = ("attention/output", "mlp/down", "experts/down", "experts/shared_down")
"""What adds to the stream."""

DAMPING = 1e-4
"""Share of the mean energy that keeps the readers' regression near the plain rotation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Width(Cut):
    """Cuts the residual stream of a Llama-like decoder, the whole model at once; needs statistics.

    Readers are the best, by least squares, for the directions that stay; norms are scaled so that
    the mean energy is that of all directions. Heads keep their size. The new width is a multiple
    of the number of heads, which the published configs ask for.

    Attributes:
        untie: gives a head of its own to a model whose head is its table, which it must have: the
            one is rotated behind a norm, the other is not.

    Raises:
        RuleError: the model has other norms, or a tied head and no leave to untie it.
    """

    untie: bool = False

    def fits(self, module: Module) -> bool:
        """A whole decoder: a table, layers, a last norm."""
        return module.path == "" and {"embed", "norm", "layer_0"} <= module.parts

    def rebuild(
        self, config: Any, modules: Sequence[Module], budget: Any
    ) -> tuple[Any, Sequence[Module]]:
        """The same model with a narrower stream."""
        (model,) = modules
        _check(config, model, self.untie)
        norms = list(_norms(config, model))
        grams = [n.gram for n in norms]
        energy, basis = jnp.linalg.eigh(sum(grams[1:], grams[0]) / len(grams))
        heads, whole = config.num_attention_heads, len(energy)
        tail = np.cumsum(np.maximum(np.asarray(energy), 0))[::-1]  # errors of 0, 1, 2, ...
        errors = np.append(tail, 0)[heads::heads]
        (size,) = self.choose([Curve(errors, float(tail[0]), 1, step=heads)])
        basis = _orthonormal(basis[:, ::-1])
        basis, rest = basis[:, :size], basis[:, size:]

        new, shares = dict(model.weights), []
        for norm in norms:
            share = jnp.trace(dot(basis.T, dot(norm.gram, basis))) / jnp.trace(norm.gram)
            shares.append(float(share) * whole / size)
            scale = jnp.full(size, shares[-1] ** 0.5) - norm.offset
            new[norm.path] = finite(norm.path, scale)
            into = _regression(norm.gram, basis, rest) * norm.scale
            for path in norm.readers:
                new[path] = dot(into, jnp.asarray(model.weights[path], jnp.float32))
        table = jnp.asarray(model.weights["embed/embedding"], jnp.float32)
        if config.tie_word_embeddings:
            new["head/kernel"] = dot(into, table.T)
        for path in _writers(model):
            new[path] = dot(jnp.asarray(model.weights[path], jnp.float32), basis)
        if config.gemma:  # its table is multiplied with the root of the width
            new["embed/embedding"] *= (whole / size) ** 0.5
        old = {"head/kernel": table.dtype} | {p: w.dtype for p, w in model.weights.items()}
        cut = dataclasses.replace(
            config,
            hidden_size=size,
            head_dim=config.head_size,
            rms_norm_eps=config.rms_norm_eps * float(np.mean(shares)),
            tie_word_embeddings=False,
        )
        cast = {path: jnp.asarray(w).astype(old[path]) for path, w in new.items()}
        return cut, [dataclasses.replace(model, weights=cast)]


@dataclasses.dataclass(frozen=True)
class _Norm:
    """A norm: its leaf, its scale g, E[x x'] of the normalised stream before g, who reads it."""

    path: str
    scale: Float[Array, " d"]
    offset: float
    gram: Float[Array, "d d"]
    readers: tuple[str, ...]


def _norms(config: Any, model: Module) -> Iterator[_Norm]:
    for i in range(config.num_hidden_layers):
        for name, kinds in READERS.items():
            readers = (f"layer_{i}/{kind}/kernel" for kind in kinds)
            yield _norm(config, model, f"layer_{i}/{name}/scale", readers)
    head = () if config.tie_word_embeddings else ("head/kernel",)
    yield _norm(config, model, "norm/scale", head)


def _norm(config: Any, model: Module, path: str, readers: Any) -> _Norm:
    found = tuple(reader for reader in readers if reader in model.weights)
    offset = 1.0 if config.gemma else 0.0
    scale = jnp.asarray(model.weights[path], jnp.float32) + offset
    gram = model.gram(found[0]) if found else _tied_gram(model)
    inverse = jnp.where(scale != 0, 1 / jnp.where(scale != 0, scale, 1), 0)
    return _Norm(path, scale, offset, gram * inverse[:, None] * inverse, found)


def _tied_gram(model: Module) -> Array:
    """E[x x'] of what a table sees as the head."""
    stats, path = model.stats, "embed/embedding"
    uses = stats.usage[path].matrix_uses if stats is not None and path in stats.usage else ()
    for use in uses:
        seen = stats.inputs.get(use.tap) if stats is not None else None
        if seen is not None and not seen.diagonal:
            return seen.second.astype(jnp.float32)
    got, expected = "no statistics of its use as the head", "the second moment of the last norm"
    todo = "Pass the stats of lrjax.calibrate on this model."
    raise StatsError(message(path=path, got=got, expected=expected, todo=todo))


def _regression(
    gram: Float[Array, "d d"], basis: Float[Array, "d k"], rest: Float[Array, "d e"]
) -> Float[Array, "k d"]:
    """The best x from x Q: Q', and of the other directions what is a linear function of x Q."""
    seen = dot(basis.T, gram)
    return basis.T + dot(solve_ridge(dot(seen, basis), dot(seen, rest), DAMPING), rest.T)


def _orthonormal(basis: Float[Array, "d k"]) -> Float[Array, "d k"]:
    """One step of Newton and Schulz: an eigensolver in float32 leaves errors of many roundings."""
    return 1.5 * basis - 0.5 * dot(basis, dot(basis.T, basis))


def _writers(model: Module) -> Iterator[str]:
    yield "embed/embedding"
    for path in model.weights:
        module, _, leaf = path.rpartition("/")
        if leaf in ("kernel", "bias") and module.partition("/")[2] in WRITERS:
            yield path


def _check(config: Any, model: Module, untie: bool) -> None:
    tied = getattr(config, "tie_word_embeddings", False)
    known = {r for readers in READERS.values() for r in readers} | set(WRITERS)
    kernels = (path.removesuffix("/kernel").partition("/") for path in model.weights)
    strange = [f"{a}/{b}" for a, _, b in kernels if a.startswith("layer_") and _odd(b, known)]
    if "norm/bias" in model.weights:
        got, todo = "LayerNorms, which take a mean off the stream", "Cut its MLPs or its heads."
        expected = "root-mean-square norms, which no rotation changes"
    elif config.sandwich:
        got, expected = "norms on what is added to the stream", "norms before the readers alone"
        todo = "Cut its MLPs or its heads."
    elif strange:
        got, expected = (
            f"{strange[0]}, a layer's weight of another kind",
            "plain attention and MLPs",
        )
        todo = "Cut the width first, then restructure the attention."
    elif tied and not untie:
        got, expected = "a head tied to the table", "two matrices, rotated in different ways"
        todo = "Say Width(untie=True): the head becomes a matrix of its own."
    else:
        return
    raise RuleError(message(path="", got=got, expected=expected, todo=todo))


def _odd(path: str, known: Collection[str]) -> bool:
    """Whether a layer's kernel neither reads nor writes the stream in a way that is known."""
    return not (path in known or path.endswith(("/bias", "/scale")))
