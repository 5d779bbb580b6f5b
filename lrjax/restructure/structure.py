"""What a structural change is: a spec that turns modules and their config into smaller ones."""

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.calibrate import Stats
from lrjax.errors import StatsError, message
from lrjax.metrics import Moments
from lrjax.plan import Budget

LAYER = re.compile(r"(?:^|/)layer_(\d+)(?:/|$)")


@dataclasses.dataclass(frozen=True)
class Module:
    """One module of a model: where it stands, what it holds, what its weights saw.

    Attributes:
        path: the module's path, ``layer_0/mlp``; empty for the whole model.
        weights: its leaves by their path within it, ``down/kernel``.
        stats: what calibration found, for the whole model.
    """

    path: str
    weights: Mapping[str, Any]
    stats: Stats | None = dataclasses.field(default=None, repr=False)

    @property
    def parts(self) -> frozenset[str]:
        """The names of what it is made of: ``{"gate", "up", "down"}``."""
        return frozenset(path.split("/")[0] for path in self.weights)

    @property
    def layered(self) -> bool:
        """Whether it is the module of one layer."""
        return LAYER.search(self.path) is not None

    @property
    def layer(self) -> int:
        """The index i of the ``layer_i`` that it belongs to."""
        found = LAYER.search(self.path)
        assert found is not None, self.path
        return int(found[1])

    def gram(self, weight: str) -> Float[Array, "*S d d"]:
        """E[x x'] of the inputs x of one of its weights, in float32.

        Raises:
            StatsError: there are no statistics of it, or they are of another shape.
        """
        return self.moments(weight).second.astype(jnp.float32)

    def moments(self, weight: str) -> Moments:
        """The moments of the inputs of one of its weights: see :meth:`gram`."""
        path, size = f"{self.path}/{weight}".lstrip("/"), self.weights[weight].shape[-2]
        if self.stats is None or path not in self.stats:
            found, todo = "no statistics", "Pass the stats of lrjax.calibrate on this model."
        else:
            rows = self.stats.of(path).rows
            if not rows.diagonal and rows.size == size:
                return rows
            found = f"{'a diagonal' if rows.diagonal else 'statistics'} of {rows.size} inputs"
            todo = "Calibrate this very model, with a larger max_gram where a diagonal was kept."
        expected = f"the second moment of its {size} inputs"
        raise StatsError(message(path=path, got=found, expected=expected, todo=todo))

    def gradients(self, weight: str) -> Float[Array, "*S n n"] | None:
        """E[g g'] of the gradients g at a weight's output, in float32; None if not taken."""
        path = f"{self.path}/{weight}".lstrip("/")
        cols = None if self.stats is None else self.stats.of(path).cols
        if cols is None or cols.diagonal or cols.size != self.weights[weight].shape[-1]:
            return None
        return cols.second.astype(jnp.float32)

    def replace(self, weights: Mapping[str, Any]) -> "Module":
        """The same module with some of its leaves replaced, each in the dtype of the old one."""
        new = {path: jnp.asarray(w).astype(self.weights[path].dtype) for path, w in weights.items()}
        return dataclasses.replace(self, weights={**self.weights, **new})


@dataclasses.dataclass(frozen=True)
class Structure(ABC):
    """Base of the specs of `lrjax.restructure`: frozen, hashable, equal for equal arguments.

    Attributes:
        uses_budget: whether it reads the budget of the call.
    """

    uses_budget: ClassVar[bool] = False

    @abstractmethod
    def fits(self, module: Module) -> bool:
        """Whether this is a module that the spec knows, by its parts."""

    @abstractmethod
    def rebuild(
        self, config: Any, modules: Sequence[Module], budget: Budget | None
    ) -> tuple[Any, Sequence[Module]]:
        """The config and the modules, all that the rule matched, in their new shape.

        A spec sees its modules together, so that it can share sizes out among them. It returns as
        many as it got, in the same order; leaves may appear and vanish.

        Args:
            config: the model's config, a frozen dataclass.
            modules: what the rule matched, in the order of the tree.
            budget: the budget of the call.
        """


def stack(modules: Sequence[Module], weight: str) -> jax.Array:
    """One leaf of equal modules, [modules, ...], in float32."""
    return jnp.stack([jnp.asarray(m.weights[weight], jnp.float32) for m in modules])


def is_attention(module: Module) -> bool:
    """Whether a layer's module has the four kernels of plain attention, and norms at most."""
    kinds = {"query", "key", "value", "output"}
    return kinds <= module.parts <= kinds | {"query_norm", "key_norm"} and module.layered


def finite(path: str, weight: jax.Array) -> jax.Array:
    """The weight that was solved for.

    Raises:
        StatsError: it is not finite.
    """
    if not bool(jnp.isfinite(weight).all()):
        got, todo = "a solution that is not finite", "Look for NaN or overflow in both."
        expected = "finite weights and statistics"
        raise StatsError(message(path=path, got=got, expected=expected, todo=todo))
    return weight
