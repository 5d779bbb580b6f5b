"""Name maps: a published tensor, the leaf that it becomes, and how its axes are turned.

A model states its published layout as a list of :class:`Tensor`, in both directions at once. The
published matrices are ``[out, in]``; Flax kernels are ``[in, out]``.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One published tensor ``name`` and the leaf ``path`` of the parameter tree.

    ``axes`` permutes the published axes into Flax's; None leaves them. ``aliases`` are other names
    that files of the wild use for the same tensor: read, never written.
    """

    name: str
    path: str
    axes: tuple[int, ...] | None = None
    aliases: tuple[str, ...] = ()

    def decode(self, published: np.ndarray) -> np.ndarray:
        """Published array -> leaf."""
        return published if self.axes is None else published.transpose(self.axes)

    def encode(self, leaf: np.ndarray) -> np.ndarray:
        """Leaf -> published array."""
        return leaf if self.axes is None else leaf.transpose(np.argsort(self.axes))

    def published(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The published shape of a leaf of this shape."""
        return shape if self.axes is None else tuple(shape[k] for k in np.argsort(self.axes))


def dense(name: str, path: str, *, bias: bool = True) -> Iterator[Tensor]:
    """A linear layer: ``weight [out, in]`` and ``bias``."""
    yield Tensor(f"{name}.weight", f"{path}/kernel", axes=(1, 0))
    if bias:
        yield Tensor(f"{name}.bias", f"{path}/bias")


def embed(name: str, path: str) -> Iterator[Tensor]:
    """A table of rows."""
    yield Tensor(f"{name}.weight", f"{path}/embedding")


def norm(name: str, path: str) -> Iterator[Tensor]:
    """A layer norm; the oldest files call its parameters gamma and beta."""
    yield Tensor(f"{name}.weight", f"{path}/scale", aliases=(f"{name}.gamma",))
    yield Tensor(f"{name}.bias", f"{path}/bias", aliases=(f"{name}.beta",))
