"""What hierarchies of blocks have in common as specs: how often W halves, and ranks by level."""

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

from lrjax.decompose.block import grid as blocks
from lrjax.decompose.block.cells import check_grid
from lrjax.decompose.block.specs.common import depths
from lrjax.decompose.spec import Spec
from lrjax.errors import RankError, message


@dataclasses.dataclass(frozen=True, repr=False)
class Hierarchy(Spec):
    """W halves level by level, down to dense diagonal blocks.

    Attributes:
        ranks: of each level, coarse first; or left to the plan.
        levels: how often W halves, or left to the plan.
        sweeps: most sweeps of least squares under a metric that couples blocks.
        tile: ranks are multiples of it; the plan's.
    """

    ranks: tuple[int, ...] | None = None
    levels: int | None = None
    sweeps: int = dataclasses.field(default=blocks.SWEEPS, kw_only=True)

    tile: int = dataclasses.field(default=1, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if self.ranks is not None and self.levels not in (None, len(self.ranks)):
            got, todo = f"ranks {self.ranks} for {self.levels} levels", "Give one rank a level."
            raise RankError(message(got=got, expected=f"{self.levels} ranks", todo=todo))

    def with_rank(self, rank: Any) -> Self:
        """The spec with these (levels, ranks)."""
        levels, *ranks = (int(r) for r in rank)
        return dataclasses.replace(self, ranks=tuple(ranks[:levels]), levels=levels)

    def tiled(self, tile: int) -> Self:
        """The spec with this tile."""
        return dataclasses.replace(self, tile=tile)

    def is_aligned(self, rank: Any, tile: int) -> bool:
        """`options` has seen to it."""
        return True

    @abstractmethod
    def check(self, matrix: tuple[int, ...], ranks: tuple[int, ...]) -> None:
        """Check that levels of a matrix can have these ranks; raises ShapeError or RankError."""

    def depths(self, matrix: Sequence[int]) -> tuple[int, ...]:
        """The numbers of levels that are compared; raises where none can be."""
        if self.ranks is not None:
            self.check(tuple(matrix), self.ranks)
            return (len(self.ranks),)
        if self.levels is not None:
            check_grid(tuple(matrix), (2**self.levels,) * 2, type(self).__name__)
            return (self.levels,)
        return depths(matrix)
