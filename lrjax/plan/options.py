"""Everything that may become of one weight: each candidate format and rank, and staying dense."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from lrjax.decompose import Options, Spec
from lrjax.errors import RankError, RuleError, ShapeError, message
from lrjax.metrics import Kind
from lrjax.plan.allocation import Demand
from lrjax.plan.budget import Currency, of_cache
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
        origin: which of the target's candidates each option is of; -1 for staying dense.
        refused: candidates that cannot stand for the weight, and why.
        sensitivity: of each candidate, true over predicted loss; None where it was not measured.
    """

    target: Target
    kind: Kind
    specs: tuple[Spec | None, ...]
    params: np.ndarray
    flops: np.ndarray
    error: np.ndarray
    total: float
    origin: np.ndarray
    refused: dict[int, str]
    sensitivity: tuple[float, ...] | None = None

    def costs(self, currency: Currency) -> np.ndarray:
        """Cost of each option in a currency."""
        match currency:
            case Currency.PARAMS:
                return self.params
            case Currency.BYTES:
                return self.params * self.target.leaf.dtype.itemsize
            case Currency.FLOPS:
                return self.flops
            case Currency.KV_BYTES:
                raise of_cache(currency.value)

    @property
    def scale(self) -> np.ndarray:
        """What the error of each option counts, by its candidate's sensitivity; dense has none."""
        if self.sensitivity is None:
            return np.ones(len(self.specs))
        return np.array([*self.sensitivity, 1.0])[self.origin]

    @property
    def is_fixed(self) -> bool:
        """Whether there is nothing to choose."""
        return len(self.specs) == 1

    def demand(self, currency: Currency) -> Demand:
        """What the weight asks of the allocation."""
        costs = self.costs(currency)
        dense = {Currency.PARAMS: self.target.size, Currency.FLOPS: dense_flops(self.target)}
        dense[Currency.BYTES] = self.target.size * self.target.leaf.dtype.itemsize
        known = self.sensitivity or (1.0,)
        return Demand(
            costs,
            self.scale * self.error,
            dense[currency],
            sum(known) / len(known) * self.total,
            self.kind.is_model_loss or self.sensitivity is not None,
        )


def dense_flops(target: Target) -> int:
    """FLOPs per activation row of the dense weight; reading rows of a table takes none."""
    return 0 if target.lookup else 2 * target.size


def choices(
    target: Target,
    kind: Kind,
    measured: Sequence[Any],
    total: float,
    *,
    tile: int,
    scale: float = 1.0,
    refused: dict[int, str] | None = None,
) -> Choices:
    """All options of a weight.

    Ranks are multiples of `tile` and below break-even; a spec whose rank is fixed has that one, but
    a rank that a rule found above break-even leaves the weight dense.

    Args:
        target: the weight.
        kind: its metric.
        measured: what `Spec.measure` found of it, for each candidate spec.
        total: loss of dropping the weight.
        tile: ranks are multiples of it.
        scale: what all losses are multiplied by.
        refused: candidates that cannot stand for this weight, and why.

    Raises:
        RankError: the fixed rank of the only candidate is impossible, or costs more than the dense
            weight and the spec does not allow it.
        ShapeError: no size of the only candidate fits the weight's dims.
    """
    specs: list[Spec | None] = []
    columns: list[tuple[int, int, float]] = []
    origin: list[int] = []
    refused = dict(refused or {})
    *_, m, n = target.matrix_shape
    # reading a row of a factored table contracts its output side alone
    share = n / (m + n) if target.lookup else 1
    fixed = False
    for candidate, (spec, seen) in enumerate(zip(target.specs, measured, strict=True)):
        if candidate in refused:
            continue
        given = spec.is_fixed and candidate not in target.ruled
        fixed |= given
        try:
            found = _spec_options(target, spec if given else spec.tiled(tile), seen)
        except (RankError, RuleError, ShapeError) as e:
            if len(target.specs) == 1 and candidate not in target.ruled:
                raise
            refused[candidate] = str(e).removeprefix(f"{target.path}: ")
            continue
        before, misfit = len(specs), ""
        for rank, params, flops, error in zip(*found, strict=True):
            aligned = candidate in target.ruled or spec.is_aligned(rank, tile)
            if given or (params < target.size and aligned):
                sized = spec.with_rank(int(rank) if np.ndim(rank) == 0 else tuple(map(int, rank)))
                if no := target.misfit(sized):
                    misfit = no
                    continue
                specs.append(sized)
                columns.append((int(params), int(flops * share), scale * float(error)))
                origin.append(candidate)
        if len(specs) == before and misfit:
            if len(target.specs) == 1:
                raise ShapeError(f"{target.path}: {misfit}")
            refused[candidate] = misfit
        elif len(specs) == before:
            refused[candidate] = "no size below the dense weight's"
        elif candidate in target.ruled:
            fixed = True
    if not fixed:
        specs.append(None)
        columns.append((target.size, dense_flops(target), 0.0))
        origin.append(-1)
    if not columns:
        got, todo = f"{target.specs} for {target.matrix_shape}", "Give the spec all its sizes."
        expected = "sizes that the weight can have"
        raise RankError(message(path=target.path, got=got, expected=expected, todo=todo))
    params, flops, error = zip(*columns, strict=True)
    return Choices(
        target,
        kind,
        tuple(specs),
        np.asarray(params, np.int64),
        np.asarray(flops, np.int64),
        np.asarray(error, np.float64),
        scale * total,
        np.asarray(origin),
        refused,
    )


def _spec_options(target: Target, spec: Spec, measured: Any) -> Options:
    try:
        return spec.options(target.leaf.shape, target.leaf.dtype, target.layout, measured)
    except (RankError, RuleError, ShapeError) as e:
        raise type(e)(f"{target.path}: {e}") from e
