"""Which ranks a tensor ring can have: one before each core, the first closes the ring."""

import math
from collections.abc import Sequence

from lrjax.errors import RankError, ShapeError, message


def check_bonds(shape: Sequence[int], ranks: Sequence[int]) -> tuple[int, ...]:
    """The ranks, if a ring of this shape can have them.

    Raises:
      ShapeError: not one rank a core.
      RankError: a rank below one, or above what its neighbours and the digits between them span.
    """
    ranks, d = tuple(int(r) for r in ranks), len(shape)
    if len(ranks) != d:
        got, expected = f"{len(ranks)} ranks {ranks}", f"{d}, one before each core"
        todo = f"The weight has {d} cores; the first rank closes the ring."
        raise ShapeError(message(got=got, expected=expected, todo=todo))
    for k, rank in enumerate(ranks):
        most = _most(shape, ranks, k)
        if not 1 <= rank <= most:
            got = f"rank {rank} before core {k} in {ranks} for pairs of digits {tuple(shape)}"
            expected = f"1 to {most}: a rank times its digit on either side"
            raise RankError(message(got=got, expected=expected, todo="Change the ranks."))
    return ranks


def check_ranks(shape: Sequence[int], ranks: Sequence[int], first: int = 0) -> tuple[int, ...]:
    """The ranks, if a ring of this shape that is begun at core `first` can have them.

    Raises:
      ShapeError: not one rank a core, or no such core as `first`.
      RankError: ranks that no ring has, or two around core `first` above its digits.
    """
    ranks, d = check_bonds(shape, ranks), len(shape)
    if not 0 <= first < d:
        got, expected = f"first={first}", f"0 to {d - 1}"
        raise ShapeError(message(got=got, expected=expected, todo="Name one of the cores."))
    both, most = ranks[first] * ranks[(first + 1) % d], _vectors(shape, first)
    if both > most:
        got = f"ranks {ranks}, of product {both} around core {first} of pairs {tuple(shape)}"
        expected = f"at most {most}, the vectors that its digits tell apart"
        todo = "Lower one of the two, or begin at a core of more digits (`first`)."
        raise RankError(message(got=got, expected=expected, todo=todo))
    return ranks


def fitting(shape: Sequence[int], ranks: Sequence[int], first: int = 0) -> tuple[int, ...]:
    """The ranks, lowered to what a ring of this shape that is begun at core `first` can have."""
    d, most = len(shape), _vectors(shape, first)
    after = (first + 1) % d
    found = [max(r, 1) for r in ranks]
    found[first] = min(found[first], math.isqrt(most))
    found[after] = min(found[after], most // found[first])
    last: list[int] = []
    while found != last:
        last = list(found)
        for k in range(d):
            found[k] = min(found[k], _most(shape, found, k))
    return tuple(found)


def _most(shape: Sequence[int], ranks: Sequence[int], k: int) -> int:
    """The largest rank before core k that its neighbours and the digits between them span."""
    return min(ranks[k - 1] * shape[k - 1], shape[k] * ranks[(k + 1) % len(shape)])


def _vectors(shape: Sequence[int], first: int) -> int:
    """The rank of the first cut: that of one mode against all others."""
    return min(shape[first], math.prod(shape) // shape[first])
