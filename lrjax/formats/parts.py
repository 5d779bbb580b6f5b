"""A weight that is a sum of parts: low rank + residual, a frozen weight + LoRA, ..."""

import dataclasses
from typing import Any

from lrjax.formats.factored import Factored, is_factored, register
from lrjax.formats.layout import Layout, default_layout
from lrjax.formats.network import Network


@register
@dataclasses.dataclass(frozen=True)
class Sum(Factored):
    """W = sum of the parts, each an array or a factored weight of W's shape."""

    parts: tuple[Any, ...]

    def networks(self) -> tuple[Network, ...]:
        """The networks of all parts."""
        return tuple(
            net
            for part in self.parts
            for net in (part.networks() if is_factored(part) else (Network.of(part),))
        )

    @property
    def layout(self) -> Layout:
        """The layout of the first factored part."""
        for part in self.parts:
            if is_factored(part):
                return part.layout
        return default_layout(self.shape)
