"""What nested bases of any rank leave of a matrix: curves for the plan, on the host."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float

POINTS = 20
"""Thresholds of a curve; ranks between them are interpolated."""

Ranks = tuple[int, ...]
Grid = Float[np.ndarray, "S c c _ _"]


def nested_losses(
    w: Float[np.ndarray, "S m n"], levels: int, tile: int, ranks: Sequence[int] | None = None
) -> list[tuple[Ranks, float]]:
    """Ranks of all levels, coarse first, by thresholds of what they take; and what is lost.

    Every level keeps as many vectors of its bases as take more than the threshold of all its
    blocks together; projections are orthogonal, so that their losses add up.

    Args:
      w: matrices that share their ranks.
      levels: how often they halve.
      tile: ranks are multiples of it.
      ranks: the only ones, in place of those that thresholds give.
    """
    if not levels:
        return [((), 0.0)]
    s, m, n = w.shape
    count = 2**levels
    grid = w.reshape(s, count, m // count, count, n // count).swapaxes(2, 3)
    turned, gains = _turned(grid)
    most = min(len(gains), m * n // (m + n))
    if ranks is not None:
        return [_kept(turned, gains, lambda level, _: ranks[level - 1], 1)]
    ends = np.unique(np.round(np.geomspace(1, most, POINTS)).astype(int)) if most else ()
    above = lambda threshold: lambda _, gains: int(np.sum(gains >= threshold))
    return [_kept(turned, gains, above(gains[end - 1]), tile) for end in ends]


def steps_between(
    curve: Iterable[tuple[Ranks, float]], size: Callable[[Ranks], int], tile: int
) -> Iterator[tuple[Ranks, float]]:
    """The curve, and ranks raised a tile at a time from one point to the next, fine levels first.

    Their losses are on a line between the points, logarithms over sizes.
    """
    before: tuple[Ranks, float] | None = None
    for ranks, loss in curve:
        if before is not None and ranks == before[0]:
            continue
        if before is not None and all(a <= b for a, b in zip(before[0], ranks, strict=True)):
            low, high = size(before[0]), size(ranks)
            ends = np.log(np.maximum([before[1], loss], 1e-300))
            for own in _path(before[0], ranks, tile):
                yield own, float(np.exp(np.interp(size(own), [low, high], ends)))
        yield ranks, loss
        before = ranks, loss


def _path(low: Ranks, high: Ranks, tile: int) -> Iterator[Ranks]:
    """Ranks between two points, all levels rising alike, fine ones first: a parent needs them."""
    rise, own = np.subtract(high, low) // tile, [*low, max(high)]
    for step in range(1, int(rise.max(initial=0)) + 1):
        goal = np.add(low, tile * (step * rise // rise.max()))
        for level in reversed(range(len(low))):
            while own[level] < min(goal[level], 2 * own[level + 1]):
                own[level] += tile
                if tuple(own[:-1]) != high:
                    yield tuple(own[:-1])


def _kept(
    turned: Grid, gains: np.ndarray, rank: Callable[[int, np.ndarray], int], tile: int
) -> tuple[Ranks, float]:
    """Ranks and loss of one run through the levels, from the turned blocks of the finest."""
    ranks, lost = [], 0.0
    while True:
        s, c = turned.shape[:2]
        level = c.bit_length() - 1
        r = min(-(-rank(level, gains) // tile), min(turned.shape[-2:]) // tile) * tile
        core = turned[..., :r, :r]
        lost += float(np.sum(turned[..., r:, :] ** 2) + np.sum(turned[..., :r, r:] ** 2))
        ranks.append(r)
        if level == 1 or not r:
            break
        pairs = core.reshape(s, c // 2, 2, c // 2, 2, r, r).transpose(0, 1, 3, 2, 5, 4, 6)
        turned, gains = _turned(pairs.reshape(s, c // 2, c // 2, 2 * r, 2 * r))
    return (0,) * (level - 1) + tuple(ranks[::-1]), lost


def _turned(grid: Grid) -> tuple[Grid, np.ndarray]:
    """Blocks beside the diagonal between full bases of block rows and columns, best first.

    With them comes what each vector of both bases takes of all blocks.
    """
    s, c, _, m, n = grid.shape
    off = np.where(np.eye(c, dtype=bool)[..., None, None], 0, grid)
    left, rows = _basis(off.swapaxes(2, 3).reshape(s, c, m, c * n))
    right, cols = _basis(off.transpose(0, 2, 4, 1, 3).reshape(s, c, n, c * m))
    size = min(len(rows), len(cols))
    turned = left.swapaxes(-1, -2)[:, :, None] @ off @ right[:, None]
    return turned, rows[:size] + cols[:size]


def _basis(rows: Float[np.ndarray, "S c m k"]) -> tuple[np.ndarray, np.ndarray]:
    """All left singular vectors and what they take, summed over blocks."""
    if rows.shape[-1] < rows.shape[-2]:
        left, values, _ = np.linalg.svd(rows, full_matrices=False)
        return left, np.sum(values**2, axis=(0, 1))
    values, vectors = np.linalg.eigh(rows @ rows.swapaxes(-1, -2))
    return vectors[..., ::-1], np.maximum(values[..., ::-1], 0).sum((0, 1))
