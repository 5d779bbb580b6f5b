"""Everything that may become of one weight: each candidate format and rank, and staying dense."""

import dataclasses
from typing import Any

import numpy as np

from lrjax.decompose import Options, Spec
from lrjax.errors import RankError, message
from lrjax.metrics import Kind, TwoSided
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
            isinstance(self.kind, TwoSided),
        )


def dense_flops(target: Target) -> int:
    """FLOPs per activation row of the dense weight; reading rows of a table takes none."""
    return 0 if target.lookup else 2 * target.size


def choices(target: Target, kind: Kind, spectrum: np.ndarray, *, tile: int) -> Choices:
    """All options of a weight with spectrum [*S, min(m, n)].

    Ranks are multiples of `tile` and below break-even; a spec whose rank is fixed has that one.

    Raises:
        RankError: a fixed rank is impossible, or costs more than the dense weight.
    """
    specs: list[Spec | None] = []
    columns: list[tuple[int, int, float]] = []
    total = float(np.sum(spectrum**2))
    *_, m, n = target.matrix_shape
    # reading a row of a factored table contracts its output side alone
    share = n / (m + n) if target.lookup else 1
    fixed = False
    for spec in target.specs:
        mine = _is_fixed(spec)
        options = _spec_options(target, spec, spectrum)
        fixed |= mine
        for rank, params, flops, error in zip(
            options.ranks, options.params, options.flops, options.error, strict=True
        ):
            if params >= target.size:
                if mine:
                    raise _above_break_even(target, spec, int(params))
                continue
            if mine or rank % tile == 0:
                specs.append(spec.with_rank(int(rank)))
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


def _spec_options(target: Target, spec: Spec, spectrum: np.ndarray) -> Options:
    *_, m, n = target.matrix_shape
    rank = getattr(spec, "rank", None)
    try:
        if isinstance(rank, int) and not 1 <= rank <= min(m, n):
            expected = f"a rank from 1 to {min(m, n)}"
            raise RankError(message(got=spec, expected=expected, todo="Correct the rank."))
        return spec.options(target.leaf.shape, target.leaf.dtype, target.layout, spectrum)
    except RankError as e:
        raise RankError(f"{target.path}: {e}") from e


def _is_fixed(spec: Any) -> bool:
    return getattr(spec, "rank", None) is not None or getattr(spec, "keep", None) is not None


def _above_break_even(target: Target, spec: Spec, params: int) -> RankError:
    *_, m, n = target.matrix_shape
    return RankError(
        message(
            path=target.path,
            got=f"{spec} with {params} parameters",
            expected=f"fewer than the dense weight's {target.size} "
            f"(break-even rank of {m}x{n} is {m * n / (m + n):.1f})",
            todo="Lower the rank, or map the weight to None to keep it dense.",
        )
    )
