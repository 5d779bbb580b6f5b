"""Sizes that differ from layer to layer: what cut models have and no published config knows."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from lrjax.zoo.config import Config, extension, refuse

S = TypeVar("S", bound="LayerSizes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerSizes(Config):
    """Base of the configs of transformers: a size for each layer, or one, as published, for all.

    Attributes:
        mlp_sizes: the hidden units of every layer's MLP.
        key_sizes: the width of every layer's query and key heads; the scale of the scores stays
            that of whole heads.
        value_sizes: the width of every layer's value heads.
    """

    width: ClassVar[str] = "intermediate_size"
    """The field that holds the published number of hidden units."""

    mlp_sizes: tuple[int, ...] | None = extension()
    key_sizes: tuple[int, ...] | None = extension()
    value_sizes: tuple[int, ...] | None = extension()

    @property
    def depth(self) -> int:
        """The number of layers."""
        return getattr(self, "num_hidden_layers")  # noqa: B009

    @property
    def mlp_width(self) -> int:
        """The published number of hidden units."""
        return getattr(self, self.width)

    @property
    def head_size(self) -> int:
        """The published width of a head."""
        return getattr(self, "hidden_size") // getattr(self, "num_attention_heads")  # noqa: B009

    @property
    def query_heads(self) -> int:
        """The number of query heads."""
        return getattr(self, "num_attention_heads")  # noqa: B009

    @property
    def kv_heads(self) -> int:
        """The number of key and value heads."""
        return self.query_heads

    @property
    def rotated(self) -> bool:
        """Whether queries and keys are turned by their positions."""
        return False

    def check(self) -> None:
        """Refuses sizes that are not one positive number for each layer."""
        for key in ("mlp_sizes", "key_sizes", "value_sizes"):
            sizes = getattr(self, key)
            if sizes is not None and (len(sizes) != self.depth or min(sizes) < 1):
                refuse(key, sizes, f"{self.depth} sizes of at least 1, one for each layer")

    def sparse(self, layer: int) -> bool:
        """Whether a layer is a mixture of experts, which has no MLP of its own."""
        return False

    def mlp_size(self, layer: int) -> int:
        """The hidden units of a layer's MLP."""
        return self.mlp_width if self.mlp_sizes is None else self.mlp_sizes[layer]

    def key_size(self, layer: int) -> int:
        """The width of a layer's query and key heads."""
        return self.head_size if self.key_sizes is None else self.key_sizes[layer]

    def value_size(self, layer: int) -> int:
        """The width of a layer's value heads."""
        return self.head_size if self.value_sizes is None else self.value_sizes[layer]

    def head_sizes(self, layer: int) -> dict[str, int]:
        """The widths of a layer's heads: of queries, of keys, of values."""
        key = self.key_size(layer)
        return {"query": key, "key": key, "value": self.value_size(layer)}

    def with_mlp_sizes(self: S, sizes: Mapping[int, int]) -> S:
        """The config with other MLPs; where all are equal, in the published words."""
        every = tuple(sizes.get(i, self.mlp_size(i)) for i in range(self.depth))
        if len({size for i, size in enumerate(every) if not self.sparse(i)}) > 1:
            return dataclasses.replace(self, mlp_sizes=every)
        size = next(size for i, size in enumerate(every) if not self.sparse(i))
        own = {} if size == self.mlp_width else {self.width: size}
        return dataclasses.replace(self, **{"mlp_sizes": None, **own})

    def with_key_sizes(self: S, sizes: Mapping[int, int], **fields: Any) -> S:
        """The config with other query and key heads."""
        every = tuple(sizes.get(i, self.key_size(i)) for i in range(self.depth))
        return dataclasses.replace(self, key_sizes=self._unlike(every), **fields)

    def with_value_sizes(self: S, sizes: Mapping[int, int]) -> S:
        """The config with other value heads."""
        every = tuple(sizes.get(i, self.value_size(i)) for i in range(self.depth))
        return dataclasses.replace(self, value_sizes=self._unlike(every))

    def _unlike(self, sizes: tuple[int, ...]) -> tuple[int, ...] | None:
        return None if set(sizes) == {self.head_size} else sizes
