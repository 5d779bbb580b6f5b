"""A weight that is a sum of parts: low rank + residual, a frozen weight + LoRA, ..."""

import dataclasses

from jaxtyping import Array

from lrjax.formats.factored import Factored, is_factored, register
from lrjax.formats.layout import Layout, default_layout
from lrjax.formats.network import Network


@register
@dataclasses.dataclass(frozen=True)
class Sum(Factored):
    """W = sum of the parts, each an array or a factored weight of W's shape."""

    parts: tuple[Array | Factored, ...]

    def networks(self) -> tuple[Network, ...]:
        return tuple(
            net
            for part in self.parts
            for net in (part.networks() if is_factored(part) else (Network.of(part),))
        )

    @property
    def layout(self) -> Layout:
        for part in self.parts:
            if is_factored(part):
                return part.layout
        return default_layout(self.shape)
