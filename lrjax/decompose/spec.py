"""A spec says which format, and how large; the planner asks it for its options.

A format joins with one file: a frozen dataclass that derives from `Spec`, and a solver registered
with `solve.register`. Subclasses are found by name, so plans on disk name them too.
"""

import dataclasses
import enum
import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from jax import Array

from lrjax.decompose.door import Door
from lrjax.decompose.fields import check_fields
from lrjax.decompose.rank_rule import RankRule, rank_rule_from_json
from lrjax.errors import RuleError, message
from lrjax.formats.layout import Layout
from lrjax.metrics import Kind, Metric, kind_from_json


class Options(NamedTuple):
    """Every size that a weight may take in a format, as the planner compares them: columns [k].

    Attributes:
        ranks: what `Spec.with_rank` takes: integers [k], or [k, d] for formats of d ranks.
        params: parameters of all factors, over the whole stack.
        flops: FLOPs, two a multiply-add, per activation row, over the whole stack.
        error: loss in the metric's own unit, summed over the stack.
    """

    ranks: np.ndarray
    params: np.ndarray
    flops: np.ndarray
    error: np.ndarray


@dataclasses.dataclass(frozen=True, repr=False)
class Spec(ABC):
    """A format and what is fixed of it: static, hashable, one JSON object.

    Attributes:
        metric: the kind of metric that error is measured in; None leaves it to the plan.
        rank_by: a rule that reads the rank off the weight itself, such as `EVBMF()`.

    Raises:
        RankError: a field is not of its type, or holds a negative number.
    """

    metric: Kind | None = dataclasses.field(default=None, kw_only=True)
    rank_by: RankRule | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        check_fields(self)

    def measure(self, w: Array, metric: Metric) -> Array:
        """What `options` needs to know of the matrices [*S, m, n], from the device, jittable.

        Here all singular values of rows^.5 W cols^.5, [*S, min(m, n)]: whitening by the metric's
        sides reduces it to the Frobenius norm. A format that is no matrix product measures more.
        """
        return metric.spectrum(w)

    @property
    def is_exact(self) -> bool:
        """Whether the losses of `options` are just what the solver leaves."""
        return False

    @abstractmethod
    def options(
        self, shape: Sequence[int], dtype: Any, layout: Layout, spectrum: np.ndarray
    ) -> Options:
        """The sizes to choose from; one if the spec fixes its own. Host side, NumPy.

        Args:
          shape: of the dense weight.
          dtype: of the dense weight.
          layout: which of its dimensions are rows and columns.
          spectrum: what `measure` returned.

        Raises:
          RankError: the size that the spec fixes is impossible for this shape.
        """

    @property
    def is_fixed(self) -> bool:
        """Whether the spec says its own size, so that a plan has nothing to choose."""
        sizes = {f.name for f in dataclasses.fields(self)} & {"rank", "ranks", "keep"}
        return any(getattr(self, name) is not None for name in sizes)

    @abstractmethod
    def with_rank(self, rank: Any) -> Self:
        """The spec with its size fixed to one of `Options.ranks`."""

    @property
    def family(self) -> "Spec":
        """What weights share that one call solves: the spec, but for ranks that can be cut after.

        Where the best of a rank leads the best of a larger one, ranks need no solves of their own.
        """
        return self

    @property
    def frame(self) -> Self:
        """The spec with every rank that it has at one: how the weight is cut, and not how large."""
        sizes = {f.name for f in dataclasses.fields(self)} & {"rank", "ranks"}
        return dataclasses.replace(self, **{name: _ones(getattr(self, name)) for name in sizes})

    def covering(self, specs: Sequence["Spec"], shape: Sequence[int]) -> tuple["Spec", np.ndarray]:
        """A spec of ranks no less than those of all `specs`, of one family, and theirs, [G, ...].

        What it is solved with is `solve_covering`.
        """
        return self, np.zeros((len(specs), 0), int)

    def ranked(self, w: np.ndarray) -> Self:
        """The spec with the ranks that its rule finds in the matrices [*S, m, n]; on the host."""
        if self.rank_by is None:
            return self
        ranks = [self.rank_by.rank(x) for x in self.unfoldings(w)]
        return dataclasses.replace(self, rank_by=None).with_unfolding_ranks(ranks, w.shape)

    def unfoldings(self, w: np.ndarray) -> Sequence[np.ndarray]:
        """The matrices whose ranks bound the format's, [*S, m', n'] each; the weight's own."""
        return (w,)

    def with_unfolding_ranks(self, ranks: Sequence[int], shape: Sequence[int]) -> Self:
        """The spec with its size set by the ranks of the `unfoldings` of a weight [*S, m, n]."""
        return self.with_rank(min(ranks[0], *shape[-2:]))

    def tiled(self, tile: int) -> Self:
        """The spec whose `options` have ranks that suit the tile, where it makes them itself."""
        return self

    def is_aligned(self, rank: Any, tile: int) -> bool:
        """Whether a rank of `options` suits the tile."""
        return bool(np.all(np.asarray(rank) % tile == 0))

    def to_json(self) -> dict[str, Any]:
        """The spec as a JSON object: its class name, and the fields that are not at default."""
        return {"spec": type(self).__name__, **{k: _plain(v) for k, v in self._given().items()}}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self._given().items())})"

    def _given(self) -> dict[str, Any]:
        values = {f.name: (getattr(self, f.name), f.default) for f in dataclasses.fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}

    @classmethod
    def field_from_json(cls, name: str, value: Any) -> Any:
        """A field's value from its JSON; formats with fields of other types extend it."""
        if name == "metric" and value is not None:
            return kind_from_json(value)
        if name == "rank_by" and value is not None:
            return rank_rule_from_json(value)
        return tuple(value) if isinstance(value, list) else value


