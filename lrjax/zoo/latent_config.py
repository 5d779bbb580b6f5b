"""What a config says of latent attention, layer by layer, and how many floats a cache keeps."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self, TypeVar

from lrjax.zoo.config import extension, refuse
from lrjax.zoo.sizes import LayerSizes

C = TypeVar("C", bound="LatentSizes")


@dataclasses.dataclass(frozen=True)
class Latent:
    """The shape of one latent attention.

    Attributes:
        rank: floats of the latent, for all key and value heads together.
        rotary: the frequencies of the rotated pairs that all heads share, 0 is the fastest; a
            frequency may come twice. None: all keys are rotated, head by head, as they were.
    """

    rank: int
    rotary: tuple[int, ...] | None = None

    @property
    def floats(self) -> int:
        """What is cached of a token."""
        return self.rank + 2 * len(self.rotary or ())

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Reads ``{"rank": 64, "rotary": [0, 1]}``; without ``rotary`` it is None."""
        rotary = data.get("rotary")
        return cls(data["rank"], None if rotary is None else tuple(rotary))

    def to_json(self) -> dict[str, Any]:
        """The object that `from_json` reads."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentSizes(LayerSizes):
    """Base of the configs of decoders whose layers may have latent attention.

    Attributes:
        latent: for every layer the JSON of its :class:`Latent`, or None.
    """

    latent: tuple[Any, ...] | None = extension()

    def check(self) -> None:
        """Refuses what is not one latent, or none, for each layer."""
        super().check()
        if self.latent is None:
            return
        if len(self.latent) != self.depth:
            refuse("latent", f"{len(self.latent)} layers", f"{self.depth}, an object or null each")
        for data in self.latent:
            if data is not None and not self._sound(data):
                expected = '{"rank": 1 or more, "rotary": frequencies of its heads}'
                refuse("latent", dict(data) if isinstance(data, Mapping) else data, expected)

    def latent_of(self, layer: int) -> Latent | None:
        """The latent attention of a layer, if it has one."""
        data = None if self.latent is None else self.latent[layer]
        return None if data is None else Latent.from_json(data)

    def with_latents(self: C, latents: Mapping[int, Latent]) -> C:
        """The config with latent attention in more layers."""
        every = self.latent or (None,) * self.depth
        new = (latents[i].to_json() if i in latents else every[i] for i in range(self.depth))
        return dataclasses.replace(self, latent=tuple(new))

    def kv_floats(self, layer: int) -> int:
        """What a layer's cache keeps of a token."""
        latent = self.latent_of(layer)
        dense = self.kv_heads * (self.key_size(layer) + self.value_size(layer))
        return dense if latent is None else latent.floats

    def _sound(self, data: Any) -> bool:
        if not isinstance(data, Mapping) or not {"rank"} <= data.keys() <= {"rank", "rotary"}:
            return False
        rotary = data.get("rotary") or ()
        known = all(isinstance(f, int) and 0 <= f < self.head_size // 2 for f in rotary)
        return isinstance(data["rank"], int) and data["rank"] >= 1 and known
