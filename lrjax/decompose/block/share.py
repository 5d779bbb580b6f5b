"""Which block gets how many ranks: one threshold over the singular values of all blocks.

With the loss of every rank-one term known, the best K terms are the K largest, whichever block
they are in. What is stored is the block row and the block column with the most terms, so unequal
sums leave slots empty: those that no term above the threshold takes go to the largest terms that
fit. Host side, NumPy.
"""

import numpy as np

LEVELS = 24
"""Thresholds that are compared; neighbours differ by less than a fifth in parameters."""


def ladder(energy: np.ndarray, tile: int = 1) -> list[np.ndarray]:
    """Ranks [p, q] of many sizes, from squared singular values [p, q, k] that fall along k.

    Terms of a block row, and of a block column, fill multiples of `tile`.
    """
    k = energy.shape[-1]
    falling = np.sort(energy[energy > 0])[::-1]
    found: dict[bytes, np.ndarray] = {}
    counts = np.unique(np.geomspace(1, max(len(falling), 1), LEVELS).astype(int))
    for count in counts if len(falling) else ():
        ranks = filled(energy, (energy >= falling[count - 1]).sum(-1), tile)
        found.setdefault(ranks.tobytes(), ranks)
    for r in np.unique(np.geomspace(1, k, LEVELS).astype(int)):
        if any(size * r % tile for size in energy.shape[:2]):
            continue
        ranks = capped(energy, int(r))
        found.setdefault(ranks.tobytes(), ranks)
    return list(found.values())


def filled(energy: np.ndarray, ranks: np.ndarray, tile: int = 1) -> np.ndarray:
    """Further terms, largest first, for the slots that these ranks leave empty."""
    width, height = (-(-int(ranks.sum(axis).max()) // tile) * tile for axis in (1, 0))
    return _greedy(energy, width, height, ranks)


def capped(energy: np.ndarray, rank: int) -> np.ndarray:
    """The ranks of the least loss found that cost no more than `rank` in every block."""
    p, q, _ = energy.shape
    even = np.full((p, q), rank)
    greedy = _greedy(energy, q * rank, p * rank, np.zeros((p, q), int))
    return min(greedy, even, key=lambda ranks: lost(energy, ranks))


def lost(energy: np.ndarray, ranks: np.ndarray) -> float:
    """What these ranks leave out."""
    kept = np.arange(energy.shape[-1]) < ranks[..., None]
    return float(energy[~kept].sum())


def _greedy(energy: np.ndarray, width: int, height: int, start: np.ndarray) -> np.ndarray:
    """Terms in falling order, each where both its block row and its block column have room."""
    p, q, k = energy.shape
    ranks = start.copy()
    rooms = width - ranks.sum(1), height - ranks.sum(0)
    free = np.arange(k) >= ranks[..., None]
    order = np.argsort(-np.where(free, energy, -1).reshape(-1), kind="stable")
    blocks = order[: int((free & (energy > 0)).sum())] // k
    rows, cols = rooms[0].tolist(), rooms[1].tolist()
    flat = ranks.reshape(-1)
    left = min(sum(rows), sum(cols))
    for block in blocks.tolist():
        if not left:
            break
        i, j = divmod(block, q)
        if rows[i] and cols[j]:
            rows[i] -= 1
            cols[j] -= 1
            left -= 1
            flat[block] += 1
    return flat.reshape(p, q)