def spec_from_json(data: Mapping[str, Any]) -> Spec:
    """The spec that `Spec.to_json` described; specs of your own must be imported before.

    Raises:
      RuleError: no such spec is known, or it has no such field.
    """
    fields = dict(data)
    name = fields.pop("spec", None)
    known = {cls.__name__: cls for cls in _concrete(Spec)}
    if name not in known:
        raise RuleError(
            message(
                got=f"spec {name!r}",
                expected=f'an object whose "spec" is one of {", ".join(sorted(known))}',
                todo="Correct the name, or import the module that defines it.",
            )
        )
    cls = known[name]
    allowed = [f.name for f in dataclasses.fields(cls)]
    if unknown := sorted(set(fields) - set(allowed)):
        raise RuleError(
            message(
                got=f"{name} with {', '.join(unknown)}",
                expected=f"only {', '.join(allowed)}",
                todo="Remove or correct the field.",
            )
        )
    return cls(**{k: cls.field_from_json(k, v) for k, v in fields.items()})


@Door
def solve(
    spec: Spec,
    w: Array,
    *,
    metric: Metric | None = None,
    key: Array | None = None,
    init: Any = None,
) -> tuple[Any, Any]:
    """Factor matrices [*S, m, n] as the spec says; returns (format, Info), batched over *S.

    Args:
      spec: static; its size must be fixed.
      w: the matrices.
      metric: what error means; None is the Frobenius norm.
      key: randomness; None is a fixed key, the same key gives the same bits.
      init: factors to start from, where the solver is iterative.

    Raises:
      RuleError: no solver is registered for this type of spec.
      DtypeError: the weight is not of a floating type.
      ShapeError: it is no matrix or empty, or the metric does not fit it.
      StatsError: `metric` is no metric.
    """
    raise RuleError(
        message(
            got=f"a spec of type {type(spec).__name__}",
            expected="a spec whose solver is registered with solve.register",
            todo="Import the module that defines the solver.",
        )
    )


@functools.singledispatch
def solve_covering(
    spec: Spec,
    w: Array,
    ranks: Array,
    *,
    metric: Metric | None = None,
    key: Array | None = None,
) -> tuple[Any, Any]:
    """`solve` of matrices [G, *S, m, n] at a spec that covers them, each with ranks of its own.

    Ranks are values here, and what is beyond them is zero: factors of one shape, one compilation.

    Args:
      spec: static; what `Spec.covering` returned.
      w: the matrices.
      ranks: each one's, [G, ...], with that spec.
      metric: what error means.
      key: randomness.
    """
    return solve(spec, w, metric=metric, key=key)


def _ones(ranks: Any) -> Any:
    if isinstance(ranks, tuple):
        return tuple(map(_ones, ranks))
    return ranks if ranks is None or isinstance(ranks, bool) else 1


def _plain(value: Any) -> Any:
    match value:
        case Kind() | RankRule():
            return value.to_json()
        case enum.Enum():
            return value.name
        case np.generic():
            return value.item()
        case tuple():
            return [_plain(v) for v in value]
    return value


def _concrete(cls: type) -> Iterator[type]:
    for sub in cls.__subclasses__():
        if not inspect.isabstract(sub):
            yield sub
        yield from _concrete(sub)
