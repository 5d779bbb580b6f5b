"""A weight that is a sum of parts: low rank + residual, a frozen weight + LoRA, ..."""

import dataclasses
from typing import Any

from lrjax.formats.factored import Factored, is_factored, register
from lrjax.formats.layout import Layout, default_layout
from lrjax.formats.network import Network
from lrjax.formats.selection import Selection


@register
@dataclasses.dataclass(frozen=True)
class Sum(Factored):
    """W = sum of the parts, each an array or a factored weight of W's shape."""

    parts: tuple[Any, ...]

    def networks(self) -> tuple[Network, ...]:
        """The networks of all parts; a padded part's without its padding."""
        return tuple(
            cropped(net, part.shape)
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


def cropped(net: Network, shape: tuple[int, ...]) -> Network:
    """The leading entries of every dimension, picked by a selection of merged indices."""
    for axis, size in enumerate(shape):
        if net.shape[axis] != size:
            sizes, labels, new = net.sizes, net.dims[axis], net.fresh()
            pick = Selection(tuple(range(size)), (size,), tuple(sizes[k] for k in labels))
            dims = [*net.dims[:axis], (new,), *net.dims[axis + 1 :]]
            net = net.with_operand(pick, (new, *labels)).with_dims(dims)
    return net
