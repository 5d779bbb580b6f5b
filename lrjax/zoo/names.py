"""Name maps: a published tensor, the leaf that it becomes, and how its axes are turned.

A model states its published layout as a list of :class:`Tensor`, in both directions at once. The
published matrices are ``[out, in]``; Flax kernels are ``[in, out]``. Several tensors may fill one
leaf (experts, scanned layers), and one tensor several leaves (fused query, key and value).
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One published tensor ``name`` and the leaf ``path`` of the parameter tree.

    Attributes:
        name: the published name.
        path: the leaf.
        axes: permutes the published axes into Flax's; None leaves them.
        aliases: other names that files of the wild use for this tensor: read, never written.
        copies: names of tied copies, which files of the wild hold beside it: equal, never written.
        at: where in the leaf's leading axes the tensor lies, if the leaf is a stack.
        part: ``(axis, k, n)``: only the k-th of n equal parts of the published tensor along axis.
    """

    name: str
    path: str
    axes: tuple[int, ...] | None = None
    aliases: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
    at: tuple[int, ...] = ()
    part: tuple[int, int, int] | None = None

    def decode(self, published: np.ndarray) -> np.ndarray:
        """Published array, or the part of it -> leaf, or the place in it."""
        return published if self.axes is None else published.transpose(self.axes)

    def encode(self, leaf: np.ndarray) -> np.ndarray:
        """Leaf -> published array, or the part of it; a view, which may be written to."""
        own = leaf[self.at] if self.at else leaf
        return own if self.axes is None else own.transpose(np.argsort(self.axes))

    def published(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The published shape, given the shape of the leaf."""
        own = shape[len(self.at) :]
        turned = own if self.axes is None else tuple(own[k] for k in np.argsort(self.axes))
        if self.part is None:
            return turned
        axis, _, count = self.part
        return (*turned[:axis], turned[axis] * count, *turned[axis + 1 :])

    def window(self, shape: tuple[int, ...]) -> tuple[slice, ...]:
        """Where in a published tensor of this shape the part lies."""
        whole = [slice(0, n) for n in shape]
        if self.part is not None:
            axis, k, count = self.part
            size = shape[axis] // count
            whole[axis] = slice(k * size, (k + 1) * size)
        return tuple(whole)


def dense(name: str, path: str, *, bias: bool = True) -> Iterator[Tensor]:
    """A linear layer: ``weight [out, in]`` and ``bias``."""
    yield Tensor(f"{name}.weight", f"{path}/kernel", axes=(1, 0))
    if bias:
        yield Tensor(f"{name}.bias", f"{path}/bias")


def conv(name: str, path: str, *, bias: bool = True) -> Iterator[Tensor]:
    """A convolution: ``weight [out, in, height, width]`` and ``bias``."""
    yield Tensor(f"{name}.weight", f"{path}/kernel", axes=(2, 3, 1, 0))
    if bias:
        yield Tensor(f"{name}.bias", f"{path}/bias")


def embed(name: str, path: str, *, copies: tuple[str, ...] = ()) -> Iterator[Tensor]:
    """A table of rows; ``copies`` names the heads that are tied to it."""
    yield Tensor(f"{name}.weight", f"{path}/embedding", copies=copies)


def norm(name: str, path: str) -> Iterator[Tensor]:
    """A layer norm; the oldest files call its parameters gamma and beta."""
    yield Tensor(f"{name}.weight", f"{path}/scale", aliases=(f"{name}.gamma",))
    yield Tensor(f"{name}.bias", f"{path}/bias", aliases=(f"{name}.beta",))


def scale(name: str, path: str) -> Iterator[Tensor]:
    """A norm without a bias."""
    yield Tensor(f"{name}.weight", f"{path}/scale")


def gated(name: str, path: str, *, bias: bool, join: str = "/") -> Iterator[Tensor]:
    """A gated MLP: gate, up and down."""
    for kind in ("gate", "up", "down"):
        yield from dense(f"{name}.{kind}_proj", f"{path}{join}{kind}", bias=bias)


def under(layout: Iterable[Tensor], name: str, path: str) -> Iterator[Tensor]:
    """The layout of a submodule: ``name`` before every published name, ``path`` before paths."""
    for t in layout:
        aliases, copies = (tuple(name + other for other in ns) for ns in (t.aliases, t.copies))
        yield dataclasses.replace(
            t, name=name + t.name, path=path + t.path, aliases=aliases, copies=copies
        )


def also(layout: Iterable[Tensor], *rules: tuple[str, str]) -> Iterator[Tensor]:
    """The layout, also read under the names that a rule ``(pattern, replacement)`` turns out."""
    for t in layout:
        other = t.name
        for pattern, replacement in rules:
            other = re.sub(pattern, replacement, other)
        aliases = (*t.aliases, other) if other != t.name else t.aliases
        yield dataclasses.replace(t, aliases=aliases)


def stacked(layout: Iterable[Tensor]) -> Iterator[Tensor]:
    """The layout of scanned layers: what was at ``layer_i/...`` is the i-th of ``layers/...``."""
    for t in layout:
        found = LAYER.search(t.path)
        if found:
            path = LAYER.sub("layers/", t.path)
            t = dataclasses.replace(t, path=path, at=(int(found[1]), *t.at))
        yield t


LAYER = re.compile(r"\blayer_(\d+)/")
"""The name of one of several equal layers, in a path."""
