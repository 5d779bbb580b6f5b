"""Everything that may become of one weight: each candidate format and rank, and staying dense."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from lrjax.decompose import Options, Spec
from lrjax.errors import RankError
from lrjax.metrics import Kind
from lrjax.plan.allocation import Demand
from lrjax.plan.budget import Currency
from lrjax.plan.matching import Target


@dataclasses.dataclass(frozen=True)
class Choices:
    """Options of one weight, [k] each; `specs` is None where it stays dense (the last).

    Attributes:
        target: the weight.
        kind: its metric.
        specs: format, rank fixed.
        params: parameters, likewise `bytes` and `flops` per activation row.
        error: calibrated loss.
        total: loss of dropping the weight.
    """

    target: Target
    kind: Kind
    specs: tuple[Spec | None, ...]
    params: np.ndarray
    flops: np.ndarray
    error: np.ndarray
    total: float

    def costs(self, currency: Currency) -> np.ndarray:
        """Cost of each option in a currency."""
        match currency:
            case Currency.PARAMS:
                return self.params
            case Currency.BYTES:
                return self.params * self.target.leaf.dtype.itemsize
            case Currency.FLOPS:
                return self.flops

    @property
    def is_fixed(self) -> bool:
        """Whether there is nothing to choose."""
        return len(self.specs) == 1

    def demand(self, currency: Currency) -> Demand:
        """What the weight asks of the allocation."""
        costs = self.costs(currency)
        dense = {Currency.PARAMS: self.target.size, Currency.FLOPS: dense_flops(self.target)}
        dense[Currency.BYTES] = self.target.size * self.target.leaf.dtype.itemsize
        return Demand(
            costs,
            self.error,
            dense[currency],
            self.total,
            self.kind.is_model_loss,
        )


def dense_flops(target: Target) -> int:
    """FLOPs per activation row of the dense weight; reading rows of a table takes none."""
    return 0 if target.lookup else 2 * target.size


def choices(
    target: Target, kind: Kind, measured: Sequence[Any], total: float, *, tile: int
) -> Choices:
    """All options of a weight.

    Ranks are multiples of `tile` and below break-even; a spec whose rank is fixed has that one.

    Args:
        target: the weight.
        kind: its metric.
        measured: what `Spec.measure` found of it, for each candidate spec.
        total: loss of dropping the weight.
        tile: ranks are multiples of it.

    Raises:
        RankError: a fixed rank is impossible, or costs more than the dense weight.
    """
    specs: list[Spec | None] = []
    columns: list[tuple[int, int, float]] = []
    *_, m, n = target.matrix_shape
    # reading a row of a factored table contracts its output side alone
    share = n / (m + n) if target.lookup else 1
    fixed = False
    for spec, seen in zip(target.specs, measured, strict=True):
        given = is_fixed(spec)
        fixed |= given
        for rank, params, flops, error in zip(*_spec_options(target, spec, seen), strict=True):
            useful = params < target.size and np.all(np.asarray(rank) % tile == 0)
            if given or useful:
                size = int(rank) if np.ndim(rank) == 0 else tuple(map(int, rank))
                specs.append(spec.with_rank(size))
                columns.append((int(params), int(flops * share), float(error)))
    if not fixed:
        specs.append(None)
        columns.append((target.size, dense_flops(target), 0.0))
    params, flops, error = zip(*columns, strict=True)
    return Choices(
        target,
        kind,
        tuple(specs),
        np.asarray(params, np.int64),
        np.asarray(flops, np.int64),
        np.asarray(error, np.float64),
        total,
    )


def is_fixed(spec: Spec) -> bool:
    """Whether a spec says its own size."""
    given = (getattr(spec, name, None) for name in ("rank", "ranks", "keep"))
    return any(value is not None for value in given)


def _spec_options(target: Target, spec: Spec, measured: Any) -> Options:
    try:
        return spec.options(target.leaf.shape, target.leaf.dtype, target.layout, measured)
    except RankError as e:
        raise RankError(f"{target.path}: {e}") from e
