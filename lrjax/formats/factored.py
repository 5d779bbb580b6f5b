"""The base of every factored weight, and how to add one's own.

A format is a frozen dataclass of factor arrays that says which network it stands for:

```python
@lrjax.formats.register
@dataclasses.dataclass(frozen=True)
class Kronecker(Factored):
    \"\"\"W = kron(a, b), a [*B, i, j], b [*B, k, l], W [*B, i*k, j*l].\"\"\"
    a: Array
    b: Array

    def networks(self):
        return (Network.parse("... i j, ... k l -> ... (i k) (j l)", self.a, self.b),)
```

That is all: products, lookups, convolutions, slices, costs, shardings, gradients, `lift` and the
artefact follow from the network. Three rules keep transformations working:

- fields are arrays (or tuples of arrays, or weights); what is static is named in
  `register(meta=...)` and is hashable; the dense shape is derived, never stored;
- no checks in construction (JAX rebuilds pytrees from placeholders): they go into `validate`;
- operands appear in `networks` in the order of the pytree's leaves, reshaped at most by
  splitting axes, so that a sharding of the weight can be carried over to the factors.
"""

import abc
import dataclasses
import functools
import math
from collections.abc import Set
from typing import Any, Self

import jax
import jax.numpy as jnp

from lrjax.errors import DtypeError, ShapeError, message
from lrjax.formats.layout import Layout, default_layout
from lrjax.formats.lazy import LazyArray, Operators, product
from lrjax.formats.network import Network
from lrjax.formats.product import flops
from lrjax.trees import Weight


def register(cls: type | None = None, *, meta: tuple[str, ...] = ()) -> Any:
    """Register a frozen dataclass as a pytree; fields named in `meta` are static."""
    if cls is None:
        return functools.partial(register, meta=meta)
    data = [f.name for f in dataclasses.fields(cls) if f.name not in meta]
    return jax.tree_util.register_dataclass(cls, data, list(meta))


class Factored(Weight, Operators, abc.ABC):
    """A weight held by its factors: a pytree whose leaves are the factor arrays."""

    @abc.abstractmethod
    def networks(self) -> tuple[Network, ...]:
        """The networks whose sum is the dense weight; called on arrays or abstract arrays."""

    def lazy(self, name: str = "?") -> LazyArray:
        """The weight as a lazy array; `name` appears in messages."""
        return LazyArray(self.networks(), None, name)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense weight, derived from the factors."""
        return abstract(self).networks()[0].shape

    @property
    def dtype(self) -> Any:
        """Promoted dtype of the factors."""
        return jnp.result_type(*(x.dtype for x in jax.tree.leaves(self)))

    @property
    def layout(self) -> Layout:
        """Which dense dimensions are input and which output."""
        return default_layout(self.shape)

    @property
    def price(self) -> int:
        """Arithmetic of one row through one entry of the stack, in the streaming order."""
        stack, inputs, outputs = self.layout.resolve(self.ndim)
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[len(stack) :], x.dtype), self)
        first, *others = nets = one.networks()
        rows, cols = (tuple(d - len(stack) for d in side) for side in (inputs, outputs))
        products = sum(flops(net, 1, (), rows, cols) for net in nets)
        return products + len(others) * math.prod(first.shape[d] for d in cols)

    def through(
        self,
        activation: tuple[Any, tuple[int, ...]],
        labels: tuple[int, ...],
        sides: tuple[tuple[int, ...], tuple[int, ...]],
        keep: Set[int],
        precision: Any = None,
    ) -> tuple[Any, tuple[int, ...]]:
        """A labelled array times this weight, where it is an operand of another's network.

        Args:
          activation: the array and its labels.
          labels: the weight's; what both have is a batch, or is summed.
          sides: labels that go, and those that come.
          keep: labels that stay.
          precision: as in `jax.lax.dot_general`.
        """
        (x, own), (gone, new) = activation, sides
        batch = [k for k in labels if k in keep and k not in new]
        rest = [k for k in own if k in keep and k not in gone and k not in batch]
        out = (*batch, *new[:-1], *rest, *new[-1:])  # as batched products lay them out
        return product([(x, own), (self, labels)], out, precision=precision), out

    def astype(self, dtype: Any) -> Self:
        """The same weight with its factors cast."""
        return jax.tree.map(lambda x: x.astype(dtype), self)

    def validate(self) -> Self:
        """Check that the factors fit together, and return the weight.

        Raises:
          ShapeError: factors have no common network, or the terms different dense shapes.
          DtypeError: a factor is not floating, or the factors' dtypes differ.
        """
        kind = type(self).__name__
        leaves = jax.tree.leaves(self)
        for x in leaves:
            if not hasattr(x, "dtype") or not hasattr(x, "shape"):
                todo = "Build the weight from arrays."
                raise DtypeError(message(path=kind, got=type(x), expected="an array", todo=todo))
            if not jnp.issubdtype(x.dtype, jnp.inexact):
                todo = "Cast it first."
                raise DtypeError(
                    message(path=kind, got=x.dtype, expected="a floating factor", todo=todo)
                )
        if len({jnp.dtype(x.dtype) for x in leaves}) > 1:
            got = f"dtypes {[str(x.dtype) for x in leaves]}"
            todo = "Cast with `astype`."
            raise DtypeError(message(path=kind, got=got, expected="one dtype", todo=todo))
        try:
            nets = abstract(self).networks()
        except (ValueError, TypeError, IndexError) as e:
            got = f"factors of shapes {[x.shape for x in leaves]} ({e})"
            todo = "See the class's docstring."
            raise ShapeError(
                message(path=kind, got=got, expected="factors of one weight", todo=todo)
            ) from e
        for net in nets:
            _consistent(net, kind)
        if len({net.shape for net in nets}) > 1:
            got = f"terms of shapes {[net.shape for net in nets]}"
            todo = "All terms stand for the same dense shape."
            raise ShapeError(message(path=kind, got=got, expected="one shape", todo=todo))
        return self


def is_factored(x: Any) -> bool:
    """Whether `x` is a factored weight."""
    return isinstance(x, Factored)


def abstract(w: Any) -> Any:
    """The same tree over shapes and dtypes alone."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), w)


def _consistent(net: Network, kind: str) -> None:
    seen: dict[int, int] = {}
    for x, ls in zip(net.operands, net.labels, strict=True):
        if len(x.shape) != len(ls):
            got, expected = f"a factor of shape {x.shape}", f"{len(ls)} axes"
            raise ShapeError(message(path=kind, got=got, expected=expected, todo="Reshape it."))
        for k, n in zip(ls, x.shape, strict=True):
            if seen.setdefault(k, n) != n:
                got = f"factors of shapes {[y.shape for y in net.operands]}"
                expected = f"equal sizes where they meet ({seen[k]} and {n} do not)"
                todo = "Give both factors the same rank and the same stack axes."
                raise ShapeError(message(path=kind, got=got, expected=expected, todo=todo))
