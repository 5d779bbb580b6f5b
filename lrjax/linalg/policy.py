"""Which method solves a truncated SVD: a static function of shape, rank, backend and accuracy.

Every number here stands beside its reason. Figures: XLA on one AVX-512 core (200 GFLOP/s), float32,
excess = error / optimal error - 1, the worst of the spectra j^-0.3, j^-0.5, j^-0.7.
"""

import enum
import math

from lrjax.linalg.exact import Exact
from lrjax.linalg.gram import GramEigh
from lrjax.linalg.krylov import Krylov
from lrjax.linalg.randomized import Randomized

Method = Exact | GramEigh | Krylov | Randomized


class Accuracy(enum.Enum):
    """How near the optimal truncation error a solve comes."""

    DEFAULT = "default"
    """Within 1.015 of the optimum (measured: 1.008 and better below rank 768, 1.012 above)."""
    ACCURATE = "accurate"
    """Within 1.005 (measured: 1.0005 and better below rank 768, 1.0013 above)."""
    EXACT = "exact"
    """To rounding, small singular values included: the full SVD."""


EIGH_SIZE = 512
"""Up to this order the whole eigenproblem is solved: 0.7, 3.5, 17 ms at 128, 256, 512, near the
launch-bound cost of a Krylov basis, exact, and one compilation serves every rank."""

EIGH_SHARE = 0.65
"""A basis of more than this share of the space costs as much as the space: at 3072 x 768, rank 192,
a basis of 480 (0.63) still beats the Gram's eigenproblem, one of 576 does not."""

GROWTH = {Accuracy.DEFAULT: 1.75, Accuracy.ACCURATE: 2.25}
"""Size of the Krylov basis over the rank. Excess with 8 steps at 1.5 / 1.75 / 2 / 2.5 times the
rank: 1.5e-2 / 5.8e-3 / 2.5e-3 / 6.5e-4; with 12 steps 1.1e-2 / 3.5e-3 / 1.0e-3 / 5e-5 (1e-4 at
2.25)."""

STEPS = {Accuracy.DEFAULT: (8, 6), Accuracy.ACCURATE: (12, 10)}
"""Block steps, for matrices within `CACHE` and beyond: more steps of narrower blocks give a smaller
error from the same arithmetic, until products become too narrow to be fast."""

CACHE = 2_000_000
"""Entries (8 MB) above which a step is bound by reading W, not by arithmetic: a product of a
4096 x 4096 matrix with 32 columns takes as long as with 16. Fewer steps of wider blocks then: rank
64 in 8 / 6 steps 160 / 115 ms, excess 1.7e-3 / 4.1e-3."""

WIDE_RANK = 768
"""From this rank on the basis' own eigenproblem (0.21, 0.37 s at 1280, 1536) weighs more than the
products, and the basis is smaller: see `WIDE`."""

WIDE = {Accuracy.DEFAULT: (1.5, 12), Accuracy.ACCURATE: (2.0, 10)}
"""Size of the basis over the rank, and steps, for wide ranks. 4096 x 4096, rank 1024: 1.7 s at an
excess of 1.2e-2, and 2.4 s at 1.3e-3 (2.5 times the rank: 4.3 s, 2e-5)."""

NARROW = 1.4
"""What an operation costs in a Krylov step's narrow product, in those of a square one."""

PAD = 16
"""Least surplus of the basis over the rank: ranks of a few need a span to choose from."""


def choose(
    shape: tuple[int, int],
    rank: int,
    *,
    accuracy: Accuracy = Accuracy.DEFAULT,
    backend: str = "cpu",
) -> Method:
    """The method for one matrix of this shape, or for each matrix of a stack of them.

    Accelerators take half the steps of twice the width: there a step costs its launches, and a
    wide product is free. That side is reasoned, not measured.
    """
    order = min(shape)
    if accuracy is Accuracy.EXACT:
        return Exact()
    growth, steps = GROWTH[accuracy], STEPS[accuracy][math.prod(shape) > CACHE]
    if rank >= WIDE_RANK:
        growth, steps = WIDE[accuracy]
    if backend != "cpu":
        growth, steps = growth + 0.5, max(steps // 2, 4)
    wanted = max(growth * rank, rank + PAD)
    block = _round_up(math.ceil(wanted / steps), 4)
    if order <= EIGH_SIZE or block * steps > EIGH_SHARE * order:
        return GramEigh()
    return Krylov(block, steps, formed=_pays_to_form(max(shape), order, rank, block * steps))


def _pays_to_form(m: int, n: int, rank: int, size: int) -> bool:
    """Whether W'W first and its powers after take fewer operations than W and W' in every step.

    2 m n^2 + 2 n^2 l + 2 m n r against 4 m n l: tall matrices and large ranks. 3072 x 768 at rank
    192: 46 against 61 ms, excess 5e-5 against 8e-5.
    """
    formed = 2 * m * n * n + NARROW * 2 * n * n * size + 2 * m * n * rank
    return formed < NARROW * 4 * m * n * size


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
